"""--report: how the videos move that were made, beside the training clips."""

import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from msdv.console import say
from msdv.data.moving import Meter, likeness
from msdv.errors import first_line
from msdv.model.keyframes import Passes
from msdv.model.windows import Length
from msdv.verdict import NAMES, MotionNumbers, Reference, mean_numbers, verdict


def borders_of(length: Length, passes: Passes | None, frames: int, lead: int = 0) -> set[int]:
    """Frames, of a video of so many, before which windows meet, as `Meter` takes them; counted without the `lead`.

    Windows move from step to step: it is those of the first one, which lays out what is seen, in the middle of what
    they share.
    """
    if passes is not None:
        finest = min(spacing for spacing, _ in passes.windows)
        ends = {int(positions[-1]) for spacing, positions in passes.windows if spacing == finest}
        found = {frame for end in ends for frame in (end, end + 1)}
    else:
        found = set()
        if length.together(frames) < frames:
            found = {start + (length.overlap + 1) // 2 for start in length.starts(frames, 0) if start > 0}
    found = {frame - lead for frame in found if lead < frame < frames}
    return found | ({0} if length.loop else set())


class Watch:
    """Measures videos whose frames go by on their way to a file. What can't be measured ends no video."""

    def __init__(self, videos: int, borders: Collection[int] = ()) -> None:
        self.meters = [Meter(borders) for _ in range(videos)]
        self.failed = False
        """Whether what was measured is not the whole video."""

    def frames(self, video: int, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same frames (h, w, 3), of bytes or of floats from 0 to 1, of one of the videos."""
        for frame in frames:
            if not self.failed:
                self._add(video, frame)
            yield frame

    def parts(self, video: int, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same, of several frames at a time, (n, h, w, 3)."""
        for part in parts:
            yield np.stack(list(self.frames(video, part)))

    def _add(self, video: int, frame: np.ndarray) -> None:
        try:
            if frame.dtype != np.uint8:
                frame = (frame * 255).round().astype(np.uint8)
            self.meters[video].add(frame)
        except Exception as error:  # no report is worth a video
            self.failed = True
            say(f"--report: the motion can't be measured: {first_line(error)}")


@dataclass(frozen=True)
class Moved:
    """How a video moves."""

    name: str
    """The file, or the seed where several are in one."""
    numbers: MotionNumbers
    verdict: str


@dataclass
class MotionReport:
    """Of all videos that a command made."""

    reference: Reference | None
    videos: list[Moved] = field(default_factory=list)
    alike: list[float] = field(default_factory=list)

    def add(self, watch: Watch, names: Sequence[str]) -> None:
        """The videos of a file that is written. What can't be measured is left out, and said."""
        if watch.failed:
            return
        try:
            self._add(watch, names)
        except Exception as error:  # no report is worth a video
            say(f"--report: the motion can't be measured: {first_line(error)}")

    def _add(self, watch: Watch, names: Sequence[str]) -> None:
        regions = self.reference.regions if self.reference else ()
        for name, meter in zip(names, watch.meters, strict=True):
            numbers = meter.numbers(regions)
            self.videos.append(Moved(name, numbers, verdict(numbers, self.reference)))
        shared = self.reference.shared if self.reference else ()
        alike = likeness([meter.thumbs for meter in watch.meters], shared)
        if alike is not None:
            self.alike.append(alike)

    def _means(self) -> MotionNumbers:
        numbers = mean_numbers(video.numbers for video in self.videos)
        return numbers.model_copy(update={"likeness": sum(self.alike) / len(self.alike)}) if self.alike else numbers

    def lines(self) -> list[str]:
        """A table, and what it means."""
        if not self.videos:
            return ["no video was measured"]
        several = len(self.videos) > 1
        found, clips = self._means().as_dict(), self.reference.numbers.as_dict() if self.reference else {}
        table = Table(box=None, pad_edge=False)
        table.add_column("motion")
        for name in (f"mean of {len(self.videos)} videos" if several else "this video", "training clips"):
            table.add_column(name, justify="right")
        for key, name in NAMES.items():
            if key in found:
                table.add_row(name, f"{found[key]:.3g}", f"{clips[key]:.3g}" if key in clips else "not known")
        file = io.StringIO()
        Console(file=file, width=100, color_system=None).print(table)
        verdicts = [f"{video.name}: {video.verdict}" if several else video.verdict for video in self.videos]
        return [*(line.rstrip() for line in file.getvalue().splitlines()), *verdicts]

    def json(self) -> str:
        """One JSON object: {"videos": [{"name": ..., "verdict": ..., "numbers": {...}}, ...], "clips": {...} or null,
        "likeness": ... or null}."""
        return json.dumps(
            {
                "videos": [
                    {"name": video.name, "verdict": video.verdict, "numbers": video.numbers.as_dict()}
                    for video in self.videos
                ],
                "clips": self.reference.numbers.as_dict() if self.reference else None,
                "likeness": sum(self.alike) / len(self.alike) if self.alike else None,
            }
        )
