"""How far things move between two small pictures."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

REACH = 16  # pixels: moves are looked for this far

_CELL = 8  # pixels
_HALF = _CELL // 2  # of a cell, in a picture of half the size
_SEARCH = REACH // 2
_WINDOW = 12  # pixels around the centre of a cell, for the exact place
_FLOOR = 0.25  # squared levels: less difference than that is rounding
_TEXTURE = 6.0  # squared levels: with less than that in both pictures nothing can be lost from sight


def displacement(before: np.ndarray, after: np.ndarray) -> float:
    """Average distance that places of a picture move, in pixels; both pictures (h, w) uint8, 32 to about 200 pixels.

    Block matching at half size, then Lucas and Kanade's step for the fraction of a pixel. A cell has moved where its
    move explains the difference between the pictures, which noise and changes of light are not explained by. A
    textured cell that is found nowhere is taken to have moved as the rest of the picture or, the more of that is lost
    as well, as far as `REACH`.
    """
    shape = _shape(*before.shape)
    if not shape.cells[0] or not shape.cells[1]:
        return 0.0
    smooth_a, a, noise_a = shape.details(before)
    smooth_b, b, noise_b = shape.details(after)
    # Exposure changes contrast too.
    gain = np.clip(np.sqrt((np.vdot(a, a) + 1.0) / (np.vdot(b, b) + 1.0)), 0.5, 2.0)
    b *= gain
    noise = noise_a + noise_b
    moves, still, best, texture = _refine(a, b, _match(shape.half(a), shape.half(b), noise, shape), shape)
    # What looks like noise may be fine texture: if it is found again, it is.
    noise = np.minimum(noise, best)
    alone = _differences(smooth_a, smooth_b * gain, moves, shape)
    distance = np.hypot(moves[:, 0], moves[:, 1]) * _certain(still, best, noise) * _certain(*alone, noise)

    texture = texture - noise
    left = (best - noise) / np.maximum(texture, 1e-6)
    textured = texture > np.maximum(_TEXTURE, 2 * noise)
    # Of 289 moves one always fits a little: unrelated places leave 0.3 to 0.6, found ones below 0.1.
    lost = np.where(textured, np.clip((left - 0.15) / 0.15, 0, 1), 0)
    if lost.any():
        share = lost.sum() / textured.sum()
        seen = textured * (1 - lost)
        rest = float((distance * seen).sum() / seen.sum()) if seen.any() else 0.0
        distance += lost * ((1 - share**2) * rest + share**2 * REACH - distance)
    return float(distance.mean())


def _certain(still: np.ndarray, best: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """0 to 1: whether a move explains a difference, or only makes it a little smaller, as some move always does."""
    return np.asarray(np.clip(4 * (still - best) / (best + 2 * noise + _FLOOR) - 1, 0, 1))


@dataclass(frozen=True)
class _Shape:
    """What follows from the size of the pictures alone."""

    cells: tuple[int, int]
    smooth: tuple[np.ndarray, np.ndarray]
    local: tuple[np.ndarray, np.ndarray]
    halves: tuple[np.ndarray, np.ndarray]
    inside: np.ndarray  # (moves, cells) bool: whether the cell, moved, is in the picture
    candidates: np.ndarray  # (moves, 2): down, right, in pixels of the half size
    support: np.ndarray  # (cells, cells): how much a cell counts for another one's move

    def details(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A picture with less noise; that without the light that falls on it; the noise left in each cell (cells,), in
        squared levels.
        """
        values = picture.astype(np.float32)
        smooth = self.smooth[0] @ values @ self.smooth[1]
        rough = (values - smooth)[: self.cells[0] * _CELL, : self.cells[1] * _CELL]
        noise = (rough**2).reshape(self.cells[0], _CELL, self.cells[1], _CELL).mean((1, 3)).reshape(-1)
        # Of white noise, 1 2 1 both ways leaves 0.14 and takes away 0.64.
        return smooth, smooth - self.local[0] @ values @ self.local[1], noise * (0.14 / 0.64)

    def half(self, picture: np.ndarray) -> np.ndarray:
        """At half size, cut to whole cells."""
        return self.halves[0] @ picture @ self.halves[1]


@functools.lru_cache(8)
def _shape(height: int, width: int) -> _Shape:
    rows, columns = height // _CELL, width // _CELL
    (smooth_y, local_y), (smooth_x, local_x) = _filters(height), _filters(width)
    steps = np.arange(-_SEARCH, _SEARCH + 1)
    candidates = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    cell = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    top = cell[None] * _HALF + candidates[:, None]
    end = np.array([rows * _HALF, columns * _HALF]) - _HALF
    inside = np.asarray(((top >= 0) & (top <= end)).all(-1))
    apart = np.abs(cell[:, None] - cell[None]).sum(-1)
    support = np.where(apart == 0, 1.0, np.where(apart == 1, 0.25, 0.0)).astype(np.float32)
    return _Shape(
        (rows, columns),
        (smooth_y, smooth_x.T),
        (local_y, local_x.T),
        (_halving(rows * _CELL, height), _halving(columns * _CELL, width).T),
        inside,
        candidates,
        support,
    )


def _filters(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that smooth a line a little, and over two cells, with the ends repeated. (length, length)"""
    identity = np.eye(length, dtype=np.float32)

    def convolve(kernel: np.ndarray) -> np.ndarray:
        reach = len(kernel) // 2
        padded = np.pad(identity, ((reach, reach), (0, 0)), mode="edge")
        return np.asarray(sum(k * padded[i : i + length] for i, k in enumerate(kernel)), np.float32)

    smooth = convolve(np.array([0.25, 0.5, 0.25], np.float32))
    wide = 2 * _CELL + 1
    return smooth, convolve(np.full(wide, 1 / wide, np.float32)) @ smooth


def _halving(length: int, full: int) -> np.ndarray:
    result = np.zeros((length // 2, full), np.float32)
    result[np.arange(length // 2), np.arange(0, length, 2)] = 0.5
    result[np.arange(length // 2), np.arange(1, length, 2)] = 0.5
    return result


def _match(a: np.ndarray, b: np.ndarray, noise: np.ndarray, shape: _Shape) -> np.ndarray:
    """The whole move of each cell that changes it least, (cells, 2), in pixels of the full size. Any move has a cost,
    so that none is chosen because the noise happens to fit.
    """
    rows, columns = shape.cells
    padded = np.pad(b, _SEARCH)
    side = _HALF + 2 * _SEARCH
    areas = np.lib.stride_tricks.sliding_window_view(padded, (side, side))[::_HALF, ::_HALF]
    own = a.reshape(rows, _HALF, columns, _HALF).transpose(0, 2, 1, 3)
    moves = 2 * _SEARCH + 1
    total = np.zeros((rows, columns, moves, moves), np.float32)
    for y in range(_HALF):
        for x in range(_HALF):
            difference = areas[:, :, y : y + moves, x : x + moves] - own[:, :, y, x, None, None]
            difference *= difference
            total += difference
    cost = total.reshape(rows * columns, -1).T
    # Neighbours move alike; where they would leave the picture they have no say.
    says = shape.inside.astype(np.float32) @ shape.support
    cost = (np.where(shape.inside, cost, 0) @ shape.support) / np.maximum(says, 1e-6)
    length = np.hypot(shape.candidates[:, :1], shape.candidates[:, 1:]).astype(np.float32)
    cost += _HALF**2 * ((length > 0) * (1 + 0.5 * noise) + (0.1 + 0.01 * noise) * length)
    cost = np.where(shape.inside, cost, np.inf)
    return 2 * shape.candidates[cost.argmin(0)].astype(np.float32)


def _refine(
    a: np.ndarray, b: np.ndarray, moves: np.ndarray, shape: _Shape
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Moves to a fraction of a pixel (cells, 2); of each cell (cells,), squared levels: the difference without any
    move, the difference left, and what there would be between unrelated pictures.
    """
    y, x = _windows(a.shape, shape.cells, _WINDOW)
    slope_y, slope_x = np.gradient(a)
    here = a[y, x]
    gradient = np.stack([slope_y[y, x], slope_x[y, x]], 1).reshape(len(moves), 2, -1)
    normal = gradient @ gradient.transpose(0, 2, 1)
    # A small cost for moving: along an edge, and where there is nothing, it decides.
    normal += (0.02 * np.trace(normal, axis1=1, axis2=2) + _WINDOW**2 * 0.05)[:, None, None] * np.eye(
        2, dtype=np.float32
    )
    unmoved = b[y, x]
    still = ((here - unmoved) ** 2).mean((1, 2))
    texture = (here**2).mean((1, 2)) + (unmoved**2).mean((1, 2))
    best, result = still, np.zeros_like(moves)
    for step in range(3):
        there = _sample(b, y, x, moves)
        difference = (there - here).reshape(len(moves), -1, 1)
        left = (difference**2).mean((1, 2))
        better = left < best
        best, result = np.where(better, left, best), np.where(better[:, None], moves, result)
        if step < 2:
            # The gradient of b at the new place is that of a here, if the move is right.
            change = np.linalg.solve(normal, gradient @ difference)[..., 0]
            moves = np.clip(moves - np.clip(change, -2, 2), -REACH, REACH)
    return result, still, best, texture


def _differences(a: np.ndarray, b: np.ndarray, moves: np.ndarray, shape: _Shape) -> tuple[np.ndarray, np.ndarray]:
    """Between pictures, of each cell alone (cells,), in squared levels without a difference of brightness: where it is,
    and moved. The local mean that `details` takes away spreads what moves over its neighbours; here it does not.
    """
    y, x = _windows(a.shape, shape.cells, _CELL)
    here = a[y, x]
    return (b[y, x] - here).var((1, 2)), (_sample(b, y, x, moves) - here).var((1, 2))


def _windows(picture: tuple[int, ...], cells: tuple[int, int], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (cells, window, 1) and columns (cells, 1, window) of windows around the cells."""
    height, width = picture
    offsets = np.arange(window) - (window - _CELL) // 2
    y = np.clip((np.arange(cells[0]) * _CELL)[:, None] + offsets, 0, height - 1)
    x = np.clip((np.arange(cells[1]) * _CELL)[:, None] + offsets, 0, width - 1)
    return np.repeat(y, cells[1], 0)[:, :, None], np.tile(x, (cells[0], 1))[:, None, :]


def _sample(picture: np.ndarray, y: np.ndarray, x: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """The picture in windows, as `_windows` gives them, that moved, between pixels. (cells, window, window)"""
    height, width = picture.shape
    whole = np.floor(moves)
    down, right = (moves - whole).T[:, :, None, None]
    # One row and column more: what lies between pixels is a mix of four.
    y, x = np.concatenate([y, y[:, -1:] + 1], 1), np.concatenate([x, x[:, :, -1:] + 1], 2)
    whole = whole.astype(np.intp)[:, :, None, None]
    area = picture[np.clip(y + whole[:, 0], 0, height - 1), np.clip(x + whole[:, 1], 0, width - 1)]
    area = area[:, :-1] + (area[:, 1:] - area[:, :-1]) * down
    return area[:, :, :-1] + (area[:, :, 1:] - area[:, :, :-1]) * right
