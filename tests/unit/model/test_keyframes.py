import itertools

import pytest
import torch

from msdv.model.given import Given
from msdv.model.keyframes import Passes, make_by_keyframes


@pytest.mark.parametrize("frames", [1, 2, 5, 24, 25, 96, 97, 98, 385, 400, 1000])
@pytest.mark.parametrize(("every", "window"), [(4, 25), (2, 9), (3, 5), (4, 5), (4, 24)])
def test_every_frame_is_made_once_between_keyframes_that_are_there(frames: int, every: int, window: int) -> None:
    passes = Passes.needed(frames, every, window)
    made: set[int] = set()
    for number, (spacing, positions) in enumerate(passes.windows):
        places = positions.tolist()
        there = [index for index, place in enumerate(places) if place in made]
        assert there == ([] if number == 0 else list(range(0, len(places), every)))
        assert {b - a for a, b in itertools.pairwise(places)} <= {spacing}
        made |= set(places)
    assert made >= set(range(frames))
    together = max(len(positions) for _, positions in passes.windows)
    assert together <= passes.most_together <= max(window, passes.keyframes, every + 1)


def test_as_many_passes_are_made_as_keep_to_the_frames_of_training() -> None:
    assert [Passes.needed(frames, 4, 25).passes for frames in (1, 25, 97, 98, 385, 386)] == [1, 1, 1, 2, 2, 3]
    assert not Passes.needed(5000, 4, 25).fits
    four, sixteen = Passes(97, 4, 1, 25), Passes(385, 4, 2, 25)
    assert (four.keyframes, four.most_together) == (25, 25)
    assert (sixteen.keyframes, sixteen.most_together) == (25, 25)


def test_what_is_given_and_what_was_made_reaches_the_next_pass() -> None:
    given = Given(torch.zeros(1, 4, 7, 1, 1), torch.zeros(7, dtype=torch.bool))
    given.latents[:, :, 4], given.which[4] = 100.0, True
    calls: list[tuple[list[int], list[float]]] = []

    def make(positions: torch.Tensor, spacing: int, known: Given | None) -> torch.Tensor:
        made = positions.float().expand(1, 4, -1)[..., None, None].clone()
        shown = [] if known is None else known.latents[0, 0, known.which].flatten().tolist()
        calls.append((positions.tolist(), shown))
        return made if known is None else known.keep(made)

    video = make_by_keyframes(make, Passes(7, every=2, passes=2, window=3), given, 1, 1)
    assert calls[0] == ([0, 4, 8], [100.0])
    assert calls[1] == ([0, 2, 4], [0.0, 100.0])
    assert calls[2] == ([4, 6, 8], [100.0, 8.0])
    assert [places for places, _ in calls[3:]] == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]]
    assert video[0, 0].flatten().tolist() == [0, 1, 2, 3, 100, 5, 6]
