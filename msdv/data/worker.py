"""One video to one folder of frames: the work of a process of its own, so that a video that crashes the decoder only
loses itself.

Requests come in on stdin, answers go out on stdout, a JSON object a line.
"""

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from msdv import __version__
from msdv.data.decode import Timeline, read_pictures, read_timeline
from msdv.data.manifest import write_record
from msdv.data.selection import select_grid, select_script
from msdv.errors import MsdvError
from msdv.files import write_folder

_PROGRESS_EVERY = 0.3  # seconds


@dataclass(frozen=True)
class FrameSettings:
    """What decides a clip's frames; units as in PrepConfig."""

    fps: float
    size: int
    trim_start: float
    trim_end: float
    select: str


def make_clip(
    video: Path,
    folder: Path,
    settings: FrameSettings,
    row: dict[str, Any],
    report: Callable[[int], None] = lambda frames: None,
) -> dict[str, Any]:
    """Write the frames of a video to `folder`, whole or not at all, and give its row of the manifest, `row` included.

    `report` hears of frames written since it was last called. Raises MsdvError, with the reason only, for a video that
    gives no frames, and OSError where the folder can't be written.
    """
    timeline = read_timeline(video)
    chosen, start, end = _choose(timeline, settings)
    if not chosen:
        raise MsdvError(_too_short(timeline, settings))
    # The 2022 script deleted its first file.
    first = 2 if settings.select == "script" else 1
    numbers: dict[int, list[int]] = {}
    for number, index in enumerate(chosen, first):
        numbers.setdefault(index, []).append(number)
    written = guessed = 0
    with write_folder(folder) as temporary:
        for picture in read_pictures(video, timeline, numbers, settings.size):
            for _ in numbers[picture.index]:
                (temporary / f"{first + written:06d}.jpg").write_bytes(picture.jpeg)
                written += 1
            guessed += picture.damaged
            report(len(numbers[picture.index]))
        if not written:
            raise MsdvError("none of its frames can be decoded")
        notes = [timeline.note] if timeline.note else []
        if written < len(chosen):
            notes.append(f"{len(chosen) - written} of {len(chosen)} frames can't be decoded")
        if guessed:
            notes.append(f"{guessed} frames are broken in places")
        row = {
            **row,
            "start": _seconds(start),
            "end": _seconds(end),
            "fps": _rate(timeline, chosen, settings),
            "frames": written,
            "width": settings.size,
            "height": settings.size,
            "verdict": "ok, damaged: " + "; ".join(notes) if notes else "ok",
            "version": __version__,
            "source_width": timeline.width,
            "source_height": timeline.height,
            "source_fps": round(float(timeline.guessed_rate), 3),
            "codec": timeline.codec,
            "settings": asdict(settings),
        }
        write_record(temporary, row)
    return row


def _choose(timeline: Timeline, settings: FrameSettings) -> tuple[Sequence[int], Fraction, Fraction]:
    """Indices of the frames to keep, and from when to when they are taken."""
    fps, start, trim_end = (_exact(value) for value in (settings.fps, settings.trim_start, settings.trim_end))
    if settings.select == "script":
        duration = timeline.duration or timeline.end
        chosen = select_script(
            timeline.times, duration, fps=fps, start=start, trim=start + trim_end, guessed_rate=timeline.guessed_rate
        )
        return chosen, start, duration - trim_end
    end = timeline.end - trim_end
    return select_grid(timeline.times, end, fps=fps, start=start, tolerance=timeline.tolerance), start, end


def _exact(value: float) -> Fraction:
    return Fraction(str(value))


def _seconds(value: Fraction) -> float:
    return round(float(value), 4)


def _rate(timeline: Timeline, chosen: Sequence[int], settings: FrameSettings) -> float:
    """Frames per second of the result: less than asked for where the source has fewer."""
    slower = len(set(chosen)) == len(chosen) and len(chosen) > 1 and timeline.guessed_rate < settings.fps
    return round(float(timeline.guessed_rate), 3) if slower else settings.fps


def _too_short(timeline: Timeline, settings: FrameSettings) -> str:
    trims = [
        f"--{name} {value:g}"
        for name, value in (("trim-start", settings.trim_start), ("trim-end", settings.trim_end))
        if value
    ]
    length = f"{float(timeline.end):.1f} s long"
    if not trims:
        return f"{length}, no frame to keep"
    return f"{length}, nothing left after {' and '.join(trims)}: lower {'them' if len(trims) > 1 else 'it'}"


def main() -> None:
    """Answer requests until stdin ends, and then stop at once: nobody waits for the rest."""
    # Libraries print where they like; answers keep the real stdout to themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    answer(ready=True)
    for request in _requests():
        reporter = _Reporter(answer)
        try:
            row = make_clip(
                Path(request["video"]),
                Path(request["folder"]),
                FrameSettings(**request["settings"]),
                request["row"],
                reporter,
            )
            answer(row=row)
        except MsdvError as error:
            answer(failed=str(error))
        except OSError as error:
            answer(stopped=[error.errno, error.strerror or str(error), str(error.filename or "")])
        except Exception as error:  # whatever this video does, the next one gets its turn
            answer(failed=f"unexpected {type(error).__name__}: {error}", traceback=traceback.format_exc())


class _Reporter:
    """Passes on the number of frames written, not more often than eyes can follow."""

    def __init__(self, answer: Callable[..., None]) -> None:
        self._answer, self._frames, self._last = answer, 0, time.monotonic()

    def __call__(self, frames: int) -> None:
        self._frames += frames
        if time.monotonic() - self._last > _PROGRESS_EVERY:
            self._answer(frames=self._frames)
            self._frames, self._last = 0, time.monotonic()


def _requests() -> Iterator[dict[str, Any]]:
    received: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            received.put(line)
        os._exit(0)  # the other side is done, or dead

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield json.loads(received.get())
