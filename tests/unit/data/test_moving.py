"""Measures of motion, on videos of which it is known."""

import numpy as np
import pytest

from msdv.data.moving import LAG, Meter, likeness, make_reference, measure
from msdv.data.synthetic import Sky, ground_mask, render, wind_velocity

MID = Sky("day", "puffy", "hills", "right", "mid", 3)
SKIES = [MID, Sky("sunset", "thick", "sea", "left", "mid", 4), Sky("overcast", "overcast", "desert", "left", "mid", 5)]
FRAMES = 12


@pytest.fixture(scope="module")
def videos() -> list[np.ndarray]:
    return [render(sky, FRAMES) for sky in SKIES]


@pytest.fixture(scope="module")
def reference(videos):
    return make_reference(videos)


def noise(seed: int, frames: int = FRAMES, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3)).astype(np.uint8)


def test_flow_is_that_of_the_wind(videos):
    lengths = np.abs(wind_velocity(MID, 128)) * 128 / 5
    truth = np.where(ground_mask(MID), 0, lengths[:, None]).mean()
    assert measure(videos[0]).flow == pytest.approx(truth, rel=0.15)


def test_pace_is_that_of_the_wind_though_detail_jumps(videos):
    truth = measure(videos[0]).flow
    assert measure(videos[0]).pace == pytest.approx(truth, rel=0.1)
    jumps = videos[0][(np.arange(FRAMES) // 2) * 2]  # every second frame shows what the one before it did
    assert measure(jumps).pace == pytest.approx(truth, rel=0.1)


def test_pace_of_short_videos_is_over_what_there_is(videos):
    two, three = (measure(videos[0][:frames]) for frames in (2, 3))
    assert two.pace == two.flow
    assert three.pace == pytest.approx(measure(videos[0][::2][:2]).flow / 2, abs=1e-3)


def test_sky_and_ground_are_told_apart(videos, reference):
    assert reference.regions[0] == "m" * 16
    assert reference.regions[-1] == "s" * 16
    numbers = measure(videos[0], reference.regions)
    assert numbers.flow_moving is not None and numbers.flow_still is not None
    assert numbers.flow_still < 0.1 * numbers.flow_moving
    assert measure(videos[0]).flow_moving is None


def test_numbers_do_not_depend_on_size(videos):
    small, large = (measure(render(MID, FRAMES, size)) for size in (64, 256))
    assert small.flow == pytest.approx(large.flow, rel=0.2)
    assert small.colour_drift == pytest.approx(large.colour_drift, abs=0.3)


def test_following_explains_what_moves(videos):
    numbers = measure(videos[0])
    assert numbers.followed > 0.9
    assert numbers.warp_error < 0.4 * numbers.change


def test_flicker_of_areas_is_second_differences():
    still = np.full((6, 64, 64, 3), 100, np.uint8)
    still[1::2] += 10
    assert measure(still).flicker == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("size", [128, 384])
def test_flicker_of_pixels_is_seen_at_any_size(size):
    still = render(MID, 1, size).repeat(4, 0).astype(float)
    shaken = still + np.random.default_rng(0).normal(0, 10, still.shape)
    quiet, loud = (measure(video.clip(0, 255).astype(np.uint8)).fine_flicker for video in (still, shaken))
    assert quiet == 0
    assert loud > 7


def test_colour_drift_is_from_the_start_to_the_end():
    ramp = np.full((20, 64, 64, 3), 50, np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None]
    assert measure(ramp).colour_drift == pytest.approx(18)  # between the means of two frames each


def test_independence_and_novelty_of_independent_frames(videos):
    both = measure(noise(0))
    assert both.independence == pytest.approx(1, abs=0.1)
    assert both.novelty == pytest.approx(1, abs=0.1)
    clip = measure(videos[0])
    assert clip.independence < 0.3 and clip.novelty < 0.2


def test_noise_on_a_still_picture_is_independent_but_not_new():
    still = render(MID, 1).repeat(LAG + 4, 0).astype(float)
    shaken = (still + np.random.default_rng(0).normal(0, 10, still.shape)).clip(0, 255).astype(np.uint8)
    numbers = measure(shaken)
    assert numbers.independence > 0.9
    assert numbers.novelty < 0.1


def test_seams_are_the_change_where_windows_meet():
    first, second = render(MID, 6), render(MID, 6, start=60.0)
    frames = np.concatenate([first, second])
    assert measure(frames, borders=[6]).seams > 3
    assert measure(first, borders=[3]).seams == pytest.approx(1, abs=0.1)
    assert measure(frames).seams is None


def test_a_loop_is_seen_where_it_closes():
    frames = render(MID, 9)
    assert measure(frames, borders=[0]).seams > 2
    there_and_back = np.concatenate([frames, frames[-2:0:-1]])
    assert measure(there_and_back, borders=[0]).seams == pytest.approx(1, abs=0.1)


def test_likeness_of_seeds(videos):
    thumbs = []
    for frames in (videos[0], videos[0], videos[1], videos[2]):
        meter = Meter()
        for frame in frames:
            meter.add(frame)
        thumbs.append(meter.thumbs)
    assert likeness(thumbs[:2]) == pytest.approx(1)
    assert likeness(thumbs[1:]) < 0.4
    assert likeness(thumbs[:1]) is None


def test_likeness_leaves_out_what_all_share():
    side = np.zeros((3, 16, 16))
    side[..., :8] = 100  # all are bright at the left
    own = np.random.default_rng(0).normal(0, 5, (2, 3, 16, 16))
    shared = side[0] - side[0].mean(-1, keepdims=True)
    assert likeness(side + own) > 0.9
    assert likeness(side + own, shared) < 0.2


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_videos_leave_numbers_out(frames):
    numbers = measure(render(MID, frames))
    assert numbers.frames == frames
    assert (numbers.flow is None) == (frames == 1)
    assert (numbers.flicker is None) == (frames < 3)


@pytest.mark.parametrize("level", [0, 255])
def test_flat_pictures_have_numbers(level):
    numbers = measure(np.full((10, 64, 96, 3), level, np.uint8))
    assert (numbers.flow, numbers.change, numbers.novelty, numbers.independence) == (0, 0, None, None)


def test_memory_does_not_grow_with_the_length():
    meter = Meter()
    for frame in noise(1, 300, 32):
        meter.add(frame)
    assert len(meter.thumbs) == 128


def test_reference_of_clips(videos, reference):
    assert reference.clips == 3
    assert reference.slow <= reference.numbers.flow_moving <= reference.fast
    assert reference.slow_pace <= reference.numbers.pace_moving <= reference.fast_pace
    assert reference.drift_frames == FRAMES
    assert reference.numbers.likeness < 0.3
    assert len(reference.shared) == len(reference.shared[0]) == 16


def test_reference_of_mirrored_clips_is_even():
    half = render(MID, 6)
    half[:, :, :64] = half[:1, :, :64]  # moves at the right alone
    one, both = (make_reference([half], flip=flip).regions[0] for flip in (False, True))
    assert one != one[::-1]
    assert both == both[::-1]


def test_reference_of_clips_that_stand_still():
    reference = make_reference([render(MID, 1).repeat(4, 0)])
    assert reference.slow == reference.fast == 0
    assert "m" not in "".join(reference.regions)
