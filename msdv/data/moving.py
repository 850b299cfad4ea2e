"""Does it move? Measures of motion, coherence and flicker of a video, each beside that of the training clips.

    numbers = measure(frames)                        # frames (h, w, 3) uint8, as they come
    reference = make_reference(clips)                # of the training clips
    numbers = measure(frames, reference.regions)     # with sky and ground apart
    verdict(numbers, reference)                      # "moves like the data (...)"

Pictures are scaled to a short side of 128 pixels first, so that numbers of different sizes can be compared. A `Meter`
takes frames one by one: memory does not grow with the length but for some bytes a frame.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

from msdv.data.flow import optical_flow, seen_from, shrunk
from msdv.verdict import BETWEEN, GRID, MOVING, STILL, MotionNumbers, Reference, mean_numbers, verdict

__all__ = ["Meter", "MotionNumbers", "Reference", "likeness", "make_reference", "measure", "verdict"]

SIDE = 128
"""Pixels of the short side."""
LAG = 8
"""Frames that are far apart."""
PACE = 4
"""Frames over which it is seen how fast things get on."""
COARSE = 4
"""Areas a side whose brightness flickers."""
UNSEEN = 0.25
"""Of 255, on average over a cell: where pictures differ by less nobody sees anything move, and what the search for flow
makes of it is noise. Of rendered ground, which stands still, it made 0.04 pixels a frame, at night 0.1."""
MOST_THUMBS = 128
"""Frames by which videos are compared."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class _Trail:
    """Follows what moves from frame to frame."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._back: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, picture: np.ndarray) -> dict[str, Any]:
        """Measures of the step to the next picture, (h, w, 3) uint8; none for the first."""
        before, self._last = self._last, picture
        if before is None:
            return {}
        forth, back = optical_flow(before, picture), optical_flow(picture, before)
        a, b = before.astype(np.float32), picture.astype(np.float32)
        next_here, certain = seen_from(b, forth, back)
        earlier, self._back = self._back, seen_from(a, back, forth)
        found = {"length": _lengths(forth, a, b), "change": np.abs(b - a).mean(), "followed": certain.mean()}
        if certain.any():
            found["warp_error"] = np.abs(next_here - a)[certain].mean()
        if earlier is not None and (both := certain & earlier[1]).any():
            found["fine_flicker"] = np.abs(((earlier[0] - 2 * a + next_here) @ _LUMA)[both]).mean()
        return found


class Meter:
    """Measures a video whose frames come one by one."""

    def __init__(self, borders: Collection[int] = ()) -> None:
        """`borders`: numbers of frames, from 0, before which windows meet; 0 is where a loop closes."""
        self._borders = frozenset(borders)
        self._frames = 0
        self._ends: list[np.ndarray] = []
        self._whole, self._close = _Trail(), _Trail()
        self._colours: list[np.ndarray] = []
        self._changes: list[float] = []
        self._recent: deque[np.ndarray] = deque(maxlen=LAG + 1)
        self._areas: deque[np.ndarray] = deque(maxlen=3)
        self._sums: dict[str, list[float]] = {}
        self._map = np.zeros((GRID, GRID))
        self._pictures: deque[np.ndarray] = deque(maxlen=PACE + 1)
        self._paces = np.zeros((GRID, GRID))
        self._thumbs: list[np.ndarray] = []

    def add(self, frame: np.ndarray) -> None:
        """The next frame, (h, w, 3) uint8, of the same size as those before."""
        picture = _scaled(frame)
        exact = picture.astype(np.float32)
        grey = (exact @ _LUMA)[..., None]
        thumb = shrunk(grey, GRID, GRID)[..., 0]
        self._colours.append(exact.mean((0, 1)))
        if len(self._thumbs) < MOST_THUMBS:
            self._thumbs.append(thumb)
        # As if all frames were equally bright: that is what flicker is about.
        level = thumb * (128 / max(8.0, float(thumb.mean()))) - 128
        self._recent.append(level)
        self._note("contrast", np.square(_without_rows(level)).mean())
        if self._frames:
            self._note("near", np.square(level - self._recent[-2]).mean())
            self._note("step", np.square(_without_rows(level - self._recent[-2])).mean())
        if len(self._recent) == LAG + 1:
            self._note("far", np.square(level - self._recent[0]).mean())
        self._areas.append(shrunk(grey, COARSE, COARSE)[..., 0])
        if len(self._areas) == 3:
            a, b, c = self._areas
            self._note("flicker", np.abs(a - 2 * b + c).mean())
        self._follow(frame, picture)
        self._ends = [*self._ends[:1], picture]
        self._frames += 1

    def _follow(self, frame: np.ndarray, picture: np.ndarray) -> None:
        self._pictures.append(picture)
        if len(self._pictures) == PACE + 1:
            self._paces += self._pace()
        found = self._whole.add(picture)
        if min(frame.shape[:2]) >= 1.5 * SIDE:  # scaled down, pixels that flicker would even out
            found |= {k: v for k, v in self._close.add(_middle(frame)).items() if k == "fine_flicker"}
        if not found:
            return
        length = found.pop("length")
        self._map += length
        self._changes.append(float(found.pop("change")))
        for name, value in {"flow": length.mean(), **found}.items():
            self._note(name, value)

    def _pace(self) -> np.ndarray:
        """How far things have gone in all the pictures at hand, a frame, by cells."""
        first, last = self._pictures[0], self._pictures[-1]
        return _lengths(optical_flow(first, last), first, last) / (len(self._pictures) - 1)

    def _note(self, name: str, value: np.ndarray | float) -> None:
        self._sums.setdefault(name, []).append(float(value))

    def _mean(self, name: str) -> float | None:
        values = self._sums.get(name)
        return None if not values else float(np.mean(values))

    def numbers(self, regions: Sequence[str] = ()) -> MotionNumbers:
        """Of the frames so far; `regions` as in `Reference`."""
        pairs = self._frames - 1
        if pairs < 1:
            return MotionNumbers(frames=self._frames)
        near, far, step, contrast = (self._mean(name) for name in ("near", "far", "step", "contrast"))
        if far is None and pairs > 1:  # short: its ends are far apart
            far = float(np.square(self._recent[-1] - self._recent[0]).mean())
        assert near is not None and step is not None and contrast is not None
        tenth = max(1, self._frames // 10)
        drift = np.abs(np.mean(self._colours[-tenth:], axis=0) - np.mean(self._colours[:tenth], axis=0))
        paces = self._paces / (pairs - PACE + 1) if pairs >= PACE else self._pace()
        values = {
            "flow": self._mean("flow"),
            "flow_moving": _where(MOVING, self.flow_map, regions),
            "flow_still": _where(STILL, self.flow_map, regions),
            "pace": float(paces.mean()),
            "pace_moving": _where(MOVING, paces, regions),
            "change": float(np.mean(self._changes)),
            **{name: self._mean(name) for name in ("warp_error", "followed", "flicker", "fine_flicker")},
            "colour_drift": float(drift.mean()),
            "independence": None if far is None or far < 1e-6 else (near / far) ** 0.5,
            "novelty": (step / (2 * contrast)) ** 0.5 if contrast > 1e-6 else None,
            "seams": self._seams(),
        }
        return MotionNumbers(
            frames=self._frames, **{name: None if value is None else round(value, 4) for name, value in values.items()}
        )

    def _seams(self) -> float | None:
        at = [self._changes[border - 1] for border in self._borders if 0 < border <= len(self._changes)]
        elsewhere = [change for index, change in enumerate(self._changes, 1) if index not in self._borders]
        if 0 in self._borders:
            first, last = (end.astype(np.float32) for end in self._ends)
            at.append(float(np.abs(first - last).mean()))
        usual = float(np.mean(elsewhere)) if elsewhere else 0.0
        return float(np.mean(at)) / usual if at and usual > 1e-6 else None

    @property
    def flow_map(self) -> np.ndarray:
        """(16, 16) mean length of the flow in pixels a frame, by cells of the picture."""
        return self._map / max(1, self._frames - 1)

    @property
    def thumbs(self) -> np.ndarray:
        """(n, 16, 16) brightness of the first frames, by cells."""
        return np.array(self._thumbs)


def measure(frames: Iterable[np.ndarray], regions: Sequence[str] = (), borders: Collection[int] = ()) -> MotionNumbers:
    """The numbers of a video, of frames (h, w, 3) uint8; `regions` as in `Reference`, `borders` as in `Meter`."""
    meter = Meter(borders)
    for frame in frames:
        meter.add(frame)
    return meter.numbers(regions)


def make_reference(clips: Iterable[Iterable[np.ndarray]], *, flip: bool = False) -> Reference:
    """Of training clips, each as its frames; `flip` where they are trained on mirrored too. At least one clip with two
    frames."""
    meters = []
    for clip in clips:
        meter = Meter()
        for frame in clip:
            meter.add(frame)
        meters.append(meter)
    lengths = np.mean([meter.flow_map for meter in meters], axis=0)
    shared = np.mean([_without_rows(meter.thumbs).mean(0) for meter in meters], axis=0)
    if flip:
        lengths, shared = ((one + one[:, ::-1]) / 2 for one in (lengths, shared))
    most = lengths.max()
    kinds = np.full(lengths.shape, BETWEEN)
    if most > 0:
        kinds[lengths > most / 2] = MOVING
        kinds[lengths < most / 10] = STILL
    regions = tuple("".join(row) for row in kinds)
    each = [meter.numbers(regions) for meter in meters]
    slow, fast = _ends([numbers.flow_moving or 0.0 for numbers in each])
    slow_pace, fast_pace = _ends([numbers.pace_moving or 0.0 for numbers in each])
    numbers = mean_numbers(each).model_copy(update={"likeness": likeness([meter.thumbs for meter in meters], shared)})
    return Reference(
        numbers=numbers,
        clips=len(meters),
        slow=slow,
        fast=fast,
        slow_pace=slow_pace,
        fast_pace=fast_pace,
        regions=regions,
        shared=tuple(tuple(round(float(value), 1) for value in row) for row in shared),
        drift_frames=round(float(np.mean([meter.numbers().frames for meter in meters]))),
    )


def _ends(speeds: Sequence[float]) -> tuple[float, float]:
    """Of slow clips and of fast ones."""
    slow, fast = (round(float(np.percentile(speeds, share)), 4) for share in (10, 90))
    return slow, fast


def _where(kind: str, lengths: np.ndarray, regions: Sequence[str]) -> float | None:
    """Mean over the cells of one kind; None if there are none."""
    if not regions:
        return None
    chosen = np.array([list(row) for row in regions]) == kind
    return float(lengths[chosen].mean()) if chosen.any() else None


def likeness(thumbs: Sequence[np.ndarray], shared: np.ndarray | Sequence[Sequence[float]] = ()) -> float | None:
    """How alike videos are, from their `Meter.thumbs`: the mean over all pairs of their correlation, 0 where it is
    negative. `shared` as in `Reference`. None for fewer than two."""
    frames = min((len(one) for one in thumbs), default=0)
    if len(thumbs) < 2 or not frames:
        return None
    common = np.array(shared) if len(shared) else 0.0
    own = [(_without_rows(one[:frames]) - common).ravel() for one in thumbs]
    alike = [_correlation(one, other) for one, other in combinations(own, 2)]
    return round(float(np.mean(alike)), 4)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return max(0.0, float(one @ other) / size) if size > 1e-6 else 1.0


def _lengths(flow: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mean length of a flow (h, w, 2) between two pictures (h, w, 3), by cells; 0 where they hardly differ."""
    change = np.abs(after.astype(np.float32) - before).mean(-1)
    both = np.stack([np.linalg.norm(flow, axis=-1), change], -1)
    length, seen = np.moveaxis(shrunk(both.astype(np.float32), GRID, GRID), -1, 0)
    return np.where(seen < UNSEEN, 0.0, length)


def _without_rows(thumbs: np.ndarray) -> np.ndarray:
    """Without the mean of each row: skies are bright above, whatever the clouds."""
    return np.asarray(thumbs - thumbs.mean(-1, keepdims=True))


def _middle(frame: np.ndarray) -> np.ndarray:
    top, left = ((side - SIDE) // 2 for side in frame.shape[:2])
    return frame[top : top + SIDE, left : left + SIDE]


def _scaled(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    factor = SIDE / min(height, width)
    if factor == 1:
        return frame
    size = max(SIDE, round(width * factor)), max(SIDE, round(height * factor))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
