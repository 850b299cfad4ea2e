"""Long videos by keyframes: every N-th frame first, then window by window those between, from layers trained for it.

After the author of the 2022 model, who in 2023 made 64 frames so on the card that made 25. Windows share the keyframes
at their borders and nothing else, so that each is denoised by itself: memory is that of one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from msdv.model.given import Given

MOST_PASSES = 3
Make = Callable[[Tensor, int, Given | None], Tensor]
"""(positions (n,) in the video, frames from one to the next, what is given of them) -> latents (1, 4, n, h, w)."""


@dataclass(frozen=True)
class Passes:
    """How a video of so many frames is made."""

    frames: int
    every: int
    """The N of --condition keyframes:N."""
    passes: int
    """After the first, which makes the keyframes."""
    window: int
    """Most frames denoised together, so far as the keyframes are no more."""

    @classmethod
    def needed(cls, frames: int, every: int, window: int) -> "Passes":
        """As few passes, but one, as make keyframes of a number that was trained."""
        found = next((p for p in range(1, MOST_PASSES) if cls(frames, every, p, window).fits), MOST_PASSES)
        return cls(frames, every, found, window)

    @property
    def spacing(self) -> int:
        """Frames from one keyframe to the next."""
        return self.every**self.passes

    @property
    def keyframes(self) -> int:
        """How many there are; the last one may be beyond the video."""
        return math.ceil((self.frames - 1) / self.spacing) + 1

    @property
    def fits(self) -> bool:
        """Whether the keyframes are no more than a window has frames."""
        return self.keyframes <= self.window

    @property
    def most_together(self) -> int:
        """Frames that are denoised together at most."""
        between = min(self._segments * self.every + 1, (self.keyframes - 1) * self.spacing + 1)
        return max(self.keyframes, between if self.passes else 0)

    @property
    def _segments(self) -> int:
        return max(1, (self.window - 1) // self.every)

    @property
    def windows(self) -> list[tuple[int, Tensor]]:
        """Frames from one to the next, and positions (n,), of all that is denoised, in turn: the keyframes, then the
        windows of each pass."""
        last = (self.keyframes - 1) * self.spacing
        return [(self.spacing, torch.arange(0, last + 1, self.spacing)), *self._between(last)]

    def _between(self, last: int) -> Iterator[tuple[int, Tensor]]:
        for done in range(1, self.passes + 1):
            spacing = self.spacing // self.every**done
            segments = last // (spacing * self.every)  # between keyframes
            count = math.ceil(segments / self._segments)
            for index in range(count):  # nearly alike: a short one at the end would know little
                begin, end = (segments * i // count * spacing * self.every for i in (index, index + 1))
                yield spacing, torch.arange(begin, end + 1, spacing)


def make_by_keyframes(make: Make, passes: Passes, given: Given | None, height: int, width: int) -> Tensor:
    """Latents (1, 4, f, height, width) of the whole video, on the CPU.

    `given` are frames that are known before: those of them that are keyframes stay.
    """
    windows = passes.windows
    length = int(windows[0][1][-1]) + 1  # the last keyframe may be beyond the video
    known = Given(torch.zeros(1, 4, length, height, width), torch.zeros(length, dtype=torch.bool))
    if given is not None:
        known.latents[:, :, : passes.frames] = given.latents.cpu().float()
        known.which[: passes.frames] = given.which.cpu()
    for spacing, positions in windows:
        here = known.at(positions)
        known.latents[:, :, positions] = make(positions, spacing, here if here.which.any() else None).cpu()
        known.which[positions] = True
    return known.latents[:, :, : passes.frames]
