"""Frozen beginnings and ends of a video, and pictures held inside it, from small pictures of the frames that are kept.

A frozen video is not the same bytes over and over: encoders refine a picture for some frames and code it anew at every
key frame. But then nothing changes at all until the next time, and what changes stays small, and near the first of
these pictures. A sensor's noise changes something in every frame; slow clouds do too, and lead away from the first
picture. The limits below are between what was measured of both: tests/unit/data/test_stillness.py.
"""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_BLOCK = 4  # pixels of a small picture, a side
# Limits to the change of luma, of 255. Mean of all pixels, from one frame to the next:
_QUIET = 0.012  # between key frames of a frozen video; above it an encoder refines or begins anew, or there is life
_RECODED = 1.6  # the largest that a key frame makes
# Largest change of a block's mean. A key frame changes all of the picture a little, motion a part of it much: above
# this, and above this many times the mean change.
_BLOCK_CHANGE, _UNEVEN = 1.8, 4.5
# An encoder has refined a still picture after this, seconds; noise goes on.
_REFINING = 0.6
# Frames of a source that has fewer than are kept come in twos and threes, too few to become quiet: what they change
# is this part, at most, of the step to the next picture.
_HELD = 0.1
# What moved stops at once: from a change above this to this part of it. Noise that an encoder takes away little by
# little, until it repeats itself, does not.
_MOVING, _STOPS = 0.05, 0.22


@dataclass(frozen=True)
class Stillness:
    """Counts of kept frames. All but the last `head` frame and the first `tail` frame show nothing new."""

    head: int  # frames at the beginning that are one still picture: 0, or 2 and more; all frames if nothing moves
    tail: int  # the same of the end; 0 if nothing moves in the whole clip
    held: int  # frames between head and tail that are the same picture as the frame before


@dataclass
class _Run:
    """Frames that may be one still picture."""

    luma: np.ndarray  # of the first frame
    blocks: np.ndarray
    start: int  # the first frame
    entered: float  # change of luma with which it began; 0 for the clip's first
    stopped: bool = True  # at once, when it became quiet
    frames: int = 1
    quiet: int = 0  # steps
    largest: float = 0.0  # step
    # The steps since the last one that was not restless; and `quiet` and `largest` before them.
    restless: int = 0
    restlessness: float = 0.0  # sum of their changes
    largest_before: float = 0.0


class StillnessMeter:
    """Finds frozen beginnings and ends, and held frames. `fps` is the rate of the kept frames.

    A video that an encoder has left without any change, as it does with a tripod's view and little noise at a low
    quality, is still. Holds two small pictures and a few numbers.
    """

    def __init__(self, fps: float = 5.0) -> None:
        self._refining = max(3, round(_REFINING * fps))
        self._moving = _MOVING * min(1.0, 5 / fps)  # slow clouds do less from frame to frame where there are more
        self._recent: deque[float] = deque(maxlen=self._refining + 2)  # changes
        self._count = 0
        self._luma: np.ndarray | None = None
        self._blocks: np.ndarray | None = None
        self._run: _Run | None = None
        self._head = 0
        self._held = 0

    def add(self, small: np.ndarray) -> None:
        """The next kept frame: (h, w, 3) uint8, Y, Cb, Cr of full range, about 64 pixels on the short side.

        Raises ValueError for other shapes and types.
        """
        if small.dtype != np.uint8 or small.ndim != 3 or small.shape[2] != 3 or not small.size:
            raise ValueError(f"a small picture must be (h, w, 3) uint8, not {small.dtype} {small.shape}")
        luma = small[..., 0].astype(np.int16)
        blocks = _block_means(luma)
        run = self._run
        if run is None or self._luma is None or self._blocks is None or luma.shape != self._luma.shape:
            if run:
                self._recent.append(255.0)
            self._begin(luma, blocks, 255.0 if run else 0.0)
        else:
            change = float(np.abs(luma - self._luma).mean())
            self._recent.append(change)
            if change > _RECODED or _uneven(blocks, self._blocks, change):
                self._begin(luma, blocks, change)
            else:
                self._go_on(run, luma, blocks, change)
        self._luma, self._blocks = luma, blocks
        self._count += 1

    def result(self) -> Stillness:
        """What is known of the frames so far."""
        if self._run is None:
            return Stillness(0, 0, 0)
        last = self._run
        frames = last.frames if self._is_still(last, last.frames, last.largest, 0.0) else 0
        if frames == self._count:
            return Stillness(frames, 0, 0)
        return Stillness(self._head, frames, self._held)

    def _begin(self, luma: np.ndarray, blocks: np.ndarray, change: float) -> None:
        if self._run:
            self._end(self._run, self._run.frames, self._run.largest, change)
        self._run = _Run(luma, blocks, self._count, change)

    def _go_on(self, run: _Run, luma: np.ndarray, blocks: np.ndarray, change: float) -> None:
        run.frames += 1
        run.largest = max(run.largest, change)
        if change <= _QUIET:
            if not run.quiet:
                run.stopped = any(a > _MOVING and b < _STOPS * a for a, b in pairwise(self._recent))
            run.quiet += 1
            run.restless, run.restlessness, run.largest_before = 0, 0.0, run.largest
        else:
            run.restless += 1
            run.restlessness += change
        drifts = _uneven(blocks, run.blocks, float(np.abs(luma - run.luma).mean()))
        if run.restless > self._refining or (drifts and run.restless):
            # What was still before ended where this restlessness began, if it is motion.
            left = run.restlessness / run.restless
            if left > self._moving:
                self._end(run, run.frames - run.restless, run.largest_before, left)
            self._run = _Run(luma, blocks, self._count, change)
        elif drifts:  # by steps too small to see: it was never still
            self._run = _Run(luma, blocks, self._count, change)

    def _end(self, run: _Run, frames: int, largest: float, left: float) -> None:
        if not self._is_still(run, frames, largest, left):
            return
        if run.start == 0:
            self._head = frames
        else:
            self._held += frames - 1

    def _is_still(self, run: _Run, frames: int, largest: float, left: float) -> bool:
        """Whether the first `frames` of a run are one picture; `left` is the change with which it ended."""
        if frames < 2:
            return False
        if 2 * run.quiet >= frames - 1:
            return run.start == 0 or run.stopped
        steps = [change for change in (run.entered, left) if change]
        return frames <= self._refining and bool(steps) and largest <= _HELD * min(steps)


def _uneven(blocks: np.ndarray, earlier: np.ndarray, change: float) -> bool:
    return float(np.abs(blocks - earlier).max()) > max(_BLOCK_CHANGE, _UNEVEN * change)


def _block_means(luma: np.ndarray) -> np.ndarray:
    block = min(*luma.shape, _BLOCK)
    rows, columns = luma.shape[0] // block, luma.shape[1] // block
    lines = luma[: rows * block, : columns * block].reshape(rows, block, columns * block)
    sums = lines.sum(axis=1, dtype=np.int32).reshape(rows, columns, block).sum(axis=2)
    return (sums / block**2).astype(np.float32)
