from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from msdv.data.cache import FlowCache, LatentCache, TextCache, mirror_caption
from msdv.data.clips import Clip, find_clips
from msdv.files import is_unfinished


def encode_frames(frames: Tensor) -> Tensor:
    """Means of 8x8 blocks, with one channel more: what is in which latent can be told."""
    blocks = torch.nn.functional.avg_pool2d(frames, 8)
    return torch.cat([blocks, torch.ones_like(blocks[:, :1])], 1)


@pytest.fixture
def clip(sky_frames: Path) -> Clip:
    return find_clips(sky_frames, 2)[0][0]


def cache(folder: Path, **changes: object) -> LatentCache:
    return LatentCache(**{"folder": folder, "size": 32, "vae_hash": "a", "flip": False, **changes})  # type: ignore[arg-type]


def test_windows_are_slices_of_the_whole(tmp_path: Path, clip: Clip) -> None:
    latents = cache(tmp_path)
    assert not latents.is_cached(clip)
    latents.encode(clip, encode_frames, chunk=5)
    assert latents.is_cached(clip)
    whole = latents.window(clip, 0, len(clip), False)
    assert whole.shape == (4, len(clip), 4, 4)
    assert torch.equal(latents.window(clip, 3, 4, False), whole[:, 3:7])


def test_the_mirrored_view_is_encoded_from_mirrored_frames(tmp_path: Path, clip: Clip) -> None:
    latents = cache(tmp_path, flip=True)
    latents.encode(clip, encode_frames)
    torch.testing.assert_close(latents.window(clip, 2, 3, True), latents.window(clip, 2, 3, False).flip(-1))


@pytest.mark.parametrize("change", [{"size": 64}, {"vae_hash": "b"}, {"flip": True}])
def test_another_size_or_autoencoder_is_another_file(tmp_path: Path, clip: Clip, change: dict) -> None:
    cache(tmp_path).encode(clip, encode_frames)
    assert not cache(tmp_path, **change).is_cached(clip)


def test_a_changed_frame_is_encoded_again(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "a.mp4"
    folder.mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (32, 32)).save(folder / f"{number:06d}.jpg")
    clip = find_clips(tmp_path / "data", 2)[0][0]
    cache(tmp_path / "cache").encode(clip, encode_frames)
    Image.new("RGB", (32, 32), "white").save(folder / "000002.jpg")
    assert not cache(tmp_path / "cache").is_cached(clip)


def test_a_damaged_file_counts_as_none(tmp_path: Path, clip: Clip) -> None:
    latents = cache(tmp_path)
    latents.encode(clip, encode_frames)
    file = latents.file(clip)
    file.write_bytes(file.read_bytes()[:200])
    assert not latents.is_cached(clip)


def test_a_failed_encoding_leaves_nothing(tmp_path: Path, clip: Clip) -> None:
    def fail(frames: Tensor) -> Tensor:
        raise KeyboardInterrupt

    latents = cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        latents.encode(clip, fail)
    assert not any(path.is_file() or is_unfinished(path) for path in tmp_path.iterdir())


@pytest.fixture
def drifting(tmp_path: Path) -> Clip:
    """Clouds of 64 pixels that go 2 pixels to the right a frame, above ground."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.normal(size=(32, 200)), (0, 0), 3) * 400 + 128
    ground = cv2.GaussianBlur(rng.normal(size=(32, 64)), (0, 0), 1.5) * 200 + 128
    folder = tmp_path / "data" / "clip"
    folder.mkdir(parents=True)
    for number in range(9):
        picture = np.concatenate([texture[:, 60 - 2 * number :][:, :64], ground]).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number:06d}.png")
    return find_clips(tmp_path / "data", 2)[0][0]


def test_the_flow_of_a_clip_is_found_and_kept(tmp_path: Path, drifting: Clip) -> None:
    flow = FlowCache(tmp_path / "cache", 64)
    assert not flow.is_cached(drifting)
    flow.measure(drifting)
    assert flow.is_cached(drifting)
    assert not FlowCache(tmp_path / "cache", 32).is_cached(drifting)
    whole = flow.window(drifting, 0, 9, False)
    assert whole.shape == (8, 2, 16, 16)
    assert whole[:, 0, 1:6, 2:14].mean().item() == pytest.approx(2, abs=0.15)
    assert whole[:, 1, 1:6, 2:14].abs().mean().item() < 0.1
    assert (whole[:, :, 10:] == 0).float().mean() > 0.9  # what stands still does so exactly
    assert torch.equal(flow.window(drifting, 2, 4, False), whole[2:5])
    mirrored = flow.window(drifting, 2, 4, True)
    assert torch.equal(mirrored[:, 0], -whole[2:5, 0].flip(-1))
    assert torch.equal(mirrored[:, 1], whole[2:5, 1].flip(-1))
    assert flow.mean(drifting).shape == (2, 8, 8)
    assert flow.mean(drifting)[0, :2, 1:7].mean().item() == pytest.approx(2, abs=0.15)


def test_the_flow_between_frames_apart_follows_what_moves(tmp_path: Path, drifting: Clip) -> None:
    flow = FlowCache(tmp_path / "cache", 64)
    flow.measure(drifting)
    apart = flow.window(drifting, 0, 3, False, stride=4)
    assert apart.shape == (2, 2, 16, 16)
    assert apart[:, 0, 1:6, 2:10].mean().item() == pytest.approx(8, abs=0.6)
    assert apart[:, 0, 10:].abs().mean() < 0.1


def test_flow_is_found_on_small_pictures_and_said_for_large_ones(tmp_path: Path, drifting: Clip) -> None:
    small, large = (FlowCache(tmp_path / "cache", size) for size in (64, 512))
    for flow in (small, large):
        flow.measure(drifting)
    found = large.window(drifting, 0, 9, False)
    assert found.shape == (8, 2, 128, 128)
    assert found[:, 0, 8:48, 16:112].mean().item() == pytest.approx(16, rel=0.1)


def test_damaged_flow_counts_as_none(tmp_path: Path, drifting: Clip) -> None:
    flow = FlowCache(tmp_path / "cache", 64)
    flow.measure(drifting)
    flow.file(drifting).write_bytes(flow.file(drifting).read_bytes()[:100])
    assert not flow.is_cached(drifting)


def test_text_is_computed_once(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def encode_prompts(prompts: list[str]) -> Tensor:
        asked.append(prompts)
        return torch.tensor([[[float(len(p))] * 3] * 2 for p in prompts])

    text = TextCache(tmp_path, "hash")
    text.encode(["sea", "sky blue", "sea"], encode_prompts)
    assert asked == [["", "sea", "sky blue"]]
    again = TextCache(tmp_path, "hash")
    again.encode(["sky blue", "sea"], lambda _: pytest.fail("computed again"))
    assert torch.equal(again["sky blue"], torch.full((2, 3), 8.0))
    assert torch.equal(again[""], torch.zeros(2, 3))
    TextCache(tmp_path, "another encoder").encode(["sea"], encode_prompts)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("clouds drifting left", "clouds drifting right"),
        ("Right of the hill, leftover light", "left of the hill, leftover light"),
        ("sea", "sea"),
    ],
)
def test_mirrored_captions_change_sides(caption: str, mirrored: str) -> None:
    assert mirror_caption(caption) == mirrored
