"""Where a video's scenes change, from small pictures of the frames that are kept: no other frame is looked at.

Two frames are compared by the correlation of their coarse pictures, at the shift where it is highest. A pan, a shaking
hand, another exposure, a flash and a fade leave it high; another scene does not. And what is a change lasts: after a
flash or a damaged frame the picture is as before. In a dissolve the frames between are mixtures of both scenes.
Compared with FFmpeg's scdet and PySceneDetect in docs/measurements.md (tests/bench/scenes.py).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

_BLOCK = 4  # pixels of a small picture that make one of the coarse picture, a side
_LARGEST = 48  # pixels of a coarse picture, a side: bounds the work on very wide videos
# A coarse picture whose deviation (of 255) is below this shows nothing: black or white between two scenes.
_FLAT = 4.0
# Distances are 1 - correlation. Across a change they are above this, and well above those on either side (`_needed`).
# Chosen with seed 1 of the measurement, not with the one that is reported.
_DIFFERENT = 0.12
_SAME = 0.05  # where it is less without a shift, the best shift is not worth its search
_LASTS = 0.6  # seconds in which the old scene may not come back; a flash of lightning is shorter
_DISSOLVES = (0.8, 1.4, 2.4)  # seconds looked at; a shorter dissolve is found within one
# What a mixture of both scenes leaves unexplained of a frame, relative to its distance from the nearer of them.
_UNMIXED = 0.8
_MOST = 9  # frames that are compared of those around a change, whatever the rate


class CutFinder:
    """Finds the kept frames that begin a new scene: hard cuts, fades through black or white, dissolves.

    No cuts: flashes and damaged frames shorter than 0.6 s, pans, steps of the exposure. `fps` is the rate of the kept
    frames. Holds coarse pictures of the last seconds and a few numbers a change.
    """

    def __init__(self, fps: float = 5.0) -> None:
        self._lasts = max(3, round(_LASTS * fps))
        self._spans = sorted({max(4, round(seconds * fps)) for seconds in _DISSOLVES})
        self._count = 0
        # Frames that show something. A dissolve is judged by what is before and after it, half as long as itself.
        self._frames: deque[_Coarse] = deque(maxlen=2 * self._spans[-1] + self._lasts + 3)
        self._dropped = 0
        self._cuts: list[_Cut] = []
        self._dissolves: list[_Dissolve] = []

    def add(self, small: np.ndarray) -> None:
        """The next kept frame: (h, w, 3) uint8, Y, Cb, Cr of full range, about 64 pixels on the short side.

        Raises ValueError for other shapes and types.
        """
        if small.dtype != np.uint8 or small.ndim != 3 or small.shape[2] != 3 or not small.size:
            raise ValueError(f"a small picture must be (h, w, 3) uint8, not {small.dtype} {small.shape}")
        frame = _Coarse(small, self._count)
        self._count += 1
        if frame.flat:
            return
        self._dropped += len(self._frames) == self._frames.maxlen
        self._frames.append(frame)
        newest = len(self._frames) - 1
        self._cuts += self._cuts_at(newest - self._lasts)
        for span in self._spans:
            self._dissolves += self._dissolves_at(newest - _beside(span), span)

    def cuts(self) -> list[int]:
        """Indices of the frames so far that begin a new scene, ascending; the first scene's beginning is not one."""
        count = len(self._frames)
        cuts, dissolves = list(self._cuts), list(self._dissolves)
        for k in range(max(0, count - self._lasts), count):
            cuts += self._cuts_at(k)
        for span in self._spans:
            for last in range(max(0, count - _beside(span)), count):
                dissolves += self._dissolves_at(last, span)
        hard: list[_Cut] = []
        for cut in cuts:
            if hard and cut.ends_mixture and cut.place == hard[-1].place + 1:
                hard[-1] = max(hard[-1], cut, key=lambda cut: cut.distance)
            else:
                hard.append(cut)
        found = [cut.index for cut in hard]
        taken: list[_Dissolve] = []
        for new in sorted(dissolves, key=lambda dissolve: -dissolve.gain):
            if all(new.last <= old.first or new.first >= old.last for old in taken) and not any(
                new.first < cut.place <= new.last for cut in hard
            ):
                taken.append(new)
        return sorted({*found, *(dissolve.index for dissolve in taken)})

    def _cuts_at(self, k: int) -> "Iterator[_Cut]":
        """The cut just before self._frames[k], if there is one."""
        frames = self._frames
        if k < 1 or k >= len(frames) or _distance(frames[k - 1], frames[k]) <= _DIFFERENT:
            return
        before = range(max(0, k - self._lasts), k)
        after = range(k, min(len(frames), k + self._lasts))
        moving = max(_typical(frames, before[-4:]), _typical(frames, after[:4]))
        needed, distance = _needed(moving), 2.0
        for i in _some(before[::-1]):
            for j in _some(after):
                distance = min(distance, _distance(frames[i], frames[j]))
                if distance <= needed:
                    return
        ends_mixture = False
        if k >= 2:
            old, between, new = frames[k - 2], frames[k - 1], frames[k]
            nearer = min(_distance(old, between), _distance(between, new))
            ends_mixture = (
                old.shape == between.shape == new.shape and _mixture(old, new, between)[1] < _UNMIXED * nearer
            )
        # Of black frames between two scenes, each gets half.
        index = (frames[k - 1].index + frames[k].index + 1) // 2
        yield _Cut(self._dropped + k, index, distance, ends_mixture)

    def _dissolves_at(self, last: int, span: int) -> "Iterator[_Dissolve]":
        """The dissolve between the frames `span` before self._frames[last] and that one, if there is one."""
        frames, first = self._frames, last - span
        if first < 0 or last >= len(frames):
            return
        old, new = frames[first], frames[last]
        if old.shape != new.shape or old.distance_in_place(new) <= _DIFFERENT:
            return
        middle = frames[(first + last) // 2]
        if middle.shape != old.shape:
            return
        share, rest = _mixture(old, new, middle)
        nearer = min(old.distance_in_place(middle), middle.distance_in_place(new))
        if not 0.2 <= share <= 0.8 or rest >= _UNMIXED * nearer:
            return
        inner = _some(range(first + 1, last))
        if any(frames[i].shape != old.shape for i in inner):
            return
        shares = [_mixture(old, new, frames[i])[0] for i in inner]
        if any(later < earlier - 0.15 for earlier, later in pairwise(shares)):
            return
        if rest >= _UNMIXED * min(_distance(old, middle), _distance(middle, new)):
            return
        beside = _beside(span)
        moving = max(
            _distance(frames[max(0, first - beside)], old),
            _distance(new, frames[min(len(frames) - 1, last + beside)]),
        )
        gain = _distance(old, new) - _needed(moving)
        if gain <= 0:
            return
        index = next((frames[i].index for i, share in zip(inner, shares, strict=True) if share > 0.5), new.index)
        yield _Dissolve(self._dropped + first, self._dropped + last, index, gain)


@dataclass(frozen=True)
class _Cut:
    place: int  # among the frames that show something
    index: int  # among all
    distance: float
    ends_mixture: bool  # the frame before is a mixture of its neighbours: with a cut there, both are one


@dataclass(frozen=True)
class _Dissolve:
    first: int  # places among the frames that show something
    last: int
    index: int  # among all
    gain: float


class _Coarse:
    """A frame's coarse picture: luma without its mean, which a flash and a fade change, and chroma around grey.

    Both are multiplied alike by a change of exposure, which a correlation doesn't see.
    """

    def __init__(self, small: np.ndarray, index: int) -> None:
        self.index = index
        height, width = small.shape[:2]
        block = min(height, width, max(_BLOCK, -(-max(height, width) // _LARGEST)))
        rows, columns = height // block, width // block
        lines = small[: rows * block, : columns * block].reshape(rows, block, columns * block * 3)
        blocks = np.add.reduce(lines, axis=1, dtype=np.uint16).reshape(rows, columns, block, 3)
        picture = np.add.reduce(blocks, axis=2, dtype=np.uint32).astype(np.float32) / block**2
        picture -= (picture[..., 0].mean(), 128, 128)
        self.picture = picture.transpose(2, 0, 1)  # (3, rows, columns)
        self.vector = picture.ravel()
        self.energy = float(self.vector @ self.vector)
        self.flat = self.energy < _FLAT**2 * rows * columns
        self.shape = (rows, columns)
        self.distances: dict[int, float] = {}  # to earlier frames, by index

    def distance_in_place(self, other: "_Coarse") -> float:
        return 1 - float(self.vector @ other.vector) / (self.energy * other.energy) ** 0.5

    @cached_property
    def spectrum(self) -> np.ndarray:
        return np.fft.rfft2(self.picture, s=(2 * self.shape[0], 2 * self.shape[1]))

    @cached_property
    def integral(self) -> np.ndarray:
        """Energy above and to the left of each corner."""
        return np.pad((self.picture**2).sum(axis=0).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _distance(earlier: _Coarse, later: _Coarse) -> float:
    """1 - correlation where it is highest among shifts by up to a quarter of the height and half of the width."""
    if earlier.index == later.index:
        return 0.0
    if earlier.shape != later.shape:
        return 1.0
    known = later.distances.get(earlier.index)
    if known is None:
        known = earlier.distance_in_place(later)
        if known > _SAME:
            known = min(known, _shifted_distance(earlier, later))
        later.distances[earlier.index] = known
    return known


def _shifted_distance(a: _Coarse, b: _Coarse) -> float:
    rows, columns = a.shape
    products = np.fft.irfft2((a.spectrum * b.spectrum.conj()).sum(axis=0), s=(2 * rows, 2 * columns))
    y, x = np.arange(-(rows // 4), rows // 4 + 1), np.arange(-(columns // 2), columns // 2 + 1)
    # At a shift, b's (i, j) lies on a's (i + y, j + x): only what lies on each other counts.
    in_a, in_b = _overlap(a.integral, y, x), _overlap(b.integral, -y, -x)
    enough = (in_a > 0.3 * a.energy) & (in_b > 0.3 * b.energy)  # a corner is like many corners
    correlation = products[y[:, None], x] / np.sqrt(np.maximum(in_a * in_b, 1e-6))
    return 1 - float(np.where(enough, correlation, -1).max())


def _overlap(integral: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    rows, columns = integral.shape[0] - 1, integral.shape[1] - 1
    top, bottom = np.maximum(y, 0)[:, None], rows + np.minimum(y, 0)[:, None]
    left, right = np.maximum(x, 0), columns + np.minimum(x, 0)
    return integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]


def _mixture(a: _Coarse, b: _Coarse, frame: _Coarse) -> tuple[float, float]:
    """`frame` as a sum of shares of a and b: that of b, 0 to 1, and what remains of its energy, 0 to 1."""
    ab, af, bf = (float(u.vector @ v.vector) for u, v in ((a, b), (a, frame), (b, frame)))
    determinant = a.energy * b.energy - ab * ab
    if determinant <= 1e-6 * a.energy * b.energy:
        return 0.5, 1.0
    of_a = max(0.0, (af * b.energy - bf * ab) / determinant)
    of_b = max(0.0, (bf * a.energy - af * ab) / determinant)
    rest = frame.energy - 2 * (of_a * af + of_b * bf) + of_a**2 * a.energy + of_b**2 * b.energy + 2 * of_a * of_b * ab
    weight_a, weight_b = of_a * a.energy**0.5, of_b * b.energy**0.5
    return weight_b / max(weight_a + weight_b, 1e-9), rest / frame.energy


def _needed(moving: float) -> float:
    """The distance across a change, where that between neighbours is `moving`: all frames of a fast camera differ."""
    return max(_DIFFERENT, min(2.5 * moving, 0.4 + 0.6 * moving))


def _typical(frames: "deque[_Coarse]", span: range) -> float:
    """The median distance of neighbours in `span`: one more cut, or a flash, does not count."""
    distances = [_distance(frames[i], frames[i + 1]) for i in span[:-1]]
    return float(np.median(distances)) if distances else 0.0


def _beside(span: int) -> int:
    return max(3, span // 2)


def _some(indices: range) -> list[int]:
    """All, or _MOST of them, evenly; the first among them."""
    return list(indices[:: -(-len(indices) // _MOST)]) if indices else []
