"""When each frame of a video is on display, found without decoding it.

Taking packets apart costs almost nothing, and gives the time of every frame; so the frames to keep are known before
anything is decoded.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, overload

import av
import numpy as np

from msdv.data.container import EntryPoints, demux, open_video, reason, video_stream
from msdv.errors import MsdvError

# Containers that say in their header how long they are, not just guess it from the bit rate.
_DECLARING = ("mov", "matroska", "avi", "asf")
_HALF_MILLISECOND = Fraction(1, 2000)


class Times(Sequence[Fraction]):
    """Exact times in seconds, held as whole numbers of a unit: eight bytes a frame, however long the video."""

    def __init__(self, ticks: np.ndarray, unit: Fraction, start: Fraction = Fraction(0)) -> None:
        self._ticks, self._unit, self._start = ticks, unit, start

    def __len__(self) -> int:
        return len(self._ticks)

    @overload
    def __getitem__(self, index: int) -> Fraction: ...
    @overload
    def __getitem__(self, index: slice) -> "Times": ...
    def __getitem__(self, index: int | slice) -> "Fraction | Times":
        if isinstance(index, slice):
            return Times(self._ticks[index], self._unit, self._start)
        return int(self._ticks[index]) * self._unit - self._start

    def after(self, start: Fraction) -> "Times":
        """The same, counted from `start`."""
        return Times(self._ticks, self._unit, self._start + start)

    def usual_gap(self) -> Fraction | None:
        """The median time from one to the next; None for fewer than two."""
        gaps = np.sort(np.diff(self._ticks))
        return int(gaps[len(gaps) // 2]) * self._unit if len(gaps) else None


@dataclass(frozen=True)
class DecodingOrder:
    """A video's packets in the order of decoding, those without pictures to show included."""

    pts: np.ndarray  # (n,) presentation timestamps
    entries: np.ndarray  # (n,) whether decoding can begin there


@dataclass(frozen=True)
class Timeline:
    """A video's frames in display order. Times are seconds since the container's start."""

    times: Times  # when each frame comes on
    end: Fraction  # when the last one goes off
    duration: Fraction | None  # of the container, as its header has it; None where it does not
    width: int  # of the coded picture
    height: int
    codec: str
    guessed_rate: Fraction  # frames per second
    tolerance: Fraction  # by how much the container may have rounded a time
    pts: np.ndarray | None  # presentation timestamp of each frame; None: frames are counted instead
    order: DecodingOrder | None  # None where the timestamps don't tell
    note: str | None = None  # what is wrong with the file, if it is damaged


def read_timeline(path: Path, alive: Callable[[], None] = lambda: None) -> Timeline:
    """When each frame of a video is on display. `alive` is called now and then, while it goes on.

    Raises MsdvError, with the reason only, for what is no video or holds no frames.
    """
    try:
        with open_video(path) as container:
            return _timeline(path, container, video_stream(container), alive)
    except (OSError, av.FFmpegError, ValueError) as error:
        raise MsdvError(reason(error)) from error


def _timeline(path: Path, container: Any, stream: Any, alive: Callable[[], None]) -> Timeline:
    packets = _Packets(container, stream, alive)
    if not packets.shown:
        raise MsdvError("no frames in it")
    rate = stream.guessed_rate or stream.average_rate or Fraction(25)
    start = Fraction(container.start_time, av.time_base) if container.start_time is not None else None
    tolerance = min(stream.time_base / 2, _HALF_MILLISECOND)
    shown_pts, shown_dts, known = packets.of_shown()
    order: DecodingOrder | None = None
    pts: np.ndarray | None = None
    last: Fraction | None = None
    if container.format.name == "avi" and known.dts:
        # AVI knows the order of decoding only; with B-frames what it gives as pts may be swapped, but is one of each.
        each_its_own = known.pts and len(np.unique(shown_pts)) == len(shown_pts)
        times = Times(np.sort(shown_pts if each_its_own else shown_dts), stream.time_base)
        tolerance = Fraction(0)
    elif known.pts and known.dts_or_none and len(np.unique(shown_pts)) == len(shown_pts):
        pts = np.sort(shown_pts)
        times = Times(pts, stream.time_base)
        last = packets.last_duration * stream.time_base
        if packets.all_timed:
            order = DecodingOrder(np.array(packets.pts, np.int64), np.array(packets.entries, bool))
    else:
        times = _times_by_decoding(path, rate, container.format.name, alive)
        tolerance, start = Fraction(0), None
    if not len(times):
        raise MsdvError("none of its frames can be decoded")
    start = times[0] if start is None else start
    end = times[-1] + (last or times.usual_gap() or 1 / rate) - start
    duration = Fraction(container.duration, av.time_base) if container.duration and container.duration > 0 else None
    note = packets.note
    if duration and not note and any(name in container.format.name for name in _DECLARING):
        reached = max(end, packets.sound_end - start)
        if reached < duration - max(Fraction(1, 2), duration / 50):
            note = f"it breaks off at {float(reached):.1f} s of {float(duration):.1f} s"
    return Timeline(
        times=times.after(start),
        end=end,
        duration=duration,
        width=stream.width,
        height=stream.height,
        codec=stream.codec_context.name,
        guessed_rate=rate,
        tolerance=tolerance,
        pts=pts,
        order=order,
        note=note,
    )


@dataclass(frozen=True)
class _Known:
    """Which timestamps all packets have."""

    pts: bool
    dts: bool
    dts_or_none: bool  # those that there are never go back


class _Packets:
    """What all packets of a stream say of themselves, read once: columns in the order of decoding."""

    def __init__(self, container: Any, stream: Any, alive: Callable[[], None]) -> None:
        self.pts, self.dts, self.entries, self._shown = array("q"), array("q"), array("b"), array("b")
        self._pts_known, self._dts_known = array("b"), array("b")
        self.sound_end = Fraction(0)  # seconds
        self.last_duration = 0
        self.note: str | None = None
        self._last_pts: int | None = None
        is_entry = EntryPoints(stream)
        cut = False
        try:
            for packet in demux(container, [stream, *container.streams.audio]):
                alive()
                if packet.size == 0:
                    continue
                if packet.stream_index != stream.index:
                    if packet.pts is not None:
                        self.sound_end = max(self.sound_end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                    continue
                cut = packet.is_corrupt
                self._add(packet, is_entry(packet))
        except (av.FFmpegError, OSError) as error:
            self.note = f"reading stops early ({reason(error)})"
        if cut and self._shown:  # the file breaks off in its last packet
            self._shown[-1] = 0

    def _add(self, packet: Any, entry: bool) -> None:
        pts, dts = packet.pts, packet.dts
        self.pts.append(pts or 0)
        self.dts.append(dts or 0)
        self._pts_known.append(pts is not None)
        self._dts_known.append(dts is not None)
        self.entries.append(entry)
        self._shown.append(not packet.is_discard)
        if not packet.is_discard and pts is not None and (self._last_pts is None or pts >= self._last_pts):
            self._last_pts, self.last_duration = pts, packet.duration or 0

    @property
    def shown(self) -> bool:
        return any(self._shown)

    @property
    def all_timed(self) -> bool:
        """Whether every packet has a presentation timestamp of its own, also those that show nothing."""
        return all(self._pts_known) and len(np.unique(np.array(self.pts, np.int64))) == len(self.pts)

    def of_shown(self) -> tuple[np.ndarray, np.ndarray, _Known]:
        """Timestamps (n,) of the packets that show something: presentation, decoding, and how far they are known."""
        shown = np.array(self._shown, bool)
        pts, dts = np.array(self.pts, np.int64)[shown], np.array(self.dts, np.int64)[shown]
        pts_known, dts_known = np.array(self._pts_known, bool)[shown], np.array(self._dts_known, bool)[shown]
        rising = bool((np.diff(dts[dts_known]) >= 0).all())
        return pts, dts, _Known(bool(pts_known.all()), bool(dts_known.all()), rising)


def _times_by_decoding(path: Path, rate: Fraction, container_format: str, alive: Callable[[], None]) -> Times:
    """Times where packets don't tell: raw streams without any, streams glued together whose clock goes back."""
    ticks = array("q")
    offset = 0
    with open_video(path) as container:
        stream = video_stream(container)
        unit = stream.time_base / rate.numerator  # of which timestamps and frames last whole numbers
        gap = round(1 / rate / unit)
        for frame in decode_all(container, stream, alive):
            if frame.pts is None:
                ticks.append(ticks[-1] + gap if ticks else 0)
                continue
            time = round(frame.pts * frame.time_base / unit) + offset
            late = "mpeg" in container_format and ticks and time > ticks[-1] + round(10 / unit)
            if ticks and (time <= ticks[-1] or late):
                offset += ticks[-1] + gap - time
                time = ticks[-1] + gap
            ticks.append(time)
    return Times(np.array(ticks, np.int64), unit)


def decode_all(container: Any, stream: Any, alive: Callable[[], None]) -> Any:
    """Decoded frames in display order; packets that can't be decoded are passed over.

    Raises av.FFmpegError if not one could be.
    """
    failed: av.FFmpegError | None = None
    decoded = False
    packets = demux(container, [stream])
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            failed = error
            break
        if packet is None:
            break
        alive()
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            failed = error  # a broken packet; the next may be whole
            continue
        decoded = decoded or bool(frames)
        yield from frames
    if failed and not decoded:
        raise failed
