"""Frames that are given: they stay as they are while the others are denoised around them.

An inpainting model (9 input channels) gets them as mask and image latents, as in 2022. To any other model they are
shown in place of its noisy input, at timestep 0: the temporal layers have to be trained for it (--condition). So do
Diffusion Forcing (Chen et al. 2024, 2407.01392) and others, with noise levels of their own for each frame.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from msdv.config import keyframe_distance


@dataclass(frozen=True)
class Given:
    """What is known of a video of f frames before it is made."""

    latents: Tensor
    """(1, 4, f, h, w); what stands at frames that are not given has no meaning."""
    which: Tensor
    """(f,) bool: the frames that are given."""

    def show(self, latents: Tensor, timestep: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Model input (1, 4, n, h, w) for the video's `frames` (n,) with the given ones in their places, and timesteps
        (1, n), 0 for those."""
        which = self.which.to(frames.device)[frames][None]
        return shown(latents, timestep.expand(1), self.latents.to(latents)[:, :, frames], which)

    def keep(self, latents: Tensor) -> Tensor:
        """A result (1, 4, f, h, w) with the given frames as they were given."""
        which = self.which.to(latents.device)[None, None, :, None, None]
        return torch.where(which, self.latents.to(latents), latents)

    def at(self, frames: Tensor) -> "Given":
        """The same of some `frames` (n,) only."""
        frames = frames.to(self.latents.device)
        return Given(self.latents[:, :, frames], self.which[frames.to(self.which.device)])

    def to(self, device: torch.device) -> "Given":
        """The same on a device."""
        return Given(self.latents.to(device), self.which.to(device))

    def condition(self, blank: Tensor) -> Tensor:
        """For inpainting models: (1, 5, f, h, w)."""
        return conditioned(self.latents, self.which[None], blank)


def shown(latents: Tensor, timesteps: Tensor, clean: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents (b, 4, f, h, w) with clean ones at the frames `which` (b, f), and timesteps (b,) as (b, f), 0 for
    those."""
    place = which[:, None, :, None, None]
    timesteps = timesteps[:, None].expand(which.shape)
    return torch.where(place, clean, latents), torch.where(which, torch.zeros_like(timesteps), timesteps)


def frames_given(condition: str, frames: int) -> Tensor:
    """Which frames (f,) of a clip `condition`, in the words of --condition, is about."""
    which = torch.zeros(frames, dtype=torch.bool)
    which[: 1 if condition == "first-frame" else 0] = True
    if every := keyframe_distance(condition):
        which[::every] = True
    return which


def look(
    noisy: Tensor, timesteps: Tensor, clean: Tensor, which: Tensor, blank: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a model sees of noisy latents (b, 4, f, h, w) at timesteps (b,) when the frames `which` (b, f), a tensor in
    the computer's memory, of the clean ones are given: latents, timesteps and, if it is an inpainting model, for which
    `blank` are the latents (1, 4, h, w) of a grey picture, mask and image latents. With none given nothing changes."""
    if blank is not None:
        return noisy, timesteps, conditioned(clean, which, blank)
    if not which.any():
        return noisy, timesteps, None
    return *shown(noisy, timesteps, clean, which.to(noisy.device)), None


def conditioned(clean: Tensor, which: Tensor, blank: Tensor) -> Tensor:
    """Mask and image latents (b, 5, f, h, w) for inpainting models, which keep the frames `which` (b, f) of clean
    latents (b, 4, f, h, w); at the others all is to be painted, on the latents (1, 4, h, w) of a grey picture."""
    place = which.to(clean.device)[:, None, :, None, None]
    mask = (~place).to(clean).expand(-1, -1, -1, *clean.shape[-2:])
    return torch.cat([mask, torch.where(place, clean, blank.to(clean)[:, :, None])], dim=1)


def conditioned_on_picture(
    encode: Callable[[Tensor], Tensor], picture: Tensor, mask: Tensor | None, frames: int
) -> Tensor:
    """Mask and image latents (1, 5, frames, h/8, w/8) for an inpainting model, the same at all frames, as in 2022.

    picture (1, 3, h, w) from -1 to 1; mask (1, 1, h, w), 1 where it is to be painted and 0 where the picture stays,
    None to keep all of it. What is to be painted is grey to `encode`, which makes latents of pictures.
    """
    mask = torch.zeros_like(picture[:, :1]) if mask is None else mask
    image = encode(picture * (mask < 0.5)).float()
    small = interpolate(mask, size=image.shape[-2:], mode="nearest").to(image)
    return torch.cat([small, image], dim=1)[:, :, None].expand(-1, -1, frames, -1, -1)
