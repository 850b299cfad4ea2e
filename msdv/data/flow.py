"""Optical flow: where the things of one frame are in the next. The only file that imports OpenCV.

Dense inverse search (Kroeger et al. 2016, "Fast Optical Flow using Dense Inverse Search", 1603.03590), OpenCV's medium
preset. Flow is in pixels, (x, y), positive to the right and down.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np

SMALLEST = 32
"""Pixels a side: smaller pictures are enlarged first, as the search needs room."""
CELL = 4
"""Pixels to a cell of the grid that `coarse_flows` gives: half a latent."""
_LARGEST = 256
"""Pixels of the short side: of larger pictures the flow is found on smaller ones, which is as good on so coarse a grid,
and many times as fast."""
AT_REST = 0.05
"""Pixels a frame: what moves less is what the search makes of noise."""


def optical_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far each pixel of `before` has gone in `after`: (h, w, 2) float32, pixels. Both (h, w, 3) or (h, w) uint8."""
    height, width = before.shape[:2]
    factor = max(1, -(-SMALLEST // min(height, width)))
    a, b = (_enlarged(_grey(picture), factor) for picture in (before, after))
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = np.asarray(search.calc(a, b, None), np.float32)  # type: ignore[call-overload]  # None is no first guess
    return shrunk(flow, height, width) / factor if factor > 1 else flow


def flows(frames: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """The optical flow from each frame to the next, one less than there are frames."""
    for before, after in itertools.pairwise(frames):
        yield optical_flow(before, after)


def shrunk(field: np.ndarray, height: int, width: int) -> np.ndarray:
    """A field (h, w, n) as averages over the cells of a coarser grid (height, width, n). Values stay as they are."""
    small = cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32).reshape(height, width, field.shape[2])


def coarse_flows(frames: Iterable[np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
    """The optical flow from each frame to the next in pixels of a picture of `height` x `width`, as averages over cells
    of 4x4 pixels of it: (height / 4, width / 4, 2) float32. What hardly moves is at rest: 0. Frames may be smaller than
    that picture: see `size_for_flow`."""
    for before, after in itertools.pairwise(frames):
        field = shrunk(optical_flow(before, after), height // CELL, width // CELL)
        field *= np.array([width / before.shape[1], height / before.shape[0]], np.float32)
        field[np.hypot(field[..., 0], field[..., 1]) < AT_REST] = 0
        yield field


def size_for_flow(height: int, width: int) -> tuple[int, int]:
    """Height and width that frames of such pictures need for `coarse_flows`."""
    factor = max(1.0, min(height, width) / _LARGEST)
    return round(height / factor), round(width / factor)


def followed(fields: Sequence[np.ndarray]) -> np.ndarray:
    """How far what is in each place has gone after all of these coarse flows (h, w, 2), in pixels: a sum along its
    way."""
    way = np.array(fields[0], np.float32)
    rows, columns = np.indices(way.shape[:2])
    for field in fields[1:]:
        right, down = (columns + way[..., 0] / CELL, rows + way[..., 1] / CELL)
        there = (right.astype(np.float32), down.astype(np.float32))
        way += cv2.remap(field.astype(np.float32), *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return way


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture) if picture.ndim == 2 else np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))


def _enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return picture
    return np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC))
