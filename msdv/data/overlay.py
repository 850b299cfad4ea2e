"""Still overlays (a logo, a watermark, a clock, a channel's name) that stand in many clips at the same place.

A model learns them as part of every picture. They are told from the scene by three things: their edges stay where they
are while a clip moves, stand at the same place in clips that have nothing else in common, and close around a shape
(what gets lighter on one side gets darker on the other), which horizons and borders of pictures don't. The median of
gradients over a collection is what Dekel et al. 2017, "On the Effectiveness of Visible Watermarks" (section 3), start
from.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

_GRID = 256  # pictures are looked at this wide and high, whatever their shape
_FRAMES = 7  # of a clip
_MOST_CLIPS = 200
_FEWEST = 3  # clips that an overlay must stand in
_SHARE = 0.3  # and of all
_EDGE = 3.0  # luma per pixel of the grid: weaker gradients are no edges
_DIRECTIONS = 12  # in which an edge can get lighter
_BORDER = 3  # pixels at the edge of the picture that don't count
_CELL = 4  # pixels; parts of an overlay are put together from cells of this size
_FEWEST_PIXELS = 20  # of an overlay's edges
_EVIDENCE = 180  # and as many more in few clips that there are this many in all clips together
_AGREEING = 0.5  # share of an overlay's edges that must be in a clip it stands in
_ALIKE = 0.3  # correlation of a clip's gradients there with those of the others
# And that of the middle one of few clips and of many: what is alike by chance is so in few.
_FEW_MANY, _ALIKE_FEW_MANY = (4, 10), (0.62, 0.45)
_OPEN = 0.4  # gradients of a closed shape cancel out: at most this share of them may be left
_STREAK = 0.15  # at least this share of them must go across, and this share up and down
_LEVELS = 6  # how many numbers of clips are tried, from all down to the fewest
_DENSE = (5, 2)  # pixels of a cell that must agree
_SAME_OVERLAY = 0.1 * _GRID  # pixels between parts of one
_LARGEST = 0.35  # of the picture
_TILE = 16  # pixels: scenes are compared tile by tile
_SAME_TILE = 0.6  # correlation of the gradients
_SAME_SCENE = 0.2  # share of the tiles

_Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the grid


@dataclass(frozen=True)
class Overlay:
    """A still overlay and where it was found."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the picture's width and height."""
    clips: tuple[int, ...]
    """The clips it stands in: indices into what was given."""
    looked_at: int
    """Clips that were looked at."""


def describe(overlay: Overlay, width: int, height: int) -> str:
    """An overlay in words, in pixels of frames of `width` x `height`."""
    left, top, right, bottom = overlay.box
    rows = ("upper", "", "lower")[_third((top + bottom) / 2)]
    columns = ("left", "", "right")[_third((left + right) / 2)]
    if rows and columns:
        place = f"at the {rows} {columns}"
    elif rows:
        place = f"at the {'top' if rows == 'upper' else 'bottom'}"
    else:
        place = f"at the {columns}" if columns else "in the middle"
    x = f"x {round(left * width)}-{round(right * width)}"
    y = f"y {round(top * height)}-{round(bottom * height)}"
    number = f"{len(overlay.clips)} of {overlay.looked_at} clips"
    return f"a still overlay {place} ({x}, {y} of {width}x{height}) in {number}"


def find_overlays(clips: Sequence[Sequence[Path]]) -> list[Overlay]:
    """The still overlays that stand in at least three and 30 % of the clips, those in the most clips first.

    Each of `clips` is the frame files of a clip in order; the clips should be of different videos: those that show the
    same still scene (a fixed camera) count as one. Of more than 200 clips, 200 evenly spaced ones are looked at, and of
    each clip seven frames. Frames may be of any size; those that can't be read are left out.
    """
    count = min(len(clips), _MOST_CLIPS)
    indices, fields = [], []
    for index in (i * len(clips) // count for i in range(count)):
        field = _still_gradients(clips[index])
        if field is not None:
            indices.append(index)
            fields.append(field)
    if len(fields) < _FEWEST:
        return []
    stack = np.stack(fields)  # (n, 2, grid, grid)
    scenes = _scenes(stack)
    first = np.unique(scenes, return_index=True)[1]  # the clip that each scene is looked at in
    overlays = []
    for box, members in _candidates(stack[first]):
        having = np.isin(scenes, scenes[first[members]])
        overlays.append(Overlay(_fractions(box), tuple(indices[i] for i in np.nonzero(having)[0]), len(fields)))
    return sorted(overlays, key=lambda overlay: -len(overlay.clips))


def _third(position: float) -> int:
    return min(2, int(position * 3))


def _fractions(box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (value / _GRID for value in box)
    return left, top, right, bottom


def _still_gradients(files: Sequence[Path]) -> np.ndarray | None:
    """What of a clip's gradients stays over its frames, in half levels per pixel, int8 (2, grid, grid): right, down."""
    count = min(len(files), _FRAMES)
    frames = []
    for file in (files[i * len(files) // count] for i in range(count)):
        luma = _luma(file)
        if luma is not None:
            frames.append(luma)
    if not frames:
        return None
    x = np.stack(frames)  # (f, grid, grid)
    still = np.zeros((2, _GRID, _GRID), dtype=np.float32)
    inner = slice(_BORDER, -_BORDER)
    # The difference of two neighbours, in half levels.
    still[0, :, 1:-1] = np.median(x[:, :, 2:] - x[:, :, :-2], axis=0)
    still[1, 1:-1] = np.median(x[:, 2:] - x[:, :-2], axis=0)
    field = np.zeros_like(still, dtype=np.int8)
    field[:, inner, inner] = np.clip(still, -127, 127)[:, inner, inner]
    return field


def _luma(file: Path) -> np.ndarray | None:
    try:
        with Image.open(file) as image:
            image.draft("L", (_GRID, _GRID))  # decodes a JPEG at about this size
            small = image.convert("L").resize((_GRID, _GRID), Image.Resampling.BOX)
            return np.asarray(small, dtype=np.int16)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _is_edge(fields: np.ndarray) -> np.ndarray:
    """Where gradients (..., 2, h, w) are edges, bool (..., h, w)."""
    x = fields.astype(np.int16)
    return x[..., 0, :, :] ** 2 + x[..., 1, :, :] ** 2 >= (2 * _EDGE) ** 2


def _scenes(fields: np.ndarray) -> np.ndarray:
    """Which scene each clip shows, (n,): clips that have the same edges in much of the picture show the same one.

    An overlay alone does not make two clips the same, it covers too little.
    """
    number, tiles = len(fields), _GRID // _TILE
    alike = np.zeros((number, number), dtype=np.int64)
    for row in range(tiles):
        for column in range(tiles):
            y, x = row * _TILE, column * _TILE
            tile = fields[:, :, y : y + _TILE, x : x + _TILE]
            some = _is_edge(tile).sum(axis=(1, 2)) >= _TILE // 2
            vectors = tile.reshape(number, -1).astype(np.float32)
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
            alike += (vectors @ vectors.T >= _SAME_TILE) & some[:, None] & some[None]
    same = alike >= _SAME_SCENE * tiles**2
    scenes = np.arange(number)
    for first, second in zip(*np.nonzero(np.triu(same, 1)), strict=True):
        scenes[scenes == scenes[second]] = scenes[first]
    return scenes


def _candidates(fields: np.ndarray) -> list[tuple[_Box, list[int]]]:
    """Boxes in pixels of the grid, and the clips (positions in `fields`) that have the overlay."""
    number = len(fields)
    required = max(_FEWEST, math.ceil(_SHARE * number))
    if number < required:
        return []
    directions = np.stack([_directions(field) for field in fields])  # (n, grid, grid), -1: no edge
    usual, agreeing = _agreement(directions)
    found: list[tuple[_Box, list[int]]] = []
    # Where scenes are full of edges many agree by chance: what stands in most clips, and what is dense, comes out of
    # that only where more is asked for.
    levels = sorted({round(level) for level in np.linspace(number, required, _LEVELS)}, reverse=True)
    for level, dense in product(levels, _DENSE):
        for ys, xs in _components(agreeing >= level, dense):
            left, top, right, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
            if len(ys) < _FEWEST_PIXELS or (right - left) * (bottom - top) > _LARGEST * _GRID**2:
                continue
            around = fields[:, :, max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2].astype(np.float32)
            shares = _near(directions[:, ys, xs], usual[ys, xs][None]).mean(axis=1)
            members = np.nonzero(shares >= _AGREEING)[0]
            if len(members) < _FEWEST or len(ys) * len(members) < _EVIDENCE:
                continue
            alike = _alikeness(around[members])
            if np.median(alike) < np.interp(len(members), _FEW_MANY, _ALIKE_FEW_MANY):
                continue
            members = members[alike >= _ALIKE]
            if len(members) < required or not _is_closed(around[members]):
                continue
            box = _tighten(directions[members], usual, (left, top, right, bottom))
            # What connects two that stood apart at a higher level is only clutter between them.
            if sum(_gap(box, other) == 0 for other, _ in _merge(found)) < 2:
                found.append((box, members.tolist()))
    return _merge(found)


def _tighten(directions: np.ndarray, usual: np.ndarray, box: _Box) -> _Box:
    """The part of a box where the edges of three quarters of the clips agree and are more than a few."""
    left, top, right, bottom = box
    inside = np.zeros((_GRID, _GRID), dtype=bool)
    inside[top:bottom, left:right] = True
    same = inside & (_near(directions, usual[None]).mean(axis=0) >= 0.75)
    cells = _cells(same) >= _DENSE[0]
    if not cells.any():
        return box
    ys, xs = np.nonzero(same & _spread(cells))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def _directions(field: np.ndarray) -> np.ndarray:
    """Where edges get lighter to, as one of _DIRECTIONS, int8 (grid, grid); -1 where there is no edge."""
    right, down = field.astype(np.float32)
    steps = np.arctan2(down, right) * (_DIRECTIONS / (2 * np.pi))
    return np.where(_is_edge(field), np.floor(steps).astype(np.int8) % _DIRECTIONS, -1).astype(np.int8)


def _near(directions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where there is an edge whose direction is the wanted one or next to it."""
    return (directions >= 0) & ((directions - wanted + 1) % _DIRECTIONS <= 2)


def _agreement(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At each pixel the direction of most clips, int8, and the number of clips that have it; both (grid, grid)."""
    votes = np.zeros((_DIRECTIONS, _GRID, _GRID), dtype=np.int16)
    for clip in directions:
        ys, xs = np.nonzero(clip >= 0)
        for turn in (-1, 0, 1):
            votes[(clip[ys, xs] + turn) % _DIRECTIONS, ys, xs] += 1
    return votes.argmax(axis=0).astype(np.int8), votes.max(axis=0)


def _cells(places: np.ndarray) -> np.ndarray:
    side = _GRID // _CELL
    number: np.ndarray = places.reshape(side, _CELL, side, _CELL).sum(axis=(1, 3))
    return number


def _spread(cells: np.ndarray) -> np.ndarray:
    return cells.repeat(_CELL, axis=0).repeat(_CELL, axis=1)


def _components(places: np.ndarray, dense: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups of true pixels that lie close together, at least `dense` in a cell, as rows and columns."""
    cells = _cells(places) >= dense
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(cells), strict=True)}
    while left:
        group, border = [], [left.pop()]
        while border:
            row, column = border.pop()
            group.append((row, column))
            near = {(row + r, column + c) for r in range(-2, 3) for c in range(-2, 3)} & left
            left -= near
            border.extend(near)
        mask = np.zeros_like(cells)
        mask[tuple(np.transpose(group))] = True
        rows, columns = np.nonzero(places & _spread(mask))
        yield rows, columns


def _alikeness(fields: np.ndarray) -> np.ndarray:
    """Correlation of the gradients of each clip (n, 2, h, w) with those of the others, -1 to 1, (n,)."""
    vectors = fields.reshape(len(fields), -1)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    others = vectors.sum(axis=0) - vectors
    correlation: np.ndarray = (vectors * others).sum(axis=1) / np.maximum(np.linalg.norm(others, axis=1), 1e-6)
    return correlation


def _is_closed(fields: np.ndarray) -> bool:
    """Whether what clips have in common (n, 2, h, w) gets as dark again as it got light, and is more than a streak."""
    common = fields.mean(axis=0)
    strength = np.hypot(*common)
    common = common * (strength >= strength.max() / 4)
    total = float(np.hypot(*common).sum())
    streak = float(np.abs(common).sum(axis=(1, 2)).min()) < _STREAK * total
    return not streak and float(np.hypot(*common.sum(axis=(1, 2)))) <= _OPEN * total


def _merge(found: list[tuple[_Box, list[int]]]) -> list[tuple[_Box, list[int]]]:
    """Put together what is close and stands in the same clips: the words of a name."""
    merged: list[tuple[_Box, list[int]]] = []
    for box, members in sorted(found):
        for position, (other, others) in enumerate(merged):
            both = set(members) | set(others)
            if _gap(box, other) <= _SAME_OVERLAY and len(set(members) & set(others)) >= 0.5 * len(both):
                union = (*np.minimum(box, other)[:2].tolist(), *np.maximum(box, other)[2:].tolist())
                merged[position] = (union, sorted(both))
                break
        else:
            merged.append((box, members))
    return merged if len(merged) == len(found) else _merge(merged)


def _gap(one: _Box, other: _Box) -> int:
    across = max(one[0], other[0]) - min(one[2], other[2])
    down = max(one[1], other[1]) - min(one[3], other[3])
    return max(across, down, 0)
