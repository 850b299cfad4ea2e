"""What a command is to compute, as far as memory and time depend on it."""

from dataclasses import dataclass

import torch

from msdv.config import Arch, GroupNormMode
from msdv.model.ends import frames_around
from msdv.model.known import Architecture
from msdv.model.placeholders import CARD, HOST
from msdv.model.windows import ALL_TOGETHER, Length


@dataclass(frozen=True)
class Job:
    """What is to be trained or sampled."""

    architecture: Architecture
    frames: int
    """Of a clip, or of the video that is wanted."""
    height: int
    width: int
    dtype: torch.dtype = torch.float32
    card: bool = True
    """On a graphics card with memory of its own; else on the processor."""
    batch_size: int = 1
    arch: Arch = "pseudo3d"
    mid_block: bool = False
    group_norm: GroupNormMode | None = None
    """None: as usual with `arch`."""
    ema: float = 0.0
    guidance: float = 7.5
    cache: int = 1
    """In sampling: every how many-th step computes the deep layers."""
    min_snr: float | None = None
    temporal_loss: float = 0.0
    flicker_loss: float = 0.0
    lora_rank: int = 0
    """In training: of the LoRA trained beside the temporal layers; 0 for none."""
    given: bool = False
    """In training: whether the model is shown frames as they are."""
    length: Length = ALL_TOGETHER
    """In sampling: the windows it is done in."""
    ends: bool = True
    """In sampling: whether a video's ends are shown twice, if it has any (see ends.py)."""
    around: bool = False
    """In sampling: whether frames are made around a video, if it has ends."""
    videos: int = 1
    """In sampling: how many are decoded side by side."""
    steady: int = 0
    """In sampling: with how many frames on each side each is averaged."""

    @property
    def made(self) -> int:
        """Frames that are denoised: with those around the video."""
        return self.frames + 2 * self._around(self.frames)

    def longest(self, made: int) -> int:
        """Frames of the longest video of this kind for which no more than `made` are denoised."""
        inner = made - 2 * self._around(made)
        return inner if inner > 1 else min(made, 1)  # around a single frame there are none

    def _around(self, frames: int) -> int:
        return frames_around(self.arch, self.length, frames) if self.around else 0

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return CARD if self.card else HOST
