"""Several videos side by side in one, each with a label above it."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 2  # pixels between two videos
_GREY = 32  # of 255, behind all


def columns(count: int) -> int:
    """How many videos stand in a row: as many as rows, or one more."""
    return math.ceil(math.sqrt(count))


def grid_size(count: int, height: int, width: int, *, labels: bool) -> tuple[int, int]:
    """Height and width in pixels of `count` videos side by side."""
    across = columns(count)
    down = math.ceil(count / across)
    return down * (height + label_height(height, labels) + _GAP) - _GAP, across * (width + _GAP) - _GAP


def label_height(height: int, labels: bool) -> int:
    """Of the strip above a video `height` pixels high."""
    return max(12, min(24, height // 12)) if labels else 0


def tile_at(index: int, count: int, height: int, width: int, *, labels: bool) -> tuple[slice, slice]:
    """Where in the grid the pixels of a video are: rows and columns."""
    row, column = divmod(index, columns(count))
    strip = label_height(height, labels)
    top, left = row * (height + strip + _GAP) + strip, column * (width + _GAP)
    return slice(top, top + height), slice(left, left + width)


def side_by_side(videos: Sequence[Iterable[np.ndarray]], labels: Sequence[str] = ()) -> Iterator[np.ndarray]:
    """Frames of videos, each (h, w, 3) of one size and type, into frames (H, W, 3) of that type, whose pixels are those
    of the videos. `labels`, one a video, are for frames of bytes."""
    background: np.ndarray | None = None
    for frames in zip(*videos, strict=True):
        height, width = frames[0].shape[:2]
        if background is None:
            size = grid_size(len(frames), height, width, labels=bool(labels))
            background = np.zeros((*size, 3), frames[0].dtype)
            if labels:
                background[:] = _GREY
                _draw_labels(background, labels, height, width)
        grid = background.copy()
        for index, frame in enumerate(frames):
            grid[tile_at(index, len(frames), height, width, labels=bool(labels))] = frame
        yield grid


def _draw_labels(background: np.ndarray, labels: Sequence[str], height: int, width: int) -> None:
    strip = label_height(height, True)
    font = ImageFont.load_default(strip - 2)
    for index, label in enumerate(labels):
        rows, across = tile_at(index, len(labels), height, width, labels=True)
        picture = Image.new("RGB", (width, strip), (_GREY,) * 3)
        ImageDraw.Draw(picture).text((2, strip / 2), label, fill="white", font=font, anchor="lm")
        background[rows.start - strip : rows.start, across] = np.asarray(picture)
