"""Does it move? Numbers of a video's motion, what the training clips have of them, and what that means in words.

Measured by `msdv.data.moving`; kept in temporal weights (`TemporalMetadata.reference`) and in metrics.jsonl.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

GRID = 16
"""Cells a side of the maps."""
MOVING, STILL, BETWEEN = "m", "s", "."

# Where a word begins to hold was chosen on videos of which it was known: docs/how-to/motion.md.
STATIC_FLOW = 0.05
"""Pixels a frame at 128 pixels' short side: what moves less is at rest."""


class MotionNumbers(BaseModel):
    """How a video moves. Lengths are pixels of a picture scaled to a short side of 128, brightness is 0 to 255. A
    number is None where there is nothing that it could be measured on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    frames: int
    """Frames looked at."""
    flow: float | None = None
    """Mean length of the optical flow from one frame to the next."""
    flow_moving: float | None = None
    """The same where the training clips move."""
    flow_still: float | None = None
    """The same where the training clips stand still."""
    pace: float | None = None
    """Length of the flow over 4 frames (fewer in shorter videos), a frame of them: how fast things get on. Detail that
    an autoencoder made keeps to its grid and jumps, which one frame alone shows as too little or too much."""
    pace_moving: float | None = None
    """The same where the training clips move."""
    change: float | None = None
    """Mean difference from one frame to the next, without following anything."""
    warp_error: float | None = None
    """The same where things are, along the flow, where it can be followed there and back: what moves without changing
    has little of it."""
    followed: float | None = None
    """Share of the picture where the flow can be followed, 0 to 1."""
    flicker: float | None = None
    """Brightness of sixteenths of the picture that goes up and down from frame to frame: mean of the absolute second
    differences."""
    fine_flicker: float | None = None
    """The same of single pixels, along the flow, in a middle part of the picture as large as it is."""
    colour_drift: float | None = None
    """Mean colour of the last tenth of the frames against that of the first, the mean of red, green and blue."""
    independence: float | None = None
    """Difference of neighbouring frames over that of frames 8 apart (fewer in short videos), in large features: 1 where
    frames have nothing to do with each other, and where nothing but noise changes."""
    novelty: float | None = None
    """Difference of neighbouring frames over that of pictures that are as rich and have nothing in common, in large
    features: 0 to about 1."""
    seams: float | None = None
    """Change where windows of --window meet, or where --loop closes, over the change elsewhere: about 1 where they
    can't be seen."""
    likeness: float | None = None
    """How alike videos of several seeds are, 0 to 1: mean correlation of large features, frame by frame, without what
    all videos share."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what was not measured is left out."""
        return self.model_dump(exclude_none=True)


NAMES: Mapping[str, str] = {
    "flow": "moves, pixels a frame",
    "flow_moving": "where the clips move",
    "flow_still": "where the clips stand still",
    "pace": "pace over several frames, pixels a frame",
    "pace_moving": "pace where the clips move",
    "change": "changes from frame to frame",
    "warp_error": "changes along the motion",
    "followed": "can be followed, share of the picture",
    "flicker": "flicker of areas",
    "fine_flicker": "flicker of pixels",
    "colour_drift": "colour drift, start to end",
    "independence": "neighbours differ, of frames far apart",
    "novelty": "neighbours differ, of unrelated pictures",
    "seams": "change at borders of windows",
    "likeness": "likeness of seeds",
}
"""What tables call the numbers, in the order in which they show them."""
SPEEDS = ("pace_moving", "pace", "flow_moving", "flow")
"""Numbers by which a video and the clips are compared: the first that is known of both."""


class Reference(BaseModel):
    """The same numbers of the training clips, and where they move."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    numbers: MotionNumbers
    """Mean over the clips."""
    clips: int
    """Clips measured."""
    slow: float
    """Mean flow where clips move, of a slow clip (the tenth percentile), in pixels a frame as above."""
    fast: float
    """The same of a fast one (the ninetieth)."""
    slow_pace: float | None = None
    """As `slow`, of the pace. References of before it was measured have none."""
    fast_pace: float | None = None
    regions: tuple[str, ...]
    """Rows of a map: `m` where the clips move, `s` where they stand still, `.` between the two."""
    shared: tuple[tuple[float, ...], ...] = ()
    """What the clips' brightness has in common, by cells of the map, without the mean of each row."""
    drift_frames: int = 0
    """Mean length, in frames, of the clips whose colour drift this is."""


def mean_numbers(several: Iterable[MotionNumbers]) -> MotionNumbers:
    """The mean of each number over the videos that have it; frames are added up. At least one video."""
    rows = [numbers.as_dict() for numbers in several]
    means: dict[str, Any] = {}
    for name in NAMES:
        values = [row[name] for row in rows if name in row]
        if values:
            means[name] = round(sum(values) / len(values), 4)
    return MotionNumbers(frames=sum(row["frames"] for row in rows), **means)


def verdict(numbers: MotionNumbers, reference: Reference | None) -> str:
    """In words, with the numbers that say so.

    It begins with "static", "flickers", "frames are independent", "moves like the data", "moves less than the data" or
    "moves more than the data"; without a reference with one of the first three, or with "moves".
    """
    if numbers.flow is None:
        return "nothing to say of a single frame"
    data = None if reference is None else reference.numbers
    name = compared_by(numbers, data)
    speed: float = getattr(numbers, name)
    usual: float | None = getattr(data, name, None)
    words = f"{name.partition('_')[0]} {speed:.2g}" + ("" if usual is None else f", the clips {usual:.2g}")
    if _is_independent(numbers, data):
        return "frames are independent (neighbours are as unlike as frames far apart)"
    if cause := _flicker(numbers, data):
        return f"flickers ({cause})"
    if _is_static(numbers, speed, data, usual):
        clips_too = usual is not None and usual < STATIC_FLOW
        return f"static ({words}{'; nor do the clips move' if clips_too else ''})"
    if reference is None or usual is None:
        return f"moves ({words} pixels a frame; there are no numbers of training clips to compare with)"
    slow, fast = usual * (1 - _AS_MEAN), usual * (1 + _AS_MEAN)
    # Of these two it is known how much clips differ.
    ends = {"pace_moving": (reference.slow_pace, reference.fast_pace), "flow_moving": (reference.slow, reference.fast)}
    slowest, fastest = ends.get(name, (None, None))
    if slowest is not None and fastest is not None:
        slow, fast = min(slow, slowest * (1 - _AS_ONE)), max(fast, fastest * (1 + _AS_ONE))
    if speed < slow:
        found = f"moves less than the data ({speed / usual:.2g} times it: {words})"
    elif speed > fast:
        found = f"moves more than the data ({speed / usual:.2g} times it: {words})"
    else:
        found = f"moves like the data ({words})"
    return "; ".join([found, *_faults(numbers, reference.numbers)])


_AS_MEAN, _AS_ONE = 0.25, 0.1
"""How far from the clips' mean, and how much slower than the slow clips or faster than the fast ones, is like them."""
_STATIC_SHARE = 1 / 6
"""Of the clips' flow: what moves less is at rest."""


def compared_by(numbers: MotionNumbers, data: MotionNumbers | None) -> str:
    """Which of `SPEEDS` is known of a video and of the clips; `flow` where none is, or where there are no clips."""
    if data is None:
        return "flow"
    both = (name for name in SPEEDS if getattr(numbers, name) is not None and getattr(data, name) is not None)
    return next(both, "flow")


def _is_independent(numbers: MotionNumbers, data: MotionNumbers | None) -> bool:
    """Both are needed: where only noise changes, neighbours too differ as much as others, but by little."""
    independence, novelty = numbers.independence or 0.0, numbers.novelty or 0.0
    usual, usual_novelty = (data.independence or 0.0, data.novelty or 0.0) if data else (0.0, 0.0)
    return independence > max(0.75, (1 + usual) / 2) and novelty > max(0.12, 1.5 * usual_novelty)


def _flicker(numbers: MotionNumbers, data: MotionNumbers | None) -> str:
    """What flickers; empty if nothing does."""
    for name, what, least in (("flicker", "brightness of areas", 1.2), ("fine_flicker", "single pixels", 6.0)):
        value = getattr(numbers, name) or 0.0
        usual = (getattr(data, name) or 0.0) if data else 0.0
        if value > max(least, 3 * usual):
            clips = f", the clips {usual:.2g}" if data else ""
            return f"{what} up and down by {value:.2g} of 255{clips}"
    return ""


def _is_static(numbers: MotionNumbers, speed: float, data: MotionNumbers | None, usual: float | None) -> bool:
    if speed < (STATIC_FLOW if usual is None else max(STATIC_FLOW / 5, usual * _STATIC_SHARE)):
        return True
    if usual is not None and usual < STATIC_FLOW:
        return speed < STATIC_FLOW
    # Noise alone has some flow, but following it gains nothing, and neighbours differ as much as others.
    return _gain(numbers) < 0.1 and (numbers.independence or 0.0) > 0.8


def _gain(numbers: MotionNumbers) -> float:
    """Share of the change that is gone along the flow."""
    if not numbers.change or numbers.warp_error is None:
        return 0.0
    return 1 - numbers.warp_error / numbers.change


def _faults(numbers: MotionNumbers, data: MotionNumbers) -> list[str]:
    """What else differs from the clips by so much that it is seen."""
    found = []
    for name, what, least in (
        ("flow_still", "what stands still in the clips moves by", 0.15),
        ("warp_error", "less coherent: along the motion it changes by", 0.5),
        ("colour_drift", "colours drift by", 12.0),
    ):
        value, usual = getattr(numbers, name), getattr(data, name)
        if value is not None and usual is not None and value > max(least, 1.5 * usual):
            found.append(f"{what} {value:.2g} (the clips {usual:.2g})")
    if numbers.seams is not None and numbers.seams > 1.5:
        found.append(f"windows can be seen: where they meet it changes {numbers.seams:.2g} times as much")
    return found
