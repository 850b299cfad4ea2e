"""What a video starts from, of `msdv sample`: pictures, a mask, the end of another video; and the passes of keyframes.

`read_start` looks at files before any model is loaded; `Start.encode` makes of them what the model is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msdv.config import SampleConfig, keyframe_distance
from msdv.console import say
from msdv.data.start import Footage, Placed, covering, place_of, read_mask, read_pictures
from msdv.errors import UsageError
from msdv.model.base import Base
from msdv.model.diffusion import blank_condition
from msdv.model.given import Given, conditioned_on_picture
from msdv.model.guidance import Text
from msdv.model.keyframes import MOST_PASSES, Passes
from msdv.weights import TemporalMetadata

LEAD = 2
"""Frames of another video that the model sees when it goes on with it, where it was trained for more than one. As many
as tell where things move; 4 and 8 joined no better (docs/measurements.md)."""


@dataclass(frozen=True)
class Known:
    """What is known of a video before it is made."""

    given: Given | None = None
    """Frames that stay."""
    picture: Tensor | None = None
    """(1, 5, f, h, w): mask and image latents of all frames, where one picture is shown in all of them, as in 2022."""
    blank: Tensor | None = None
    """For inpainting models: the latents (1, 4, h, w) of a grey picture."""
    lead: int = 0
    """Frames at the start that are those of another video, and no part of the result."""

    def shown(self, given: Given | None, frames: int) -> tuple[Tensor | None, Given | None]:
        """What `Guided` takes as condition and as given for so many frames, of which some are given."""
        if self.blank is None:
            return None, given
        if self.picture is not None:
            return self.picture[:, :, :1].expand(-1, -1, frames, -1, -1), None
        return (blank_condition(self.blank, frames) if given is None else given.condition(self.blank)), None


@dataclass(frozen=True)
class Start:
    """What a video is to start from."""

    pictures: Sequence[Placed] = ()
    mask: Image.Image | None = None
    footage: Footage | None = None

    def fps(self, config: SampleConfig) -> float:
        """As the video to go on with has it, if nothing else is asked for."""
        return config.fps if self.footage is None or "fps" in config.model_fields_set else self.footage.fps

    def lead(self, metadata: TemporalMetadata | None) -> int:
        """How many frames of the other video the model is shown."""
        if self.footage is None:
            return 0
        several = metadata is not None and metadata.condition == "first-frame" and metadata.frames > LEAD
        return min(self.footage.count, LEAD if several else 1)

    def encode(self, base: Base, metadata: TemporalMetadata | None, frames: int, height: int, width: int) -> Known:
        """For a video of `frames` frames, `lead` of another one included, of height x width pixels.

        Raises UsageError for a mask where the model takes none.
        """
        inpaints, device = base.in_channels == 9, base.device
        if self.mask is not None and not inpaints:
            raise UsageError(
                f"--mask: {base.name} is no inpainting model (9 input channels): choose one with --base, or leave the "
                "mask out"
            )
        blank = _encode(base, np.full((1, height, width, 3), 127.5, np.float32)) if inpaints else None
        places = [(placed.at, covering(placed.picture, height, width)) for placed in self.pictures]
        lead = self.lead(metadata)
        if self.footage is not None:
            places = list(enumerate(self.footage.last(lead, height, width)))
        if not places:
            return Known(blank=blank)
        self._say_if_untrained(metadata, inpaints)
        if self._is_in_all_frames(metadata, inpaints):
            picture = _pixels(places[-1][1][None])
            mask = None if self.mask is None else torch.from_numpy(covering(self.mask, height, width) >= 128)
            mask = None if mask is None else mask[None, None].float()
            shown = conditioned_on_picture(base.encode_frames, picture, mask, frames).to(device)
            return Known(picture=shown, blank=blank, lead=lead)
        which = torch.zeros(frames, dtype=torch.bool)
        latents = torch.zeros(1, 4, frames, height // 8, width // 8)
        for at, pixels in places:  # one at a time: there may be many
            which[at], latents[0, :, at] = True, _encode(base, pixels[None])[0].cpu()
        return Known(Given(latents.to(device), which.to(device)), blank=blank, lead=lead)

    def _is_in_all_frames(self, metadata: TemporalMetadata | None, inpaints: bool) -> bool:
        """Whether the picture is shown to an inpainting model in all frames, as in 2022."""
        placed = any(picture.frame is not None for picture in self.pictures)
        learned = metadata is not None and metadata.condition != "none"
        return inpaints and (self.mask is not None or not (placed or learned))

    def _say_if_untrained(self, metadata: TemporalMetadata | None, inpaints: bool) -> None:
        condition = metadata.condition if metadata else "none"
        later = [picture.at for picture in self.pictures if picture.at > 0]
        if condition == "none":
            if metadata is None and self._is_in_all_frames(metadata, inpaints):
                return  # those of 2022 were
            say(
                "these temporal layers were not trained on frames that are given: expect a jump after them "
                "(msdv train --condition first-frame teaches it)"
            )
        elif later and (condition == "first-frame" or len(later) > 1):
            say(f"these temporal layers know pictures at the start: expect jumps around frame {later[0]}")


def read_start(config: SampleConfig) -> Start:
    """Read what --image, --mask and --continue name.

    Raises UsageError for what does not exist or does not go together, MsdvError for what can't be read.
    """
    check_start(config)
    pictures = read_pictures(config.image, config.frames)
    return Start(
        pictures,
        read_mask(config.mask, pictures[0]) if config.mask is not None else None,
        Footage(config.continue_from, "--continue") if config.continue_from is not None else None,
    )


def check_start(config: SampleConfig) -> None:
    """Raise UsageError for options that don't go together."""
    if config.mask is not None and not config.image:
        raise UsageError(f"--mask {config.mask}: there is no picture that it belongs to: add --image, or leave it out")
    if config.mask is not None and (len(config.image) > 1 or place_of(config.image[0])[0] is not None):
        raise UsageError(f"--mask {config.mask}: it holds for all frames: give one --image, without a frame before it")
    if config.video is not None and config.image:
        raise UsageError(f"--video {config.video}: the video is made out of that one: leave --image out")
    if config.continue_from is None:
        return
    for name, value in (("--image", config.image), ("--latents", config.latents), ("--video", config.video)):
        if value:
            raise UsageError(
                f"--continue {config.continue_from}: the video starts from that one already: leave {name} out"
            )


def passes_of(config: SampleConfig, metadata: TemporalMetadata | None, frames: int) -> Passes | None:
    """How a video of so many frames is made by keyframes; None if it is made at once.

    Raises UsageError where the layers were not trained for it, or other options don't go with it.
    """
    wish, every = config.keyframe_passes, keyframe_distance(metadata.condition if metadata else "none")
    if metadata is None or every is None:
        if wish:
            raise UsageError(
                f"--keyframe-passes {wish}: these temporal layers were not trained to make frames between frames: "
                "train some with msdv train --condition keyframes:4, or leave it out"
            )
        return None
    other = _other_way(config)
    if wish and other:
        raise UsageError(f"--keyframe-passes {wish} makes the video in another way than {other}: leave one of them out")
    if wish == 0 or other:
        return None
    needed = Passes.needed(frames, every, metadata.frames)
    passes = needed if wish is None else Passes(frames, every, wish, metadata.frames)
    _check_keyframes(config, passes)
    windows = len(passes.windows) - 1
    words = f"{passes.keyframes} keyframe{'s'[: passes.keyframes != 1]}, one every {passes.spacing} frames"
    between = f", then those between in {windows} window{'s'[: windows != 1]}" if windows else ""
    slow = f"; motion is {every ** (passes.passes - 1)} times slower than with one pass" if passes.passes > 1 else ""
    say(f"{words}{between}{slow}")
    if not passes.fits:
        more = f": --keyframe-passes {passes.passes + 1} makes fewer" if passes.passes < MOST_PASSES else ""
        say(f"these are more keyframes than the {passes.window} frames that were trained on{more}")
    return passes


def _other_way(config: SampleConfig) -> str | None:
    given = (("--window", config.window), ("--loop", config.loop), ("--latents", config.latents))
    return next((name for name, value in (*given, ("--video", config.video)) if value), None)


def _check_keyframes(config: SampleConfig, passes: Passes) -> None:
    """Raise UsageError for pictures between keyframes, which know nothing of them."""
    for wish in config.image:
        at = (place_of(wish)[0] or 0) % passes.frames
        if at % passes.spacing:
            before = at - at % passes.spacing
            after = before + passes.spacing
            choice = f"{before} or {after}" if after < passes.frames else f"{before}, or pass --frames {after + 1}"
            raise UsageError(
                f"--image {wish}: frame {at} is no keyframe, of which there is one every {passes.spacing} frames: "
                f"choose {choice}"
            )


class TextAt:
    """A text, asked about frames by their positions in a list."""

    def __init__(self, text: Text, positions: Tensor) -> None:
        """positions (n,): the frames of the video that are meant."""
        self._text, self._positions = text, positions

    def at(self, frames: Tensor) -> Tensor:
        """See `Text`."""
        return self._text.at(self._positions.to(frames.device)[frames])


def _encode(base: Base, pictures: np.ndarray) -> Tensor:
    """(n, h, w, 3) from 0 to 255 -> latents (n, 4, h/8, w/8), float32, on the model's device."""
    return base.encode_frames(_pixels(pictures)).float()


def _pixels(pictures: np.ndarray) -> Tensor:
    """(n, h, w, 3) from 0 to 255 -> (n, 3, h, w) from -1 to 1."""
    return torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
