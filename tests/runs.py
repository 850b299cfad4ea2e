"""Trainings that take a second or two, and ways to end them."""

import contextlib
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import msdv.train
from msdv.config import TrainConfig
from msdv.run import Run
from msdv.train import train


def settings(base: Path, data: Path, out: Path, **changes: object) -> TrainConfig:
    """Of a short training of a tiny model."""
    values = {
        "base": str(base),
        "data": data,
        "out": out,
        "frames": 4,
        "size": 32,
        "steps": 6,
        "checkpoint_every": 3,
        "sample_every": 0,
        "lr": 1e-2,
        "device": "cpu",
        **changes,
    }
    return TrainConfig.model_validate(values)


def train_until_killed(config: TrainConfig, moment: int | None) -> int:
    """Train in a process of its own, which is killed as by `kill -9` just before it changes something in the run folder
    for the `moment`-th time; at every second one that writes a file, when half of it is written. With None it is not
    killed. Returns how many such moments there were."""
    counter = config.out.with_suffix(".moments") if config.out else Path("moments")
    counter.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork beside threads: they have nothing to do here
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _count_moments(counter, moment)
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
                train(config)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if moment is None:
        assert os.waitstatus_to_exitcode(status) == 0
    else:
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"ended before moment {moment}"
    return len(counter.read_bytes())


def _count_moments(counter: Path, fatal: int | None) -> None:
    count, begun = 0, False

    def passes(half: Callable[[], None] = lambda: None) -> None:
        nonlocal count
        if not begun:
            return
        count += 1
        with counter.open("ab") as file:
            file.write(b".")
        if count == fatal:
            if count % 2:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any, **kwargs: Any) -> Any:
            passes()
            return real(*args, **kwargs)

        return watching

    real_save, real_log, real_begin = torch.save, Run.log, msdv.train.prepare_folder

    def begin(*args: Any) -> None:
        nonlocal begun
        begun = True
        real_begin(*args)

    def save(state: Any, path: Path) -> None:
        def half() -> None:
            real_save(state, path)
            os.truncate(path, path.stat().st_size // 2)

        passes(half)
        real_save(state, path)

    def log(run: Run, **values: Any) -> None:
        def half() -> None:
            with run.metrics.open("a") as file:
                file.write('{"step": 7, "lo')

        passes(half)
        real_log(run, **values)

    msdv.train.prepare_folder = begin
    torch.save, Run.log = save, log  # type: ignore[assignment, method-assign]
    os.fsync, shutil.rmtree = watched(os.fsync), watched(shutil.rmtree)  # type: ignore[assignment]
    Path.replace, Path.unlink = watched(Path.replace), watched(Path.unlink)  # type: ignore[assignment, method-assign]


def state_of(run: Run) -> dict[str, Any]:
    """All that the newest checkpoint of a run holds."""
    state: dict[str, Any] = torch.load(run.checkpoints()[-1][1] / "training.pt", weights_only=True)
    return state


def assert_equal(a: Any, b: Any) -> None:
    """Both hold the same, bit by bit."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def assert_same_training(a: Run, b: Run) -> None:
    """Weights byte by byte, all of the newest checkpoint, and what was logged but for times."""
    assert a.weights.read_bytes() == b.weights.read_bytes()
    assert [step for step, _ in a.checkpoints()] == [step for step, _ in b.checkpoints()]
    assert_equal(state_of(a), state_of(b))
    rows = [
        sorted(
            ({k: v for k, v in row.items() if k not in ("seconds", "memory_gib")} for row in run.read_log()),
            key=lambda row: (row["step"], "held_out" in row),
        )
        for run in (a, b)
    ]
    assert rows[0] == rows[1]
