import random
from dataclasses import replace

import numpy as np
import pytest

from msdv.data.synthetic import (
    LANDS,
    SPEEDS,
    TIME_PHRASES,
    Sky,
    caption,
    clips,
    ground_mask,
    render,
    sample_sky,
    wind_velocity,
    write_sky_videos,
)

DAY = Sky("day", "puffy", "hills", "right", "mid", seed=5)


def shift_between(first: np.ndarray, second: np.ndarray) -> int:
    """Pixels to the right by which `first` (h, w) looks most like `second`."""
    w = first.shape[1]
    errors = {
        s: np.abs(first[:, max(-s, 0) : w - max(s, 0)] - second[:, max(s, 0) : w - max(-s, 0)]).mean()
        for s in range(-20, 21)
    }
    return min(errors, key=lambda s: errors[s])


def test_same_sky_same_pixels():
    np.testing.assert_array_equal(render(DAY, 2), render(DAY, 2))
    assert (render(DAY, 1) != render(replace(DAY, seed=6), 1)).any()


def test_a_later_start_continues_the_clip():
    np.testing.assert_array_equal(render(DAY, 6, fps=5)[4:], render(DAY, 2, fps=5, start=0.8))


@pytest.mark.parametrize("size", [64, (72, 128)])
def test_shape_and_type(size):
    frames = render(DAY, 3, size=size)
    h, w = (size, size) if isinstance(size, int) else size
    assert frames.shape == (3, h, w, 3)
    assert frames.dtype == np.uint8
    assert ground_mask(DAY, size).shape == (h, w)


@pytest.mark.parametrize("land", LANDS)
@pytest.mark.parametrize("seed", range(4))
def test_ground_fills_the_bottom_and_leaves_the_top(land, seed):
    mask = ground_mask(Sky("day", "puffy", land, "left", "mid", seed))
    assert mask[-28:].all()
    assert not mask[:78].any()


@pytest.mark.parametrize("land", LANDS)
def test_ground_is_still_and_sky_is_not(land):
    sky = replace(DAY, land=land)
    frames, mask = render(sky, 5).astype(int), ground_mask(sky)
    change = np.abs(frames[4] - frames[0]).mean(-1)
    inside = mask & np.roll(mask, 2, 0)  # the edge itself is a blend of land and sky
    assert change[inside].max() <= 1
    assert change[:60].mean() > 3


@pytest.mark.parametrize("wind", ["left", "right"])
@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("time", ["day", "sunset", "storm"])
def test_clouds_move_as_the_wind_says(time, wind, speed):
    sky = Sky(time, "storm" if time == "storm" else "thick", "hills", wind, speed, seed=11)
    frames, rows, lag = render(sky, 6).astype(float).mean(-1), slice(8, 56), 5
    expected = wind_velocity(sky, 128)[rows].mean() * 128 * lag / 5
    assert shift_between(frames[0][rows], frames[lag][rows]) == pytest.approx(expected, abs=1)
    assert 0.6 <= abs(wind_velocity(sky, 128)[0]) * 128 / 5 <= 2.0


def test_wind_stands_still_on_land():
    velocity = wind_velocity(DAY, 128)
    assert (velocity[:90] > 0).all()
    assert (velocity[-28:] == 0).all()
    assert (wind_velocity(replace(DAY, wind="left"), 128) == -velocity).all()


def test_light_of_the_times_of_day():
    colour = {time: render(replace(DAY, time=time), 1)[0, :80].mean((0, 1)) for time in ("day", "sunset", "night")}
    assert colour["night"].max() < 80
    assert colour["sunset"][0] > colour["sunset"][2] + 40
    assert colour["day"][2] > colour["day"][0]


def test_light_changes_little_within_a_clip():
    frames = render(replace(DAY, time="sunset"), 2, fps=1 / 20).astype(float)
    assert abs(frames[1].mean() - frames[0].mean()) < 20


def test_caption_names_time_land_and_wind():
    rng = random.Random(1)
    for time in ("sunset", "night", "storm", "overcast"):
        sky = replace(DAY, time=time, clouds=time if time in ("storm", "overcast") else "puffy")
        texts = [caption(sky, rng) for _ in range(100)]
        assert all(any(phrase.removeprefix("at ") in text for phrase in TIME_PHRASES[time]) for text in texts)
        assert not any("left" in text for text in texts)
        assert sum("right" in text for text in texts) > 20
        assert sum(any(phrase in text for phrase in LANDS["hills"]) for text in texts) > 30


def test_a_vague_caption_means_a_bright_sky():
    rng = random.Random(2)
    skies = [sample_sky(rng) for _ in range(2000)]
    vague = {sky.time for sky in skies if caption(sky, rng) == "clouds timelapse"}
    assert vague and vague <= {"day", "golden"}


def test_clips_repeat_by_seed():
    assert list(clips(5, seed=3)) == list(clips(5, seed=3))
    assert list(clips(5, seed=3)) != list(clips(5, seed=4))


def test_write_sky_videos(tmp_path):
    written = {}
    paths = write_sky_videos(
        tmp_path,
        2,
        seconds=0.4,
        size=32,
        fps=5,
        write=lambda path, frames, *, fps: written.update({path: (frames.shape, fps)}),
    )
    assert list(written) == paths
    assert set(written.values()) == {((2, 32, 32, 3), 5)}
    for path in paths:
        words = path.with_suffix(".txt").read_text().split()
        assert path.name.startswith(words[0].strip(","))
        assert path.suffix == ".mp4"
