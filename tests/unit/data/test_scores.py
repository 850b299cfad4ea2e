import json
import random
from collections.abc import Iterable
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from msdv.data import scores
from msdv.data.scores import HASHES, ClipMeter, Scores, sharpness_of
from msdv.data.synthetic import Sky, render, sample_sky, wind_velocity

DAY = Sky("day", "puffy", "hills", "right", "fast", seed=5)


def to_small(frame: np.ndarray) -> np.ndarray:
    """A frame (h, w, 3) RGB as prep shows it to the meter."""
    image = Image.fromarray(frame).convert("YCbCr")
    scale = 64 / min(image.size)
    return np.asarray(image.resize([round(side * scale) for side in image.size], Image.Resampling.BOX))


def grey(levels: np.ndarray) -> np.ndarray:
    """A small frame of these levels (h, w)."""
    luma = np.clip(levels.round(), 0, 255).astype(np.uint8)
    return np.stack([luma, np.full_like(luma, 128), np.full_like(luma, 128)], -1)


def measure(frames: Iterable[np.ndarray]) -> Scores:
    meter = ClipMeter()
    for frame in frames:
        meter.add(frame)
    return meter.result()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Levels of a still picture, (64, 64)."""
    return to_small(render(DAY, 1, 256)[0])[..., 0].astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_motion_of_clouds_is_the_wind(seed: int) -> None:
    sky = replace(sample_sky(random.Random(seed)), clouds="thick")
    found = measure(map(to_small, render(sky, 25, 128, fps=5))).motion
    expected = 100 * np.abs(wind_velocity(sky, 64)).mean() / 5
    assert found == pytest.approx(expected, rel=0.35)


def test_slow_motion_is_seen(picture: np.ndarray) -> None:
    wide = np.kron(np.concatenate([picture, picture[:, ::-1]], 1), np.ones((8, 8)))
    frames = [grey(wide[:, x : x + 512].reshape(64, 8, 64, 8).mean((1, 3))) for x in range(40)]
    assert measure(frames).motion > 0.5 * 100 / 8 / 64


def test_still_with_noise_and_flicker(picture: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    frames = [picture * rng.uniform(0.9, 1.1) + rng.standard_normal(picture.shape) for _ in range(30)]
    found = measure(map(grey, frames))
    assert found.motion < 0.05
    assert found.flicker > 1


def test_one_cut_is_not_motion(picture: np.ndarray) -> None:
    frames = [grey(picture)] * 12 + [grey(picture[:, ::-1] * 0.5)] * 12
    assert measure(frames).motion == 0


def test_flicker_in_levels(picture: np.ndarray) -> None:
    calm = 40 + 0.5 * picture
    assert measure(grey(calm + 5 * (-1) ** i) for i in range(30)).flicker == pytest.approx(5, abs=0.3)
    assert measure(grey(calm + 2 * (-1) ** i) for i in range(30)).flicker == pytest.approx(2, abs=0.2)


def test_a_sunset_does_not_flicker(picture: np.ndarray) -> None:
    frames = [grey(picture * (1 - 0.8 * (i / 60) ** 2)) for i in range(60)]
    assert measure(frames).flicker < 0.1


def test_things_that_move_do_not_flicker(picture: np.ndarray) -> None:
    frames = [picture.copy() for _ in range(30)]
    for i, frame in enumerate(frames):
        frame[20:44, (7 * i) % 60 : (7 * i) % 60 + 20] = 250
    assert measure(map(grey, frames)).flicker < 0.5
    assert measure(map(to_small, render(replace(DAY, speed="fast"), 30, 96))).flicker < 0.1


def blurred(frames: np.ndarray, radius: float) -> list[np.ndarray]:
    return [np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(radius))) for frame in frames]


def test_sharpness_falls_with_blur() -> None:
    edges = np.kron(np.indices((6, 6)).sum(0) % 2, np.ones((90, 90))) * 120 + 60
    for radius, expected in ((0, 90), (1, 65), (2, 40), (4, 15)):
        meter = ClipMeter()
        for luma in blurred(np.uint8(edges)[None], radius):
            meter.add(grey(np.zeros((64, 64))), sharpness_of(luma))
        assert meter.result().sharpness == pytest.approx(expected, abs=3)


def test_sharpness_of_small_frames_falls_with_blur() -> None:
    clip = render(DAY, 3, 256)
    found = [measure(map(to_small, blurred(clip, radius))).sharpness for radius in (0, 4, 8, 16)]
    assert found[0] > found[1] + 5 > found[2] + 10 > found[3] + 15


def test_dark_is_not_blurred() -> None:
    clip = render(DAY, 3, 256)
    crisp = measure(map(to_small, clip)).sharpness
    assert measure(map(to_small, (clip * 0.15).astype(np.uint8))).sharpness > 0.8 * crisp


def test_nothing_is_not_sharp() -> None:
    rng = np.random.default_rng(0)
    assert measure([grey(np.full((64, 64), 16.0))] * 5).sharpness == 0
    meter = ClipMeter()
    for _ in range(5):
        noise = np.clip(rng.normal(40, 4, (512, 512)).round(), 0, 255).astype(np.uint8)
        meter.add(grey(np.zeros((64, 64))), sharpness_of(noise))
    assert meter.result().sharpness < 30


def test_first_middle_and_last_hash() -> None:
    clip = [to_small(frame) for frame in render(DAY, 33, 96, fps=0.5)]
    hashes = measure(clip).hashes
    assert len(hashes) == HASHES and all(len(text) == 16 for text in hashes)
    alone = [measure([frame]).hashes[0] for frame in clip]
    assert (hashes[0], hashes[HASHES // 2], hashes[-1]) == (alone[0], alone[16], alone[-1])
    assert len(set(hashes)) > 4


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 9])
def test_short_clips(count: int) -> None:
    found = measure(map(to_small, render(DAY, max(1, count), 64)[:count]))
    assert len(found.hashes) == count
    assert found.flicker < 0.1
    assert (found.motion > 0) == (count > 1)
    assert json.loads(json.dumps(asdict(found))) == {**asdict(found), "hashes": list(found.hashes)}


def test_what_is_kept_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    displacement = scores.displacement
    monkeypatch.setattr(scores, "displacement", lambda a, b: compared.append(1) or displacement(a, b))
    clip = [to_small(frame) for frame in render(DAY, 10, 64)]
    meter = ClipMeter()
    sizes = []
    for index in range(3000):
        meter.add(clip[index % 10])
        sizes.append(sum(len(value) for value in vars(meter).values() if isinstance(value, list)))
    meter.result()
    assert max(sizes[1000:]) <= max(sizes[:1000])
    assert 8 <= len(compared) <= 16


def test_same_result_each_time_and_sizes_may_change() -> None:
    clip = [to_small(frame) for frame in render(DAY, 40, 64)]
    assert measure(clip) == measure(clip)
    other = [to_small(frame) for frame in render(DAY, 10, (64, 128))]
    assert measure(clip + other).motion > 0
