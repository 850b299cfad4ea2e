"""Clips whose frames say which they are: its number is painted into each frame, in blocks that survive any codec."""

import io
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

GRID = 4  # blocks a side: 16 bits


def numbered(number: int, width: int = 64, height: int = 64) -> np.ndarray:
    """A frame with `number` in it: black and white blocks over its central square, the lowest bit top left."""
    square = min(width, height)
    bits = np.array([[number >> (row * GRID + column) & 1 for column in range(GRID)] for row in range(GRID)])
    picture = np.full((height, width, 3), 128, dtype=np.uint8)
    rows = (np.arange(square) * GRID // square)[:, None]
    columns = (np.arange(square) * GRID // square)[None, :]
    blocks = np.where(bits[rows, columns] == 1, 235, 20).astype(np.uint8)
    top, left = (height - square) // 2, (width - square) // 2
    picture[top : top + square, left : left + square] = blocks[:, :, None]
    return picture


def read_number(picture: np.ndarray | Path | bytes) -> int:
    """The number in a square picture made from `numbered`; AssertionError where it can't be told."""
    if isinstance(picture, Path):
        picture = picture.read_bytes()
    if isinstance(picture, bytes):
        picture = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    size = grey.shape[0]
    number = 0
    for row in range(GRID):
        for column in range(GRID):
            y, x = (2 * row + 1) * size // (2 * GRID), (2 * column + 1) * size // (2 * GRID)
            value = grey[y - 1 : y + 2, x - 1 : x + 2].mean()
            assert value < 90 or value > 165, f"block {row},{column} is {value}"
            number |= int(value > 128) << (row * GRID + column)
    return number


def read_numbers(folder: Path) -> list[int]:
    return [read_number(path) for path in sorted(folder.glob("*.jpg"))]


def write_clip(
    path: Path,
    count: int = 50,
    *,
    rate: Fraction | int = 25,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    container_format: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    size: tuple[int, int] = (64, 64),
    pixels: str = "yuv420p",
    pixel_aspect: Fraction | None = None,
    picture: Callable[[int], np.ndarray] | None = None,
    sound: float = 0.0,
    colorspace: int | None = None,
    full_range: bool = False,
) -> Path:
    """A clip of `count` numbered frames at `rate`, or of one frame at each of `times` (in `time_base`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    times = list(range(count)) if times is None else list(times)
    time_base = time_base or 1 / Fraction(rate)
    if options is None:
        options = {"preset": "ultrafast", "crf": "18"} if codec == "libx264" else {}
    with av.open(f"file:{path}", "w", format=container_format, options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(rate), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        context = stream.codec_context
        context.time_base, context.thread_count = time_base, 1
        if pixel_aspect:
            stream.sample_aspect_ratio = context.sample_aspect_ratio = pixel_aspect
        if colorspace is not None:
            context.colorspace = colorspace
        if full_range:
            context.color_range = 2
        tone: Any = (
            container.add_stream("aac" if container.format.name != "webm" else "libopus", rate=48000) if sound else None
        )
        for number, time in enumerate(times):
            array = picture(number) if picture else numbered(number, width, height)
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(
                format=pixels,
                dst_colorspace=colorspace or "ITU601",
                dst_color_range="JPEG" if full_range else "MPEG",
            )
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone:
            _write_tone(container, tone, sound)
    return path


def write_sound(path: Path, seconds: float = 1.0, *, cover: bool = False) -> Path:
    """A sound file; with `cover`, an mp3 with an attached picture."""
    with av.open(f"file:{path}", "w") as container:
        tone: Any = container.add_stream("mp3" if path.suffix == ".mp3" else "aac", rate=44100)
        if cover:
            stream: Any = container.add_stream("mjpeg", rate=1)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic.value
            frame = av.VideoFrame.from_ndarray(numbered(1), format="rgb24").reformat(format="yuvj420p")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        _write_tone(container, tone, seconds)
    return path


def _write_tone(container: Any, stream: Any, seconds: float) -> None:
    rate = stream.codec_context.sample_rate
    size, done = 1024, 0
    while done < seconds * rate:
        frame = av.AudioFrame.from_ndarray(np.zeros((1, size), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, done, Fraction(1, rate)
        container.mux(stream.encode(frame))
        done += size
    container.mux(stream.encode(None))


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write (a, b, c, d) into an mp4's track header: how phones say that a picture is to be turned or mirrored."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 40 if data[at] == 0 else 52
    a, b, c, d = (value * 0x10000 for value in matrix)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path
