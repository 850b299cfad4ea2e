"""Frames that are made around a video whose noise flows, and cut off."""

from pathlib import Path

import pytest
import torch

from msdv.config import SampleConfig
from msdv.model.ends import AROUND
from msdv.model.plan import MOST_FRAMES
from msdv.planning import PlanReport, plan_sample
from msdv.sampling.sampler import Sampler
from msdv.sampling.steering import around_video, flow_around
from msdv.weights import TemporalMetadata, read_metadata


def config(**values: object) -> SampleConfig:
    return SampleConfig.model_validate({"prompt": "sea", "out": Path("a.gif"), "frames": 5, "device": "cpu", **values})


@pytest.fixture
def metadata(flow_run: Path) -> TemporalMetadata:
    return read_metadata(flow_run / "temporal.safetensors")


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({}, AROUND),
        ({"motion": "left"}, AROUND),
        ({"window": 3}, AROUND),
        ({"motion": "none"}, 0),
        ({"loop": True}, 0),
        ({"image": ("a.png",)}, 0),
        ({"video": "a.mp4"}, 0),
        ({"continue_from": "a.mp4"}, 0),
        ({"latents": "a.safetensors"}, 0),
    ],
)
def test_where_some_of_it_is_given_or_nothing_flows_there_are_none(
    metadata: TemporalMetadata, values: dict, count: int
) -> None:
    assert around_video(config(**values), metadata, "pseudo3d", None) == count
    assert around_video(config(**values), metadata, "motion-module", None) == 0
    if "motion" not in values:
        assert around_video(config(**values), None, "pseudo3d", None) == 0


@pytest.mark.parametrize("window", [None, 4])
def test_the_model_sees_them_and_the_result_has_none(
    flow_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    seen: list[int] = []

    def drawn(*arguments: object) -> object:
        seen.append(arguments[2][2])  # type: ignore[index]
        return draw_noise(*arguments)  # type: ignore[arg-type]

    from msdv.sampling.noise import draw_noise

    monkeypatch.setattr("msdv.sampling.sampler.draw_noise", drawn)
    wish = config(model=str(flow_run), steps=1, window=window, prompt_at=("3:night",))
    sampler = Sampler(wish)
    sampler.encode_texts([wish])
    from msdv.model.preview import Preview

    latents, _ = sampler.denoise(wish, Preview(None))
    assert seen == [5 + 2 * AROUND]
    assert latents.shape[2] == 5


def test_frames_around_move_as_those_beside_them() -> None:
    flow = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 2, 2, 2)  # of a video of five frames

    def steps(frames: int, around: int = 2) -> list[float]:
        return flow_around(flow, frames, around)[0, :, 0, 0, 0].tolist()

    assert steps(5) == [0, 0, 0, 1, 2, 3, 3, 3]
    assert steps(7) == [0, 0, 0, 1, 2, 3, 0, 1, 1, 1]  # it begins again
    assert steps(3) == [0, 0, 0, 1, 1, 1]
    assert flow_around(flow, 5, 0) is flow
    assert flow_around(flow[:, :1], 5, 2).shape[1] == 1  # always alike


def test_the_plan_counts_them_but_does_not_show_them(flow_run: Path) -> None:
    few, more = (
        plan_sample(config(model=str(flow_run), plan=True, vram=8, motion=motion)) for motion in ("none", "left")
    )
    assert few.settings["frames"] == more.settings["frames"] == 5
    assert more.plan.chosen.peak_bytes > few.plan.chosen.peak_bytes
    assert f"5 frames of 32x32 and {2 * AROUND} around them" in more.lines()[0]


def test_a_plan_of_one_frame_counts_those_around_longer_videos(flow_run: Path) -> None:
    def planned(frames: int) -> PlanReport:
        wish = {"plan": True, "device": "cuda", "vram": 0.6, "size": 128, "motion": "left", "frames": frames}
        return plan_sample(config(model=str(flow_run), **wish))

    one = planned(1)
    assert "around" not in one.lines()[0]
    most = one.plan.most_frames["with these settings"]
    assert 1 < most < MOST_FRAMES
    longest = planned(most).plan
    assert longest.fits and longest.chosen.settings == one.plan.chosen.settings
