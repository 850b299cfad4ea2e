from collections import Counter
from pathlib import Path

import pytest
import torch

from msdv.data.batches import ClipBatches, generator_for, hold_out
from msdv.data.cache import LatentCache, TextCache, mirror_caption
from msdv.data.clips import Clip, find_clips


def blocks(frames: torch.Tensor) -> torch.Tensor:
    pooled = torch.nn.functional.avg_pool2d(frames, 8)
    return torch.cat([pooled, pooled[:, :1]], 1)


@pytest.fixture
def batches(sky_frames: Path, tmp_path: Path) -> ClipBatches:
    clips, _ = find_clips(sky_frames, 2)
    latents = LatentCache(tmp_path, 32, "vae", flip=True)
    for index, clip in enumerate(clips):
        latents.encode(clip, blocks, lambda grey, index=index: torch.full((4,), float(index + 1)))
    text = TextCache(tmp_path, "text")
    captions = [caption for clip in clips for caption in (clip.caption, mirror_caption(clip.caption))]
    text.encode(captions, lambda prompts: torch.arange(len(prompts)).float().view(-1, 1, 1))
    return ClipBatches(clips, latents, text, frames=4, batch_size=2, caption_dropout=0.25, seed=3)


def test_a_batch_is_a_function_of_its_number(batches: ClipBatches) -> None:
    first, again, other = batches.batch(7), batches.batch(7), batches.batch(8)
    assert first.latents.shape == (2, 4, 4, 4, 4)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.text, again.text)
    assert not torch.equal(first.latents, other.latents)


def test_every_clip_is_seen_once_before_any_is_seen_again(batches: ClipBatches) -> None:
    seen = [int(v) for n in range(6) for v in batches.batch(n).row_velocity[:, 0].abs()]
    assert Counter(seen[:6]) == Counter(seen[6:]) == Counter(range(1, 7))


def test_mirrored_clips_move_the_other_way_and_captions_are_dropped_sometimes(batches: ClipBatches) -> None:
    items = [batches.batch(n) for n in range(60)]
    signs = torch.cat([b.row_velocity[:, 0].sign() for b in items])
    empty = torch.cat([(b.text == 0).flatten() for b in items])
    assert 0.3 < (signs < 0).float().mean() < 0.7
    assert 0.1 < empty.float().mean() < 0.4


def test_streams_of_different_keys_differ() -> None:
    assert generator_for("a", 1).initial_seed() == generator_for("a", 1).initial_seed()
    assert len({generator_for(*key).initial_seed() for key in (("a", 1), ("a", 2), ("b", 1), ("a", 1, 1))}) == 4


def clips(count: int) -> list[Clip]:
    return [Clip(f"{i}.mp4", (), "", 5.0) for i in range(count)]


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
