"""What begins a new scene and what does not, on small pictures as prep hands them over, 5 a second."""

import random
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from msdv.data.scenes import CutFinder
from msdv.data.synthetic import render, sample_sky

HEIGHT, WIDTH = 64, 114


def photograph(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Y, Cb, Cr with the spectrum of a photograph, float (h, w, 3)."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / max(height, width)) ** -1.6
    planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, height, width))) * radius, s=(height, width))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    return np.clip(np.array([120, 128, 128]) + np.array([40, 8, 8]) * planes.transpose(1, 2, 0), 0, 255)


@cache
def sky(seed: int, count: int = 12) -> np.ndarray:
    """A timelapse as Y, Cb, Cr, (f, h, w, 3)."""
    rgb = render(sample_sky(random.Random(seed)), count, (HEIGHT, WIDTH), fps=5).astype(np.float32)
    matrix = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]], dtype=np.float32)
    return rgb @ matrix.T + (0, 128, 128)


def still(seed: int, count: int = 12) -> np.ndarray:
    """A tripod's view with the noise that is left in small pictures."""
    noise = np.random.default_rng(seed + 100).normal(0, 1.5, (count, HEIGHT, WIDTH, 3))
    return photograph(seed) + noise


def pan(seed: int, step: int, count: int = 12, rest: int = 0) -> np.ndarray:
    """`step` pixels a frame, and `rest` frames at either end where the camera does not move."""
    wide = photograph(seed, width=WIDTH + step * count)
    places = [0] * rest + [step * i for i in range(count)] + [step * count] * rest
    return np.stack([wide[:, place : place + WIDTH] for place in places])


def dim(frames: np.ndarray, gains: Sequence[float], colour: float = 0) -> np.ndarray:
    """Towards black, or another grey."""
    weights = np.asarray(gains)[:, None, None, None]
    return frames * weights + np.array([colour, 128, 128]) * (1 - weights)


def find(*parts: np.ndarray, fps: float = 5.0) -> list[int]:
    finder = CutFinder(fps)
    for frame in np.concatenate(parts):
        finder.add(np.clip(np.round(frame), 0, 255).astype(np.uint8))
    return finder.cuts()


def test_hard_cuts() -> None:
    assert find(still(0), sky(1), sky(2), pan(3, 6), still(4)) == [12, 24, 36, 48]


def test_cuts_between_skies() -> None:
    assert find(*(sky(seed) for seed in range(10, 16))) == [12, 24, 36, 48, 60]


def test_short_scenes() -> None:
    assert find(still(0), still(1, 4), still(2, 3), still(3)) == [12, 16, 19]


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("length", [2, 6])
def test_fades_through_black_and_white(colour: float, length: int) -> None:
    down = np.concatenate([np.ones(12 - length), np.linspace(1, 0, length + 2)[1:-1]])
    nothing = dim(still(0, 2), [0, 0], colour)
    [cut] = find(dim(sky(1), down, colour), nothing, dim(still(2), down[::-1], colour))
    assert 12 <= cut <= 14


def test_a_long_black_pause_is_shared() -> None:
    assert find(sky(1), dim(still(0, 20), [0] * 20), sky(2)) == [22]


def test_black_before_and_after_is_no_scene() -> None:
    black = dim(still(0, 5), [0] * 5)
    assert find(black, sky(1), black) == []


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_dissolves(length: int) -> None:
    old, new = still(5, 12 + length), sky(6, 12 + length)
    weights = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
    mixed = old[12:] * (1 - weights) + new[:length] * weights
    [cut] = find(old[:12], mixed, new[length:])
    assert 12 <= cut <= 12 + length


@pytest.mark.parametrize("length", [1, 2])
def test_flashes_and_damaged_frames(length: int) -> None:
    flash = sky(1, 24).copy()
    flash[8 : 8 + length] = dim(flash[8 : 8 + length], [0.2] * length, 255)
    assert find(flash) == []
    damaged = still(2, 24)
    damaged[8 : 8 + length] = photograph(3)
    damaged[16, 20:] = 128
    assert find(damaged) == []


@pytest.mark.parametrize("step", [4, 12, 28])  # of 114 pixels a frame
def test_pans(step: int) -> None:
    assert find(pan(7, step, rest=8)) == []


def test_steps_and_ramps_of_the_exposure() -> None:
    gains = np.repeat([1.0, 0.5, 1.1, 0.7], 6)
    assert find(dim(sky(1, 24), gains)) == []
    assert find(dim(still(2, 24), np.linspace(1, 0.2, 24))) == []


def test_a_cut_at_the_end_and_no_frames() -> None:
    assert find(still(0), still(1, 3)) == [12]
    assert CutFinder().cuts() == []
    assert find(still(0, 1)) == []


def test_asking_does_not_change_the_answer() -> None:
    finder, asked = CutFinder(), []
    frames = np.concatenate([still(0), still(1), sky(2)])
    for frame in frames:
        finder.add(np.clip(frame, 0, 255).astype(np.uint8))
        asked.append(finder.cuts())
    assert finder.cuts() == find(frames) == [12, 24]
    assert asked[10] == []


def test_memory_does_not_grow() -> None:
    finder = CutFinder()
    for _ in range(3):
        for frame in np.concatenate([still(0, 60), still(1, 60)]):
            finder.add(np.clip(frame, 0, 255).astype(np.uint8))
    held = len(finder._frames)
    assert held < 60
    assert finder.cuts() == [60, 120, 180, 240, 300]
    assert max(len(frame.distances) for frame in finder._frames) < 60


@pytest.mark.parametrize("fps", [1, 15, 30])
def test_other_rates(fps: float) -> None:
    count = round(3 * fps) + 6
    assert find(still(0, count), sky(1, count), still(2, count), fps=fps) == [count, 2 * count]


@pytest.mark.parametrize(("shape", "cuts"), [((64, 4000), [4]), ((300, 64), [4]), ((64, 64), [4]), ((1, 1), [])])
def test_other_shapes(shape: tuple[int, int], cuts: list[int]) -> None:
    finder = CutFinder()
    for seed in (1, 1, 1, 1, 2, 2, 2, 2):
        blocks = np.random.default_rng(seed).integers(0, 255, (1 + shape[0] // 8, 1 + shape[1] // 8))
        luma = np.kron(blocks, np.ones((8, 8), dtype=int))[: shape[0], : shape[1]]
        finder.add(np.stack([luma, np.full_like(luma, 128), np.full_like(luma, 128)], axis=2).astype(np.uint8))
    assert finder.cuts() == cuts


def test_a_change_of_size_is_a_new_scene() -> None:
    finder = CutFinder()
    for frame in np.clip(still(0, 8), 0, 255).astype(np.uint8):
        finder.add(frame)
    for frame in np.clip(still(1, 8), 0, 255).astype(np.uint8):
        finder.add(np.ascontiguousarray(frame[:, :80]))
    assert finder.cuts() == [8]


@pytest.mark.parametrize("small", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_another_shape_or_type_is_refused(small: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        CutFinder().add(small)
