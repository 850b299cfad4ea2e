from collections import Counter
from pathlib import Path

import pytest
import torch

from msdv.data.batches import Batch, ClipBatches, generator_for, hold_out, with_videos_of
from msdv.data.cache import FlowCache, LatentCache, TextCache, mirror_caption
from msdv.data.clips import Clip, find_clips


def blocks(frames: torch.Tensor) -> torch.Tensor:
    pooled = torch.nn.functional.avg_pool2d(frames, 8)
    return torch.cat([pooled, pooled[:, :1]], 1)


@pytest.fixture
def batches(sky_frames: Path, tmp_path: Path) -> ClipBatches:
    clips, _ = find_clips(sky_frames, 2)
    latents = LatentCache(tmp_path, 32, "vae", flip=True)
    for clip in clips:
        latents.encode(clip, blocks)
    text = TextCache(tmp_path, "text")
    captions = [caption for clip in clips for caption in (clip.caption, mirror_caption(clip.caption))]
    text.encode(captions, lambda prompts: torch.arange(len(prompts)).float().view(-1, 1, 1))
    numbers = {clip.name: index + 1 for index, clip in enumerate(clips)}

    class Numbered(FlowCache):
        """To the right by the clip's number, 1, 2, ..."""

        def window(self, clip: Clip, start: int, frames: int, mirrored: bool, stride: int = 1) -> torch.Tensor:
            return torch.full((frames - 1, 2, 8, 8), float(numbers[clip.name] * (-1 if mirrored else 1)))

    flow = Numbered(tmp_path, 32)
    return ClipBatches(clips, latents, text, frames=4, batch_size=2, caption_dropout=0.25, seed=3, flow=flow)


def numbers_of(batch: Batch) -> torch.Tensor:
    """Of a batch's clips; negative where they are mirrored."""
    assert batch.flow is not None
    assert batch.flow.shape == (2, 3, 2, 8, 8)
    return batch.flow[:, 0, 0, 0, 0]


def test_a_batch_is_a_function_of_its_number(batches: ClipBatches) -> None:
    first, again, other = batches.batch(7), batches.batch(7), batches.batch(8)
    assert first.latents.shape == (2, 4, 4, 4, 4)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.text, again.text)
    assert not torch.equal(first.latents, other.latents)


def test_every_clip_is_seen_once_before_any_is_seen_again(batches: ClipBatches) -> None:
    seen = [int(v) for n in range(6) for v in numbers_of(batches.batch(n)).abs()]
    assert Counter(seen[:6]) == Counter(seen[6:]) == Counter(range(1, 7))


def test_mirrored_clips_move_the_other_way_and_captions_are_dropped_sometimes(batches: ClipBatches) -> None:
    items = [batches.batch(n) for n in range(60)]
    signs = torch.cat([numbers_of(b).sign() for b in items])
    empty = torch.cat([(b.text == 0).flatten() for b in items])
    assert 0.3 < (signs < 0).float().mean() < 0.7
    assert 0.1 < empty.float().mean() < 0.4


def test_streams_of_different_keys_differ() -> None:
    assert generator_for("a", 1).initial_seed() == generator_for("a", 1).initial_seed()
    assert len({generator_for(*key).initial_seed() for key in (("a", 1), ("a", 2), ("b", 1), ("a", 1, 1))}) == 4


def clips(count: int) -> list[Clip]:
    return [Clip(f"{i}.mp4", (), "", 5.0, f"{i}.mp4") for i in range(count)]


def scenes(**videos: int) -> list[Clip]:
    names = [(v, f"{v}.mp4" if n == 1 else f"{v}.mp4#{n}") for v, count in videos.items() for n in range(1, count + 1)]
    return [Clip(name, (), "", 5.0, f"videos/{video}.mp4") for video, name in names]


@pytest.mark.parametrize(("count", "share", "held"), [(4, 0.05, 0), (5, 0.05, 1), (100, 0.05, 5), (100, 0.0, 0)])
def test_how_many_clips_are_held_out(count: int, share: float, held: int) -> None:
    training, held_out = hold_out(clips(count), share)
    assert (len(training), len(held_out)) == (count - held, held)
    assert not {c.name for c in training} & {c.name for c in held_out}


def test_held_out_clips_stay_the_same_when_clips_are_added() -> None:
    few = {c.name for c in hold_out(clips(40), 0.1)[1]}
    many = {c.name for c in hold_out(clips(60), 0.1)[1]}
    ranked_first = {c.name for c in hold_out(clips(60), 0.5)[1]}
    assert many <= ranked_first
    assert few & ranked_first


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_clips_of_one_video_are_on_the_same_side(share: float) -> None:
    for videos in ({"a": 3, "b": 3, "c": 2, "d": 1}, {"a": 40, "b": 3}, {"a": 1, "b": 1, "c": 1, "d": 1, "e": 30}):
        training, held_out = hold_out(scenes(**videos), share)
        assert training
        assert held_out
        assert not {c.source for c in training} & {c.source for c in held_out}


def test_scenes_of_one_video_alone_can_not_be_held_out() -> None:
    assert hold_out(scenes(a=12), 0.2)[1] == []


def test_about_the_wanted_share_is_held_out_of_videos_of_many_scenes() -> None:
    assert len(hold_out(scenes(**{f"v{i}": 5 for i in range(40)}), 0.1)[1]) == 20
    assert {c.source for c in hold_out(scenes(a=50, b=3), 0.05)[1]} == {"videos/b.mp4"}


def test_a_scene_that_is_added_goes_to_the_side_of_its_video() -> None:
    training, held_out = with_videos_of(scenes(a=3, b=2), {"a.mp4#2"})
    assert [c.name for c in held_out] == ["a.mp4", "a.mp4#2", "a.mp4#3"]
    assert [c.name for c in training] == ["b.mp4", "b.mp4#2"]


def test_the_names_of_a_batch_are_those_of_its_clips(batches: ClipBatches) -> None:
    for number in range(4):
        speeds = numbers_of(batches.batch(number)).abs()
        assert batches.names(number) == [f"clip {int(speed) - 1}.mp4" for speed in speeds]
