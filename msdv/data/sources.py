"""Which files prep works on, and what their folders of frames are called."""

import errno
import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Files that people and systems keep beside videos. Everything else is tried: names of videos end in many ways.
_PICTURE_SUFFIXES = ".jpg .jpeg .png .webp .bmp .tif .tiff .heic .heif .avif .ico .svg .thm .psd"
_OTHER_SUFFIXES = """
    .txt .md .json .jsonl .csv .tsv .xml .yaml .yml .toml .ini .cfg .nfo .log .html .htm .url .lnk .desktop .db
    .sqlite .srt .vtt .ass .ssa .sub .idx .lrc .pdf .doc .docx .py .sh .bat .ps1 .zip .rar .7z .gz .torrent .m3u
    .m3u8 .lrv .npy .npz .pt .safetensors .parquet .edl .prproj .xmp .sha256 .md5
"""
_VIDEO_SUFFIXES = ".mp4 .m4v .mov .mkv .webm .avi .ts .mpg .wmv .flv"
_VIDEOS = frozenset(_VIDEO_SUFFIXES.split())
_PICTURES = frozenset(_PICTURE_SUFFIXES.split())
_COMPANIONS = _PICTURES.union(_OTHER_SUFFIXES.split())
_LONGEST_NAME = 240  # bytes; file systems take 255
_LIKE_A_SCENE = re.compile(r"#(\d+)\Z")


@dataclass(frozen=True)
class Source:
    """A file that may be a video."""

    path: Path  # absolute
    relative: Path  # to the folder that was given
    size: int | None  # bytes; None if it can't be looked at
    mtime: float | None  # seconds since 1970
    problem: str | None = None  # why it can't be used, if that is known already

    @property
    def key(self) -> str:
        return self.path.as_posix()


def find_sources(videos: Path, frames: Path) -> tuple[list[Source], int]:
    """Files below `videos` (or that one file), sorted, and how many pictures were passed by.

    Hidden files, text and pictures beside the videos, and the folder `frames` are left out. Links to folders are
    followed, each folder is visited once.
    """
    root = videos.resolve()
    if not root.is_dir():
        return [_look_at(root, Path(videos.name))], 0
    frames = frames.resolve()
    sources: list[Source] = []
    pictures = 0
    visited: set[Path] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        if folder.resolve() in visited or folder.resolve() == frames:
            continue
        visited.add(folder.resolve())
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            reason = "no permission to look into this folder" if isinstance(error, PermissionError) else str(error)
            sources.append(Source(folder, folder.relative_to(root), None, None, reason))
            continue
        if not entries and folder.suffix.lower() in _VIDEOS:
            sources.append(Source(folder, folder.relative_to(root), None, None, "an empty folder, no video"))
        for path in entries:
            if path.name.startswith("."):
                continue
            if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where the folder may not be looked into
                waiting.append(path)
            elif path.suffix.lower() in _PICTURES:
                pictures += 1
            elif path.suffix.lower() not in _COMPANIONS:
                sources.append(_look_at(path, path.relative_to(root)))
    return sorted(sources, key=lambda source: source.relative.parts), pictures


def is_picture(path: Path) -> bool:
    """Whether a name is that of a still picture."""
    return path.suffix.lower() in _PICTURES


def _look_at(path: Path, relative: Path) -> Source:
    try:
        status = path.stat()
    except OSError as error:
        reason = str(error.strerror or error).lower()
        if os.path.islink(path):  # noqa: PTH114 - Path.is_symlink raises where the folder may not be looked into
            reason = "a link that leads in a circle" if error.errno == errno.ELOOP else "a link to nothing"
        return Source(path, relative, None, None, reason)
    problem: str | None = None
    if not stat.S_ISREG(status.st_mode):
        problem = "not a file"  # a pipe or a device: reading it may never end
    elif status.st_size == 0:
        problem = "the file is empty"
    elif not os.access(path, os.R_OK):
        problem = "no permission to read it"
    return Source(path, relative, status.st_size, round(status.st_mtime, 3), problem)


def assign_folders(sources: list[Source], records: Mapping[str, Mapping[str, Any]], origin: str) -> dict[str, str]:
    """A folder name for each source (by its key), no two the same even where the file system ignores case.

    That is the name of the file, extension included. Where two have the same, the one least deep in folders keeps it,
    and the others get their path, with separators replaced. `records` (by folder name, of clips made before) come
    first, so that a name stays what it was. `origin`, the name of the folder of videos, tells apart files of two such
    folders. None ends in # and a number: that is for the scenes of a video.
    """
    names: dict[str, str] = {}
    first_scenes = {folder: record for folder, record in records.items() if record.get("scene", 1) == 1}
    by_source = {str(record.get("source")): folder for folder, record in first_scenes.items()}
    for source in sources:
        folder = by_source.get(source.key)
        if folder is None and (record := records.get(source.path.name)) and _moved(source, record):
            folder = source.path.name
        if folder is not None:
            names[source.key] = folder
    taken = {_folded(folder) for folder in records}
    for source in sorted(sources, key=lambda source: (len(source.relative.parts), source.relative.parts)):
        if source.key in names:
            continue
        joined = "__".join(source.relative.parts)
        digest = hashlib.sha256(source.key.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        named = (source.path.name, joined, f"{origin}__{joined}", f"{digest}__{source.path.name}")
        choices = [_LIKE_A_SCENE.sub(r"_\1", name) for name in (*named, digest + source.path.suffix)]
        fitting = [name for name in choices if len(os.fsencode(name)) <= _LONGEST_NAME]
        name = next((name for name in fitting if _folded(name) not in taken), digest)
        names[source.key] = name
        taken.add(_folded(name))
    return names


def _folded(name: str) -> str:
    """The same for names that some file system takes for the same: Windows ignores case, macOS how accents are put."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _moved(source: Source, record: Mapping[str, Any]) -> bool:
    """Whether a clip was made from this file when it lay elsewhere."""
    same = record.get("size") == source.size and record.get("mtime") == source.mtime
    return same and not os.path.exists(str(record.get("source")))  # noqa: PTH110 - Path.exists raises where it may not look
