"""What is imported when: help stays light, layers look one way."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "av", "cv2", "numpy", "PIL", "tensorboard")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["sample", "--help"], ["train", "--size", "7"]])
def test_help_and_wrong_usage_load_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from msdv.cli import run\n"
        f"run({arguments!r})\n"
        f"print('loaded:', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_config_imports_pydantic_only() -> None:
    script = "import sys, msdv.config; print('typer' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_layers_look_one_way() -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with msdv[dev]")
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_heavy_import_at_the_top_of_a_light_module_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ruff", reason="ruff comes with msdv[dev]")
    for module in HEAVY[:5]:
        command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml")]
        command += ["--select", "TID253", "--stdin-filename", str(ROOT / "msdv" / "light.py"), "-"]
        source = f"import {module}\n\nprint({module})\n"
        done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
        assert "TID253" in done.stdout, (module, done.stdout)
