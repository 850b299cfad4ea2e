"""White noise that is carried along: under the latents lie particles, which move from frame to frame.

A particle is a value of white noise for each channel. In each pixel lies exactly one, and a latent is the sum of its 64
over 8: so every frame by itself is independent Gaussian noise of variance 1, whatever the flow. Which of two particles
in one pixel stays is decided without looking at their values, and a pixel that stays empty gets a new one. The aim is
that of Chang et al., "How I Warped Your Noise" (ICLR 2024); moving noise on from frame to frame, by pixels, is that of
Burgert et al. 2025, "Go-with-the-Flow" (2501.08331).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

CELL = 8
"""Pixels to a latent."""
_PHASE = 0.25
"""Particles begin this far at most from the middles of their pixels, all equally far: none lies on a border, where
rounding would tear apart what moves together, and what trembles at rest stays where it is."""
_CENTRED = 0.1
"""How much it counts, of two particles in a pixel, which one is nearer to its middle, against which one is slower."""

_BESIDE = ((1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, 1), (1, -1), (-1, -1))
"""Where there may be room, to the right and down."""


class Particles:
    """Particles under one picture, one in each pixel."""

    def __init__(self, channels: int, height: int, width: int, generator: torch.Generator) -> None:
        """For latents of `channels` x `height` x `width`."""
        self._shape = height * CELL, width * CELL
        self._generator = generator
        rows, columns = self._shape
        phase = (2 * _PHASE * torch.rand(2, generator=generator) - _PHASE).tolist()
        self._offset = [np.full(rows * columns, value, np.float32) for value in phase]  # right, down, of the middles
        self._values = torch.randn(rows * columns, channels, generator=generator).numpy()
        self._row, self._column = (place.ravel().astype(np.int32) for place in np.indices(self._shape))

    def latents(self) -> Tensor:
        """(c, h, w)."""
        rows, columns = self._shape
        sums = self._values.reshape(rows // CELL, CELL, -1).sum(1)
        sums = sums.reshape(rows // CELL, columns // CELL, CELL, -1).sum(2)
        return torch.from_numpy(sums / np.float32(CELL)).permute(2, 0, 1)

    def move(self, flow: Tensor) -> None:
        """On to the next frame by flow (2, 8h, 8w), in pixels, to the right and down."""
        right, down = flow.reshape(2, -1).numpy()
        across, x = _whole_and_rest(self._offset[0] + right)
        along, y = _whole_and_rest(self._offset[1] + down)
        if not (across.any() or along.any()):
            self._offset = [x, y]
            return
        rows, columns = self._shape
        column, row = self._column + across, self._row + along
        inside = np.flatnonzero((column >= 0) & (column < columns) & (row >= 0) & (row < rows)).astype(np.int32)
        target = row * columns + column

        def badness(particles: np.ndarray) -> np.ndarray:
            """What is slower stays: clouds vanish behind a hill, not the hill under them."""
            speed = np.hypot(right[particles], down[particles])
            return np.asarray(speed + _CENTRED * np.maximum(np.abs(x[particles]), np.abs(y[particles])))

        winner = np.full(rows * columns, -1, np.int32)
        winner[target[inside]] = inside  # of several, the last
        lost = inside[winner[target[inside]] != inside]
        while lost.size:
            lost = lost[badness(lost) < badness(winner[target[lost]])]
            winner[target[lost]] = lost
            lost = lost[winner[target[lost]] != lost]
        if len(inside) > np.count_nonzero(winner >= 0):
            won = np.zeros(rows * columns, bool)
            won[winner[winner >= 0]] = True
            self._make_room(inside[~won[inside]], winner, (column, row), [x, y])

        empty = np.flatnonzero(winner < 0)
        self._values = self._values[winner]
        self._values[empty] = torch.randn(len(empty), self._values.shape[1], generator=self._generator).numpy()
        # New ones are as far from the middles as those that they follow: as if they had come from outside.
        back_column = np.clip(self._column[empty] - np.rint(right[empty]).astype(np.int32), 0, columns - 1)
        back_row = np.clip(self._row[empty] - np.rint(down[empty]).astype(np.int32), 0, rows - 1)
        winner[empty] = back_row * columns + back_column
        self._offset = [x[winner], y[winner]]

    def _make_room(
        self, lost: np.ndarray, winner: np.ndarray, places: tuple[np.ndarray, np.ndarray], offset: list[np.ndarray]
    ) -> None:
        """Give particles whose pixel has another one an empty pixel beside it, if there is one.

        Where flow is not the same everywhere, rounding brings particles together here and parts them there: without
        this, a tenth to a fifth of them would be lost from each frame to the next.
        """
        columns = self._shape[1]
        column, row = (place[lost] for place in places)
        # First on the side of the pixel that they are on.
        aside, below = (np.where(part[lost] < 0, -1, 1).astype(np.int32) for part in offset)
        for right, down in _BESIDE:
            if not lost.size:
                return
            x, y = column + right * aside, row + down * below
            inside = (x >= 0) & (x < columns) & (y >= 0) & (y < self._shape[0])
            pixel = np.where(inside, y * columns + x, 0)
            free = inside & (winner[pixel] < 0)
            winner[pixel[free]] = lost[free]  # of several, the last
            free &= winner[pixel] == lost
            for part, by in zip(offset, (right * aside, down * below), strict=True):
                part[lost[free]] = (part[lost[free]] - by[free]).clip(-0.5, 0.5)
            lost, column, row, aside, below = (part[~free] for part in (lost, column, row, aside, below))


def _whole_and_rest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values as whole numbers and what is left, -0.5 to 0.5."""
    whole = np.floor(values + np.float32(0.5))
    return whole.astype(np.int32), values - whole


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
