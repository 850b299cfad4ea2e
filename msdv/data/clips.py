"""A frames folder, as `msdv prep` or the 2022 script made it, to training clips."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from msdv.data.captions import caption_from_name
from msdv.data.manifest import MANIFEST, scene_of
from msdv.errors import MsdvError, UsageError
from msdv.files import is_unfinished

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".3gp", ".ogv", ".gif", ".h264", ".hevc", ".vob"),
)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Clip:
    """The frames of one video, or of one scene of it, in order."""

    name: str
    files: tuple[Path, ...]
    caption: str
    fps: float
    source: str
    """The video that it is from: clips that have it in common show the same."""

    def __len__(self) -> int:
        return len(self.files)


def find_clips(data: Path, min_frames: int) -> tuple[list[Clip], list[str]]:
    """Clips of at least `min_frames` frames, by name, and a line about each folder that can't be used.

    Raises UsageError if there is no such folder or it holds videos instead of frames, MsdvError if no clip is long
    enough.
    """
    if not data.is_dir():
        raise UsageError(f"{data} does not exist: make it with msdv prep videos/ {data}")
    rows = _read_manifest(data)
    clips, left_out = [], []
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        if folder.name.startswith(".") or is_unfinished(folder):
            continue
        files = frame_files(folder)
        if len(files) < min_frames:
            left_out.append(f"{folder.name}: {len(files)} frames, too short for --frames {min_frames}")
            continue
        row = rows.get(folder.name, {})
        caption = str(row["caption"]) if row.get("caption") is not None else caption_from_name(folder.name)
        fps = row.get("fps")
        rate = float(fps) if isinstance(fps, int | float) and fps > 0 else 5.0
        clips.append(Clip(folder.name, tuple(files), caption, rate, _source(folder.name, rows)))
    if not clips:
        _explain_empty(data, min_frames, left_out)
    return clips, left_out


def video_of(name: str) -> str:
    """The folder of a video's first scene, from that of any."""
    return scene_of(name) or name


def _source(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """As the manifest has it of the clip or of the video's first scene, else told from the name."""
    known = (rows.get(clip, {}).get("source") for clip in (video_of(name), name))
    return next((source for source in known if isinstance(source, str) and source), video_of(name))


def frame_files(folder: Path) -> list[Path]:
    """The frames of a clip, in order. Hidden files are none: macOS leaves ._000001.jpg beside 000001.jpg."""
    pictures = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    return sorted(path for path in pictures if not path.name.startswith("."))


def _explain_empty(data: Path, min_frames: int, left_out: Sequence[str]) -> None:
    videos = [path for path in data.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    if videos:
        raise UsageError(
            f"{data} holds videos ({videos[0].name}), not frames: run msdv prep {data} frames/ and train on frames/"
        )
    if left_out:
        raise MsdvError(
            f"no clip in {data} has {min_frames} frames ({left_out[0]}): lower --frames, or use longer videos"
        )
    raise MsdvError(f"{data} holds no clips: make them with msdv prep videos/ {data}")


def _read_manifest(data: Path) -> dict[str, dict[str, Any]]:
    """Rows of the manifest by clip folder; empty for a folder that the 2022 script made."""
    rows: dict[str, dict[str, Any]] = {}
    manifest = data / MANIFEST
    if manifest.is_file():
        # People edit it: blank lines and the byte order mark of Windows' editors are no damage.
        for line in manifest.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise MsdvError(f"{manifest} is damaged ({error}): run msdv prep again") from error
            if isinstance(row, dict) and isinstance(row.get("clip"), str):
                rows[row["clip"]] = row
    return rows


def read_frames(files: Sequence[Path], size: int) -> np.ndarray:
    """Frames (f, size, size, 3) uint8: short side scaled to `size`, the centre cut out.

    Raises MsdvError naming a picture that can't be decoded.
    """
    return np.stack([_read_frame(path, size) for path in files])


def _read_frame(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            scale = size / min(image.size)
            if scale < 1:
                image.draft("RGB", (size, size))  # JPEG can decode at 1/2, 1/4, 1/8: much faster
            picture = image.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise MsdvError(f"{path} can't be decoded ({error}): delete its folder and run msdv prep again") from error
    if picture.size != (size, size):
        scale = size / min(picture.size)
        width, height = (max(size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    return np.asarray(picture)
