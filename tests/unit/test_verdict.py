"""What is said of videos of which it is known how they move."""

import io

import numpy as np
import pytest
from PIL import Image

from msdv.data.moving import make_reference, measure
from msdv.data.synthetic import Sky, render
from msdv.verdict import NAMES, MotionNumbers, Reference, mean_numbers, verdict

SKIES = [
    Sky("day", "puffy", "hills", "right", "mid", 3),
    Sky("night", "thick", "desert", "right", "mid", 6),
    Sky("sunset", "thick", "sea", "left", "mid", 4),
    Sky("overcast", "overcast", "desert", "left", "mid", 5),
]
FRAMES = 12


@pytest.fixture(scope="module")
def reference():
    return make_reference([render(sky, FRAMES) for sky in SKIES])


def jpeg(video: np.ndarray, quality: int) -> np.ndarray:
    frames = []
    for frame in video:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        frames.append(np.asarray(Image.open(file)))
    return np.stack(frames)


def noisy(video: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, video.shape)
    return (video + noise).clip(0, 255).astype(np.uint8)


def jittered(video: np.ndarray) -> np.ndarray:
    gain = np.random.default_rng(0).normal(1, 0.06, (len(video), 1, 1, 1))
    return (video * gain).clip(0, 255).astype(np.uint8)


def random_pictures(video: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, video.shape).astype(np.uint8)


def pictures_of_other_times(video: np.ndarray) -> np.ndarray:
    times = np.random.default_rng(0).uniform(0, 2000, len(video))
    return np.concatenate([render(SKIES[0], 1, start=float(time)) for time in times])


CASES = [
    ("moves like the data", lambda video: video),
    ("moves like the data", lambda video: video[:, :, ::-1]),
    ("moves like the data", lambda video: jpeg(video, 70)),
    ("static", lambda video: video[:1].repeat(FRAMES, 0)),
    ("static", lambda video: jpeg(noisy(video[:1].repeat(FRAMES, 0), 2), 60)),
    ("flickers", jittered),
    ("flickers", lambda video: jittered(video[:1].repeat(FRAMES, 0))),
    ("flickers", lambda video: noisy(video, 12)),
    ("flickers", lambda video: noisy(video[:1].repeat(FRAMES, 0), 12)),
    ("frames are independent", random_pictures),
    ("frames are independent", pictures_of_other_times),
]


@pytest.mark.parametrize("sky", SKIES[:2], ids=["day", "night"])
@pytest.mark.parametrize(("words", "change"), CASES)
def test_known_videos(reference, sky, words, change):
    numbers = measure(change(render(sky, FRAMES)), reference.regions)
    assert verdict(numbers, reference).startswith(words)
    assert verdict(numbers, None).startswith(words.removesuffix(" like the data"))


def test_another_clip_like_those(reference):
    numbers = measure(render(Sky("day", "scattered", "forest", "left", "mid", 77), FRAMES), reference.regions)
    assert verdict(numbers, reference).startswith("moves like the data (pace ")


@pytest.mark.parametrize(("fps", "words"), [(10.0, "moves less than the data"), (2.0, "moves more than the data")])
def test_other_speeds(reference, fps, words):
    numbers = measure(render(SKIES[0], FRAMES, fps=fps), reference.regions)
    found = verdict(numbers, reference)
    assert found.startswith(words)
    assert float(found.split("(")[1].split(" times")[0]) == pytest.approx(5 / fps, rel=0.25)


def test_the_speed_is_told_by_the_pace_where_it_is_known_of_both(reference):
    halved = {name: getattr(reference.numbers, name) / 2 for name in ("flow", "flow_moving")}
    jumps = reference.numbers.model_copy(update=halved)  # as what sticks to a grid: flow sees half of it, pace all
    assert verdict(jumps, reference).startswith("moves like the data (pace ")
    older = reference.model_copy(
        update={
            "numbers": reference.numbers.model_copy(update={"pace": None, "pace_moving": None}),
            "slow_pace": None,
            "fast_pace": None,
        }
    )
    assert verdict(jumps, older).startswith("moves less than the data (0.5 times it: flow ")


def test_a_slow_clip_of_the_data_is_like_it(reference):
    numbers = reference.numbers.model_copy(update={"pace_moving": 0.5 * reference.numbers.pace_moving})
    assert verdict(numbers, reference).startswith("moves less than the data (0.5 times it: pace ")
    wide = reference.model_copy(update={"slow_pace": numbers.pace_moving})
    assert verdict(numbers, wide).startswith("moves like the data (pace ")


def test_without_a_reference_it_says_so():
    found = verdict(measure(render(SKIES[0], 4)), None)
    assert found.startswith("moves (flow ") and "no numbers of training clips" in found


def test_one_frame():
    assert "single frame" in verdict(MotionNumbers(frames=1), None)


def test_clips_that_stand_still(reference):
    still = reference.model_copy(
        update={"numbers": MotionNumbers(frames=10, flow=0.01), "slow": 0.0, "fast": 0.0, "regions": ()}
    )
    assert verdict(MotionNumbers(frames=10, flow=0.01, change=0.5), still).startswith("static")
    assert verdict(MotionNumbers(frames=10, flow=1.0, change=5.0, warp_error=1.0), still).startswith("moves more")


def test_what_else_is_wrong_is_told(reference):
    good = reference.numbers
    assert verdict(good, reference).count(";") == 0
    ground = good.model_copy(update={"flow_still": 0.4})
    assert "what stands still in the clips moves by 0.4" in verdict(ground, reference)
    drift = good.model_copy(update={"colour_drift": 40.0})
    assert "colours drift by 40" in verdict(drift, reference)
    seams = good.model_copy(update={"seams": 2.5})
    assert "windows can be seen" in verdict(seams, reference)


def test_means_are_over_those_that_have_a_number():
    one, two = MotionNumbers(frames=3, flow=1.0), MotionNumbers(frames=5, flow=2.0, flicker=4.0)
    mean = mean_numbers([one, two])
    assert (mean.frames, mean.flow, mean.flicker, mean.seams) == (8, 1.5, 4.0, None)


def test_every_number_has_a_name():
    assert set(NAMES) == MotionNumbers.model_fields.keys() - {"frames"}


def test_a_reference_goes_through_json(reference):
    assert Reference.model_validate_json(reference.model_dump_json()) == reference


def test_a_reference_of_before_there_was_a_pace_is_read(reference):
    older = reference.model_dump(exclude={"slow_pace": True, "fast_pace": True, "numbers": {"pace", "pace_moving"}})
    found = Reference.model_validate(older)
    assert (found.numbers.pace, found.slow_pace, found.fast_pace) == (None, None, None)
    assert found.slow == reference.slow
