import pytest
import torch

from msdv.model.steering import flow_for, mirror, motion_of, moves, slippage_of
from msdv.verdict import MotionNumbers, Reference
from msdv.weights import Motion

WIDTH = 128
CLOUDS = Motion(field=(((0.01, 0.0),), ((0.005, 0.0),), ((0.0, 0.0),), ((0.0, 0.0),)), left=0.5, share=0.9)
"""Above, things go by a hundredth of the picture a frame; below, nothing moves."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flow(wish: str, prompt: str = "", motion: Motion = CLOUDS) -> tuple[torch.Tensor, str]:
    found, used = flow_for(motion, wish, prompt, WIDTH // 8, WIDTH // 8, generator())
    assert found.shape == (1, 1, 2, WIDTH // 4, WIDTH // 4)
    return found[0, 0], used


@pytest.mark.parametrize(
    ("wish", "prompt", "top", "used"),
    [
        ("left", "clouds moving right", (-1.28, 0), "left:1.28"),
        ("right:2.5", "", (2.5, 0), "right:2.5"),
        ("up:1", "", (0, -1), "up:1"),
        ("down:0.5", "", (0, 0.5), "down:0.5"),
        ("45deg:2", "", (2**0.5, -(2**0.5)), "45deg:2"),
        ("-90deg:1", "", (0, 1), "-90deg:1"),
        ("left:1+up:2", "", (-1, -2), "left:1+up:2"),
        ("auto", "clouds drifting left over hills", (-1.28, 0), "left:1.28"),
        ("auto", "from left to right", (1.28, 0), "right:1.28"),
        ("left:0", "", (0, 0), "left:0"),
    ],
)
def test_directions_hold_where_the_clips_move(wish: str, prompt: str, top: tuple[float, float], used: str) -> None:
    found, said = flow(wish, prompt)
    assert said == used
    torch.testing.assert_close(found[:, 0], torch.tensor(top).float()[:, None].expand(2, 32), atol=1e-5, rtol=0)
    half = found[:, 11:13].mean((1, 2))  # the middle of the second row of four
    torch.testing.assert_close(half, torch.tensor(top).float() / 2, atol=1e-5, rtol=0)
    assert not found[:, 20:].any()


def test_zoom_holds_in_the_whole_picture() -> None:
    found, used = flow("zoom:2")
    assert used == "zoom:2"
    at = (torch.arange(32) + 0.5) * 4 - 64
    torch.testing.assert_close(found[0], 0.02 * at.expand(32, 32))
    torch.testing.assert_close(found[1], 0.02 * at[:, None].expand(32, 32))
    assert torch.equal(flow("zoom:-2")[0], -found)
    both, said = flow("left:1+zoom:0.5")
    torch.testing.assert_close(both, flow("left:1")[0] + found / 4)
    assert (said, flow("zoom")[1]) == ("left:1+zoom:0.5", "zoom:1")


@pytest.mark.parametrize("wish", ["left", "auto", "30deg:2", "zoom:2", "left:1+zoom:0.5"])
def test_noise_goes_faster_by_the_gain_and_the_wish_stays_what_it_was(wish: str) -> None:
    (asked, said), (faster, still_said) = flow(wish), flow(wish, motion=CLOUDS.model_copy(update={"gain": 1.5}))
    assert asked.any()
    torch.testing.assert_close(faster, 1.5 * asked)
    assert still_said == said


CLIPS = Reference(
    numbers=MotionNumbers(frames=50, flow=0.6, flow_moving=0.9, pace=0.5, pace_moving=0.8),
    clips=2,
    slow=0.9,
    fast=0.9,
    regions=("m",),
    slow_pace=0.8,
    fast_pace=0.8,
)


@pytest.mark.parametrize(
    ("pace", "before", "share", "gain"),
    [
        (0.8, 1.0, 1.0, 1.0),
        (0.5, 1.0, 0.625, 1.6),
        (0.4, 1.25, 0.4, 2.0),  # 2.5 would be too much
        (0.8, 1.25, 0.8, 1.25),  # what is mended already stays so
        (1.0, 1.0, 1.25, 0.8),
        (1.6, 1.0, 2.0, 0.67),
    ],
)
def test_slippage_is_the_pace_of_samples_over_that_of_their_noise(
    pace: float, before: float, share: float, gain: float
) -> None:
    samples = CLIPS.numbers.model_copy(update={"pace_moving": pace})
    found = slippage_of(CLOUDS.model_copy(update={"gain": before}), samples, CLIPS)
    assert found is not None
    assert (found.share, found.gain) == pytest.approx((share, gain))


def test_slippage_is_put_into_words() -> None:
    found = slippage_of(CLOUDS, CLIPS.numbers.model_copy(update={"pace_moving": 0.576}), CLIPS)
    assert str(found) == "the picture goes 0.72 times as fast as its noise: sampling makes the noise 1.39 times as fast"


@pytest.mark.parametrize(
    "change",
    [
        {"pace_moving": 0.1},  # static
        {"pace_moving": 0.0},
        {"pace_moving": None},
        {"flicker": 20.0},
        {"independence": 0.95, "novelty": 0.9},
    ],
)
def test_samples_that_do_not_move_as_one_thing_tell_nothing_of_slippage(change: dict[str, float | None]) -> None:
    assert slippage_of(CLOUDS, CLIPS.numbers.model_copy(update=change), CLIPS) is None


def test_clips_at_rest_tell_nothing_of_slippage() -> None:
    samples = CLIPS.numbers
    still = CLIPS.model_copy(update={"numbers": samples.model_copy(update={"pace_moving": 0.01, "flow_moving": 0.01})})
    assert slippage_of(CLOUDS, samples, still) is None
    assert slippage_of(CLOUDS, samples, None) is None


def test_without_a_word_the_direction_is_left_to_chance_as_often_as_in_the_clips() -> None:
    def lefts(share: float) -> int:
        motion = CLOUDS.model_copy(update={"left": share})
        return sum(flow_for(motion, "auto", "clouds", 4, 4, generator(seed))[1][0] == "l" for seed in range(200))

    assert [lefts(0.0), lefts(1.0)] == [0, 200]
    assert 75 < lefts(0.5) < 125
    assert 20 < lefts(0.2) < 62


def test_auto_is_the_field_itself() -> None:
    outwards = Motion(field=(((-0.01, -0.01), (0.01, -0.01)), ((-0.01, 0.01), (0.01, 0.01))), share=1.0)
    found, used = flow("auto", motion=outwards)
    assert used == "auto"
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([-1.28, -1.28]))
    torch.testing.assert_close(found[:, -1, 0], torch.tensor([-1.28, 1.28]))
    found, used = flow("right:2", motion=outwards)  # everywhere they move alike, so everything does
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([2.0, 0.0]), atol=1e-5, rtol=0)


def clips(*speeds: float, ground: float = 0.0) -> torch.Tensor:
    """Mean flows (clips, 2, 4, 4): rows of full and of half speed above two of `ground`."""
    rows = torch.tensor([[s, s / 2, ground * s, ground * s] for s in speeds])
    flows = torch.zeros(len(speeds), 2, 4, 4)
    flows[:, 0] = rows[:, :, None]
    return flows


def test_motion_of_clips_is_what_they_have_in_common() -> None:
    motion = motion_of(clips(2.0, -1.0, 1.0, 0.0, 0.01), 100, 0.8)
    assert motion is not None
    field = torch.tensor(motion.field)
    torch.testing.assert_close(field[:, 0, 0], torch.tensor([0.04, 0.02, 0.0, 0.0]) / 3, atol=1e-5, rtol=0)
    assert not field[..., 1].any()
    assert (motion.left, motion.share) == (pytest.approx(1 / 3, abs=0.001), 0.8)
    mirrored = motion_of(clips(2.0, 1.0), 100, 0.8, mirrored=True)
    assert mirrored is not None
    assert mirrored.left == 0.5


def test_what_hardly_moves_in_the_clips_stands_still() -> None:
    motion = motion_of(clips(2.0, 1.0, ground=0.08), 100, 1.0)
    assert motion is not None
    assert not torch.tensor(motion.field)[2:].any()


def test_a_place_where_often_something_stands_still_does() -> None:
    skyline = clips(1.0, 1.0, 1.0)
    skyline[0, :, 1] = 0
    motion = motion_of(skyline, 100, 1.0)
    assert motion is not None
    assert torch.tensor(motion.field)[1, :, 0].max() < 0.3 * 0.01


def test_clips_in_which_nothing_moves_give_no_motion() -> None:
    assert motion_of(torch.full((3, 2, 8, 8), 0.01), 64, 0.9) is None


def test_a_clip_moves_if_a_tenth_of_it_does() -> None:
    still, corner, moving, trembling = torch.zeros(4, 6, 2, 10, 10)
    corner[:, 0, 0, :5] = 1
    moving[:, 1, :2] = -0.5
    trembling[::2], trembling[1::2] = 1, -1
    assert moves(torch.stack([still, corner, moving, trembling])).tolist() == [False, False, True, False]


def test_the_mirrored_flow_is_that_of_the_mirrored_picture() -> None:
    field = torch.randn(3, 2, 4, 5)
    assert torch.equal(mirror(field)[:, 0], -field[:, 0].flip(-1))
    assert torch.equal(mirror(field)[:, 1], field[:, 1].flip(-1))
