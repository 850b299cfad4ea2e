"""A video that another one is made of: which of its frames, and their latents."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from msdv.config import SampleConfig
from msdv.console import say
from msdv.data.start import Footage
from msdv.errors import UsageError
from msdv.model.base import Base
from msdv.weights import TemporalMetadata

MOST_FRAMES = 1000
"""Taken of a video where nothing says how many."""
FPS_2022 = 5.0
"""Of the clips that the 2022 layers, which don't say it, were trained on."""
_AT_A_TIME = 8  # frames


class SourceVideo:
    """What --video names."""

    def __init__(self, config: SampleConfig) -> None:
        """Look at it. Raises UsageError if it does not exist, MsdvError if it can't be read."""
        assert config.video is not None
        self._footage = Footage(config.video, "--video")
        self._indices: list[int] = []

    def choose(self, config: SampleConfig, metadata: TemporalMetadata | None) -> SampleConfig:
        """Choose frames, as many a second as the model was trained on, and give the settings with their number.

        Raises UsageError if there are fewer than asked for.
        """
        fps = metadata.fps if metadata else FPS_2022
        indices = self._footage.at_rate(fps)
        wanted = config.frames if "frames" in config.model_fields_set else min(len(indices), MOST_FRAMES)
        if wanted > len(indices):
            raise UsageError(
                f"--frames {wanted}: {config.video} has {len(indices)}, taken {fps:g} a second as the model was "
                "trained: lower it, or leave it out"
            )
        self._indices = indices[:wanted]
        say(f"{config.video}: {wanted} of {self._footage.count} frames, to be shown {config.fps:g} a second")
        return config.model_copy(update={"frames": wanted})

    def encode(self, base: Base, height: int, width: int) -> Tensor:
        """Latents (1, 4, f, h/8, w/8), float32, in the computer's memory, of the frames chosen, scaled and cropped as
        prep does it. Raises MsdvError where they can't be read."""
        frames = self._footage.some(self._indices, height, width)
        parts = [base.encode_frames(part).float().cpu() for part in _parts(frames)]
        return torch.cat(parts).transpose(0, 1)[None]


def _parts(frames: Iterator[np.ndarray]) -> Iterator[Tensor]:
    """Few frames at a time (n, 3, h, w), from -1 to 1."""
    part: list[np.ndarray] = []
    for frame in frames:
        part.append(frame)
        if len(part) == _AT_A_TIME:
            yield _pixels(part)
            part = []
    if part:
        yield _pixels(part)


def _pixels(frames: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
