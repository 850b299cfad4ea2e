"""What all tests share: no model hub, one thread, and the switches for tests that not every machine can run."""

import os
import signal

import pytest

pytest_plugins = ["tests.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")
    parser.addoption("--network", action="store_true", help="run the tests that need the model hub too")


def pytest_configure(config: pytest.Config) -> None:
    # Here, before any test module is imported: the libraries read these when they are imported.
    if not config.getoption("--network"):
        os.environ["HF_HUB_OFFLINE"] = "1"
    # Results depend on the number of threads, and tests share the machine.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Shells have some signals ignored by what they start in the background, and programs pass that on: tests send them.
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark in ("slow", "network"):
        if not config.getoption(f"--{mark}"):
            _skip(items, mark, f"runs with --{mark}")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch  # only now: most test files need none

        if not torch.cuda.is_available():
            _skip(items, "gpu", "needs a CUDA device, and torch sees none here")


def _skip(items: list[pytest.Item], mark: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(mark):
            item.add_marker(pytest.mark.skip(reason=reason))
