"""Which frames of a video to keep, by their times alone: nothing is decoded to find out.

Times are exact fractions of a second since the container's start; `times[i]` is when frame i, in display order, comes
on.
"""

import math
from collections.abc import Sequence
from fractions import Fraction


def select_grid(
    times: Sequence[Fraction], end: Fraction, *, fps: Fraction, start: Fraction, tolerance: Fraction = Fraction(0)
) -> list[int]:
    """Indices of the frames on display at start + j/fps for j = 0, 1, ... before `end`, each at most once.

    A frame that comes on up to `tolerance` seconds after such a time counts as on display: containers round times. The
    first frame is on display before it comes on.
    """
    chosen: list[int] = []
    for index, time in enumerate(times):
        # The first asked-for time at which this frame is on display, if it is at all.
        asked = start + (max(0, math.ceil((time - tolerance - start) * fps)) if index else 0) / fps
        last = index + 1 == len(times)
        if asked < end and (last or asked < times[index + 1] - tolerance):
            chosen.append(index)
    return chosen


def select_script(
    times: Sequence[Fraction],
    duration: Fraction,
    *,
    fps: Fraction,
    start: Fraction,
    trim: Fraction,
    guessed_rate: Fraction,
) -> list[int]:
    """Indices of the frames that the 2022 script took; a frame may come twice, where the source is slower than `fps`.

    That is `ffmpeg -ss start -t duration-trim -r fps` (5.1: constant frame rate by dropping and repeating, `trim` being
    both ends together) and then deleting the first file, so the first index belongs to 000002.jpg.
    """
    cut = duration - trim
    if cut <= 0:
        return []
    limit = math.ceil(fps * cut)
    shown = min(Fraction(1), fps / guessed_rate)  # how long a source frame lasts, in output frames
    chosen: list[int] = []
    first: Fraction | None = None
    previous: int | None = None
    for index, time in enumerate(times):
        if time < start:
            continue
        first = time if first is None else first
        if time - first >= cut or len(chosen) >= limit:
            break
        ahead = fps * (time - start) - len(chosen)
        copies, of_previous = 1, 0
        if ahead + shown < -1.1:
            copies = 0
        elif ahead + shown > 1.1:
            copies = round(ahead + shown)
            of_previous = round(ahead - Fraction(6, 10)) if ahead > 1.1 else 0
        before = index if previous is None else previous
        chosen += [before if k < of_previous else index for k in range(copies)]
        previous = index
    return chosen[1:limit]
