"""What --motion and --still make of the noise of a video."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msdv.config import Arch, SampleConfig
from msdv.config.motion import motion_file
from msdv.console import progress, say
from msdv.data.flow import coarse_flows, shrunk, size_for_flow
from msdv.data.start import Footage, covering, read_picture
from msdv.errors import MsdvError, UsageError
from msdv.model.ends import frames_around
from msdv.model.keyframes import Passes
from msdv.model.particles import CELL
from msdv.model.steering import GRID, flow_for
from msdv.model.windows import length_of
from msdv.weights import TemporalMetadata

_MUCH_FASTER = 3.0
"""Times the fastest place of the training clips: what is asked to go faster, the layers know little of."""


@dataclass(frozen=True)
class Steered:
    """How the noise of a video moves."""

    used: str
    """In words."""
    flow: Tensor | None = None
    """(1, n, 2, h', w'), as `carried_noise` takes it; None: it does not flow."""
    share: float = 0.0
    """Of the variance, that flows."""
    shared: float = 0.0
    """See `partly_shared_noise`."""


def noise_flows(config: SampleConfig, metadata: TemporalMetadata | None) -> bool:
    """Whether the noise of a video is to flow: where it is asked for, and where the layers are used to it."""
    if config.motion != "auto":
        return config.motion != "none"
    return bool(metadata and metadata.motion and not metadata.shared_noise)


def wants_frames_around(config: SampleConfig, metadata: TemporalMetadata | None, passes: Passes | None) -> bool:
    """Whether frames are made around a video, if it has ends: not where some of it is given."""
    given = (config.image, config.continue_from, config.video, config.latents, passes)
    return not any(given) and noise_flows(config, metadata)


def around_video(config: SampleConfig, metadata: TemporalMetadata | None, arch: Arch, passes: Passes | None) -> int:
    """Frames to make at each end of a video beside its own, and to cut off."""
    on = wants_frames_around(config, metadata, passes)
    return frames_around(arch, length_of(config), config.frames) if on else 0


def flow_around(flow: Tensor, frames: int, around: int) -> Tensor:
    """The flow (1, n, 2, h, w) of a video of so many frames with `around` more at each end, which move as those beside
    them. A flow of fewer steps than the video begins again, as `carried_noise` does."""
    if not around or flow.shape[1] == 1:
        return flow
    steps = torch.arange(-around, frames - 1 + around).clamp(0, max(0, frames - 2))
    return flow[:, steps % flow.shape[1]]


class Steering:
    """The noise of videos of one size, by --motion and --still."""

    def __init__(
        self, config: SampleConfig, metadata: TemporalMetadata | None, height: int, width: int, frames: int
    ) -> None:
        """Read what they name, for videos of `frames` frames of height x width latents.

        Raises UsageError where the temporal layers know nothing of noise that flows, MsdvError for files that can't be
        read.
        """
        self._size = height, width
        self._motion = metadata.motion if metadata else None
        self._shared = metadata.shared_noise if metadata and config.motion == "auto" else 0.0
        self._flows = noise_flows(config, metadata)
        if self._motion is None and (self._flows or config.still):
            option = f"--motion {config.motion}" if self._flows else f"--still {config.still}"
            if metadata and metadata.noise == "flow":
                raise UsageError(
                    f"{option}: nothing moved in the clips that these temporal layers were trained on, so their noise "
                    "never flowed: leave it out, or train on clips that move"
                )
            raise UsageError(
                f"{option}: these temporal layers were not trained on noise that flows: "
                "leave it out, or train with --noise flow"
            )
        file = motion_file(config.motion)
        self._of_video = flow_of_video(file, height, width, frames) if file else None
        self._moves = 1 - _read_still(config.still, height, width) if config.still else None
        self._warned = False

    def draw(self, config: SampleConfig, generator: torch.Generator) -> Steered:
        """How the noise of one video moves; `config` has its prompt."""
        if not self._flows:
            return Steered(f"shared {self._shared:g}" if self._shared else "none", shared=self._shared)
        assert self._motion is not None
        used = config.motion
        if self._of_video is not None:
            flow = self._of_video * self._motion.gain
        else:
            flow, used = flow_for(self._motion, config.motion, config.prompt, *self._size, generator)
        if self._moves is not None:
            flow = flow * self._moves
        self._compare_speed(config.motion, flow)
        return Steered(used, flow, self._motion.share)

    def _compare_speed(self, wish: str, flow: Tensor) -> None:
        """Say, once, if the wish is much faster than the clips."""
        assert self._motion is not None
        known = torch.tensor(self._motion.field).norm(dim=-1).max().item() * self._size[1] * CELL
        asked = flow.float().norm(dim=2).max().item() / self._motion.gain
        if asked > _MUCH_FASTER * known and not self._warned:
            self._warned = True
            say(
                f"--motion {wish} goes {asked:.2g} pixels a frame, the training clips {known:.2g}: "
                "what is so much faster than they are may flicker"
            )


def check_steering(config: SampleConfig) -> None:
    """Raise UsageError for files of --motion and --still that do not exist, and options that don't go with them."""
    file = motion_file(config.motion)
    if file is not None and not file.exists():
        raise UsageError(f"--motion {file} does not exist: give a video whose motion to take, or a direction: left:1.5")
    if config.still is None:
        return
    if not config.still.is_file():
        raise UsageError(f"--still {config.still} does not exist: give a picture, white where nothing is to move")
    for option, given in (("--motion none", config.motion == "none"), ("--latents", config.latents is not None)):
        if given:
            raise UsageError(f"--still {config.still}: {option} does not go with it: leave one of them out")


def flow_of_video(path: Path, height: int, width: int, frames: int) -> Tensor:
    """The optical flow (1, n, 2, 2 height, 2 width), float16, of a video, scaled and cropped to height x width latents,
    of as many frames as it has or `frames`; a line says so where it is shorter.

    Raises MsdvError if it can't be read or has one frame only.
    """
    footage = Footage(path, "--motion")
    if footage.count < 2:
        raise MsdvError(f"--motion {path} is one picture, in which nothing moves: give a video")
    pixels = height * CELL, width * CELL
    count = max(1, min(footage.count, frames) - 1)
    if footage.count < frames:
        say(f"--motion {path} has {footage.count} frames: its motion begins again after every {footage.count - 1}")
    with progress("frame") as bar:
        task = bar.add_task(f"optical flow of {path.name}", total=count, note="")

        def shown() -> Iterator[np.ndarray]:
            for field in coarse_flows(footage.frames(*size_for_flow(*pixels)), *pixels):
                yield field.astype(np.float16)
                bar.advance(task)

        fields = list(islice(shown(), count))
    return torch.from_numpy(np.stack(fields)).permute(0, 3, 1, 2)[None]


def _read_still(path: Path, height: int, width: int) -> Tensor:
    """How much of each place of a flow (2 height, 2 width) is to stand still, 0 to 1."""
    picture = read_picture(path, "--still").convert("RGBA")
    painted = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)  # transparent: nothing there
    grey = covering(painted.convert("L"), height * CELL, width * CELL)
    white = grey[..., None].astype(np.float32) / 255
    return torch.from_numpy(shrunk(white, GRID * height, GRID * width)[..., 0])
