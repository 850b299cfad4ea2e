"""The ends of a video: its first and last frame are shown to the model twice, so that its convolutions over time don't
see nothing there, and where noise flows a few frames more are made around the video, and cut off.

They pad with zeros, as the model of 2022 does. With nothing beside them these frames look unlike all others: in the
built-in model's videos the first changed into the second, and the last but one into the last, by two and a half times
as much as others did (docs/measurements.md). A frame that is there twice does not move, though, and so what moves began
slowly and stopped slowly: that is left to frames which nobody sees.
"""

import torch
from torch import Tensor

from msdv.config import Arch
from msdv.model.diffusion import Prediction
from msdv.model.windows import Length

AROUND = 3
"""Frames made before the first one, and after the last: there what moves gets going."""


def frames_around(arch: Arch, length: Length, frames: int) -> int:
    """How many to make at each end of a video of so many frames whose noise flows, and to cut off."""
    return AROUND if has_ends(arch, length, frames) else 0


def has_ends(arch: Arch, length: Length, frames: int) -> bool:
    """Whether the ends of a video of so many frames are shown twice. Attention alone needs it not; a loop has none."""
    return arch == "pseudo3d" and not length.loop and frames > 1


def frames_seen(arch: Arch, length: Length, frames: int) -> int:
    """How many frames the model sees together at most, of a video of so many."""
    together = length.together(frames)
    return together + (0 if not has_ends(arch, length, frames) else 2 if together == frames else 1)


class Ends:
    """A prediction for a video, of all its frames or a window of them, by one that is shown its ends twice."""

    def __init__(self, prediction: Prediction, frames: int) -> None:
        """`frames` of the whole video."""
        self._prediction, self._last = prediction, frames - 1

    def __call__(self, latents: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
        """For model input (1, 4, n, h, w) of the video's `frames` (n,) at timestep (): a prediction like it."""
        n = latents.shape[2]
        before, after = int(frames[0] == 0), int(frames[-1] == self._last)
        if not (before or after):
            return self._prediction(latents, timestep, frames)
        index = torch.arange(-before, n + after, device=latents.device).clamp(0, n - 1)
        return self._prediction(latents[:, :, index], timestep, frames[index])[:, :, before : before + n]


def with_ends(prediction: Prediction, arch: Arch, length: Length, frames: int) -> Prediction:
    """`prediction` with the ends of a video of so many frames shown twice, where it has any."""
    return Ends(prediction, frames) if has_ends(arch, length, frames) else prediction
