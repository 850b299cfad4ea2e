"""Videos of any length with memory for a part: windows that overlap are predicted one after the other, and blended.

The blend is MultiDiffusion's (Bar-Tal et al. 2023, 2302.08113) along time: at each denoising step a frame gets the
weighted mean of what the windows that see it predict. Weights rise and fall smoothly over the overlap, and from step to
step the windows move, so that no frame stays at a border.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from msdv.config import SampleConfig
from msdv.errors import UsageError
from msdv.model.diffusion import Prediction

_GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, without their whole parts, fill an interval evenly however many there are."""


@dataclass(frozen=True)
class Length:
    """How a video is worked off along time."""

    window: int | None = None
    """Frames denoised together; None for all."""
    overlap: int = 1
    """Frames that a window shares with the next; less than `window`. In a loop that is one window, those that it begins
    and ends with."""
    loop: bool = False
    """The last frame leads into the first."""

    def together(self, frames: int) -> int:
        """How many frames of a video are denoised together; in a loop some may be there twice."""
        most = frames + min(self.overlap, frames) if self.loop else frames
        return most if self.window is None else min(most, self.window)

    def starts(self, frames: int, step: int) -> list[int]:
        """First frames of the windows of a video at a denoising step, from 0. In a loop, windows go on at frame 0 where
        the video ends; else they stop there."""
        window = self.together(frames)
        stride = max(1, window - min(self.overlap, frames))
        phase = step * _GOLDEN % 1
        if self.loop:
            count = -(-frames // stride)
            return [int((index + phase) * frames / count) % frames for index in range(count)]
        first, last = -int(phase * stride), frames - window
        return sorted({min(max(start, 0), last) for start in range(first, last + stride, stride)})

    def weights(self, frames: int, start: int) -> Tensor:
        """(window,), above 0, at most 1: how much the window that begins at `start` has to say about its frames."""
        window = self.together(frames)
        ramp = torch.linspace(0, 1, self.overlap + 2, dtype=torch.float64)[1:-1].mul(math.pi / 2).sin().square()
        weights = torch.ones(window, dtype=torch.float64)
        edge = min(self.overlap, window)
        if self.loop or start > 0:
            weights[:edge] *= ramp[:edge]
        if self.loop or start + window < frames:
            weights[window - edge :] *= ramp[:edge].flip(0)
        return weights.float()


ALL_TOGETHER = Length()
LOOP_OVERLAP = 8
"""Frames: with fewer, a loop that is one window shows where it was cut (docs/measurements.md)."""


class Windows:
    """A prediction for any number of frames by one that sees the frames of a window.

    Memory, but for latents, is that of a window. Group norm with joint statistics takes those of a window.
    """

    def __init__(self, prediction: Prediction, length: Length) -> None:
        """For one video: each call is a denoising step."""
        self._prediction, self._length, self._step = prediction, length, 0

    def __call__(self, latents: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
        """For model input (1, 4, n, h, w) of the video's `frames` (n,) at timestep (): a prediction like it."""
        n, length = latents.shape[2], self._length
        window = length.together(n)
        result = torch.zeros_like(latents)
        total = torch.zeros(n, device=latents.device)
        for start in length.starts(n, self._step):
            index = (start + torch.arange(window, device=latents.device)) % n
            predicted = self._prediction(latents[:, :, index], timestep, frames[index])
            weights = length.weights(n, start).to(latents.device)
            for part in torch.arange(window, device=latents.device).split(n):  # no frame twice
                own = index[part]
                total[own] += weights[part]
                # The mean so far moves towards what is new: windows that agree leave it as it is, to the last bit.
                share = (weights[part] / total[own])[:, None, None]
                result[:, :, own] = torch.lerp(result[:, :, own], predicted[:, :, part], share)
        self._step += 1
        return result


def windowed(prediction: Prediction, length: Length, frames: int) -> Prediction:
    """`prediction` in windows, where a video of so many frames takes several, or one that moves round a loop."""
    return Windows(prediction, length) if length.loop or length.together(frames) < frames else prediction


def length_of(config: SampleConfig) -> Length:
    """What --window, --overlap and --loop mean.

    Raises UsageError where they don't go together.
    """
    window, overlap = config.window, config.overlap
    if overlap is not None and window is None and not config.loop:
        raise UsageError(f"--overlap {overlap}: there are no windows to overlap: add --window, or leave it out")
    if overlap is not None and window is not None and overlap >= window:
        raise UsageError(f"--overlap {overlap}: windows of {window} frames can share {window - 1} at most: lower it")
    if config.loop and config.continue_from is not None:
        raise UsageError("--loop: a video that goes on with another can't lead back into itself: leave --continue out")
    if overlap is None:
        overlap = LOOP_OVERLAP if window is None else max(1, window // 3)
    # One window is none, however many frames are made around the video (see ends.py).
    one = window is None or (window >= config.frames and config.continue_from is None)
    if config.loop or not one:
        return Length(window, overlap, config.loop)
    return ALL_TOGETHER if window is None else Length(None, overlap)
