"""Black bars around the picture (letterbox, pillarbox or both), found in a few frames of a video.

A bar is flat and black in every frame, ends in one straight line right across the picture, and has a partner of the
same width on the other side. All three are asked for, because what is cut by mistake is lost: a night sky, a black
skyline or a vignette has no straight end, a black third of a test card has no partner.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_SEGMENTS = 16  # the picture's width (or height) is looked at in this many stretches
_DARKEST = 22  # the luma of black bars is at most this: 16 in limited range, 0 in full, and what codecs make of it
_NOISE = 2.5  # by how much the mean of a line of a bar may differ from the bar's black
_GLITCH = 28  # and by how much a single pixel
_RINGING = 16  # pixels: so far coarse codecs smear the picture into a bar, a macroblock
_JUMP = 4  # by how much luma must rise at the end of a bar
_CLEAR_JUMP = 8  # and from here on no matter how much lighter it is further in
_OUTERMOST = 2  # lines at the picture's edge that don't count: scalers and tapes leave rubbish there
_SMALLEST = 4  # pixels
_SMALLEST_SIDE = 48  # pixels; smaller pictures are left as they are
_LEAST_LEFT = 0.22  # of a side: a phone's 9:20 upright in 16:9 fills 0.253 of the width
_CLEAN = 0.9  # share of a bar's length with nothing in it: the worst of codecs' noise may be in one stretch
_STRAIGHT = 0.7  # share of a bar's length where it must end at once, in the same frame
_COVERED = 0.85  # and in one frame or another
_HINTED = 0.2  # the same for a bar whose partner is certain
_UNSUBTITLED = 1 / 3  # share of the frames
_FLAT = 1.5  # luma: a picture inside of bars varies more than this (standard deviation)


@dataclass(frozen=True)
class Bars:
    """How many pixels of the coded picture to cut off at each side; even numbers, so that chroma stays whole."""

    left: int
    top: int
    right: int
    bottom: int


def may_have_bars(luma: np.ndarray) -> bool:
    """Whether a frame can be one of a video with bars: False as soon as no two opposite edges are black.

    `luma` is uint8 (h, w), limited or full range. Looks at the outermost lines only, so that one frame can rule out
    bars at next to no cost. A wholly black frame gives True.
    """
    if min(luma.shape) < _SMALLEST_SIDE:
        return False
    outer = slice(_OUTERMOST, _OUTERMOST + 2)
    return any(_is_black(x[outer]) and _is_black(x[::-1][outer]) for x in (luma, luma.T))


def find_bars(lumas: Sequence[np.ndarray]) -> Bars | None:
    """The bars of a video from the luma planes of frames spread over it; None where it has none.

    `lumas` are uint8 (h, w), limited or full range: the level of black is taken from the bars themselves. About nine
    frames are enough, one works. Frames that are wholly black tell nothing and don't count. At each side one or two
    pixels more than the bar are cut, with them a soft edge. Bars with subtitles in them count as bars if a third of the
    frames is without; what stands in a bar all the time (a title) makes it part of the picture. Bars that
    would leave less than 0.22 of a side are not believed, nor planes of different sizes.
    """
    if not lumas or min(lumas[0].shape) < _SMALLEST_SIDE or any(x.shape != lumas[0].shape for x in lumas):
        return None
    frames = [x for x in lumas if not _tells_nothing(x)]
    if not frames:
        return None
    # In a window box each pair is as long as the other pair leaves it, so a first guess of one has to be made.
    left, right = _pair([x.T for x in frames], guess=True)
    top, bottom = _pair([_without(x.T, left, right).T for x in frames])
    left, right = _pair([_without(x, top, bottom).T for x in frames])
    if not left:
        top, bottom = _pair(frames)
    if not left and not top:
        return None
    height, width = frames[0].shape
    inside = [x[top : height - bottom : 2, left : width - right : 2] for x in frames]
    return Bars(left, top, right, bottom) if max(float(x.std()) for x in inside) >= _FLAT else None


def _is_black(lines: np.ndarray) -> bool:
    level = float(np.median(lines))
    # A subtitle or a glitch may reach the edge of the picture; it does not fill it.
    return level <= _DARKEST and float((np.abs(lines - level) > _GLITCH / 2).mean()) < 0.25


def _tells_nothing(luma: np.ndarray) -> bool:
    sample = luma[::4, ::4]
    return float(np.quantile(sample, 0.998) - np.quantile(sample, 0.02)) < _CLEAR_JUMP


def _without(luma: np.ndarray, top: int, bottom: int) -> np.ndarray:
    return luma[top : luma.shape[0] - bottom]


class _Edge(NamedTuple):
    """One side of the picture; rows are counted from there."""

    rows: np.ndarray  # mean luma (f, h, s)
    depth: np.ndarray  # black rows before the first that is not, (f, s); h where there is no other


def _pair(frames: Sequence[np.ndarray], *, guess: bool = False) -> tuple[int, int]:
    """Rows to cut off at the top and at the bottom; (0, 0) where there are no bars.

    A `guess` does not ask for a straight end right across.
    """
    height, width = frames[0].shape
    none = (0, 0)
    if width < _SEGMENTS:
        return none
    outer = slice(_OUTERMOST, _OUTERMOST + 2)
    black = float(np.median([[x[outer], x[::-1][outer]] for x in frames]))
    if black > _DARKEST:
        return none
    edges = _edges(frames, black)
    tolerance = max(3, round(0.003 * height))
    reach = max(4, round(0.0075 * height))
    most = round(height * (1 - _LEAST_LEFT) / 2)
    ends = [_usual_end(edge, tolerance, most) for edge in edges]
    strong = [
        end > 0 and _ends_straight(edge, end, black, tolerance, reach) for edge, end in zip(edges, ends, strict=True)
    ]
    if guess:
        strong = [end > 0 for end in ends]
    if not any(strong):
        return none
    alike = abs(ends[0] - ends[1]) <= max(_SMALLEST, 0.012 * height, 0.05 * max(ends))
    if not alike:
        if all(strong):
            return none
        # Where a skyline is as black as the bar below it, only parts of that bar's end show.
        ends = [ends[strong.index(True)]] * 2
    for edge, end, is_strong in zip(edges, ends, strong, strict=True):
        if not is_strong and _covered(edge, end, black, tolerance, reach) < _HINTED:
            return none
    if min(ends) < max(_SMALLEST, 0.004 * height):
        return none
    if not all(_is_clean(edge, end - min(end // 2, _RINGING)) for edge, end in zip(edges, ends, strict=True)):
        return none
    cuts = [
        _even(_inner_end(edge, end, black, tolerance, reach) + 1) if is_strong else 0
        for edge, end, is_strong in zip(edges, ends, strong, strict=True)
    ]
    cuts = [cut or max(cuts) for cut in cuts]
    return (cuts[0], cuts[1]) if height - sum(cuts) >= _LEAST_LEFT * height else none


def _edges(frames: Sequence[np.ndarray], black: float) -> list[_Edge]:
    height, width = frames[0].shape
    length = width // _SEGMENTS
    means, blacks = [], []
    for x in frames:
        segments = x[:, : length * _SEGMENTS].reshape(height, _SEGMENTS, length)
        mean = segments.mean(axis=2, dtype=np.float32)
        means.append(mean)
        blacks.append((np.abs(mean - black) <= _NOISE) & (segments.max(axis=2) <= black + _GLITCH))
    edges = []
    for step in (1, -1):
        rows, is_black = np.stack(means)[:, ::step], np.stack(blacks)[:, ::step].copy()
        is_black[:, :_OUTERMOST] = True
        depth = np.where(is_black.all(axis=1), height, np.argmin(is_black, axis=1))
        edges.append(_Edge(rows, depth))
    return edges


def _usual_end(edge: _Edge, tolerance: int, most: int) -> int:
    """Where most stretches stop being black; 0 where none does."""
    ends = edge.depth[(edge.depth > _OUTERMOST) & (edge.depth <= most)]
    if not ends.size:
        return 0
    votes = np.bincount(ends, minlength=most + 1)
    near = np.convolve(votes, np.ones(2 * tolerance + 1, dtype=int), "same")
    best = int(np.argmax(near))
    among = ends[np.abs(ends - best) <= tolerance]
    return int(np.median(among))


def _supports(edge: _Edge, end: int, black: float, tolerance: int, reach: int) -> np.ndarray:
    """Where the picture begins at `end`, and at once: not where a vignette gets lighter by and by. Bool (f, s)."""
    first = end + tolerance
    jump = edge.rows[:, first : first + reach].mean(axis=1) - black
    further = edge.rows[:, first + 3 * reach : first + 4 * reach].mean(axis=1) - black
    at_once = (jump >= _CLEAR_JUMP) | ((jump >= _JUMP) & (further <= 2.5 * jump))
    return (edge.depth >= end - max(10, 2 * tolerance)) & (edge.depth <= end + tolerance) & at_once


def _ends_straight(edge: _Edge, end: int, black: float, tolerance: int, reach: int) -> bool:
    straight = int((_supports(edge, end, black, tolerance, reach).mean(axis=1) >= _STRAIGHT).sum())
    enough = straight >= max(1, -(-len(edge.depth) // 4))
    return enough and _covered(edge, end, black, tolerance, reach) >= _COVERED


def _covered(edge: _Edge, end: int, black: float, tolerance: int, reach: int) -> float:
    """Share of a bar's length along which it is seen to end, in one frame or another."""
    return float(_supports(edge, end, black, tolerance, reach).any(axis=0).mean())


def _is_clean(edge: _Edge, end: int) -> bool:
    """Whether nothing but black comes before `end`, other than subtitles in some frames."""
    black = edge.depth >= end
    clean = black.mean(axis=1) >= _CLEAN
    # Subtitles leave the ends of the bar free, and its outermost lines; a picture that is shown without bars for a
    # while does not.
    corners = black[:, [0, 1, -2, -1]].all(axis=1) & (edge.depth > _SMALLEST).all(axis=1)
    return bool((clean | corners).all()) and bool(clean.mean() >= _UNSUBTITLED)


def _inner_end(edge: _Edge, end: int, black: float, tolerance: int, reach: int) -> int:
    """The first row where the picture has come to its own brightness, past a soft edge."""
    first, last = max(0, end - tolerance), end + tolerance + reach
    frame, segment = np.nonzero(_supports(edge, end, black, tolerance, reach))
    if not frame.size:
        return end
    profiles = edge.rows[frame, first:last, segment] - black  # (n, rows)
    full = np.median(edge.rows[frame, end + tolerance : last, segment] - black, axis=1)
    risen = np.median(profiles / full[:, None], axis=0) >= 0.85
    return first + int(np.argmax(risen)) if risen.any() else last


def _even(pixels: int) -> int:
    return pixels + pixels % 2
