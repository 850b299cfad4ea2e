"""How fast the noise has to go is measured on the last sample; weights written after it say so, whatever happens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import msdv.records
from msdv.config import TrainConfig
from msdv.model.steering import Slippage
from msdv.records import Records
from msdv.run import Run
from msdv.train import train
from msdv.training import Training
from msdv.verdict import MotionNumbers
from msdv.weights import read_metadata
from tests.runs import assert_equal, settings, state_of

LAST: dict[str, object] = {"steps": 2, "checkpoint_every": 2, "sample_every": 2, "noise": "flow"}


class KilledError(BaseException):
    """As by a power cut."""


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Samples whose picture goes 0.8 times as fast as the clips; the gains with which they were made."""
    gains: list[float] = []

    def measured(self: Training, clips: object, *, seeds: bool) -> MotionNumbers:
        assert self.motion is not None and self.reference is not None and self.reference.numbers.pace_moving
        gains.append(self.motion.gain)
        pace = 0.8 * self.reference.numbers.pace_moving
        return self.reference.numbers.model_copy(update={"pace_moving": pace})

    monkeypatch.setattr(Training, "measure_motion", measured)
    return gains


def gain(file: Path) -> float:
    motion = read_metadata(file).motion
    assert motion is not None
    return motion.gain


def gains(run: Run, step: int) -> list[float]:
    """Of the newest weights, and of those in a checkpoint."""
    return [gain(folder / run.weights.name) for folder in (run.folder, run.checkpoint(step))]


def test_the_last_sample_tells_and_a_resumed_run_goes_on_with_it(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, began: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    many = {**LAST, "steps": 4}
    run = train(settings(tiny_base, sky_frames, tmp_path / "run", **many)).run
    assert gains(run, 4) == [1.25, 1.25]
    assert gain(run.checkpoint(2) / run.weights.name) == 1
    assert [row["motion"].get("gain") for row in run.read_log() if "motion" in row] == [None, 1.25]
    said = "the picture goes 0.8 times as fast as its noise: sampling makes the noise 1.25 times as fast"
    assert capfd.readouterr().err.count(said) == 1
    assert "Sampling makes the noise 1.25 times as fast" in run.report.read_text(encoding="utf-8")
    train(TrainConfig(resume=str(run.folder)))  # there is nothing left to do
    assert began == [1, 1]
    train(TrainConfig(resume=str(run.folder), steps=5))
    assert began == [1, 1, 1.25]
    assert gains(run, 5) == [1.5625, 1.5625]


def test_without_samples_the_gain_stays_that_of_the_layers_it_began_with(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, began: list[float]
) -> None:
    first = train(settings(tiny_base, sky_frames, tmp_path / "a", **LAST)).run
    after = {**LAST, "init": str(first.folder), "sample_every": 0}
    assert gain(train(settings(tiny_base, sky_frames, tmp_path / "b", **after)).run.weights) == 1.25
    assert gain(train(settings(tiny_base, sky_frames, tmp_path / "c", **{**LAST, "sample_every": 0})).run.weights) == 1


def before_the_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Records, "note_motion", killed)


def before_the_weights(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Records, "_write_gain", killed)


def before_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    real, count = msdv.records.write_weights, [0]

    def writes(*args: Any) -> None:
        count[0] += 1
        if count[0] == 3:  # those of the last step, those with the gain, and those in the checkpoint
            killed()
        real(*args)

    patch.setattr(msdv.records, "write_weights", writes)


def killed(*_: object) -> None:
    raise KilledError


@pytest.mark.parametrize("dies", [before_the_row, before_the_weights, before_the_checkpoint])
def test_killed_at_the_end_it_ends_with_the_same_bytes(
    tiny_base: Path,
    sky_frames: Path,
    tmp_path: Path,
    began: list[float],
    dies: Callable[[pytest.MonkeyPatch], None],
) -> None:
    expected = train(settings(tiny_base, sky_frames, tmp_path / "whole", **LAST)).run
    run = Run(tmp_path / "cut")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        dies(patch)
        train(settings(tiny_base, sky_frames, run.folder, **LAST))
    (run.checkpoint(2) / ".unfinished-temporal").write_bytes(b"half")
    train(TrainConfig(resume=str(run.folder)))
    assert gains(run, 2) == [1.25, 1.25]
    assert run.weights.read_bytes() == expected.weights.read_bytes()
    assert_equal(state_of(run), state_of(expected))
    assert [row.get("motion") for row in run.read_log()] == [row.get("motion") for row in expected.read_log()]
    assert not list(run.folder.rglob(".unfinished*"))


def test_a_full_disk_leaves_the_weights_without_it(
    tiny_base: Path,
    sky_frames: Path,
    tmp_path: Path,
    began: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real = Records._write_gain

    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    def writes(self: Records, step: int, gain: float) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(msdv.records, "write_weights", full)
            real(self, step, gain)

    monkeypatch.setattr(Records, "_write_gain", writes)
    run = train(settings(tiny_base, sky_frames, tmp_path / "run", **LAST)).run
    assert gains(run, 2) == [1, 1]
    assert "the weights can't be told how fast the picture goes" in capfd.readouterr().err
    monkeypatch.undo()
    train(TrainConfig(resume=str(run.folder)))
    assert gains(run, 2) == [1.25, 1.25]


def test_slippage_is_measured_with_noise_that_flows_alone(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    flowing, independent = (
        Training(settings(tiny_base, sky_frames, tmp_path / kind, noise=kind)) for kind in ("flow", "independent")
    )
    assert flowing.reference is not None
    assert flowing.measure_slippage(flowing.reference.numbers) == Slippage(1.0)
    assert independent.measure_slippage(flowing.reference.numbers) is None
