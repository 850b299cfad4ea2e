"""Less flicker: each frame of a video averaged with those around it, carried along the motion.

As encoders filter noise before they compress (motion-compensated temporal filtering). What can't be followed from frame
to frame and back, or looks different there, is left as it is: so nothing trails behind, and cuts stay cuts.
"""

from collections import deque
from collections.abc import Container, Iterable, Iterator

import numpy as np

from msdv.data.flow import flow_between, seen_from

ALIKE = 8.0
"""Of 255: a neighbour that differs by so much counts a third, by twice as much next to nothing."""


def steadied(frames: Iterable[np.ndarray], reach: int, keep: Container[int] = ()) -> Iterator[np.ndarray]:
    """The same frames (h, w, 3) uint8, each averaged with up to `reach` before it and after it; those whose numbers,
    from 0, are in `keep` stay as they are. `reach` + 1 frames are in memory at a time."""
    if not reach:
        yield from frames
        return
    waiting: deque[_Mean] = deque()
    for index, frame in enumerate(frames):
        mean = _Mean(frame, index in keep)
        for earlier in waiting:
            _exchange(earlier, mean)
        waiting.append(mean)
        if len(waiting) > reach:
            yield waiting.popleft().frame()
    while waiting:
        yield waiting.popleft().frame()


class _Mean:
    """A frame, and what its neighbours say it should be."""

    def __init__(self, picture: np.ndarray, stays: bool) -> None:
        self.picture, self._stays = picture, stays
        self.exact = picture.astype(np.float32)
        self._sum = self.exact.copy()
        self._weights = np.ones((*picture.shape[:2], 1), np.float32)

    def add(self, neighbour: np.ndarray, certain: np.ndarray) -> None:
        """A neighbour as seen from here (h, w, 3), where that is certain (h, w)."""
        if self._stays:
            return
        unlike = np.abs(neighbour - self.exact).mean(-1, keepdims=True)
        weight = (np.exp(-np.square(unlike / ALIKE)) * certain[..., None]).astype(np.float32)
        self._sum += weight * neighbour
        self._weights += weight

    def frame(self) -> np.ndarray:
        """(h, w, 3) uint8"""
        return self.picture if self._stays else (self._sum / self._weights).round().clip(0, 255).astype(np.uint8)


def _exchange(earlier: _Mean, later: _Mean) -> None:
    forth, back = flow_between(earlier.picture, later.picture), flow_between(later.picture, earlier.picture)
    earlier.add(*seen_from(later.exact, forth, back))
    later.add(*seen_from(earlier.exact, back, forth))
