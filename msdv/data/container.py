"""Video files, opened: the one stream that counts, what is wrong with a file in words, and its packets."""

import errno
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from msdv.errors import MsdvError

# Where a decoder may begin without what came before, by the type of NAL unit: H.264's IDR pictures, HEVC's IRAP ones
# (ITU-T H.264 table 7-1, H.265 table 7-1). What containers call a key frame may be a recovery point, from which the
# picture only builds up.
_ENTRY_UNITS: dict[str, Callable[[int], bool]] = {
    "h264": lambda header: header & 0x1F == 5,
    "hevc": lambda header: 16 <= header >> 1 & 0x3F <= 21,
}
_PICTURE_UNITS: dict[str, Callable[[int], bool]] = {
    "h264": lambda header: header & 0x1F in (1, 2, 5),
    "hevc": lambda header: header >> 1 & 0x3F < 32,
}


_STUMBLES = 1000  # in a row; then it is no accident


def open_video(path: Path) -> Any:
    """A PyAV container for reading. Raises OSError or av.FFmpegError (see `reason`)."""
    # `file:` because a colon in a name would otherwise be taken for a protocol; the list of protocols because a
    # playlist named .mp4 could otherwise make this ask the network.
    return av.open(f"file:{path}", container_options={"protocol_whitelist": "file"}, metadata_errors="replace")


def reason(error: BaseException) -> str:
    """Why a file can't be read, in words."""
    number = getattr(error, "errno", None)
    if number == errno.EACCES:
        return "no permission to read it"
    if isinstance(error, FileNotFoundError):
        return "it is gone, or a link to nothing"
    if number == errno.EIO:
        return "reading it fails: broken, or its disk is gone"
    if number == errno.ENOMEM:
        return "reading it takes more memory than there is: broken, or too large"
    if isinstance(error, av.FFmpegError):  # its codes mean little: damage can end in any, even in "not permitted"
        return "not a video, or broken beyond reading"
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__


def demux(container: Any, streams: Sequence[Any]) -> Iterator[Any]:
    """Packets of these streams, past what only looks like the end. Raises av.FFmpegError where reading fails."""
    stumbles = 0
    while stumbles < _STUMBLES:
        try:
            for packet in container.demux(streams):
                stumbles = 0
                yield packet
            return
        except IndexError:  # PyAV knows the streams of the start only; in recordings of television more may begin
            stumbles += 1
        except av.BlockingIOError:  # garbage in a transport stream: what follows may be whole
            stumbles += 1


def video_stream(container: Any) -> Any:
    """The stream that a player would show. Raises MsdvError, with the reason only, if there is none."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        if container.streams.video:
            raise MsdvError("sound with a cover picture, no video")
        raise MsdvError("sound only, no video" if container.streams.audio else "no video in it")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise MsdvError("its video codec is unknown here, or its header is broken: convert it to H.264 first")
    stream = max(known, key=lambda s: (bool(s.disposition & av.stream.Disposition.default), s.width * s.height))
    stream.codec_context.thread_count = 1
    return stream


class EntryPoints:
    """Tells the packets of a stream from which decoding can begin."""

    def __init__(self, stream: Any) -> None:
        codec = stream.codec_context.name
        self._is_entry, self._is_picture = _ENTRY_UNITS.get(codec), _PICTURE_UNITS.get(codec)
        extradata = bytes(stream.codec_context.extradata or b"")
        # MP4 and Matroska put lengths before NAL units, streams start codes.
        at = {"h264": 4, "hevc": 21}.get(codec, 0)
        prefixed = len(extradata) > at and extradata[0] == 1
        self._length_size = (extradata[at] & 3) + 1 if prefixed else 0

    def __call__(self, packet: Any) -> bool:
        if not packet.is_keyframe:
            return False
        if self._is_entry is None or self._is_picture is None:
            return True
        data = memoryview(packet)
        header = self._prefixed(data) if self._length_size else self._with_start_code(data)
        return header is not None and self._is_entry(header)

    def _prefixed(self, data: memoryview) -> int | None:
        assert self._is_picture
        at, size = 0, self._length_size
        while at + size < len(data):
            header = data[at + size]
            if self._is_picture(header):
                return header
            at += size + int.from_bytes(data[at : at + size], "big")
        return None

    def _with_start_code(self, data: memoryview) -> int | None:
        assert self._is_picture
        begin = bytes(data[:4096])  # parameter sets and the like come first, and are short
        at = begin.find(b"\0\0\1")
        while 0 <= at < len(begin) - 3:
            if self._is_picture(begin[at + 3]):
                return begin[at + 3]
            at = begin.find(b"\0\0\1", at + 3)
        return None


def packets_to_decode(pts: np.ndarray, entries: np.ndarray, wanted: np.ndarray, alone: bool) -> np.ndarray:
    """Which packets a decoder has to see so that the wanted pictures come out as if it had seen all.

    All arrays (n,) are in the order of decoding: presentation timestamps, whether decoding can begin there, whether
    the picture is wanted; so is the result. `alone`: each picture stands alone, as in ProRes.

    From an entry on, pictures shown after it need nothing before it; those shown before it (leading ones) also need
    the pictures from the entry before that on. What comes after the last wanted picture up to the next entry nobody
    needs.
    """
    if alone or not wanted.any():
        return wanted.copy()
    needed = np.zeros(len(pts), bool)
    starts = np.flatnonzero(entries)
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    ends = np.append(starts[1:], len(pts))
    whole = False  # the group after this one has wanted leading pictures
    for start, end in zip(starts[::-1], ends[::-1], strict=True):
        here = np.flatnonzero(wanted[start:end])
        last = end if whole else start + (here[-1] + 1 if len(here) else 0)
        needed[start:last] = True
        whole = bool(len(here)) and bool((pts[start:end][here] < pts[start]).any())
    return needed
