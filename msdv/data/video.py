"""Moving pictures out and in: whole clips as arrays. What prep reads frame by frame is decoded in decode.py.

Frames are `(h, w, 3)` uint8 RGB (sRGB), a clip `(f, h, w, 3)`. The same frames and metadata give the same bytes:
encoders run on one thread, and containers carry neither times nor random numbers.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from msdv.config import OUTPUT_SUFFIXES
from msdv.data import metadata as comments
from msdv.errors import MsdvError, UsageError
from msdv.files import write_file, write_folder

Frame = np.ndarray

_SETTINGS = "settings.json"
# Without them conversions between RGB and YUV come out one level too dark.
# SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT: not all versions of PyAV have names for the flags.
_ACCURATE = 0x4 | 0x40000 | 0x2000
_BT709 = 1  # the same number for matrix, primaries and transfer in ITU-T H.273
_LIMITED_RANGE = 1
# Browsers show gif frames of less than 2/100 s for 10/100 s.
_GIF_SHORTEST = 2


def output_format(path: Path) -> str:
    """What a result at `path` would be: one of OUTPUT_SUFFIXES, or "" for a folder of PNGs.

    Raises UsageError for any other suffix: ask before the work, not after it.
    """
    suffix = path.suffix.lower()
    if suffix and suffix not in OUTPUT_SUFFIXES:
        raise UsageError(
            f"{path}: don't know how to write {path.suffix}: choose {', '.join(OUTPUT_SUFFIXES)}, or a name without a"
            " suffix for a folder of PNGs"
        )
    if suffix and path.is_dir():
        raise UsageError(f"{path} is a folder: choose another file name")
    if not suffix and path.is_file():
        raise UsageError(f"{path} is a file, not a folder for PNGs: choose another name, or add a suffix such as .gif")
    if not suffix and path.is_dir() and (other := next((p for p in path.iterdir() if not _is_ours(p)), None)):
        raise UsageError(f"{path} holds {other.name}, which is no frame: choose another folder")
    return suffix


def write_video(path: Path, frames: Iterable[Frame], *, fps: float, metadata: Mapping[str, Any] | None = None) -> None:
    """Write frames, each (h, w, 3) uint8, as what the suffix of `path` says, whole or not at all.

    `.gif` (one palette for all frames; shows at most 50 frames a second), `.mp4` (H.264), `.webm` (VP9), `.webp` and
    `.png` (animated); without a suffix a folder of 000001.png and so on. Pictures loop forever where the format can say
    so. H.264 needs even sizes: an odd edge is repeated once. `metadata`, a mapping that JSON can hold, goes into the
    file's comment as one JSON object (a folder gets it as settings.json); `read_metadata` gives it back.

    Replaces what stands at `path`; ask `refuse_overwrite` before. Raises UsageError for an unknown suffix, ValueError
    for no frames, frames of different sizes or fps <= 0.
    """
    suffix = output_format(path)
    if not fps > 0:
        raise ValueError(f"fps must be above 0, not {fps}")
    frames = _checked(frames)
    text = json.dumps(dict(metadata), ensure_ascii=suffix == ".gif") if metadata else None
    if text:
        text = text.encode("utf-8", "replace").decode("utf-8")  # a prompt from a shell may hold broken characters
    if not suffix:
        with write_folder(path) as folder:
            for number, frame in enumerate(frames, 1):
                Image.fromarray(frame).save(folder / f"{number:06d}.png")
            settings = json.dumps({"fps": fps, **(metadata or {})}, ensure_ascii=False, indent=2)
            (folder / _SETTINGS).write_text(settings + "\n", encoding="utf-8", errors="replace")
        return
    with write_file(path) as temporary:
        _ENCODERS[suffix](temporary, frames, fps, text)
        if text and suffix in (".gif", ".png", ".webp"):
            temporary.write_bytes(comments.embed(temporary.read_bytes(), suffix, text))


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """All frames of a small clip, (f, h, w, 3) uint8, and its frames per second.

    Reads what `write_video` writes and every video FFmpeg knows. Raises MsdvError naming the file and the reason.
    """
    if path.is_dir():
        files = sorted(path.glob("[0-9]*.png"))
        if not files:
            raise MsdvError(f"{path} holds no frames (000001.png and so on)")
        return np.stack([_open_rgb(file) for file in files]), float(read_metadata(path).get("fps", 1))
    try:
        if path.suffix.lower() in (".gif", ".png", ".webp"):
            return _read_picture(path)
        return _read_stream(path)
    except (OSError, ValueError, av.FFmpegError) as error:
        raise MsdvError(f"can't read {path}: {error}") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write_video` was given as metadata; a comment that is no JSON object as {"comment": text}; {} for none.

    Raises MsdvError for a file that can't be read.
    """
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            text = (path / _SETTINGS).read_text(encoding="utf-8") if (path / _SETTINGS).exists() else None
        elif suffix in (".gif", ".png", ".webp"):
            text = comments.extract(path.read_bytes(), suffix)
        else:
            with av.open(f"file:{path}") as container:
                text = {key.lower(): value for key, value in container.metadata.items()}.get("comment")
    except (OSError, ValueError, av.FFmpegError) as error:
        raise MsdvError(f"can't read {path}: {error}") from error
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"comment": text}


def _is_ours(path: Path) -> bool:
    return path.name == _SETTINGS or (path.suffix == ".png" and path.stem.isdigit())


def _checked(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The frames, each looked at; the first at once, so that an empty iterable is told before a file is opened."""
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError("no frames to write")
    shape = first.shape

    def check(frame: Frame) -> Frame:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
            raise ValueError(
                f"frames must be (h, w, 3) uint8 of one size, not {frame.dtype} {frame.shape} after {shape}"
            )
        return np.ascontiguousarray(frame)

    return map(check, chain([first], iterator))


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
                    interpolation=_ACCURATE,
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
    """One palette for the whole clip (palettes that change make flat areas flicker), dithered by error diffusion.

    paletteuse needs the palette first, so all frames wait in memory, as RGB, until the last has come.
    """
    step = max(Fraction(100) / Fraction(fps).limit_denominator(1001), Fraction(_GIF_SHORTEST))
    time_base = Fraction(1, 100)
    first = next(frames)
    height, width = first.shape[:2]
    graph: Any = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=time_base)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=full")
    use, sink = graph.add("paletteuse", "dither=sierra2_4a"), graph.add("buffersink")
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


_ENCODERS: dict[str, Callable[[Path, Iterator[Frame], float, str | None], None]] = {
    ".gif": _write_gif,
    ".mp4": _write_h264,
    ".webm": _write_vp9,
    ".webp": _write_webp,
    ".png": _write_apng,
}


def _open_rgb(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise MsdvError(f"can't read {path}: {error}") from error


def _read_picture(path: Path) -> tuple[np.ndarray, float]:
    frames, milliseconds = [], 0.0
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB")))
            milliseconds += frame.info.get("duration", 0)
    return np.stack(frames), len(frames) * 1000 / milliseconds if milliseconds else 1.0


def _read_stream(path: Path) -> tuple[np.ndarray, float]:
    with av.open(f"file:{path}") as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24", interpolation=_ACCURATE) for frame in container.decode(stream)]
        if not frames:
            raise ValueError("it has no frames")
        return np.stack(frames), float(stream.average_rate or stream.guessed_rate or 1)
