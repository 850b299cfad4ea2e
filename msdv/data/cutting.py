"""One video to folders of frames: a clip, or one for each of its scenes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from msdv import __version__
from msdv.data.decode import VideoReader
from msdv.data.manifest import FrameSettings, Row, scene_name, write_record
from msdv.data.picture import PictureSettings
from msdv.data.scenes import CutFinder
from msdv.data.scores import ClipMeter, sharpness_of
from msdv.data.selection import select_grid, select_script
from msdv.data.stillness import Stillness, StillnessMeter
from msdv.data.timeline import Timeline, read_timeline
from msdv.errors import MsdvError
from msdv.files import write_folder

_SHORTEST_SCENE = 2  # frames: nothing moves in fewer
_SHORTEST_STILL = 1.0  # seconds: shorter ones are also what a slow source looks like
_LONGEST_GAP = 2.0  # seconds: what is seen jumps there
_SMALL_FRAMES = ".small"  # in the folder while it is being filled


def make_clips(
    video: Path,
    folder: Path,
    settings: FrameSettings,
    row: Row,
    report: Callable[[int], None] = lambda frames: None,
) -> list[Row]:
    """Write the frames of a video to `folder`, or of its scenes to `folder`, `folder#2` and so on, and give the rows of
    the manifest, `row` included in each.

    Each folder appears whole or not at all, `folder` last: where it is, the others are. `report` hears of frames
    written since it was last called, and of 0 while work goes on. Raises MsdvError, with the reason only, for a video
    that gives no frames, and OSError where a folder can't be written.
    """
    timeline = read_timeline(video, lambda: report(0))
    chosen, start, end = _choose(timeline, settings)
    if not chosen:
        raise MsdvError("; ".join(filter(None, [timeline.note, _too_short(timeline, settings)])))
    # The 2022 script deleted its first file.
    first = 2 if settings.select == "script" else 1
    with write_folder(folder, flush=False) as temporary:
        taken = _write_frames(video, timeline, chosen, settings, temporary, first, report)
        notes = [timeline.note] if timeline.note else []
        if len(taken.indices) < len(chosen):
            notes.append(f"{len(chosen) - len(taken.indices)} of {len(chosen)} frames can't be decoded")
        if guessed := sum(taken.damaged):
            notes.append(f"{guessed} {'frame is' if guessed == 1 else 'frames are'} broken in places")
        common: Row = {
            **row,
            "start": _seconds(start),
            "end": _seconds(end),
            "fps": _rate(timeline, chosen, settings),
            "width": settings.width,
            "height": settings.height,
            "verdict": _verdict(notes, _gap(timeline, taken.indices, settings)),
            "version": __version__,
            "source_width": timeline.width,
            "source_height": timeline.height,
            "source_fps": round(float(timeline.guessed_rate), 3),
            "codec": timeline.codec,
            "bars": list(asdict(taken.bars).values()) if taken.bars else None,
            "settings": asdict(settings),
        }
        parts = _parts(taken.small, settings, report)
        rows = [
            {
                **common,
                **_own(timeline, taken.indices, part, len(taken.indices), end),
                **_measured(taken, part, settings.fps, report),
            }
            for part in parts
        ]
        if settings.scenes:
            rows = [{**r, "scene": number, "scenes": len(rows)} for number, r in enumerate(rows, 1)]
        files = [temporary / f"{first + i:06d}.jpg" for i in range(len(taken.indices))]
        for number in range(len(parts), 1, -1):
            rows[number - 1]["clip"] = scene_name(folder.name, number)
            other_folder = folder.with_name(scene_name(folder.name, number))
            with write_folder(other_folder, flush=False) as other:
                for place, file in enumerate(files[parts[number - 1]], first):
                    file.replace(other / f"{place:06d}.jpg")
                write_record(other, rows[number - 1])
        _keep_only(files, parts[0], first)
        (temporary / _SMALL_FRAMES).unlink()
        write_record(temporary, rows[0])
    return rows


@dataclass(frozen=True)
class _Taken:
    """Frames that were written, numbered one after the other."""

    indices: Sequence[int]  # into the timeline's times, one a file
    damaged: Sequence[bool]
    small: "_SmallFrames"
    sharpness: Sequence[float | None]  # measured about once a second
    bars: Any


@dataclass(frozen=True)
class _SmallFrames:
    """The small pictures of frames (see picture.Encoded) in a file: an hour of them would not fit in memory."""

    path: Path
    count: int
    shape: tuple[int, ...]  # (h, w, 3)

    def read(self, part: slice | None = None) -> Iterator[np.ndarray]:
        """Those of some frames that follow each other, or all."""
        start, stop = (part.start, part.stop) if part else (0, self.count)
        size = int(np.prod(self.shape))
        with self.path.open("rb") as file:
            file.seek(start * size)
            for _ in range(start, stop):
                yield np.frombuffer(file.read(size), np.uint8).reshape(self.shape)


def _write_frames(
    video: Path,
    timeline: Timeline,
    chosen: Sequence[int],
    settings: FrameSettings,
    folder: Path,
    first: int,
    report: Callable[[int], None],
) -> _Taken:
    picture_settings = PictureSettings(
        settings.width, settings.height, settings.fit, as_script=settings.select == "script"
    )
    reader = VideoReader(video, timeline, picture_settings, crop_bars=settings.crop_bars, alive=lambda: report(0))
    copies: dict[int, int] = {}
    for index in chosen:
        copies[index] = copies.get(index, 0) + 1
    indices: list[int] = []
    damaged: list[bool] = []
    sharpness: list[float | None] = []
    shape: tuple[int, ...] = ()
    # What is measured needs frames again that are known to belong together only in the end.
    with (folder / _SMALL_FRAMES).open("wb") as small:
        for picture in reader.pictures(copies):
            sharp = sharpness_of(picture.luma) if len(indices) % max(1, round(settings.fps)) == 0 else None
            for _ in range(copies[picture.index]):
                (folder / f"{first + len(indices):06d}.jpg").write_bytes(picture.jpeg)
                small.write(picture.small.tobytes())
                indices.append(picture.index)
                damaged.append(picture.damaged)
                sharpness.append(sharp)
                report(1)
            shape = picture.small.shape
    if not indices:
        raise MsdvError("none of its frames can be decoded")
    pictures = _SmallFrames(folder / _SMALL_FRAMES, len(indices), shape)
    return _Taken(indices, damaged, pictures, sharpness, reader.bars)


def _parts(small: _SmallFrames, settings: FrameSettings, report: Callable[[int], None]) -> list[slice]:
    """Which frames make which clip."""
    begin, end = 0, small.count
    if settings.trim == "auto":
        stillness = _stillness(small.read(), settings.fps)
        shortest = _SHORTEST_STILL * settings.fps
        # One frame of what stands still is kept. All of it, where nothing else is left: a picture, not a clip.
        if stillness.head < small.count:
            begin = stillness.head - 1 if stillness.head >= shortest else 0
            end = small.count - (stillness.tail - 1 if stillness.tail >= shortest else 0)
    if not settings.scenes:
        return [slice(begin, end)]
    finder = CutFinder(settings.fps)
    for picture in small.read():
        finder.add(picture)
        report(0)
    cuts = [begin, *(cut for cut in finder.cuts() if begin < cut < end), end]
    scenes = [slice(*pair) for pair in pairwise(cuts)]
    long_enough = [scene for scene in scenes if scene.stop - scene.start >= _SHORTEST_SCENE]
    return long_enough or [slice(begin, end)]


def _stillness(small: Iterable[np.ndarray], fps: float) -> Stillness:
    meter = StillnessMeter(fps)
    for picture in small:
        meter.add(picture)
    return meter.result()


def _measured(taken: _Taken, part: slice, fps: float, report: Callable[[int], None]) -> Row:
    meter = ClipMeter()
    for picture, sharpness in zip(taken.small.read(part), taken.sharpness[part], strict=True):
        meter.add(picture, sharpness)
        report(0)
    scores = asdict(meter.result())
    still = _stillness(taken.small.read(part), fps)
    held = still.held + max(0, still.head - 1) + max(0, still.tail - 1)
    return {**scores, "hashes": list(scores["hashes"]), "held": held}


def _verdict(damage: Sequence[str], gap: float) -> str:
    verdict = "ok, damaged: " + "; ".join(damage) if damage else "ok"
    if gap > _LONGEST_GAP:
        verdict += ("; " if damage else ", ") + f"{gap:.1f} s are missing between two of its frames"
    return verdict


def _gap(timeline: Timeline, indices: Sequence[int], settings: FrameSettings) -> float:
    """The longest time from one of these frames to the next, in seconds, beyond what is usual."""
    longest = max((timeline.times[b] - timeline.times[a] for a, b in pairwise(indices)), default=Fraction(0))
    return float(longest - max(1 / _exact(settings.fps), timeline.times.usual_gap() or 0))


def _own(timeline: Timeline, indices: Sequence[int], part: slice, frames: int, end: Fraction) -> Row:
    """What the row of a part of the frames says of itself: the times, where they are not those of the whole."""
    row: Row = {"frames": part.stop - part.start}
    if part.start > 0:
        row["start"] = _seconds(timeline.times[indices[part.start]])
    if part.stop < frames:
        row["end"] = _seconds(min(end, timeline.times[indices[part.stop]]))
    return row


def _keep_only(files: Sequence[Path], part: slice, first: int) -> None:
    """Of the files that are left, those of a part, numbered from the first on."""
    for file in [*files[: part.start], *files[part.stop :]]:
        file.unlink(missing_ok=True)
    for number, file in enumerate(files[part], first):
        if file.stem != f"{number:06d}":
            file.replace(file.with_name(f"{number:06d}.jpg"))


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
    """Frames per second of the result, on average: less than asked for where the source has fewer."""
    if len(set(chosen)) < max(2, len(chosen)):
        return settings.fps
    rate = (len(chosen) - 1) / (timeline.times[chosen[-1]] - timeline.times[chosen[0]])
    return round(float(rate), 3) if rate < Fraction(95, 100) * _exact(settings.fps) else settings.fps


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
