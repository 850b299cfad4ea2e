"""The chosen frames of a video, decoded and made into pictures.

The timeline says which packets hold which frames. So what no chosen frame needs is not decoded, and only chosen
frames are converted.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from msdv.data.bars import Bars, find_bars, may_have_bars
from msdv.data.container import demux, open_video, packets_to_decode, reason, video_stream
from msdv.data.picture import PictureEncoder, PictureSettings
from msdv.data.timeline import Timeline, decode_all
from msdv.errors import MsdvError

# Each of these gives the same bytes with and without what it leaves out (tests/unit/data/test_decode.py).
_SKIPPING_CODECS = ("h264", "hevc", "mpeg2video")  # frames that no other frame needs can be left out one by one
_JUMPING_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "prores")
_STANDING_ALONE = ("mjpeg", "prores")  # all frames of these are entries
_BAR_SAMPLES = 8  # frames looked at for black bars
_FEWEST_ENTRIES = 4  # of which those are taken, because they cost least


@dataclass(frozen=True)
class Picture:
    """A frame that was asked for."""

    index: int  # into Timeline.times
    jpeg: bytes
    small: np.ndarray  # these two, see picture.Encoded
    luma: np.ndarray
    damaged: bool  # the decoder had to guess a part of it


class VideoReader:
    """Pictures of a video's chosen frames."""

    def __init__(
        self,
        path: Path,
        timeline: Timeline,
        settings: PictureSettings,
        *,
        crop_bars: bool = False,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """crop_bars: look for black bars, and cut them off. `alive` is called now and then while it goes on."""
        self._path, self._timeline, self._settings = path, timeline, settings
        self._crop_bars, self._alive = crop_bars, alive
        self.bars: Bars | None = None
        """The black bars that were found; known from the first picture on."""

    def pictures(self, chosen: Iterable[int]) -> Iterator[Picture]:
        """A picture of each frame in `chosen` (indices into timeline.times), in display order.

        Frames that can't be decoded are left out. Raises MsdvError, with the reason only, if the file can't be opened.
        """
        wanted = np.array(sorted(set(chosen)), np.int64)
        try:
            with open_video(self._path) as container:
                stream = video_stream(container)
                encoder: PictureEncoder | None = None
                for index, frame in self._frames(container, stream, wanted):
                    if encoder is None:
                        self.bars = self._find_bars(frame, wanted) if self._crop_bars else None
                        encoder = PictureEncoder(self._settings, stream.sample_aspect_ratio, self.bars)
                    damaged = frame.is_corrupt
                    try:
                        encoded = encoder.encode(frame)
                    except av.FFmpegError as error:  # no fault of the file's
                        raise RuntimeError(f"{frame} can't be made a JPEG: {error}") from error
                    yield Picture(index, encoded.jpeg, encoded.small, encoded.luma, damaged)
        except (OSError, av.FFmpegError) as error:
            raise MsdvError(reason(error)) from error

    def _frames(self, container: Any, stream: Any, wanted: np.ndarray) -> Iterator[tuple[int, Any]]:
        """The wanted frames with their indices."""
        pts = self._timeline.pts
        if pts is None:
            frames: Iterator[Any] = decode_all(container, stream, self._alive)
        else:
            frames = self._decode_needed(container, stream, pts[wanted])
        remaining = set(wanted.tolist())
        for count, frame in enumerate(frames):
            index = count if pts is None else _position(pts, frame.pts)
            if index in remaining:
                remaining.discard(index)
                yield index, frame
            if not remaining:
                return

    def _decode_needed(self, container: Any, stream: Any, wanted_pts: np.ndarray) -> Iterator[Any]:
        """Frames in display order, the wanted ones among them."""
        context, order = stream.codec_context, self._timeline.order
        codec = context.name
        needed: np.ndarray | None = None
        if order is not None and codec in _JUMPING_CODECS:
            wanted = np.isin(order.pts, wanted_pts)
            needed = packets_to_decode(order.pts, order.entries, wanted, codec in _STANDING_ALONE)
        wanted_set = set(wanted_pts.tolist()) if codec in _SKIPPING_CODECS else None
        failed: av.FFmpegError | None = None
        decoded = passed_over = False
        packets = demux(container, [stream])
        position = -1
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                self._alive()
                if packet.size:
                    position += 1
                    if needed is not None and position < len(needed) and not needed[position]:
                        passed_over = True
                        continue
                    if passed_over:
                        # The decoder may still hold frames, and would miss what was left out.
                        for frame in context.decode(None):
                            yield frame
                        context.flush_buffers()
                        passed_over = False
                    if wanted_set is not None:
                        context.skip_frame = "DEFAULT" if packet.pts in wanted_set else "NONREF"
                for frame in packet.decode():
                    decoded = True
                    yield frame
            except av.FFmpegError as error:
                failed = error  # a broken packet; the next may be whole
        if failed and not decoded:
            raise failed

    def _find_bars(self, first: Any, wanted: np.ndarray) -> Bars | None:
        """Black bars, if the first frame has them and others all over the video too."""
        luma = _luma(first)
        if luma is None or not may_have_bars(luma):
            return None
        lumas = [luma]
        places = self._entries(wanted[0], wanted[-1])
        if len(places) < _FEWEST_ENTRIES:
            places = wanted
        places = places[np.linspace(0, len(places) - 1, _BAR_SAMPLES + 1).round().astype(int)][1:]
        with suppress(OSError, av.FFmpegError, MsdvError), open_video(self._path) as container:
            stream = video_stream(container)
            for _, frame in self._frames(container, stream, np.unique(places)):
                luma = _luma(frame)
                if luma is not None and luma.shape == lumas[0].shape:
                    lumas.append(luma)
        return find_bars(lumas)

    def _entries(self, first: int, last: int) -> np.ndarray:
        """Indices, from `first` to `last`, of frames that can be decoded without others."""
        order, pts = self._timeline.order, self._timeline.pts
        if order is None or pts is None or self._timeline.codec not in _JUMPING_CODECS:
            return np.zeros(0, np.int64)
        places = np.flatnonzero(np.isin(pts, order.pts[order.entries]))
        return places[(places > first) & (places <= last)]


def _position(pts: np.ndarray, value: int | None) -> int:
    """The index of a timestamp in `pts`, which is sorted; -1 if it is none of them."""
    if value is None:
        return -1
    at = int(np.searchsorted(pts, value))
    return at if at < len(pts) and pts[at] == value else -1


def _luma(frame: Any) -> np.ndarray | None:
    """The luma plane (h, w) uint8, or None of a frame that has none."""
    grey = frame if frame.format.name.startswith("yuv") and frame.format.components[0].bits == 8 else None
    if grey is None:
        grey = frame.reformat(format="gray")
    plane = grey.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].copy()
