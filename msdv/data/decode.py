"""Videos to pictures: when each frame is on display, found without decoding, and the chosen ones as square JPEGs.

A video is read twice. The first reading only takes packets apart, which costs almost nothing, and gives the time of
every frame (`Timeline`); so the frames to keep are known before the second reading decodes, and only they are
converted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av

from msdv.data.picture import SquareJpeg
from msdv.errors import MsdvError

# Skipping frames that no other frame needs gives the same bytes for these two (tests/unit/data/test_decode.py), and
# other pictures for AV1 and for MPEG-4 with B-frames.
_SKIPPING_CODECS = ("h264", "hevc")
# Containers that say in their header how long they are, not just guess it from the bit rate.
_DECLARING = ("mov", "matroska", "avi", "asf")
_HALF_MILLISECOND = Fraction(1, 2000)


@dataclass(frozen=True)
class Timeline:
    """A video's frames in display order. Times are seconds since the container's start."""

    times: tuple[Fraction, ...]  # when each frame comes on
    end: Fraction  # when the last one goes off
    duration: Fraction | None  # of the container, as its header has it; None where it does not
    width: int  # of the coded picture
    height: int
    codec: str
    guessed_rate: Fraction  # frames per second
    tolerance: Fraction  # by how much the container may have rounded a time
    by_pts: dict[int, int] | None  # presentation timestamp -> index; None: frames are counted instead
    note: str | None = None  # what is wrong with the file, if it is damaged


def read_timeline(path: Path) -> Timeline:
    """When each frame of a video is on display.

    Raises MsdvError, with the reason only, for what is no video or holds no frames.
    """
    try:
        with _open(path) as container:
            return _timeline(path, container, _video_stream(container))
    except (OSError, av.FFmpegError, ValueError) as error:
        raise MsdvError(_reason(error)) from error


@dataclass(frozen=True)
class Picture:
    """A frame that was asked for."""

    index: int  # into Timeline.times
    jpeg: bytes
    damaged: bool  # the decoder had to guess a part of it


def read_pictures(path: Path, timeline: Timeline, chosen: Iterable[int], size: int) -> Iterator[Picture]:
    """Decode a video and give a picture of each frame in `chosen` (indices into timeline.times), in order.

    It is `size` x `size` pixels: the short side scaled to that, the centre cut out, turned upright, pixels made
    square, full-range BT.601 as JFIF has it, the highest quality of FFmpeg's encoder. Frames that can't be decoded are
    left out. Raises MsdvError, with the reason only, if the file can't be opened.
    """
    try:
        with _open(path) as container:
            stream = _video_stream(container)
            encoder = SquareJpeg(size, stream.sample_aspect_ratio)
            for index, frame in _decode(container, stream, timeline, set(chosen)):
                yield Picture(index, encoder.encode(frame), frame.is_corrupt)
    except (OSError, av.FFmpegError) as error:
        raise MsdvError(_reason(error)) from error


def _open(path: Path) -> Any:
    # `file:` because a colon in a name would otherwise be taken for a protocol; the list of protocols because a
    # playlist named .mp4 could otherwise make this ask the network.
    return av.open(f"file:{path}", container_options={"protocol_whitelist": "file"}, metadata_errors="replace")


def _reason(error: BaseException) -> str:
    if isinstance(error, av.InvalidDataError):
        return "not a video, or broken beyond reading"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, FileNotFoundError):
        return "it is gone, or a link to nothing"
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__


def _video_stream(container: Any) -> Any:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        if container.streams.video:
            raise MsdvError("sound with a cover picture, no video")
        raise MsdvError("sound only, no video" if container.streams.audio else "no video in it")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise MsdvError("its video codec is unknown here, or its header is broken: convert it to H.264 first")
    # More than one: what a player would show.
    stream = max(known, key=lambda s: (bool(s.disposition & av.stream.Disposition.default), s.width * s.height))
    stream.codec_context.thread_count = 1
    return stream


def _timeline(path: Path, container: Any, stream: Any) -> Timeline:
    packets, sound_end, note = _packets(container, stream)
    if not packets:
        raise MsdvError("no frames in it")
    rate = stream.guessed_rate or stream.average_rate or Fraction(25)
    start = Fraction(container.start_time, av.time_base) if container.start_time is not None else None
    times: list[Fraction]
    by_pts: dict[int, int] | None = None
    tolerance = min(stream.time_base / 2, _HALF_MILLISECOND)
    last: Fraction | None = None
    pts = [packet.pts for packet in packets if packet.pts is not None]
    dts = [packet.dts for packet in packets if packet.dts is not None]
    if container.format.name == "avi" and len(dts) == len(packets):
        # AVI knows the order of decoding only; with B-frames what it gives as pts is swapped.
        times = [value * stream.time_base for value in sorted(dts)]
        tolerance = Fraction(0)
    elif len(pts) == len(packets) == len(set(pts)) and dts == sorted(dts):
        by_pts = {value: index for index, value in enumerate(sorted(pts))}
        times = [value * stream.time_base for value in by_pts]
        last = max(packets, key=lambda packet: packet.pts or 0).duration * stream.time_base
    else:
        times = _times_by_decoding(path, rate, container.format.name)
        tolerance, start = Fraction(0), None
    if not times:
        raise MsdvError("none of its frames can be decoded")
    start = times[0] if start is None else start
    if not last:
        gaps: list[Fraction] = [later - earlier for earlier, later in pairwise(times)]
        last = sorted(gaps)[len(gaps) // 2] if gaps else 1 / rate
    end = times[-1] + last - start
    duration = Fraction(container.duration, av.time_base) if container.duration and container.duration > 0 else None
    if duration and not note and any(name in container.format.name for name in _DECLARING):
        reached = max(end, sound_end - start)
        if reached < duration - max(Fraction(1, 2), duration / 50):
            note = f"it breaks off at {float(reached):.1f} s of {float(duration):.1f} s"
    return Timeline(
        times=tuple(time - start for time in times),
        end=end,
        duration=duration,
        width=stream.width,
        height=stream.height,
        codec=stream.codec_context.name,
        guessed_rate=rate,
        tolerance=tolerance,
        by_pts=by_pts,
        note=note,
    )


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    duration: int


def _packets(container: Any, stream: Any) -> tuple[list[_Packet], Fraction, str | None]:
    """The video packets that show something, when the sound ends (seconds), and what went wrong, if anything did."""
    packets: list[_Packet] = []
    sound_end, note, cut = Fraction(0), None, False
    try:
        for packet in container.demux([stream, *container.streams.audio]):
            if packet.size == 0:
                continue
            if packet.stream_index != stream.index:
                if packet.pts is not None:
                    sound_end = max(sound_end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            elif not packet.is_discard:
                packets.append(_Packet(packet.pts, packet.dts, packet.duration or 0))
                cut = packet.is_corrupt
    except (av.FFmpegError, OSError) as error:
        note = f"reading stops early ({_reason(error)})"
    if cut:  # the file breaks off in its last packet
        packets.pop()
    return packets, sound_end, note


def _times_by_decoding(path: Path, rate: Fraction, container_format: str) -> list[Fraction]:
    """Times where packets don't tell: raw streams without any, streams glued together whose clock goes back."""
    times: list[Fraction] = []
    offset = Fraction(0)
    with _open(path) as container:
        for frame in _frames(container, _video_stream(container)):
            if frame.pts is None:
                times.append(times[-1] + 1 / rate if times else Fraction(0))
                continue
            time = frame.pts * frame.time_base + offset
            if times and (time <= times[-1] or ("mpeg" in container_format and time > times[-1] + 10)):
                offset += times[-1] + 1 / rate - time
                time = times[-1] + 1 / rate
            times.append(time)
    return times


def _frames(container: Any, stream: Any, wanted_pts: set[int] | None = None) -> Iterator[Any]:
    """Decoded frames in display order. With `wanted_pts`, others may be left out where that saves work."""
    context = stream.codec_context
    failed: av.FFmpegError | None = None
    decoded = False
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            if wanted_pts is not None and packet.size:
                context.skip_frame = "DEFAULT" if packet.pts in wanted_pts else "NONREF"
            for frame in packet.decode():
                decoded = True
                yield frame
        except av.InvalidDataError as error:
            failed = error  # a broken packet; the next may be whole
        except StopIteration:
            break
    if failed and not decoded:
        raise failed


def _decode(container: Any, stream: Any, timeline: Timeline, chosen: set[int]) -> Iterator[tuple[int, Any]]:
    by_pts = timeline.by_pts
    wanted: set[int] | None = None
    if by_pts is not None and stream.codec_context.name in _SKIPPING_CODECS:
        wanted = {pts for pts, index in by_pts.items() if index in chosen}
    remaining = set(chosen)
    for count, frame in enumerate(_frames(container, stream, wanted)):
        index = count if by_pts is None else by_pts.get(frame.pts, -1)
        if index in remaining:
            remaining.discard(index)
            yield index, frame
        if not remaining:
            return
