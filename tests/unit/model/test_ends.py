import itertools

import pytest
import torch

from msdv.model.ends import AROUND, frames_around, frames_seen, with_ends
from msdv.model.layers import TemporalConv
from msdv.model.windows import ALL_TOGETHER, Length, windowed


class Seen:
    """A prediction that is its input, and remembers of which frames it was asked."""

    def __init__(self) -> None:
        self.frames: list[list[int]] = []

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        self.frames.append(frames.tolist())
        assert latents[0, 0, :, 0, 0].long().tolist() == frames.tolist()
        return latents


def predict(length: Length, frames: int, arch: str = "pseudo3d") -> list[list[int]]:
    """Which frames a model is shown for a video whose frames are their numbers."""
    seen = Seen()
    latents = torch.arange(frames).float().view(1, 1, frames, 1, 1).repeat(1, 4, 1, 2, 2)
    prediction = windowed(with_ends(seen, arch, length, frames), length, frames)  # type: ignore[arg-type]
    found = prediction(latents, torch.tensor(3), torch.arange(frames))
    torch.testing.assert_close(found, latents)
    return seen.frames


def test_first_and_last_frame_are_shown_twice() -> None:
    assert predict(ALL_TOGETHER, 4) == [[0, 0, 1, 2, 3, 3]]


def test_windows_have_no_ends_but_the_videos() -> None:
    shown = predict(Length(window=4, overlap=1), 10)
    assert shown == [[0, 0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9, 9]]


@pytest.mark.parametrize(
    ("length", "frames", "arch"),
    [(Length(overlap=2, loop=True), 5, "pseudo3d"), (ALL_TOGETHER, 1, "pseudo3d"), (ALL_TOGETHER, 5, "motion-module")],
    ids=["loop", "one frame", "attention alone"],
)
def test_what_has_no_ends_is_left_alone(length: Length, frames: int, arch: str) -> None:
    assert all(a != b for shown in predict(length, frames, arch) for a, b in itertools.pairwise(shown))


@pytest.mark.parametrize("length", [ALL_TOGETHER, Length(4, 1), Length(4, 3), Length(9, 2), Length(None, 3, True)])
@pytest.mark.parametrize("frames", [1, 2, 4, 9, 23])
def test_memory_is_reckoned_for_as_many_frames_as_are_shown(length: Length, frames: int) -> None:
    assert max(len(shown) for shown in predict(length, frames)) == frames_seen("pseudo3d", length, frames)


def test_a_convolution_over_time_sees_no_end() -> None:
    """A still video stays one: with zeros beside its ends these change."""
    layer = TemporalConv(4)
    torch.nn.init.normal_(layer.weight)

    def convolve(latents: torch.Tensor, timestep: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        b, c, f, h, w = latents.shape
        folded = latents.transpose(1, 2).reshape(b * f, c, h, w)
        return layer(folded, f).view(b, f, c, h, w).transpose(1, 2)

    still = torch.randn(1, 4, 1, 3, 3).expand(-1, -1, 6, -1, -1)
    index, now = torch.arange(6), torch.tensor(3)
    with torch.no_grad():
        plain = convolve(still, now, index)
        shown = with_ends(convolve, "pseudo3d", ALL_TOGETHER, 6)(still, now, index)
    assert (plain[:, :, 0] - plain[:, :, 1]).abs().max() > 0.1
    torch.testing.assert_close(shown, shown[:, :, :1].expand_as(shown), atol=1e-5, rtol=1e-5)


def test_only_what_has_ends_is_made_with_more_around_it() -> None:
    assert frames_around("pseudo3d", ALL_TOGETHER, 25) == AROUND
    assert frames_around("pseudo3d", Length(8, 2), 25) == AROUND
    assert frames_around("pseudo3d", Length(None, 3, loop=True), 25) == 0
    assert frames_around("pseudo3d", ALL_TOGETHER, 1) == 0
    assert frames_around("motion-module", ALL_TOGETHER, 25) == 0
