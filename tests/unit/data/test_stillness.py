"""Frozen videos as encoders leave them, against slow motion and noise. All at 25 frames a second, every fifth kept."""

import random
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from msdv.data.stillness import Stillness, StillnessMeter
from msdv.data.synthetic import render, sample_sky

WIDTH, HEIGHT = 320, 180


@cache
def clouds(slower: float, count: int = 60) -> np.ndarray:
    """A timelapse of clouds; ten times slower they move as on a calm day."""
    return render(sample_sky(random.Random(5)), count, (HEIGHT, WIDTH), fps=25 * slower)


def freeze(frame: np.ndarray, count: int) -> np.ndarray:
    return np.repeat(frame[None], count, axis=0)


def encode(path: Path, frames: Sequence[np.ndarray], crf: int, **options: str) -> list[np.ndarray]:
    """The frames after H.264, as the meter gets them."""
    with av.open(f"file:{path}", "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"preset": "fast", "crf": str(crf), **options})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(f"file:{path}") as container:
        return [
            frame.reformat(width=114, height=64, format="yuv444p", interpolation="AREA")
            .to_ndarray(channel_last=True)
            .copy()
            for frame in container.decode(video=0)
        ]


def measure(smalls: Sequence[np.ndarray], fps: float = 5.0) -> Stillness:
    meter = StillnessMeter(fps)
    for small in smalls:
        meter.add(small)
    return meter.result()


@pytest.mark.parametrize("crf", [18, 25, 32])
def test_frozen_head_and_tail_and_a_freeze_inside(tmp_path: Path, crf: int) -> None:
    moving = clouds(1)
    frames = np.concatenate(
        [freeze(moving[0], 40), moving[:25], freeze(moving[25], 40), moving[25:], freeze(moving[-1], 50)]
    )
    found = measure(encode(tmp_path / "a.mp4", frames, crf)[::5])
    assert abs(found.head - 8) <= 1
    assert abs(found.tail - 10) <= 1
    assert abs(found.held - 8) <= 1


@pytest.mark.parametrize("crf", [18, 25, 32])
def test_key_frames_do_not_end_a_freeze(tmp_path: Path, crf: int) -> None:
    frames = np.concatenate([freeze(clouds(1)[0], 60), clouds(1)[:40]])
    found = measure(encode(tmp_path / "a.mp4", frames, crf, g="12", preset="ultrafast")[::5])
    assert abs(found.head - 12) <= 1
    assert (found.tail, found.held) == (0, 0)


@pytest.mark.parametrize("crf", [18, 32])
@pytest.mark.parametrize("slower", [10, 30])
def test_slow_clouds_are_alive(tmp_path: Path, crf: int, slower: float) -> None:
    assert measure(encode(tmp_path / "a.mp4", clouds(slower), crf)[::5]) == Stillness(0, 0, 0)


@pytest.mark.parametrize(("deviation", "crf"), [(3, 18), (6, 23), (10, 28)])
def test_a_sensors_noise_is_alive(tmp_path: Path, deviation: float, crf: int) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((50, HEIGHT, WIDTH, 3), dtype=np.float32) * deviation
    frames = np.clip(clouds(1)[0] + noise, 0, 255).astype(np.uint8)
    assert measure(encode(tmp_path / "a.mp4", frames, crf)[::5]) == Stillness(0, 0, 0)


def test_a_still_clip_is_all_head(tmp_path: Path) -> None:
    assert measure(encode(tmp_path / "a.mp4", freeze(clouds(1)[0], 50), 23)[::5]) == Stillness(10, 0, 0)
    black = np.full((64, 114, 3), 128, dtype=np.uint8)
    black[..., 0] = 0
    assert measure([black] * 4) == Stillness(4, 0, 0)


def test_a_source_of_a_lower_rate_is_held(tmp_path: Path) -> None:
    frames = np.repeat(clouds(0.2, 12), 10, axis=0)  # 2.5 frames a second
    found = measure(encode(tmp_path / "a.mp4", frames, 25)[::5])
    assert (found.head, found.tail) == (2, 2)
    assert 9 <= found.held <= 10  # of the 10 pairs inside


def test_every_frame_kept(tmp_path: Path) -> None:
    moving = clouds(1)
    frames = np.concatenate([freeze(moving[0], 40), moving[:30], freeze(moving[30], 30)])
    found = measure(encode(tmp_path / "a.mp4", frames, 25), fps=25)
    assert abs(found.head - 40) <= 2
    assert abs(found.tail - 30) <= 2
    assert found.held <= 2


def test_a_small_thing_that_moves_is_seen() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(40, 200, (64, 114, 3), dtype=np.uint8)
    smalls = []
    for number in range(12):
        small = picture.copy()
        small[30:33, 9 * number : 9 * number + 3, 0] = 255  # a bird
        smalls.append(small)
    assert measure(smalls) == Stillness(0, 0, 0)


def test_few_frames_and_a_change_of_size() -> None:
    assert StillnessMeter().result() == Stillness(0, 0, 0)
    small = np.random.default_rng(0).integers(0, 255, (64, 114, 3), dtype=np.uint8)
    assert measure([small]) == Stillness(0, 0, 0)
    assert measure([small, small, small[:, :90], small[:, :90]]) == Stillness(2, 2, 0)
    one = np.zeros((1, 1, 3), dtype=np.uint8)
    assert measure([one, one]) == Stillness(2, 0, 0)


@pytest.mark.parametrize("small", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_another_shape_or_type_is_refused(small: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        StillnessMeter().add(small)
