"""Frames averaged with their neighbours: on videos of which the truth is known."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from msdv.data.moving import measure
from msdv.data.steady import steadied


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 4)
    return (smooth * 300 + 128).clip(20, 235)


def moving(frames: int = 12, speed: float = 1.5) -> np.ndarray:
    """Something that goes to the left by `speed` pixels a frame, without noise: (f, 96, 96, 3)."""
    wide = texture(96, 160)
    shifted = [
        cv2.warpAffine(wide, np.array([[1.0, 0.0, -speed * i], [0.0, 1.0, 0.0]]), (96, 96)) for i in range(frames)
    ]
    return np.stack(shifted)


def noisy(clean: np.ndarray, amount: float = 4.0) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=clean.shape) * amount
    return (clean + noise).round().clip(0, 255).astype(np.uint8)


def error(found: np.ndarray, clean: np.ndarray) -> float:
    return float(np.abs(found[3:-3, :, 8:-24] - clean[3:-3, :, 8:-24]).mean())


def apply(frames: np.ndarray, reach: int, keep: frozenset[int] = frozenset()) -> np.ndarray:
    return np.stack(list(steadied(frames, reach, keep)))


@pytest.mark.parametrize(("reach", "share"), [(1, 0.75), (3, 0.55)])
def test_what_moves_keeps_its_place_and_loses_its_noise(reach: int, share: float) -> None:
    clean = moving()
    frames = noisy(clean)
    found = apply(frames, reach)
    assert found.dtype == np.uint8
    assert error(found, clean) < share * error(frames, clean)
    before, after = measure(frames), measure(found)
    assert after.flow == pytest.approx(before.flow, rel=0.1)
    assert after.warp_error is not None and before.warp_error is not None
    assert after.warp_error < share * before.warp_error


def test_what_has_no_noise_stays_what_it_is() -> None:
    clean = moving().round().astype(np.uint8)
    assert np.abs(apply(clean, 3).astype(float) - clean).mean() < 0.6


def test_cuts_stay_cuts() -> None:
    one, other = texture(64, 64, 0).astype(np.uint8), texture(64, 64, 1).astype(np.uint8)
    frames = np.stack([one] * 4 + [other] * 4)
    found = apply(frames, 3)
    assert np.abs(found.astype(float) - frames).mean() < 0.5


def test_what_flashes_up_is_not_smeared_over_its_neighbours() -> None:
    frames = np.full((7, 64, 64, 3), 90, np.uint8)
    frames[3, 20:40, 20:40] = 200
    found = apply(frames, 2)
    assert np.abs(found.astype(int) - frames).max() <= 1


def test_frames_that_were_given_stay() -> None:
    frames = noisy(moving(6))
    found = apply(frames, 2, frozenset({0, 4}))
    same = [np.array_equal(a, b) for a, b in zip(found, frames, strict=True)]
    assert same == [True, False, False, False, True, False]


def test_no_reach_and_a_single_frame_change_nothing() -> None:
    frames = noisy(moving(3))
    assert np.array_equal(apply(frames, 0), frames)
    assert np.array_equal(apply(frames[:1], 4), frames[:1])


def test_few_frames_wait() -> None:
    taken = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal taken
        for frame in noisy(moving(9)):
            taken += 1
            yield frame

    waiting = [taken for _ in steadied(counted(), 2)]
    assert waiting == [3, 4, 5, 6, 7, 8, 9, 9, 9]


def test_large_pictures_are_followed_on_small_ones() -> None:
    clean = np.stack([cv2.resize(frame, (576, 576), interpolation=cv2.INTER_CUBIC) for frame in moving(5, 1.0)])
    frames = noisy(clean, 6.0)
    found = apply(frames, 2)
    middle = np.s_[2, 60:-60, 60:-160]
    assert np.abs(found[middle] - clean[middle]).mean() < 0.75 * np.abs(frames[middle] - clean[middle]).mean()
