# What one does with a checkout. Everything happens in .venv, which is made at the first use and again only when
# pyproject.toml or constraints.txt change.

PYTHON ?= python3
BIN := .venv/bin
# Tests at a time: each takes a gigabyte or two.
WORKERS ?= 2
INSTALLED := .venv/.installed

.PHONY: help demo test check bench docs clean

help:
	@echo "make demo    videos -> frames -> training -> sample -> export, on this machine, in minutes"
	@echo "make test    all tests that this machine can run (ARGS=--slow for the slow ones too)"
	@echo "make check   style, types and import directions"
	@echo "make bench   measurements"
	@echo "make docs    docs/reference, from the options"
	@echo "make clean   remove what these made, but for .venv"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/demo/demo.sh

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	@set -e; for script in tests/bench/*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: $(INSTALLED)
	$(BIN)/python docs/generate_reference.py

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
