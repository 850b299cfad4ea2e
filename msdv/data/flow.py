"""Optical flow: where the things of one frame are in the next. The only file that imports OpenCV.

Dense inverse search (Kroeger et al. 2016, "Fast Optical Flow using Dense Inverse Search", 1603.03590), OpenCV's medium
preset. Flow is in pixels, (x, y), positive to the right and down.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np

from msdv.config.motion import AT_REST

SMALLEST = 32
"""Pixels a side: smaller pictures are enlarged first, as the search needs room."""
CELL = 4
"""Pixels to a cell of the grid that `coarse_flows` gives: half a latent."""
_LARGEST = 256
"""Pixels of the short side: of larger pictures the flow is found on smaller ones, which is as good on so coarse a grid,
and many times as fast."""

_BACK = 0.5
"""Pixels that there and back may miss by, and a twentieth of the way (Sundaram et al. 2010, section 4)."""


def optical_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far each pixel of `before` has gone in `after`: (h, w, 2) float32, pixels. Both (h, w, 3) or (h, w) uint8."""
    height, width = before.shape[:2]
    factor = max(1, -(-SMALLEST // min(height, width)))
    a, b = (_enlarged(_grey(picture), factor) for picture in (before, after))
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = np.asarray(search.calc(a, b, None), np.float32)  # type: ignore[call-overload]  # None is no first guess
    return shrunk(flow, height, width) / factor if factor > 1 else flow


def flow_between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The same, of large pictures found on smaller copies: (h, w, 2) float32, pixels. Both (h, w, 3) uint8."""
    height, width = before.shape[:2]
    small = size_for_flow(height, width)
    if small == (height, width):
        return optical_flow(before, after)
    flow = optical_flow(*(cv2.resize(one, small[::-1], interpolation=cv2.INTER_AREA) for one in (before, after)))
    large = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large * np.array([width / small[1], height / small[0]], np.float32))


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
    of 4x4 pixels of it: (height / 4, width / 4, 2) float32. What hardly moves is what the search makes of noise: 0.
    Frames may be smaller than that picture: see `size_for_flow`."""
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


def seen_from(picture: np.ndarray, flow: np.ndarray, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`picture` (h, w, 3) where `flow` (h, w, 2) leads, and where going `back` from there ends where it began."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + flow[..., 0], y + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    left, top = (np.clip(np.floor(v), 0, most - 2).astype(np.intp) for v, most in ((x, width), (y, height)))
    right_share, low_share = (np.clip(v - first, 0, 1)[..., None] for v, first in ((x, left), (y, top)))
    both = np.concatenate([picture, back], -1).reshape(height * width, -1)
    corner = top * width + left
    above = both[corner] * (1 - right_share) + both[corner + 1] * right_share
    below = both[corner + width] * (1 - right_share) + both[corner + width + 1] * right_share
    there = above * (1 - low_share) + below * low_share
    miss = np.linalg.norm(flow + there[..., 3:], axis=-1)
    way = np.linalg.norm(flow, axis=-1) + np.linalg.norm(there[..., 3:], axis=-1)
    return there[..., :3], inside & (miss < _BACK + way / 20)


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture) if picture.ndim == 2 else np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))


def _enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return picture
    return np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC))
