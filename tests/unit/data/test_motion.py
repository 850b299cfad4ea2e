import numpy as np
import pytest

from msdv.data.motion import REACH, displacement


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Levels of a picture with detail of all sizes, (height, width) float."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    picture = np.fft.irfft2(spectrum / (0.01 + frequency) ** 1.5, (height, width))
    return np.clip(128 + 40 * picture / picture.std(), 0, 255)


def to_picture(levels: np.ndarray) -> np.ndarray:
    return np.clip(levels.round(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """Eight times the size of a picture, so that it can be moved by eighths of a pixel."""
    return texture(64 * 8, 2 * 64 * 8)


def view(scene: np.ndarray, right: float, noise: float = 0.0) -> np.ndarray:
    """64 x 64 pixels of the scene from `right` pixels on."""
    start = round(right * 8)
    pixels = scene[:, start : start + 512].reshape(64, 8, 64, 8).mean((1, 3))
    return to_picture(pixels + noise * np.random.default_rng(start).standard_normal(pixels.shape))


@pytest.mark.parametrize("speed", [0.25, 0.5, 1, 2, 3.5, 5, 8, 12, 15])
@pytest.mark.parametrize("noise", [0, 2])
def test_a_pan_is_as_fast_as_it_is(scene: np.ndarray, speed: float, noise: float) -> None:
    found = displacement(view(scene, 0, noise), view(scene, speed, noise))
    assert found == pytest.approx(speed, rel=0.15, abs=0.06)


@pytest.mark.parametrize("shape", [(64, 64), (64, 114), (114, 64), (64, 192), (64, 67)])
def test_any_shape_and_direction(shape: tuple[int, int]) -> None:
    scene = texture(shape[0] + 6, shape[1] + 6)
    before, after = to_picture(scene[:-6, :-6]), to_picture(scene[3:-3, 4:-2])
    assert displacement(before, after) == pytest.approx(5, rel=0.15)
    assert displacement(after, before) == pytest.approx(5, rel=0.15)


@pytest.mark.parametrize("noise", [1, 3, 5])
def test_noise_is_no_motion(scene: np.ndarray, noise: float) -> None:
    rng = np.random.default_rng(1)
    for still in (view(scene, 0).astype(float), np.full((64, 64), 30.0), np.full((64, 64), 130.0)):
        first, second = (to_picture(still + noise * rng.standard_normal(still.shape)) for _ in range(2))
        assert displacement(first, second) < 0.2
        if noise < 5:
            assert displacement(first, second) < 0.02


@pytest.mark.parametrize(("gain", "offset"), [(1, 6), (0.8, 0), (1.2, 0), (1.1, -10), (0.6, 0)])
def test_changes_of_light_are_no_motion(scene: np.ndarray, gain: float, offset: float) -> None:
    still = view(scene, 0)
    assert displacement(still, to_picture(still * gain + offset)) < 0.02


def test_a_pan_under_changing_light(scene: np.ndarray) -> None:
    assert displacement(view(scene, 0), to_picture(view(scene, 2) * 0.8 + 5)) == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("size", [6, 10])
@pytest.mark.parametrize("background", ["plain", "textured"])
def test_a_small_thing_moves(scene: np.ndarray, size: int, background: str) -> None:
    frames = []
    for left in (20, 28):
        frame = view(scene, 0).copy() if background == "textured" else np.full((64, 64), 100, np.uint8)
        frame[20 : 20 + size, left : left + size] = 230
        frames.append(frame)
    assert 0.1 < displacement(*frames) < 2
    assert displacement(frames[0], frames[0]) == 0


@pytest.mark.parametrize("speed", [20, 40, 60])
def test_too_fast_to_follow_is_not_still(scene: np.ndarray, speed: int) -> None:
    assert 0.7 * REACH < displacement(view(scene, 0), view(scene, speed)) <= REACH + 1


@pytest.mark.parametrize("shape", [(1, 1), (7, 64), (64, 7), (8, 8), (16, 48)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    assert displacement(np.zeros(shape, np.uint8), np.full(shape, 200, np.uint8)) == 0
