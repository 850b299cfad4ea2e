"""Frames as numbers in a safetensors file."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from msdv.data.tensors import write_tensors
from msdv.data.video import read_metadata, write_video
from msdv.errors import MsdvError, UsageError

FRAMES = np.random.default_rng(0).random((5, 16, 24, 3), np.float32)
LATENTS = np.random.default_rng(1).standard_normal((1, 4, 5, 2, 3)).astype(np.float32)
SETTINGS = {"prompt": 'wölkchen "雲" <&>', "seed": 3, "motion": None}


def test_other_programs_read_frames_and_latents(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "frames.safetensors"
    write_tensors(path, (FRAMES[i : i + 2] for i in range(0, 5, 2)), (5, 16, 24), LATENTS, SETTINGS)
    found = load_file(path)
    assert np.array_equal(found["frames"], FRAMES)
    assert np.array_equal(found["latents"], LATENTS)
    assert read_metadata(path) == SETTINGS
    assert [p.name for p in path.parent.iterdir()] == ["frames.safetensors"]


@pytest.mark.parametrize("frames", [FRAMES[:4], np.concatenate([FRAMES, FRAMES]), FRAMES[:, :, :8]])
def test_a_file_that_would_lie_is_not_written(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="frames"):
        write_tensors(tmp_path / "a.safetensors", [frames], (5, 16, 24), LATENTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"12345678", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0xx"])
def test_what_is_no_such_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.safetensors").write_bytes(content)
    with pytest.raises(MsdvError, match=r"broken\.safetensors"):
        read_metadata(tmp_path / "broken.safetensors")


def test_write_video_has_no_such_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no moving picture: choose \.gif"):
        write_video(tmp_path / "a.safetensors", [np.zeros((8, 8, 3), np.uint8)], fps=5)
