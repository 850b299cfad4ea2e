"""What --motion can say: how things move, or the video whose motion is taken."""

import re
from dataclasses import dataclass
from pathlib import Path

_NUMBER = r"\d{1,3}(?:\.\d{1,6})?"
_TERM = re.compile(
    rf"(?P<auto>auto)|(?:(?P<side>left|right|up|down)|(?P<angle>-?{_NUMBER})deg)(?::(?P<speed>{_NUMBER}))?"
    r"|(?P<zoom>zoom)(?::(?P<percent>-?\d{1,2}(?:\.\d{1,6})?))?",
    re.ASCII,
)
_ANGLES = {"right": 0.0, "up": 90.0, "left": 180.0, "down": 270.0}
ZOOM = 1.0
"""Percent a frame, where none are said."""
AT_REST = 0.05
"""Pixels a frame: what moves less stands still, and is what the search for flow makes of noise."""


@dataclass(frozen=True)
class Drift:
    """Things go one way, where those of the training clips move."""

    angle: float
    """Degrees: 0 to the right, 90 up."""
    speed: float | None
    """Of the fastest place, in pixels a frame. None: as the training clips."""


@dataclass(frozen=True)
class Zoom:
    """The whole picture grows, or shrinks, about its middle."""

    percent: float
    """A frame; negative shrinks."""


@dataclass(frozen=True)
class Auto:
    """As the training clips."""


MotionTerm = Drift | Zoom | Auto


def motion_terms(text: str) -> list[MotionTerm] | None:
    """What `text` says, to be added up; none for `none`. None if it does not say how things move."""
    if text == "none":
        return []
    found = [_TERM.fullmatch(part) for part in text.split("+")]
    return [_term(match) for match in found if match] if all(found) else None


def _term(match: re.Match[str]) -> MotionTerm:
    if match["auto"]:
        return Auto()
    if match["zoom"]:
        return Zoom(ZOOM if match["percent"] is None else float(match["percent"]))
    angle = _ANGLES[match["side"]] if match["side"] else float(match["angle"])
    return Drift(angle, None if match["speed"] is None else float(match["speed"]))


def motion_file(text: str) -> Path | None:
    """The video, or the folder of pictures, that `text` names; None if it says something else."""
    if motion_terms(text) is not None or "\0" in text:
        return None
    names_file = re.search(r"[/\\]|\.(?:[A-Za-z][A-Za-z0-9]{1,4}|3g[p2]p?)$", text, re.ASCII)
    path = Path(text).expanduser()
    return path if names_file or (text and _exists(path)) else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no name that a file could have
        return False
