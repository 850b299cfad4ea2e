"""Initial noise: independent in each frame, in part the same in all, or flowing: carried along with the picture.

Noise that moves like the picture makes the picture move: see particles.py.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from msdv.model.particles import carried_noise


def independent_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Gaussian noise (b, c, f, h, w) on the CPU, so that a seed means the same on every device."""
    return torch.randn(*shape, generator=generator)


def partly_shared_noise(shape: Sequence[int], alpha: float, generator: torch.Generator) -> Tensor:
    """Noise (b, c, f, h, w) of variance 1 with a part that is the same in all frames of a clip: alpha squared times as
    much of the variance as the part that is independent in each (Ge et al. 2023, PYoCo, 2305.10474, the mixed noise
    model). alpha at least 0; 0 is independent noise."""
    independent = independent_noise(shape, generator)
    if not alpha:
        return independent
    b, c, _, h, w = shape
    shared = torch.randn(b, c, 1, h, w, generator=generator)
    return (independent + alpha * shared) / math.sqrt(1 + alpha * alpha)


def clip_offset(shape: Sequence[int], amount: float, generator: torch.Generator) -> Tensor:
    """What offset noise adds to noise of `shape` (b, c, f, h, w): a random value (b, c, 1, 1, 1) of standard deviation
    `amount` for each clip and channel. (N. Guttenberg, "Diffusion with offset noise", 2023, has one a picture; one a
    frame would teach flicker.)"""
    b, c = shape[:2]
    return amount * torch.randn(b, c, 1, 1, 1, generator=generator)


def mixed_noise(shape: Sequence[int], flow: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
    """Flowing noise (see `carried_noise`, which says what flow is) and independent noise mixed to variance 1; share
    (b,), 0 to 1, is the part of the variance that flows."""
    flows = share > 0
    noise = independent_noise(shape, generator).mul_((1 - share).sqrt().view(-1, 1, 1, 1, 1))
    if flows.any():
        carried = carried_noise((int(flows.sum()), *shape[1:]), flow[flows], generator)
        noise[flows] += carried.mul_(share[flows].sqrt().view(-1, 1, 1, 1, 1))
    return noise
