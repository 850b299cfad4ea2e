"""Initial noise of long videos and of loops: windows find in it what they were trained on, and it closes the circle.

Each frame by itself is independent Gaussian noise with variance 1, whatever the length.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from msdv.model.noise import CELL, independent_noise, mixed_noise, partly_shared_noise
from msdv.model.windows import Length

_CHUNK = 32
"""Frames of flowing noise made at a time: bounds memory, and as fast as all at once."""


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

    def mixed(self, velocity: Tensor, share: Tensor) -> Tensor:
        """Flowing and independent noise: see `mixed_noise`. Flowing noise flows on from window to window."""
        if self._plain:
            return mixed_noise(self._shape, velocity, share, self._generator)
        share = share.view(-1, 1, 1, 1, 1)
        flow = periodic_flow if self._length.loop else endless_flow
        flowing = flow(self._shape, velocity, self._generator).mul_(share.sqrt())
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


def endless_flow(shape: Sequence[int], velocity: Tensor, generator: torch.Generator) -> Tensor:
    """Flowing noise (see `flowing_noise`) of any number of frames: of the strips there is never more in memory than
    some frames need. The same kind of noise, but other numbers."""
    b, c, f, h, w = shape
    out = torch.empty(b, c, h, f, w)
    left = velocity <= 0
    # Strips are gone along in one direction: rows that flow to the right are made from the last frame to the first.
    place = (velocity.double().abs()[..., None] * torch.arange(f)).round().long()  # (b, h, f): where a frame begins
    strip, origin = torch.empty(b, c, h, 0), place[..., 0]
    for first in range(0, f, _CHUNK):
        part = place[..., first : first + _CHUNK]
        n = part.shape[-1]
        strip = _go_on(strip, part[..., 0] - origin, int((part[..., -1] - part[..., 0]).max()) + CELL * w, generator)
        origin = part[..., 0]
        cells = _cells(strip, part - origin[..., None], w)  # b c h n w
        for clip, rows in enumerate(left):
            out[clip][:, rows, first : first + n] = cells[clip][:, rows]
            out[clip][:, ~rows, f - first - n : f - first] = cells[clip][:, ~rows].flip(2)
    return out.permute(0, 1, 3, 2, 4).contiguous()


def periodic_flow(shape: Sequence[int], velocity: Tensor, generator: torch.Generator) -> Tensor:
    """Flowing noise that leads from the last frame into the first.

    Two flows, half a video apart: each has faded out where it ends and begins anew, and the other is full then. Their
    shares of the variance, sin^2 and cos^2, make 1. Rows at rest have one noise, which does not change.
    """
    b, _, f, h, _ = shape
    one = endless_flow(shape, velocity, generator)
    other = endless_flow(shape, velocity, generator).roll(f // 2, 2)
    angle = ((torch.arange(f) + 0.5) * (math.pi / f)).view(f, 1, 1)
    moves = ((velocity.double() * f).round() != 0).view(b, 1, 1, h, 1)
    return torch.where(moves, one * angle.sin() + other.mul_(angle.cos().abs()), one)


def _go_on(strip: Tensor, ahead: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """A strip of pixels (b, c, h, length) that begins `ahead` (b, h) pixels after where `strip` does, and goes on with
    new ones where that ends."""
    b, c, h, old = strip.shape
    new = max(0, int(ahead.max()) + length - old)
    strip = torch.cat([strip, torch.randn(b, c, h, new, generator=generator)], dim=-1)
    index = ahead[:, None, :, None] + torch.arange(length)
    return strip.gather(-1, index.expand(-1, c, -1, -1))


def _cells(strip: Tensor, start: Tensor, width: int) -> Tensor:
    """Latents (b, c, h, n, width) of which each sums up the pixels it covers: strip (b, c, h, pixels), where frames
    begin in it (b, h, n)."""
    b, c, h, _ = strip.shape
    # Sums over windows from running sums; float64, as they grow with the strip.
    total = torch.nn.functional.pad(strip.double().cumsum(-1), (1, 0))
    index = start[..., None] + CELL * torch.arange(width)
    index = index.view(b, 1, h, -1).expand(-1, c, -1, -1)
    cells = (total.gather(-1, index + CELL) - total.gather(-1, index)) / math.sqrt(CELL)
    return cells.float().view(b, c, h, -1, width)
