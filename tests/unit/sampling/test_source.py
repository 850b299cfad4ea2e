"""--video: a video made of another one."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from msdv.config import SampleConfig, SchedulerName
from msdv.data.start import Footage
from msdv.data.video import read_metadata, read_video, write_video
from msdv.errors import MsdvError, UsageError
from msdv.model.diffusion import Followed, TrainingSchedule, denoise, make_scheduler
from msdv.sample import sample
from tests.tiny import SCHEDULER

VELOCITY = {**SCHEDULER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def clip(path: Path, count: int = 30, fps: float = 10, **settings: object) -> Path:
    """Frames that become brighter."""
    frames = [np.full((32, 48, 3), 20 + 6 * index, np.uint8) for index in range(count)]
    write_video(path, frames, fps=fps, metadata=settings)
    return path


def config(run: Path, out: Path, video: Path, **changes: object) -> SampleConfig:
    values = {"prompt": "sea", "out": out, "model": str(run), "video": video, "steps": 2, "device": "cpu", **changes}
    return SampleConfig.model_validate(values)


@pytest.mark.parametrize("name", get_args(SchedulerName))
@pytest.mark.parametrize("settings", [SCHEDULER, VELOCITY], ids=["epsilon", "velocity"])
@pytest.mark.parametrize("strength", [0.25, 0.6])
def test_denoising_begins_with_the_noise_of_its_first_step(
    name: SchedulerName, settings: dict, strength: float
) -> None:
    video, noise = (torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    seen: list[tuple[Tensor, Tensor]] = []

    def prediction(latents: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
        seen.append((latents, timestep))
        return torch.zeros_like(latents)

    steps: list[int] = []
    result = denoise(
        prediction,
        noise,
        scheduler=make_scheduler(name, settings),
        steps=8,
        generator=torch.Generator().manual_seed(0),
        follow=Followed(video, strength),
        on_step=lambda step, _: steps.append(step),
    )
    assert steps == list(range(1, int(8 * strength) + 1))
    assert result.isfinite().all()
    latents, timestep = seen[0]
    expected = TrainingSchedule(settings).add_noise(video, noise, timestep.round().long()[None])
    torch.testing.assert_close(latents, expected, atol=0.02, rtol=0.02)


def test_strength_one_is_noise_alone() -> None:
    noise = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    def prediction(latents: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
        return latents * 0.9

    alone, followed = (
        denoise(prediction, noise, scheduler=make_scheduler("euler", SCHEDULER), steps=3, follow=follow)
        for follow in (None, Followed(torch.ones_like(noise), 1.0))
    )
    assert torch.equal(alone, followed)
    assert Followed(noise, 0.01).steps(10) == 1
    assert Followed(noise, 0.58).steps(50) == 29


def test_frames_are_taken_at_the_rate_of_the_training(tmp_path: Path) -> None:
    fast = Footage(clip(tmp_path / "a.mp4", count=30, fps=10), "--video")
    indices = fast.at_rate(5)
    assert indices == list(range(0, 30, 2))
    means = [frame.mean() for frame in fast.some(indices[:4], 16, 16)]
    assert means == pytest.approx([20, 32, 44, 56], abs=4)
    assert fast.at_rate(30) == list(range(30))
    picture = Footage(clip(tmp_path / "a.gif", count=30, fps=10), "--video")
    assert len(picture.at_rate(5)) == 15
    assert [f.mean() for f in picture.some([0, 2], 16, 16)] == pytest.approx([20, 32], abs=4)
    own = Footage(clip(tmp_path / "own.mp4", count=30, fps=10, tool="msdv 0"), "--video")
    assert own.at_rate(5) == list(range(30))
    folder = Footage(clip(tmp_path / "folder", count=6), "--video")
    assert folder.at_rate(5) == list(range(6))


def test_the_result_follows_the_video(flow_run: Path, tmp_path: Path) -> None:
    video = clip(tmp_path / "in.mp4", count=6, fps=5)
    results = {}
    for name, changes in {"near": {"strength": 0.1}, "alone": {"strength": 1.0}}.items():
        # Where noise flows, videos of which nothing is given are made with more frames around them.
        sample(config(flow_run, tmp_path / name, video, steps=10, guidance=1, motion="none", **changes))
        results[name] = read_video(tmp_path / name)[0]
    sample(
        config(flow_run, tmp_path / "none", video, steps=10, guidance=1, frames=6, motion="none").model_copy(
            update={"video": None}
        )
    )
    assert np.array_equal(results["alone"], read_video(tmp_path / "none")[0])
    assert results["near"].shape == (6, 32, 32, 3)  # as many as it has
    assert not np.array_equal(results["near"], results["alone"])
    made_by = read_metadata(tmp_path / "near")
    assert (made_by["frames"], made_by["strength"], made_by["video"]) == (6, 0.1, str(video))


def test_it_is_repeatable_and_goes_with_windows_and_seeds(flow_run: Path, tmp_path: Path) -> None:
    video = clip(tmp_path / "in.mp4", count=8, fps=5)
    for name in ("a.gif", "b.gif"):
        sample(config(flow_run, tmp_path / name, video, window=4, frames=7))
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    sample(config(flow_run, tmp_path / "grid.gif", video, seeds="0-1"))
    assert len(read_video(tmp_path / "grid.gif")[0]) == 8


def test_texts_may_stand_at_any_of_its_frames(flow_run: Path, tmp_path: Path) -> None:
    video = clip(tmp_path / "in.mp4", count=28, fps=5)  # more than there are without a video
    sample(config(flow_run, tmp_path / "a.gif", video, steps=1, prompt_at=("27:sunset",)))
    with pytest.raises(UsageError, match="--prompt-at 28:sunset: the last of 28 frames is 27"):
        sample(config(flow_run, tmp_path / "b.gif", video, steps=1, prompt_at=("28:sunset",)))


def test_a_broken_picture_asks_for_another_video(tmp_path: Path) -> None:
    (tmp_path / "broken.gif").write_bytes(b"text")
    with pytest.raises(MsdvError, match=r"--video .*broken.gif can't be read .*: give another video"):
        Footage(tmp_path / "broken.gif", "--video")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"frames": 7}, UsageError, "--frames 7: .*in.mp4 has 6, taken 5 a second as the model was trained: lower it"),
        ({"video": Path("nowhere.mp4")}, UsageError, "--video nowhere.mp4 does not exist"),
        ({"video": Path(__file__)}, MsdvError, "--video .*test_source.py can't be read"),
        ({"loop": True}, UsageError, "--loop does not go with it"),
        ({"latents": Path("a.safetensors")}, UsageError, "--latents"),
        ({"video": None, "strength": 0.3}, UsageError, "--strength 0.3: there is no video to go from: add --video"),
    ],
)
def test_what_cannot_be_meant(
    flow_run: Path, tmp_path: Path, changes: dict, error: type[Exception], words: str
) -> None:
    video = clip(tmp_path / "in.mp4", count=6, fps=5)
    with pytest.raises(error, match=words):
        sample(config(flow_run, tmp_path / "a.gif", video).model_copy(update=changes, deep=False))
    assert not (tmp_path / "a.gif").exists()
