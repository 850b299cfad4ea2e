"""train --condition: what is given, what it changes, and what it leaves as it was."""

from pathlib import Path

import pytest
import torch

from msdv.config import TrainConfig
from msdv.data.batches import ClipBatches
from msdv.data.cache import FlowCache, LatentCache, TextCache
from msdv.data.clips import find_clips
from msdv.errors import UsageError
from msdv.recipe import read_section
from msdv.run import Run
from msdv.train import train
from msdv.training import Training
from msdv.weights import read_metadata
from tests.runs import settings

FRAMES = 5


@pytest.fixture
def batches(sky_frames: Path, tmp_path: Path) -> object:
    """Batches by condition, of clips of 12 frames whose latents say their place."""
    clips, _ = find_clips(sky_frames, 2)
    latents, text = LatentCache(tmp_path, 32, "vae", flip=True), TextCache(tmp_path, "text")
    for clip in clips:
        latents.encode(clip, lambda pixels: torch.zeros(len(pixels), 4, 4, 4))
    text.encode(sorted({clip.caption for clip in clips}), lambda captions: torch.zeros(len(captions), 2, 3))

    class Places(LatentCache):
        def window(self, clip: object, start: int, frames: int, mirrored: bool, stride: int = 1) -> torch.Tensor:
            return (start + stride * torch.arange(frames)).float().view(1, -1, 1, 1)

    class Strides(FlowCache):
        def window(self, clip: object, start: int, frames: int, mirrored: bool, stride: int = 1) -> torch.Tensor:
            return torch.full((frames - 1, 2, 8, 8), float(stride))

    places = Places(tmp_path, 32, "vae", flip=False, _files=latents._files)

    def make(condition: str, share: float = 0.5, frames: int = FRAMES) -> ClipBatches:
        options = {"frames": frames, "batch_size": 2, "caption_dropout": 0.25, "seed": 3}
        flow = Strides(tmp_path, 32)
        return ClipBatches(clips, places, text, condition=condition, condition_share=share, flow=flow, **options)  # type: ignore[arg-type]

    return make


def test_without_it_nothing_is_given_and_what_it_draws_comes_last(batches) -> None:  # type: ignore[no-untyped-def]
    plain, first = batches("none"), batches("first-frame")
    for number in range(8):
        a, b = plain.batch(number), first.batch(number)
        assert not a.given.any()
        assert torch.equal(a.latents, b.latents)
        assert torch.equal(a.text, b.text)
        assert a.flow is not None and b.flow is not None and torch.equal(a.flow, b.flow)
    assert not first.middle(0).given.any()


def test_a_share_of_clips_begins_with_given_frames_mostly_one(batches) -> None:  # type: ignore[no-untyped-def]
    given = torch.cat([batches("first-frame", 0.5, 10).batch(number).given for number in range(150)])
    counts = given.sum(1)
    assert torch.equal(given, torch.arange(10) < counts[:, None])  # always from the first on
    assert 0.4 < (counts > 0).float().mean() < 0.6
    assert 0.5 < (counts[counts > 0] == 1).float().mean() < 0.7
    assert sorted(counts.unique().tolist()) == list(range(9))
    some = torch.cat([batches("first-frame", 1.0, 3).batch(number).given for number in range(20)])
    assert set(some.sum(1).tolist()) == {1, 2}  # never all of a clip


def test_clips_without_keyframes_are_keyframes_themselves(batches) -> None:  # type: ignore[no-untyped-def]
    make = batches("keyframes:2", 0.5)
    strides: dict[str, set[int]] = {"keyframes": set(), "first": set(), "none": set()}
    for number in range(60):
        batch = make.batch(number)
        for latents, given, flow in zip(batch.latents, batch.given, batch.flow, strict=True):
            place = latents.flatten()
            stride = int(place[1] - place[0])
            assert place[0] >= 0
            assert place[-1] < 12
            assert flow.unique().tolist() == [stride]  # pixels a frame of the window
            kind = {3: "keyframes", 1: "first", 0: "none"}[int(given.sum())]
            assert given.tolist() == {"keyframes": [1, 0, 1, 0, 1], "first": [1, 0, 0, 0, 0], "none": [0] * 5}[kind]
            strides[kind].add(stride)
    assert strides == {"keyframes": {1, 2}, "first": {2}, "none": {2}}
    short = torch.cat([batches("keyframes:3", 0.5).batch(number).latents for number in range(10)]).flatten(1)
    assert (short.diff(dim=1) == 1).all()  # 13 frames would be needed


@pytest.mark.parametrize("inpaint", [False, True])
def test_steps_that_show_nothing_are_those_of_a_training_without_it(
    inpaint: bool, tiny_base: Path, sky_frames: Path, tmp_path: Path
) -> None:
    from tests.tiny import save_folder, tiny_pipeline

    base = save_folder(tmp_path / "base", tiny_pipeline(in_channels=9)) if inpaint else tiny_base

    def training(condition: str) -> Training:
        options = {"condition": condition, "frames": FRAMES, "temporal_loss": 1.0, "offset_noise": 0.1}
        return Training(settings(base, sky_frames, tmp_path / "run", **options))

    plain, first = training("none"), training("first-frame")
    shown = {number: bool(first.batches.batch(number).given.any()) for number in range(6)}
    assert set(shown.values()) == {False, True}
    with torch.no_grad():
        for number, given in shown.items():
            assert (first.loss(number).item() != plain.loss(number).item()) == given


def test_it_goes_with_the_weights_and_through_resume(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"condition": "first-frame", "schedule": "constant"}
    whole = train(settings(tiny_base, sky_frames, tmp_path / "whole", steps=4, **options)).run
    train(settings(tiny_base, sky_frames, tmp_path / "cut", steps=2, **options))
    resumed = train(TrainConfig(resume=str(tmp_path / "cut"), steps=4)).run
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert read_metadata(resumed.weights).condition == "first-frame"
    assert read_section(resumed.config, "train")["condition"] == "first-frame"
    with pytest.raises(UsageError, match=r"--condition none: .* was started with first-frame"):
        train(TrainConfig(resume=str(tmp_path / "cut"), steps=5, condition="none"))
    measured = [row["held_out"] for row in resumed.read_log() if "held_out" in row]
    assert {row["given"] for row in measured} == {"none", "first-frame"}
    assert "first-frame given" in resumed.report.read_text(encoding="utf-8")
    report = train(settings(tiny_base, sky_frames, tmp_path / "next", steps=1, init=str(whole.folder)))
    assert read_metadata(report.run.weights).condition == "first-frame"
    assert any("independent noise, first frame given" in line for line in report.lines())
    report = train(
        settings(tiny_base, sky_frames, tmp_path / "other", steps=1, init=str(whole.folder), condition="none")
    )
    assert read_metadata(Run(report.run.folder).weights).condition == "none"


def test_clips_with_one_keyframe_teach_nothing(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--condition keyframes:4: clips of --frames 4 have one keyframe: train on 5 fr"
    ):
        train(settings(tiny_base, sky_frames, tmp_path / "run", condition="keyframes:4"))
    assert not (tmp_path / "run").exists()
