"""A training that ends before its end, by whatever, goes on as if it had not."""

import errno
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import msdv.records
import msdv.train
from msdv.config import TrainConfig
from msdv.errors import MsdvError
from msdv.recipe import read_section
from msdv.run import Run
from msdv.train import train
from msdv.weights import read_metadata
from tests.runs import assert_same_training, settings, train_until_killed

KILLED: dict[str, object] = {"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 1, "ema": 0.9}
posix = pytest.mark.skipif(os.name == "nt", reason="no fork, no kill -9")


@pytest.fixture(scope="module")
def whole(tiny_base: Path, sky_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, int]:
    """A run that nothing happens to, and in how many moments it could have been killed."""
    config = settings(tiny_base, sky_frames, tmp_path_factory.mktemp("whole") / "run", **KILLED)
    return Run(config.out or Path()), train_until_killed(config, None)


def kill_and_resume(base: Path, data: Path, out: Path, moment: int, expected: Run) -> None:
    train_until_killed(settings(base, data, out, **KILLED), moment)
    if (out / "config.toml").exists():
        again = TrainConfig(resume=str(out))
    else:
        again = settings(base, data, out, overwrite=True, **KILLED)
    assert_same_training(train(again).run, expected)
    assert not [path for path in out.rglob("*") if path.name.startswith(".unfinished")]


@posix
@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.65, 0.8, 0.97])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, whole: tuple[Run, int], share: float
) -> None:
    run, moments = whole
    kill_and_resume(tiny_base, sky_frames, tmp_path / "run", round(share * moments), run)


@posix
@pytest.mark.slow
def test_killed_at_every_moment_it_ends_with_the_same_bytes(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, whole: tuple[Run, int]
) -> None:
    run, moments = whole
    for moment in range(1, moments + 1):
        kill_and_resume(tiny_base, sky_frames, tmp_path / str(moment), moment, run)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"fp16": True, "offload_optim": True, "ema": 0.9, "noise": "flow"}])
def test_twenty_steps_a_kill_and_twenty_more_are_forty(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    long = {"steps": 40, "checkpoint_every": 20, **changes}
    expected = train(settings(tiny_base, sky_frames, tmp_path / "whole", **long)).run
    real = msdv.train._Loop._step

    def dies(self: msdv.train._Loop, step: int, stop: threading.Event) -> Any:
        if step == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, step, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(msdv.train._Loop, "_step", dies)
        train_until_killed(settings(tiny_base, sky_frames, tmp_path / "cut", **long), 10**9)
    assert [step for step, _ in Run(tmp_path / "cut").checkpoints()] == [20]
    assert_same_training(train(TrainConfig(resume=str(tmp_path / "cut"))).run, expected)


def test_what_follows_a_checkpoint_is_made_up_for(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def dies(*_: object) -> None:
        raise KilledError

    config = settings(tiny_base, sky_frames, tmp_path / "run", steps=4, checkpoint_every=2, sample_every=2)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(msdv.train._Loop, "_evaluate", dies)
        train(config)
    run = Run(tmp_path / "run")
    assert [step for step, _ in run.checkpoints()] == [2]
    assert not run.sample(2).exists()
    train(TrainConfig(resume=str(run.folder)))
    assert run.sample(2).exists()
    assert [row["step"] for row in run.read_log() if "held_out" in row] == [2, 4]


def test_a_failure_saves_the_steps_before_it(
    tiny_base: Path,
    sky_frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real = msdv.train._Loop._step

    def fails(self: msdv.train._Loop, step: int, stop: threading.Event) -> Any:
        if step == 5:
            raise RuntimeError("the disk with the clips is gone")
        return real(self, step, stop)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="is gone"):
        patch.setattr(msdv.train._Loop, "_step", fails)
        train(settings(tiny_base, sky_frames, tmp_path / "run"))
    assert "step 5 is saved" in capfd.readouterr().err
    expected = train(settings(tiny_base, sky_frames, tmp_path / "whole")).run
    resumed = train(TrainConfig(resume=str(tmp_path / "run"))).run
    assert resumed.weights.read_bytes() == expected.weights.read_bytes()


def test_a_damaged_checkpoint_does_not_outlive_a_good_one(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    config = settings(tiny_base, sky_frames, tmp_path / "run", steps=4, checkpoint_every=2)
    run = train(config).run
    (run.checkpoint(4) / "training.pt").write_bytes(b"")
    changed = TrainConfig(resume=str(run.folder), checkpoint_every=1, keep_checkpoints=1, steps=3)
    train(changed)
    assert [step for step, _ in run.checkpoints()] == [3]


def test_a_full_disk_leaves_the_old_checkpoint_and_training_goes_on(
    tiny_base: Path,
    sky_frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real, full = torch.save, [4]

    def save(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        if int(state["adamw"]["state"][0]["step"]) in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(state, path)

    monkeypatch.setattr(torch, "save", save)
    config = settings(tiny_base, sky_frames, tmp_path / "run", checkpoint_every=2, keep_checkpoints=1)
    run = train(config).run
    errors = capfd.readouterr().err
    assert (
        "step 4 can't be saved, the disk is full; the newest checkpoint is that of step 2. Training goes on" in errors
    )
    assert [step for step, _ in run.checkpoints()] == [6]
    full.append(8)
    words = r"step 8 can't be saved, the disk is full; .* of step 6, but the weights are in .*: free some space, then"
    with pytest.raises(MsdvError, match=words):
        train(TrainConfig(resume=str(run.folder), steps=8))
    assert [step for step, _ in run.checkpoints()] == [6]
    assert read_metadata(run.weights).steps == 8
    full.clear()
    assert train(TrainConfig(resume=str(run.folder))).run.checkpoints()[-1][0] == 8


def test_room_is_made_by_what_a_new_checkpoint_would_push_out(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, run = torch.save, Run(tmp_path / "run")

    def save(state: Any, path: Path) -> None:
        if len(run.checkpoints()) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(state, path)

    monkeypatch.setattr(torch, "save", save)
    train(settings(tiny_base, sky_frames, run.folder, checkpoint_every=2))
    assert [step for step, _ in run.checkpoints()] == [4, 6]


def test_what_only_tells_of_a_training_does_not_end_it(
    tiny_base: Path,
    sky_frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Run, "log", full)
    monkeypatch.setattr(msdv.records, "write_report", full)
    run = train(settings(tiny_base, sky_frames, tmp_path / "run", steps=3)).run
    assert run.weights.is_file()
    errors = capfd.readouterr().err
    assert errors.count("metrics.jsonl can't be written") == 1
    assert "report.html can't be written" in errors


def test_a_checkpoint_is_made_by_the_clock_too(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {"steps": 3, "checkpoint_every": 100, "keep_checkpoints": 9}
    often = train(settings(tiny_base, sky_frames, tmp_path / "often", checkpoint_minutes=1e-6, **changes)).run
    assert [step for step, _ in often.checkpoints()] == [1, 2, 3]
    never = train(settings(tiny_base, sky_frames, tmp_path / "never", checkpoint_minutes=0, **changes)).run
    assert [step for step, _ in never.checkpoints()] == [3]
    assert often.weights.read_bytes() == never.weights.read_bytes()
    assert [row["step"] for row in often.read_log() if "held_out" in row] == [3]


class Shortage:
    """Stands in for the forward pass, and lacks memory at some calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception, *calls: int) -> None:
        self.count, self.calls, self.error = 0, calls, error
        real = msdv.training.Training.loss

        def loss(training: msdv.training.Training, number: int) -> torch.Tensor:
            self.count += 1
            loss = real(training, number)
            if self.count in self.calls:
                raise self.error
            return loss

        monkeypatch.setattr(msdv.training.Training, "loss", loss)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_takes_a_notch_less_and_repeats_the_step(
    tiny_base: Path,
    sky_frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    changes: dict[str, object] = {"grad_accum": 2, "holdout": 0}
    expected = train(settings(tiny_base, sky_frames, tmp_path / "a", steps=1, schedule="constant", **changes)).run
    train(TrainConfig(resume=str(expected.folder), steps=3, checkpointing="full"))
    with monkeypatch.context() as patch:
        shortage = Shortage(patch, error, 4)  # in the second pass of the second step: half of its gradients are there
        run = train(settings(tiny_base, sky_frames, tmp_path / "b", steps=3, schedule="constant", **changes)).run
    assert shortage.count == 8
    assert run.weights.read_bytes() == expected.weights.read_bytes()
    assert [row["loss"] for row in run.read_log()] == [row["loss"] for row in expected.read_log()]
    assert "not enough memory: going on with --checkpointing full" in capfd.readouterr().err
    assert read_section(run.config, "train")["checkpointing"] == "full"


def test_out_of_memory_with_all_savings_on_saves_and_says_what_to_change(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory")
    config = settings(tiny_base, sky_frames, tmp_path / "run", batch_size=2, checkpoint_every=100)
    with monkeypatch.context() as patch:
        Shortage(patch, error, *range(6, 20))
        with pytest.raises(MsdvError, match=r"with all savings on: go on with .* --batch-size 1 --grad-accum 2"):
            train(config)
    run = Run(tmp_path / "run")
    assert [step for step, _ in run.checkpoints()] == [5]
    train(TrainConfig(resume=str(run.folder), batch_size=1, grad_accum=2))
    assert run.checkpoints()[-1][0] == 6


def test_an_optimizer_that_runs_out_of_memory_leaves_the_last_checkpoint(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = msdv.train.MasterOptimizer.step, []

    def step(self: Any, lr: float, max_grad_norm: float) -> float:
        norm = real(self, lr, max_grad_norm)
        calls.append(lr)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return norm

    monkeypatch.setattr(msdv.train.MasterOptimizer, "step", step)
    with pytest.raises(MsdvError, match="not enough memory for the optimizer: go on with msdv train --resume"):
        train(settings(tiny_base, sky_frames, tmp_path / "run"))
    assert [step for step, _ in Run(tmp_path / "run").checkpoints()] == [3]


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", None)])
def test_a_signal_saves_and_a_second_one_stops_at_once(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    real, handler = msdv.train._Loop._step, signal.getsignal(number)
    times = [1]

    def interrupted(self: msdv.train._Loop, step: int, stop: threading.Event) -> Any:
        if step == 1:
            for _ in range(times[0]):
                os.kill(os.getpid(), number)
        return real(self, step, stop)

    monkeypatch.setattr(msdv.train._Loop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2, which is saved: go on with"):
        train(settings(tiny_base, sky_frames, tmp_path / "once"))
    assert [step for step, _ in Run(tmp_path / "once").checkpoints()] == [2]
    times[0] = 2
    with pytest.raises(KeyboardInterrupt) as caught:
        train(settings(tiny_base, sky_frames, tmp_path / "twice"))
    assert str(caught.value) == ""
    assert Run(tmp_path / "twice").checkpoints() == []
    assert signal.getsignal(number) == handler
