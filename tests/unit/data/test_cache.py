from pathlib import Path

import pytest
import torch
from torch import Tensor

from msdv.data.cache import LatentCache, TextCache, mirror_caption
from msdv.data.clips import Clip, find_clips
from msdv.files import is_unfinished


def encode_frames(frames: Tensor) -> Tensor:
    """Means of 8x8 blocks, with one channel more: what is in which latent can be told."""
    blocks = torch.nn.functional.avg_pool2d(frames, 8)
    return torch.cat([blocks, torch.ones_like(blocks[:, :1])], 1)


def at_rest(grey: Tensor) -> Tensor:
    return torch.full((grey.shape[1] // 8,), float(grey.shape[0]))


@pytest.fixture
def clip(sky_frames: Path) -> Clip:
    return find_clips(sky_frames, 2)[0][0]


def cache(folder: Path, **changes: object) -> LatentCache:
    return LatentCache(**{"folder": folder, "size": 32, "vae_hash": "a", "flip": False, **changes})  # type: ignore[arg-type]


def test_windows_are_slices_of_the_whole(tmp_path: Path, clip: Clip) -> None:
    latents = cache(tmp_path)
    assert not latents.is_cached(clip)
    latents.encode(clip, encode_frames, at_rest, chunk=5)
    assert latents.is_cached(clip)
    whole = latents.window(clip, 0, len(clip), False)
    assert whole.shape == (4, len(clip), 4, 4)
    assert torch.equal(latents.window(clip, 3, 4, False), whole[:, 3:7])
    assert torch.equal(latents.row_velocity(clip), torch.full((4,), float(len(clip))))


def test_the_mirrored_view_is_encoded_from_mirrored_frames(tmp_path: Path, clip: Clip) -> None:
    latents = cache(tmp_path, flip=True)
    latents.encode(clip, encode_frames, at_rest)
    torch.testing.assert_close(latents.window(clip, 2, 3, True), latents.window(clip, 2, 3, False).flip(-1))


@pytest.mark.parametrize("change", [{"size": 64}, {"vae_hash": "b"}, {"flip": True}])
def test_another_size_or_autoencoder_is_another_file(tmp_path: Path, clip: Clip, change: dict) -> None:
    cache(tmp_path).encode(clip, encode_frames, at_rest)
    assert not cache(tmp_path, **change).is_cached(clip)


def test_a_changed_frame_is_encoded_again(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "data" / "a.mp4"
    folder.mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (32, 32)).save(folder / f"{number:06d}.jpg")
    clip = find_clips(tmp_path / "data", 2)[0][0]
    cache(tmp_path / "cache").encode(clip, encode_frames, at_rest)
    Image.new("RGB", (32, 32), "white").save(folder / "000002.jpg")
    assert not cache(tmp_path / "cache").is_cached(clip)


def test_a_damaged_file_counts_as_none(tmp_path: Path, clip: Clip) -> None:
    latents = cache(tmp_path)
    latents.encode(clip, encode_frames, at_rest)
    file = latents.file(clip)
    file.write_bytes(file.read_bytes()[:200])
    assert not latents.is_cached(clip)


def test_a_failed_encoding_leaves_nothing(tmp_path: Path, clip: Clip) -> None:
    def fail(grey: Tensor) -> Tensor:
        raise KeyboardInterrupt

    latents = cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        latents.encode(clip, encode_frames, fail)
    assert not any(path.is_file() or is_unfinished(path) for path in tmp_path.iterdir())


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
