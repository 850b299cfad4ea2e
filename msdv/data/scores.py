"""What a clip is like, in numbers: how much moves, how the exposure flickers, how sharp it is, and hashes to find it
again.

Measured while the frames go by, on small copies of them. What is kept is bounded, however long the clip is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msdv.data.duplicates import hash_picture
from msdv.data.motion import displacement

HASHES = 9
"""Hashes a clip: of frames evenly spaced over it, the first, the middle and the last among them."""

_SAMPLES = 32  # frames kept for measuring, at most; always more than half of it in a long clip
_PAIRS = 12  # of them, that motion is measured at
_GAP = 4  # frames: what moves too slowly to be seen from one frame to the next is measured over these
_SLOW = 0.6  # pixels of a small frame
_CELLS = 8  # of the short side, for flicker
_BLOCK = 24  # pixels, to look for noise in
_REBLUR = 9  # pixels, as in the source of _sharpness


@dataclass(frozen=True)
class Scores:
    """What `ClipMeter` found. All numbers are rounded, and can go into JSON."""

    motion: float
    """How far things move from one kept frame to the next, the average over the picture and the clip: percent of its
    short side. A pan of 4 % a frame has 4, clouds in a timelapse 0.2 to 1, noise and flicker 0. Places without texture
    count as still. Of what moves further than 25, or so that nothing is found again, it says 25 at most."""
    flicker: float
    """How far the brightness of a frame is off its smooth course over time, on average: levels of 255. A sunset has 0,
    a clip whose frames are 5 too bright and 5 too dark in turns has 5."""
    sharpness: float
    """How much of its edges a picture would lose by a slight blur, in percent: 90 where they are one pixel wide; 65, 40
    and 15 where they are blurred already with a deviation of 1, 2 and 4 pixels. Of the clearest edges most of all, so
    that a smooth sky over a crisp skyline is crisp; contrast and brightness play no part. The median of the frames."""
    hashes: tuple[str, ...]
    """64 bits each, in hex, of frames evenly spaced from the first to the last. Empty for a frame that shows too little
    to be told from others: see `msdv.data.duplicates`."""


@dataclass(frozen=True)
class _Sample:
    index: int
    luma: np.ndarray  # (h, w) uint8
    before: tuple[np.ndarray, ...]  # the frames before it, the nearest last


class ClipMeter:
    """Takes the kept frames of a clip, in order."""

    def __init__(self) -> None:
        self._count = 0
        self._stride = 1
        self._samples: list[_Sample] = []
        self._recent: list[np.ndarray] = []
        self._cells: list[np.ndarray] = []
        self._sharpness: list[float] = []
        self._flicker = 0.0
        self._flicker_frames = 0

    def add(self, small: np.ndarray, sharpness: float | None = None) -> None:
        """Look at the next frame.

        `small` is (h, w, 3) uint8: Y, Cb, Cr of full range, the short side 64 pixels. `sharpness` is that of the same
        frame at full size (see `sharpness_of`), of as many frames as it was measured of: what is slightly blurred is
        crisp again at 64 pixels.
        """
        small_luma = np.ascontiguousarray(small[..., 0])
        if self._recent and self._recent[-1].shape != small_luma.shape:
            self._recent, self._cells = [], []  # nothing to compare with
        self._add_brightness(small_luma)
        if self._count % self._stride == 0:
            self._samples.append(_Sample(self._count, small_luma, tuple(self._recent)))
            if len(self._samples) > _SAMPLES:
                self._samples = self._samples[::2]
                self._stride *= 2
        if sharpness is not None:
            self._sharpness.append(sharpness)
        self._recent = [*self._recent[1 - _GAP :], small_luma]
        self._count += 1

    def result(self) -> Scores:
        """The scores of the frames so far; all 0 and no hashes if there were none."""
        if not self._count:
            return Scores(0.0, 0.0, 0.0, ())
        sharpness = self._sharpness or [sharpness_of(sample.luma) for sample in self._samples[::2]]
        return Scores(
            motion=round(self._motion(), 2),
            flicker=round(self._flicker / max(1, self._flicker_frames), 2),
            sharpness=round(100 * float(np.median(sharpness)), 1),
            hashes=self._hashes(),
        )

    def _add_brightness(self, luma: np.ndarray) -> None:
        """Compare a frame with the course of its neighbours: the five frames before and after, weighted 1 4 6 4 1.

        Each place by itself: where exposure jumps all places go the same way, where things move they go both ways.
        """
        rows, columns = _pooling(*luma.shape)
        self._cells = [*self._cells[-4:], rows @ luma @ columns]
        if len(self._cells) == 5:
            a, b, c, d, e = self._cells
            off = c - (a + 4 * b + 6 * c + 4 * d + e) / 16
            total = np.abs(off).mean()
            if total > 0:
                self._flicker += float(off.mean() ** 2 / total)
            self._flicker_frames += 1

    def _motion(self) -> float:
        """Percent of the short side."""
        pairs = [sample for sample in self._samples if sample.before]
        if not pairs:
            return 0.0
        count = min(len(pairs), max(4, min(_PAIRS, self._count // 6)))
        chosen = [pairs[place] for place in np.linspace(0, len(pairs) - 1, count).round().astype(int)]
        moved = _typical([displacement(sample.before[-1], sample.luma) for sample in chosen])
        if moved < _SLOW:
            # Slower than that is hard to see from one frame to the next.
            longer = [displacement(s.before[0], s.luma) / len(s.before) for s in chosen[::-3] if len(s.before) > 1]
            moved = max(moved, _typical(longer))
        return 100 * moved / min(self._recent[-1].shape)

    def _hashes(self) -> tuple[str, ...]:
        last = self._count - 1
        frames = {sample.index: sample.luma for sample in self._samples} | {last: self._recent[-1]}
        places = np.array(sorted(frames))
        wanted = np.linspace(0, last, min(HASHES, self._count))
        return tuple(hash_picture(frames[int(places[np.abs(places - place).argmin()])]) for place in wanted)


def _typical(moves: Sequence[float]) -> float:
    """Their average, without the largest of more than three: that may be a cut."""
    kept = sorted(moves)[: len(moves) - (len(moves) > 3)]
    return float(np.mean(kept)) if kept else 0.0


@functools.lru_cache(8)
def _pooling(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that average a picture to cells: from the left (rows, height), from the right (width, columns)."""
    cell = min(height, width) / _CELLS
    return _averages(height, max(1, round(height / cell))), _averages(width, max(1, round(width / cell))).T


@functools.lru_cache(32)
def _averages(length: int, parts: int) -> np.ndarray:
    """A matrix that averages `length` values to `parts`. (parts, length)"""
    edges = np.linspace(0, length, parts + 1)
    low, high = np.maximum(edges[:-1, None], np.arange(length)), np.minimum(edges[1:, None], np.arange(length) + 1)
    overlap = np.maximum(high - low, 0)
    return np.asarray(overlap / overlap.sum(1, keepdims=True), np.float32)


def sharpness_of(luma: np.ndarray) -> float:
    """How sharp a picture is, from its luma (h, w) uint8: the share of the squared gradient, 0 to 1, that goes away
    with a box blur of nine pixels, less what noise does.

    After Crete et al. 2007, "The blur effect: perception and estimation with a new no-reference perceptual blur
    metric", with squares, so that the clearest edges count most.
    """
    step = max(1, min(luma.shape) // 24)  # lines that far apart are enough
    before = after = noise = 0.0
    pixels = 0
    for lines in (luma[step // 2 :: step], luma[:, step // 2 :: step].T):
        if lines.shape[1] <= _REBLUR + 1:
            continue
        values = lines.astype(np.float32)
        gradient = np.diff(values, axis=1)
        # The gradient of the blurred line is the difference of what enters and leaves the box.
        blurred = (values[:, _REBLUR:] - values[:, :-_REBLUR]) / _REBLUR
        inner = gradient[:, _REBLUR // 2 : _REBLUR // 2 + blurred.shape[1]]
        power = _noise(gradient)
        before += max(0.0, float(np.vdot(inner, inner)) - power * inner.size)
        after += max(0.0, float(np.vdot(blurred, blurred)) - power / _REBLUR**2 * inner.size)
        noise += power * inner.size
        pixels += inner.size
    # Nothing to see is not sharp, and what is hardly more than the noise is hardly sharp.
    rest = 0.02 * pixels + 0.3 * noise
    return max(0.0, 1 - (after + rest) / (before + rest)) if pixels else 0.0


def _noise(gradient: np.ndarray) -> float:
    """What noise adds to the square of a gradient, from lines of it: where there is least of it, and only as far as it
    is white there. Fine texture is not. Squared levels.
    """
    blocks = gradient.shape[1] // _BLOCK
    if not blocks:
        return 0.0
    gradient = gradient[:, : blocks * _BLOCK].reshape(-1, _BLOCK)
    change = np.diff(gradient)
    powers = np.stack([(gradient**2).mean(1), (change**2).mean(1)], 1)
    calmest = powers[powers[:, 1].argsort()[: max(1, len(powers) // 4)]].mean(0)
    # White noise of variance 1 has 2 and 6; a quarter that was chosen for having less has 0.58 of that.
    white = np.clip((calmest[1] / max(1e-6, calmest[0]) - 1.7) / 0.5, 0, 1)
    return float(white * calmest[1] / 3 / 0.58)
