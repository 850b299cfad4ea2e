"""Moving pictures out and in: whole clips as arrays. What prep reads frame by frame is decoded in decode.py.

Frames are `(h, w, 3)` uint8 RGB (sRGB), a clip `(f, h, w, 3)`. The same frames and metadata give the same bytes:
encoders run on one thread, and containers carry neither times nor random numbers.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from msdv.config import OUTPUT_SUFFIXES, VIDEO_SUFFIXES, Dither
from msdv.data import metadata as comments
from msdv.data.encode import ACCURATE, Frame, encode_file
from msdv.data.tensors import read_settings
from msdv.errors import MsdvError, UsageError
from msdv.files import write_file, write_folder

_SETTINGS = "settings.json"


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


def write_video(
    path: Path,
    frames: Iterable[Frame],
    *,
    fps: float,
    metadata: Mapping[str, Any] | None = None,
    dither: Dither = "diffusion",
) -> None:
    """Write frames, each (h, w, 3) uint8, as what the suffix of `path` says, whole or not at all.

    `.gif` (one palette for all frames; shows at most 50 frames a second), `.mp4` (H.264), `.webm` (VP9), `.webp` and
    `.png` (animated); without a suffix a folder of 000001.png and so on. Pictures loop forever where the format can say
    so. H.264 needs even sizes: an odd edge is repeated once. `metadata`, a mapping that JSON can hold, goes into the
    file's comment as one JSON object (a folder gets it as settings.json); `read_metadata` gives it back. Frames are
    taken one at a time and not kept. `dither`: how a gif shows what is between its colours.

    Replaces what stands at `path`; ask `refuse_overwrite` before. Raises UsageError for an unknown suffix, ValueError
    for no frames, frames of different sizes or fps <= 0.
    """
    suffix = output_format(path)
    if suffix and suffix not in VIDEO_SUFFIXES:
        raise UsageError(f"{path}: {suffix} holds no moving picture: choose {', '.join(VIDEO_SUFFIXES)}")
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
        encode_file(temporary, suffix, frames, fps, dither=dither, comment=text)
        if text and suffix in (".gif", ".png", ".webp"):
            comments.embed(temporary, suffix, text)


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
            text = comments.extract(path, suffix)
        elif suffix == ".safetensors":
            return read_settings(path)
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
        frames = [frame.to_ndarray(format="rgb24", interpolation=ACCURATE) for frame in container.decode(stream)]
        if not frames:
            raise ValueError("it has no frames")
        return np.stack(frames), float(stream.average_rate or stream.guessed_rate or 1)
