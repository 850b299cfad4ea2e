"""Frames to files, an encoder for each format that `write_video` knows."""

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

Frame = np.ndarray  # (h, w, 3) uint8 RGB

# How to convert between RGB and YUV: SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, without which everything
# comes out one level too dark. Not all versions of PyAV have names for the flags.
ACCURATE = 0x4 | 0x40000 | 0x2000
_BT709 = 1  # the same number for matrix, primaries and transfer in ITU-T H.273
_LIMITED_RANGE = 1
# Browsers show gif frames of less than 2/100 s for 10/100 s.
_GIF_SHORTEST = 2


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
    container_format = {".png": "apng"}.get(path.suffix, path.suffix[1:])
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


def _write_gif(path: Path, frames: Iterator[Frame], fps: float, _: str | None) -> None:
    """One palette for the whole clip (palettes that change make flat areas flicker), dithered by error diffusion, which
    of the filter's kinds is nearest to the picture after a slight blur, and so to the eye.

    paletteuse needs the palette first, so all frames wait in memory, as RGB, until the last has come.
    """
    step = max(Fraction(100) / Fraction(fps).limit_denominator(1001), Fraction(_GIF_SHORTEST))
    time_base = Fraction(1, 100)
    first = next(frames)
    height, width = first.shape[:2]
    graph: Any = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=time_base)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=full")
    use, sink = graph.add("paletteuse", "dither=floyd_steinberg"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for index, array in enumerate(chain([first], frames)):
        frame = av.VideoFrame.from_ndarray(array, format="rgb24")
        frame.pts, frame.time_base = round(index * step), time_base
        source.push(frame)
    source.push(None)
    with av.open(f"file:{path}", "w", format="gif", options={"loop": "0"}) as container:
        stream: Any = container.add_stream("gif", rate=100)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, "pal8", time_base
        stream.codec_context.time_base, stream.codec_context.thread_count = time_base, 1
        while True:
            try:
                frame = sink.pull()
            except (av.EOFError, av.BlockingIOError):
                break
            frame.pict_type = av.video.frame.PictureType.NONE
            _mux(container, stream.encode(frame), lambda index: round(index * step))
        _mux(container, stream.encode(None), lambda index: round(index * step))


ENCODERS: dict[str, Callable[[Path, Iterator[Frame], float, str | None], None]] = {
    ".gif": _write_gif,
    ".mp4": _write_h264,
    ".webm": _write_vp9,
    ".webp": _write_webp,
    ".png": _write_apng,
}
