"""Initial noise of long videos and of loops: windows find in it what they were trained on, and it closes the circle.

Each frame by itself is independent Gaussian noise with variance 1, whatever the length.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from msdv.model.noise import independent_noise, mixed_noise, partly_shared_noise
from msdv.model.particles import carried_noise
from msdv.model.windows import Length


class VideoNoise:
    """Noise (b, c, f, h, w) of a video, on the CPU. Without windows and loop it is what noise.py gives."""

    def __init__(self, shape: Sequence[int], length: Length, generator: torch.Generator) -> None:
        self._shape, self._length, self._generator = shape, length, generator
        frames = shape[2]
        self._plain = length.together(frames) >= frames and not length.loop

    def independent(self) -> Tensor:
        """Independent in the frames of a window. See `noise_order`."""
        if self._plain:
            return independent_noise(self._shape, self._generator)
        b, c, f, h, w = self._shape
        order = noise_order(f, self._length, self._generator)
        return independent_noise((b, c, int(order.max()) + 1, h, w), self._generator)[:, :, order]

    def partly_shared(self, alpha: float) -> Tensor:
        """With a part that is the same in all frames: see `partly_shared_noise`."""
        if self._plain or not alpha:
            return partly_shared_noise(self._shape, alpha, self._generator) if self._plain else self.independent()
        b, c, _, h, w = self._shape
        shared = torch.randn(b, c, 1, h, w, generator=self._generator)
        return self.independent().add_(shared, alpha=alpha).div_(math.sqrt(1 + alpha * alpha))

    def mixed(self, flow: Tensor, share: Tensor, every: int = 1, first: int = 0) -> Tensor:
        """Flowing and independent noise: see `mixed_noise`. Flowing noise flows on from window to window. Frames are
        `every` steps of the flow apart, from its `first` on."""
        if self._plain and every == 1 and not first:
            return mixed_noise(self._shape, flow, share, self._generator)
        share = share.view(-1, 1, 1, 1, 1)
        carry = periodic_noise if self._length.loop else carried_noise
        flowing = carry(self._shape, flow, self._generator, every=every, first=first).mul_(share.sqrt())
        return flowing.add_(self.independent().mul_((1 - share).sqrt()))


def noise_order(frames: int, length: Length, generator: torch.Generator) -> Tensor:
    """Which noise each frame gets: (frames,), from 0. The first window's is given out again and again, by so many
    frames as a window moves, in another order each time: all windows see nearly the same noise, and agree (Qiu et al.
    2023, FreeNoise, 2310.15169, local noise shuffling). In a loop no noise comes twice within an overlap where the
    circle closes."""
    window = min(frames, length.together(frames))
    stride = max(1, window - length.overlap)
    order = list(range(window))
    while len(order) < frames:
        again = order[len(order) - window :][:stride]
        order += [again[i] for i in torch.randperm(stride, generator=generator).tolist()]
    del order[frames:]
    if length.loop and frames > window:
        new = max(order) + 1
        for back in range(min(length.overlap, frames - window), 0, -1):
            if order[-back] in order[: length.overlap - back + 1]:
                order[-back], new = new, new + 1
    return torch.tensor(order)


def periodic_noise(
    shape: Sequence[int], flow: Tensor, generator: torch.Generator, *, every: int = 1, first: int = 0
) -> Tensor:
    """Flowing noise (see `carried_noise`) that leads from the last frame into the first.

    Two of them, half a video apart: each has faded out where it ends and begins anew, and the other is full then. Their
    shares of the variance, sin^2 and cos^2, make 1. Where nothing moves there is one noise, which does not change.
    """
    f, h, w = shape[2:]
    if flow.shape[1] > 1:
        flow = flow[:, (first + torch.arange(f * every)) % flow.shape[1]]  # once round
    one = carried_noise(shape, flow, generator, every=every)
    other = carried_noise(shape, flow, generator, every=every, first=f // 2 * every).roll(f // 2, 2)
    angle = ((torch.arange(f) + 0.5) * (math.pi / f)).view(f, 1, 1)
    speed = flow.float().abs().amax((1, 2))[:, None]  # b 1 h' w'
    moves = torch.nn.functional.interpolate(speed, size=(h * 4, w * 4), mode="bilinear", align_corners=False)
    moves = torch.nn.functional.max_pool2d(moves, 4)[:, :, None] > 0
    return torch.where(moves, one * angle.sin() + other.mul_(angle.cos().abs()), one)
