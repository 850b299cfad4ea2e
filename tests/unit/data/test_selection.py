from fractions import Fraction
from itertools import pairwise

import pytest

from msdv.data.selection import select_grid, select_script


def steady(count: int, rate: Fraction | int) -> list[Fraction]:
    return [Fraction(i) / rate for i in range(count)]


def on_display(times: list[Fraction], moment: Fraction) -> int:
    """By the definition: the last frame that has come on by then."""
    return max([0, *(i for i, time in enumerate(times) if time <= moment)])


@pytest.mark.parametrize("rate", [3, 5, 24, Fraction(30000, 1001), 60])
@pytest.mark.parametrize("fps", [Fraction(1), Fraction(5), Fraction(12), Fraction("29.97")])
def test_grid_takes_what_is_on_display(rate: Fraction, fps: Fraction) -> None:
    times = steady(100, rate)
    start, end = Fraction("0.7"), times[-1] - Fraction("0.4")
    expected: list[int] = []
    j = 0
    while start + j / fps < end:
        index = on_display(times, start + j / fps)
        expected += [index] if index not in expected else []
        j += 1
    assert select_grid(times, end, fps=fps, start=start) == expected


def test_grid_shows_a_frame_that_stays_once() -> None:
    times = [Fraction(0), Fraction(1), Fraction(10), Fraction("10.1"), Fraction("10.11")]
    assert select_grid(times, Fraction(12), fps=Fraction(5), start=Fraction(0)) == [0, 1, 2, 4]


def test_grid_is_never_at_or_past_the_end() -> None:
    times = steady(50, 25)
    assert select_grid(times, Fraction(1), fps=Fraction(5), start=Fraction(0)) == [0, 5, 10, 15, 20]
    assert select_grid(times, Fraction("1.001"), fps=Fraction(5), start=Fraction(0))[-1] == 25
    assert select_grid(times, Fraction(1), fps=Fraction(5), start=Fraction(1)) == []
    assert select_grid([], Fraction(1), fps=Fraction(5), start=Fraction(0)) == []


def test_grid_forgives_what_a_container_rounds() -> None:
    """30 frames a second in milliseconds: frame 2 comes on at 0.067, a hair after 2/30."""
    times = [Fraction(round(i * 1000 / 30), 1000) for i in range(30)]
    chosen = select_grid(times, Fraction(1), fps=Fraction(15), start=Fraction(0), tolerance=Fraction(1, 2000))
    assert chosen == list(range(0, 30, 2))


def test_grid_of_an_absurdly_long_video_takes_no_time() -> None:
    times = [Fraction(0), Fraction(2**60)]
    assert select_grid(times, Fraction(2**61), fps=Fraction(5), start=Fraction(0)) == [0, 1]


def test_grid_before_the_first_frame_takes_the_first() -> None:
    times = [time + Fraction("0.3") for time in steady(10, 10)]
    assert select_grid(times, Fraction(1), fps=Fraction(5), start=Fraction(0)) == [0, 1, 3, 5]


def script(times: list[Fraction], duration: Fraction, rate: Fraction | int) -> list[int]:
    return select_script(
        times, duration, fps=Fraction(5), start=Fraction(2), trim=Fraction(4), guessed_rate=Fraction(rate)
    )


def test_script_takes_as_many_files_as_ffmpeg_did() -> None:
    """10 s at 25 frames a second: 6 s at 5 a second are 30 files, of which the first was deleted."""
    chosen = script(steady(250, 25), Fraction(10), 25)
    assert len(chosen) == 29
    assert chosen == sorted(set(chosen))
    assert all(50 <= index < 200 for index in chosen)
    # It keeps a frame as soon as less than 1.1 output frames are missing: a little early, and evenly.
    assert {later - earlier for earlier, later in pairwise(chosen[5:])} == {5}


def test_script_repeats_frames_of_slow_sources() -> None:
    chosen = script(steady(20, 2), Fraction(10), 2)
    assert len(chosen) > len(set(chosen))
    assert chosen == sorted(chosen)


@pytest.mark.parametrize("seconds", [1, 4])
def test_script_takes_nothing_of_short_videos(seconds: int) -> None:
    assert script(steady(25 * seconds, 25), Fraction(seconds), 25) == []
