"""White noise that is carried along: under the latents lie particles, which move from frame to frame.

A particle is a value of white noise for each channel, at a place of its own, which the flow moves exactly. A latent is
the sum of those in it over the root of their number: so every frame by itself is independent Gaussian noise of variance
1, whatever the flow, as long as no latent is empty. Which particles are left out where they crowd, and where new ones
come in, is decided without looking at their values. The aim is that of Chang et al., "How I Warped Your Noise" (ICLR
2024); moving noise on from frame to frame is that of Burgert et al. 2025, "Go-with-the-Flow" (2501.08331), who move it
by whole pixels.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

CELL = 8
"""Pixels to a latent."""
_BLOCK = 4
"""Pixels to a block, each way: where particles are counted. At first there is one in each pixel."""
_FEWEST, _MOST = _BLOCK**2 // 2, 2 * _BLOCK**2
"""Particles in a block. Between these their number does not matter: that they are moved on is worth more."""
_OVERTAKEN = 2.0, 0.1
"""Times, and pixels a frame beyond that: what is faster than another particle in its pixel has gone behind it."""


class Particles:
    """Particles under one picture."""

    def __init__(self, channels: int, height: int, width: int, generator: torch.Generator) -> None:
        """For latents of `channels` x `height` x `width`."""
        self._shape = height * CELL, width * CELL
        self._generator = generator
        self._values = np.empty((0, channels), np.float32)
        self._x, self._y = np.empty(0), np.empty(0)  # in pixels, to the right and down
        self._add(np.arange(self._shape[0] * self._shape[1]))

    def latents(self) -> Tensor:
        """(c, h, w)."""
        rows, columns = (pixels // CELL for pixels in self._shape)
        cell = self._y.astype(np.intp) // CELL * columns + self._x.astype(np.intp) // CELL
        number = np.bincount(cell, minlength=rows * columns)
        sums = [np.bincount(cell, values, rows * columns) for values in self._values.T]
        return torch.from_numpy((np.stack(sums) / np.sqrt(number)).astype(np.float32).reshape(-1, rows, columns))

    def move(self, flow: Tensor) -> None:
        """On to the next frame by flow (2, 8h, 8w), in pixels, to the right and down."""
        pixel = self._pixel()
        right, down = (part[pixel] for part in flow.reshape(2, -1).numpy())
        if not (right.any() or down.any()):
            return
        rows, columns = self._shape
        self._x, self._y = self._x + right, self._y + down
        speed = np.hypot(right, down)
        inside = (self._x >= 0) & (self._x < columns) & (self._y >= 0) & (self._y < rows)
        speed = self._keep(inside, speed)

        # Clouds vanish behind a hill, not the hill under them.
        pixel = self._pixel()
        slowest = np.full(rows * columns, np.inf, np.float32)
        np.minimum.at(slowest, pixel, speed)
        times, more = _OVERTAKEN
        speed = self._keep(speed <= times * slowest[pixel] + more, speed)

        block = self._block(pixel := self._pixel())
        number = np.bincount(block, minlength=rows * columns // _BLOCK**2)
        if (number > _MOST).any():
            crowded = np.flatnonzero(number[block] > _MOST)
            crowded = crowded[np.lexsort((speed[crowded], block[crowded]))]  # in each block, the slowest first
            of = block[crowded]
            stays = np.ones(len(block), bool)
            stays[crowded[np.arange(len(of)) - np.searchsorted(of, of) >= _MOST]] = False
            self._keep(stays, speed)
        if (number < _FEWEST).any():  # other blocks than those that were crowded: the numbers hold
            empty = np.ones(rows * columns, bool)
            empty[pixel] = False
            free = np.flatnonzero(empty)
            self._add(free[number[self._block(free)] < _FEWEST])

    def _pixel(self) -> np.ndarray:
        """In which pixel each particle is, counted line by line."""
        return self._y.astype(np.int32) * self._shape[1] + self._x.astype(np.int32)

    def _block(self, pixel: np.ndarray) -> np.ndarray:
        """The blocks of pixels, likewise."""
        columns = self._shape[1]
        return pixel // columns // _BLOCK * (columns // _BLOCK) + pixel % columns // _BLOCK

    def _keep(self, which: np.ndarray, speed: np.ndarray) -> np.ndarray:
        """Only these particles; their speeds."""
        stay = np.flatnonzero(which)  # taking by number is many times as fast as by truth
        self._x, self._y, self._values = self._x[stay], self._y[stay], self._values.take(stay, 0)
        return speed[stay]

    def _add(self, pixels: np.ndarray) -> None:
        """A new particle in each of these pixels, anywhere in it."""
        within = torch.rand(2, len(pixels), generator=self._generator).double().numpy()
        new = torch.randn(len(pixels), self._values.shape[1], generator=self._generator).numpy()
        columns = self._shape[1]
        self._x = np.concatenate([self._x, pixels % columns + within[0]])
        self._y = np.concatenate([self._y, pixels // columns + within[1]])
        self._values = np.concatenate([self._values, new])


def carried_noise(
    shape: Sequence[int], flow: Tensor, generator: torch.Generator, *, every: int = 1, first: int = 0
) -> Tensor:
    """Noise (b, c, f, h, w) that is carried along by flow (b, n, 2, h', w').

    Flow is from each frame to the next, in pixels, to the right and down, on a grid of any size that covers the picture
    evenly; what lies between is interpolated. It is taken in turn from its `first` on, and begun again where it ends,
    so that for what always moves alike n is 1. Of the frames that it leads through every `every`-th is given.
    """
    b, c, f, h, w = shape
    out = torch.empty(b, c, f, h, w)
    for clip in range(b):
        particles = Particles(c, h, w, generator)
        steps = _steps(flow[clip], h, w, first)
        for frame in range(f):
            for _ in range(every if frame else 0):
                particles.move(next(steps))
            out[clip, :, frame] = particles.latents()
    return out


def _steps(flow: Tensor, height: int, width: int, first: int) -> Iterator[Tensor]:
    """(2, 8h, 8w), one after the other, without end."""
    size = (height * CELL, width * CELL)
    count, at, field = len(flow), first, None
    while True:
        if field is None or count > 1:
            part = flow[at % count].float()[None]
            field = torch.nn.functional.interpolate(part, size=size, mode="bilinear", align_corners=False)[0]
        yield field
        at += 1
