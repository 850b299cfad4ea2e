"""What ships must move: clouds drift, ground stays, words count. Longer samples: see docs/measurements.md."""

from pathlib import Path

import numpy as np
import pytest
import torch

import msdv
from msdv.config import SampleConfig, TrainConfig
from msdv.data.flow import flows
from msdv.data.synthetic import write_sky_videos
from msdv.data.video import read_metadata, read_video
from msdv.model.base import load_base
from msdv.sample import sample

BUILTIN = Path(msdv.__file__).parent / "builtin"


def frames_of(tmp_path: Path, prompt: str, **changes: object) -> np.ndarray:
    values = {
        "prompt": prompt,
        "out": tmp_path / "frames",
        "base": "builtin",
        "frames": 24,
        "steps": 6,
        "device": "cpu",
    }
    values["model"] = str(BUILTIN / "temporal.safetensors")
    sample(SampleConfig.model_validate({**values, "overwrite": True, **changes}))
    return read_video(tmp_path / "frames")[0]


def change(frames: np.ndarray, lag: int) -> float:
    return float(np.abs(frames[lag:].astype(int) - frames[:-lag]).mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_clouds_drift_and_ground_stays(tmp_path: Path, seed: int) -> None:
    frames = frames_of(tmp_path, "clouds timelapse", seed=seed)
    sky, ground = frames[:, :64], frames[:, -16:]
    assert change(sky, 15) > 4
    assert change(sky, 1) / change(sky, 15) <= 0.45
    # 120 frames and the default steps stay under 1.5; so few frames and steps are a little less still.
    assert change(ground, 1) <= 1.8


@pytest.mark.parametrize(("wish", "sign"), [("left", -1), ("right:2", 1)])
def test_motion_is_obeyed(tmp_path: Path, wish: str, sign: int) -> None:
    frames = frames_of(tmp_path, "white clouds, blue sky", motion=wish)
    drift = np.mean([field[:48, :, 0].mean() for field in flows(list(frames))])
    assert drift * sign > 0.3


def test_words_count(tmp_path: Path) -> None:
    night = frames_of(tmp_path, "clouds timelapse, night", frames=2).mean((0, 1, 2))
    day = frames_of(tmp_path, "clouds timelapse, blue sky", frames=2).mean((0, 1, 2))
    sunset = frames_of(tmp_path, "clouds timelapse, sunset", frames=2)[:, :90].mean((0, 1, 2))
    assert night.mean() < 60 < 100 < day.mean()
    assert sunset[0] > sunset[2] + 15
    assert day[2] > day[0]


def test_it_is_small_safe_and_says_what_it_is() -> None:
    files = [path for path in BUILTIN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    base = load_base("builtin", device=torch.device("cpu"), dtype=torch.float32)
    assert base.temporal == BUILTIN / "temporal.safetensors"
    assert base.sample_size == 128


def test_the_temporal_layers_are_worth_something_on_clips_never_trained_on(tmp_path: Path) -> None:
    from msdv.config import PrepConfig
    from msdv.data.prepare import prepare
    from msdv.train import evaluate

    write_sky_videos(tmp_path / "videos", 3, seconds=4, size=128, fps=5.0, seed=987_654)
    prepare(
        PrepConfig(
            videos=tmp_path / "videos", frames=tmp_path / "frames", size=128, trim_start=0, trim_end=0, workers=1
        )
    )
    report = evaluate(TrainConfig(data=tmp_path / "frames", base="builtin", frames=16, evaluate=True, device="cpu"))
    assert {loss.noise for loss in report.losses} == {"independent", "flow"}
    independent = next(loss for loss in report.losses if loss.noise == "independent")
    assert independent.gain >= 0.2, independent


def test_the_same_seed_is_the_same_file_and_a_file_says_what_made_it(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.gif", "b.gif")]
    for path in paths:
        values = {"prompt": "sunset", "base": "builtin", "model": str(BUILTIN / "temporal.safetensors")}
        sample(SampleConfig.model_validate({**values, "out": path, "frames": 3, "steps": 2, "device": "cpu"}))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert read_metadata(paths[0])["prompt"] == "sunset"
