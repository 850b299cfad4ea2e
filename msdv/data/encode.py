"""Frames to files, an encoder for each format that `write_video` knows. None holds more than a few frames."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from msdv.config import Dither

Frame = np.ndarray  # (h, w, 3) uint8 RGB

# How to convert between RGB and YUV: SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, without which everything
# comes out one level too dark. Not all versions of PyAV have names for the flags.
ACCURATE = 0x4 | 0x40000 | 0x2000
_BT709 = 1  # the same number for matrix, primaries and transfer in ITU-T H.273
_LIMITED_RANGE = 1
# Browsers show gif frames of less than 2/100 s for 10/100 s.
_GIF_SHORTEST = 2
_GIF_TIME = Fraction(1, 100)
_DITHERS: dict[Dither, str] = {"diffusion": "floyd_steinberg", "ordered": "bayer:bayer_scale=5", "none": "none"}
MOST_WAITING = 64 * 2**20  # bytes of frames that wait in memory; more wait on the disk


def _encode(
    path: Path,
    frames: Iterator[Frame],
    times: Callable[[int], int],
    time_base: Fraction,
    codec: str,
    pixels: str,
    *,
    rate: Fraction,
    options: dict[str, str],
    container_options: dict[str, str] | None = None,
    comment: str | None = None,
) -> None:
    """Encode frames, frame i on display from times(i) to times(i+1) in units of time_base."""
    first = next(frames)
    height, width = first.shape[:2]
    video = pixels.startswith("yuv")
    container_format = {".png": "apng"}.get(path.suffix.lower(), path.suffix[1:].lower())
    with av.open(f"file:{path}", "w", format=container_format, options=container_options or {}) as output:
        container: Any = output
        container.flags |= av.container.Flags.bitexact.value
        if comment:
            container.metadata["comment"] = comment
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, pixels, time_base
        context = stream.codec_context
        context.time_base, context.thread_count, context.sample_aspect_ratio = time_base, 1, Fraction(1)
        context.flags |= av.codec.context.Flags.bitexact
        if video:
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
        for index, array in enumerate(chain([first], frames)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if video:
                frame = frame.reformat(
                    format=pixels,
                    dst_colorspace="ITU709",
                    dst_color_range="MPEG",
                    interpolation=ACCURATE,
                )
                frame.colorspace = frame.color_primaries = frame.color_trc = _BT709
            elif pixels == "bgra":
                frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = times(index), time_base
            _mux(container, stream.encode(frame), times)
        _mux(container, stream.encode(None), times)


def _mux(container: Any, packets: Iterable[Any], times: Callable[[int], int]) -> None:
    """Write packets. Each gets its duration, without which the last frame flashes by."""
    for packet in packets:
        packet.duration = times(1) - times(0)
        container.mux(packet)


def _write_h264(path: Path, frames: Iterator[Frame], fps: float, comment: str | None) -> None:
    def even(frame: Frame) -> Frame:
        height, width = frame.shape[:2]
        return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")

    rate = Fraction(fps).limit_denominator(1001)
    _encode(
        path,
        map(even, frames),
        lambda index: index,
        1 / rate,
        "libx264",
        "yuv420p",
        rate=rate,
        options={"crf": "16", "preset": "medium"},
        container_options={"movflags": "+faststart"},
        comment=comment,
    )


def _write_vp9(path: Path, frames: Iterator[Frame], fps: float, comment: str | None) -> None:
    rate = Fraction(fps).limit_denominator(1001)
    # Matroska counts milliseconds.
    _encode(
        path,
        frames,
        lambda index: round(index * 1000 / rate),
        Fraction(1, 1000),
        "libvpx-vp9",
        "yuv420p",
        rate=rate,
        options={"crf": "20", "b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "0"},
        comment=comment,
    )


def _write_webp(path: Path, frames: Iterator[Frame], fps: float, _: str | None) -> None:
    # libwebp and not libwebp_anim: the latter merges equal frames.
    _encode(
        path,
        frames,
        lambda index: round(index * 1000 / fps),
        Fraction(1, 1000),
        "libwebp",
        "bgra",
        rate=Fraction(1000),
        options={"quality": "90"},
        container_options={"loop": "0"},
    )


def _write_apng(path: Path, frames: Iterator[Frame], fps: float, _: str | None) -> None:
    rate = Fraction(fps).limit_denominator(1001)
    _encode(
        path,
        frames,
        lambda index: index,
        1 / rate,
        "apng",
        "rgb24",
        rate=rate,
        options={"pred": "mixed"},
        container_options={"plays": "0"},
    )


def _write_gif(path: Path, frames: Iterator[Frame], fps: float, dither: Dither) -> None:
    """One palette for the whole clip (palettes that change make flat areas flicker). Of the filter's kinds of dithering
    error diffusion is nearest to the picture after a slight blur, and so to the eye.

    The palette has to be known first: until it is, the frames wait in a file.
    """
    step = max(Fraction(100) / Fraction(fps).limit_denominator(1001), Fraction(_GIF_SHORTEST))
    first = next(frames)
    height, width = first.shape[:2]
    with _waiting_room(path) as room:
        count, palette = 0, _Filter(width, height, "palettegen", "stats_mode=full")
        for array in chain([first], frames):
            room.write(array.data)
            palette.push(array, count)
            count += 1
        room.seek(0)
        use = _Filter(width, height, "paletteuse", f"dither={_DITHERS[dither]}", palette.finish()[0])
        with av.open(f"file:{path}", "w", format="gif", options={"loop": "0"}) as container:
            stream: Any = container.add_stream("gif", rate=100)
            stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, "pal8", _GIF_TIME
            stream.codec_context.time_base, stream.codec_context.thread_count = _GIF_TIME, 1

            def encode(pictures: list[Any]) -> None:
                for picture in pictures:
                    picture.pict_type = av.video.frame.PictureType.NONE
                    _mux(container, stream.encode(picture), lambda index: round(index * step))

            for index in range(count):
                array = np.frombuffer(room.read(first.nbytes), np.uint8).reshape(first.shape)
                encode(use.push(array, round(index * step)))
            encode(use.finish())
            _mux(container, stream.encode(None), lambda index: round(index * step))


class _Filter:
    """One of FFmpeg's filters, for RGB frames, that is given a palette or makes one."""

    def __init__(self, width: int, height: int, name: str, options: str, palette: Any = None) -> None:
        self._graph: Any = av.filter.Graph()  # which ends with its last reference, and its filters with it
        rgb = av.VideoFormat("rgb24")
        self._source = self._graph.add_buffer(width=width, height=height, format=rgb, time_base=_GIF_TIME)
        of_palette = None
        if palette is not None:
            size = {"width": palette.width, "height": palette.height}
            of_palette = self._graph.add_buffer(**size, format=palette.format, time_base=_GIF_TIME, name="palette")
        filter_, self._sink = self._graph.add(name, options), self._graph.add("buffersink")
        self._source.link_to(filter_, 0, 0)
        if of_palette is not None:
            of_palette.link_to(filter_, 0, 1)
        filter_.link_to(self._sink)
        self._graph.configure()
        if of_palette is not None:
            palette.pts, palette.time_base = 0, _GIF_TIME
            of_palette.push(palette)
            of_palette.push(None)

    def push(self, array: Frame, pts: int) -> list[Any]:
        """Give it a frame, to be shown at `pts`; what comes out."""
        frame = av.VideoFrame.from_ndarray(array, format="rgb24")
        frame.pts, frame.time_base = pts, _GIF_TIME
        self._source.push(frame)
        return self._pull()

    def finish(self) -> list[Any]:
        """What comes out after the last frame."""
        self._source.push(None)
        return self._pull()

    def _pull(self) -> list[Any]:
        found = []
        while True:
            try:
                found.append(self._sink.pull())
            except (av.EOFError, av.BlockingIOError):
                return found


def _waiting_room(path: Path) -> Any:
    """A file that has no name, in memory while it is small, else on the disk of `path`."""
    return tempfile.SpooledTemporaryFile(MOST_WAITING, dir=str(path.parent))


_Encoder = Callable[[Path, Iterator[Frame], float, str | None], None]

ENCODERS: dict[str, _Encoder] = {
    ".mp4": _write_h264,
    ".webm": _write_vp9,
    ".webp": _write_webp,
    ".png": _write_apng,
}


def encode_file(
    path: Path,
    suffix: str,
    frames: Iterator[Frame],
    fps: float,
    *,
    dither: Dither = "diffusion",
    comment: str | None = None,
) -> None:
    """Write frames, one after the other, to the file `path` of the kind `suffix`, one of VIDEO_SUFFIXES. The containers
    of mp4 and webm take the comment; the others get theirs afterwards (metadata.py)."""
    if suffix == ".gif":
        _write_gif(path, frames, fps, dither)
    else:
        ENCODERS[suffix](path, frames, fps, comment)
