"""What prep knows of its clips: a record in each finished folder, and the manifest, a row a file, made from them.

The record is inside the folder, so that both appear in the same moment; a manifest that a killed run left behind the
times is brought up to date from the records.
"""

import errno
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from msdv.files import write_file

MANIFEST = "manifest.jsonl"
CONTACT_SHEET = "contact_sheet.jpg"
RESOLVED_CONFIG = "prep.toml"
RECORD = ".clip.json"
DROPPED = ".dropped"
"""Folder beside the clips for those that were asked to be left out: training does not see them, and nothing is lost."""
LOCK = ".lock"

Row = dict[str, Any]


@dataclass(frozen=True)
class FrameSettings:
    """What decides a clip's frames; units as in PrepConfig."""

    fps: float
    size: int | str
    trim_start: float
    trim_end: float
    select: Literal["grid", "script"]
    fit: Literal["crop", "pad"] = "crop"
    crop_bars: bool = True
    trim: Literal["fixed", "auto"] = "fixed"
    scenes: bool = False

    @property
    def width(self) -> int:
        """Pixels of a frame."""
        return int(str(self.size).partition("x")[0])

    @property
    def height(self) -> int:
        """Pixels of a frame."""
        return int(str(self.size).rpartition("x")[2])


def scene_name(clip: str, number: int) -> str:
    """The folder of a video's scene 1, 2, ..."""
    return clip if number == 1 else f"{clip}#{number}"


def scene_of(name: str) -> str | None:
    """The clip whose scene a folder of this name would be, if it is one of the second or a later scene."""
    match = re.fullmatch(r"(.+)#(?:[2-9]|[1-9]\d+)", name, re.DOTALL)
    return match[1] if match else None


def read_records(frames: Path) -> dict[str, Row]:
    """The record of each finished clip, by the name of its folder."""
    records: dict[str, Row] = {}
    if not frames.is_dir():
        return records
    for folder in sorted(frames.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        row = _read_row(folder / RECORD)
        if row is not None:
            records[folder.name] = {**row, "clip": folder.name}
    return records


def write_record(folder: Path, row: Row) -> None:
    """Write the record of a clip into its folder."""
    with write_file(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(row, indent=1) + "\n", encoding="ascii")


def read_manifest(frames: Path) -> list[Row]:
    """The rows, without those that are damaged or whose frames have been deleted since."""
    rows: list[Row] = []
    try:
        lines = (frames / MANIFEST).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict) or not isinstance(row.get("source"), str) or not isinstance(row.get("clip"), str):
            continue
        there = (frames / row["clip"]).is_dir() or (frames / DROPPED / row["clip"]).is_dir()
        if there or (row.get("frames") == 0 and not _is_gone(Path(row["source"]))):
            rows.append(row)
    return rows


def _is_gone(path: Path) -> bool:
    """Whether a path leads nowhere for sure; one in a folder that may not be entered is not gone."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def update_manifest(frames: Path, lock: "FolderLock", rows: Mapping[str, Row]) -> list[Row]:
    """Put rows (by their clip) into the manifest, in place of what it said of them. Returns all its rows, by name.

    What it said of a video under another name, and found no frames in, is forgotten too.
    """
    with lock.writing():
        merged = {row["clip"]: row for row in read_manifest(frames)}
        sources = {row["source"] for row in rows.values()}
        merged = {name: row for name, row in merged.items() if row["frames"] or row["source"] not in sources}
        merged.update(rows)
        result = [merged[name] for name in sorted(merged)]
        with write_file(frames / MANIFEST) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in result), encoding="ascii")
    return result


def _read_row(path: Path) -> Row | None:
    try:
        row = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) else None


class FolderLock:
    """Says to other processes that one works in a folder. The system drops it when the process ends, however it does.

    Where the file system knows no locks, everything is allowed.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / LOCK).open("a+b")

    @contextmanager
    def starting(self) -> Iterator[bool]:
        """Whether no other process works here; none starts to before the block ends. This one does from then on."""
        alone = self._lock(0, shared=False, wait=False)
        yield alone
        if sys.platform != "win32":  # where the lock can't be shared, the first process keeps it for itself
            self._lock(0, shared=True, wait=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Others wait here until the block ends."""
        locked = self._lock(1, shared=False, wait=True)
        try:
            yield
        finally:
            if locked:
                self._unlock(1)

    def close(self) -> None:
        """Done working here."""
        self._file.close()

    if sys.platform == "win32":

        def _lock(self, byte: int, *, shared: bool, wait: bool) -> bool:
            import msvcrt

            self._file.seek(byte)
            try:
                msvcrt.locking(self._file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except OSError as error:
                if wait and error.errno == errno.EDEADLOCK:  # what it says after ten seconds of waiting
                    return self._lock(byte, shared=shared, wait=True)
                return False
            return True

        def _unlock(self, byte: int) -> None:
            import msvcrt

            self._file.seek(byte)
            msvcrt.locking(self._file.fileno(), msvcrt.LK_UNLCK, 1)
    else:

        def _lock(self, byte: int, *, shared: bool, wait: bool) -> bool:
            import fcntl

            try:
                kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
                fcntl.lockf(self._file, kind if wait else kind | fcntl.LOCK_NB, 1, byte)
            except OSError:
                return False
            return True

        def _unlock(self, byte: int) -> None:
            import fcntl

            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)
