"""What only a CUDA device can show."""

from pathlib import Path

import numpy as np
import pytest

from msdv.config import SampleConfig, TrainConfig
from msdv.data.video import read_video
from msdv.sample import sample
from msdv.train import train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("precision", ["fp16", "bf16", None])
def test_training_runs_in_every_precision_and_resumes(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, precision: str | None, offload: bool
) -> None:
    values: dict[str, object] = {"frames": 4, "size": 32, "steps": 12, "checkpoint_every": 6, "lr": 1e-2}
    values |= {"base": str(tiny_base), "data": sky_frames, "out": tmp_path / "run", "offload_optim": offload}
    if precision:
        values[precision] = True
    report = train(TrainConfig.model_validate(values))
    losses = [row["loss"] for row in report.run.read_log() if isinstance(row.get("loss"), float)]
    assert len(losses) == 12
    assert sum(losses[-4:]) < sum(losses[:4])
    assert train(TrainConfig(resume=str(tmp_path / "run"), steps=14)).steps == 14


def test_sampling_gives_nearly_the_frames_of_the_cpu(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    values: dict[str, object] = {"frames": 4, "size": 32, "steps": 6, "sample_every": 0, "lr": 1e-2, "device": "cpu"}
    train(TrainConfig.model_validate({**values, "base": str(tiny_base), "data": sky_frames, "out": tmp_path / "run"}))
    frames = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        sample(SampleConfig(prompt="sea", out=out, model=str(tmp_path / "run"), frames=5, steps=3, device=device))
        frames.append(read_video(out)[0].astype(int))
    assert np.abs(frames[0] - frames[1]).mean() < 2
