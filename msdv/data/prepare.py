"""prep: videos to frames, a manifest and a contact sheet.

What a run finishes is finished: each clip appears as a whole folder with its record in it, and the next run goes on
with the others. Under `accelerate launch` each process takes its share of the videos.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from msdv import __version__
from msdv.config import PrepConfig
from msdv.console import console, progress
from msdv.data.captions import find_caption
from msdv.data.contact_sheet import write_contact_sheet
from msdv.data.manifest import MANIFEST, RECORD, FolderLock, Row, read_records, update_manifest, write_record
from msdv.data.pool import Pool
from msdv.data.sources import Source, assign_folders, find_sources, is_picture
from msdv.data.worker import FrameSettings
from msdv.errors import MsdvError, UsageError
from msdv.files import is_unfinished, write_file
from msdv.recipe import to_toml

CONTACT_SHEET = "contact_sheet.jpg"
RESOLVED_CONFIG = "prep.toml"


@dataclass(frozen=True)
class PrepReport:
    """What a run of prep did."""

    folder: Path
    made: int
    """Clips made by this run."""
    skipped: int
    """Clips that were there already."""
    failed: int
    """Files that gave no clip."""
    frames: int
    """Frames of the clips made and skipped."""
    contact_sheet: Path

    def lines(self) -> list[str]:
        """What to print at the end."""
        other = [f"{self.skipped} of them made before"] if self.skipped else []
        other += [f"{self.failed} failed: see {self.folder / MANIFEST}"] if self.failed else []
        clips = self.made + self.skipped
        summary = f"{_count(clips, 'clip')}, {_count(self.frames, 'frame')} in {self.folder}"
        return [
            f"{summary} ({', '.join(other)})" if other else summary,
            f"look at: {self.contact_sheet}",
            f"next: msdv train --data {self.folder}",
        ]


def prepare(config: PrepConfig) -> PrepReport:
    """Cut the videos of `config.videos` into frames below `config.frames`.

    Raises UsageError for paths that can't be meant and for clips made with other settings (unless `overwrite`),
    MsdvError if not one file could be used, OSError if frames can't be written, KeyboardInterrupt when interrupted,
    after saving.
    """
    _check_paths(config)
    sources, pictures = find_sources(config.videos, config.frames)
    if not sources:
        raise MsdvError(_no_videos(config, pictures))
    config.frames.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(config.frames)
    try:
        with lock.starting() as alone:
            if alone:
                _remove_leftovers(config.frames)
        return _Preparation(config, sources, lock).run()
    finally:
        with lock.starting() as alone:
            if alone:
                _remove_leftovers(config.frames)
        lock.close()


@dataclass
class _Todo:
    """A clip to make."""

    source: Source
    folder: Path
    row: Row


@dataclass
class _Preparation:
    """A run: what is known of each file, and how it goes."""

    config: PrepConfig
    sources: Sequence[Source]
    lock: FolderLock
    records: dict[str, Row] = field(default_factory=dict)  # of clips made before, by folder
    rows: dict[str, Row] = field(default_factory=dict)  # of the manifest, by source
    made: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    frames: int = 0

    def run(self) -> PrepReport:
        """Everything, from looking at what is there to the contact sheet."""
        config, folder = self.config, self.config.frames
        rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        # Whoever is not the first must not be mute about its own files.
        self._console = console if rank == 0 else Console(stderr=True, highlight=False)
        settings = FrameSettings(config.fps, config.size, config.trim_start, config.trim_end, config.select)
        records = self.records = read_records(folder)
        names = assign_folders(list(self.sources), records, config.videos.resolve().name)
        if not config.overwrite:
            _refuse_other_settings(folder, settings, [records[n] for n in names.values() if n in records])
        if rank == 0:
            with write_file(folder / RESOLVED_CONFIG) as temporary:
                temporary.write_text(to_toml("prep", config), encoding="utf-8", errors="replace")
        # What a killed run finished and could not write down any more.
        update_manifest(folder, self.lock, {row["source"]: row for row in records.values() if "source" in row})
        share = self.sources[rank::processes]
        todo = [clip for source in share for clip in self._look_at(source, names[source.key])]
        try:
            self._make(todo, asdict(settings))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted after {self.made} of {_count(len(todo), 'clip')}: the same command goes on from there"
            ) from None
        finally:
            rows = update_manifest(folder, self.lock, self.rows)
        clips = [folder / row["clip"] for row in rows if (folder / row["clip"]).is_dir()]
        if clips:
            with self.lock.writing():
                write_contact_sheet(folder / CONTACT_SHEET, clips)
        if not self.made + self.skipped and processes == 1:
            raise MsdvError(self._nothing_used())
        return PrepReport(folder, self.made, self.skipped, len(self.failed), self.frames, folder / CONTACT_SHEET)

    def _look_at(self, source: Source, name: str) -> Iterator[_Todo]:
        """The clip to make of a file; nothing if there is none to make, which is then in the manifest's rows."""
        folder = self.config.frames / name
        row: Row = {
            "clip": name,
            "source": source.key,
            "size": source.size,
            "mtime": source.mtime,
            "start": None,
            "end": None,
            "fps": None,
            "frames": 0,
            "width": None,
            "height": None,
            "caption": self.config.caption if self.config.caption is not None else find_caption(source.path),
            "verdict": "",
            "version": __version__,
        }
        record = self.records.get(name)
        exists = folder.is_dir() and any(folder.iterdir())
        if exists and not self.config.overwrite:
            if record is None:
                frames = sum(is_picture(file) for file in folder.iterdir())
                verdict = "skipped: its frames were not made by msdv prep; --overwrite makes them anew"
                self._keep({**row, "frames": frames, "verdict": verdict})
                return
            if source.size is None or (record.get("size"), record.get("mtime")) == (source.size, source.mtime):
                kept = {**record, "source": source.key, "caption": row["caption"]}
                if kept != record:
                    write_record(folder, kept)
                self._keep(kept)
                return
        if folder.exists() and (other := _not_a_frame(folder)):
            self._fail(source, row, f"{folder} is in the way, it holds {other}: move it elsewhere")
        elif source.problem:
            self._fail(source, row, source.problem)
        else:
            yield _Todo(source, folder, row)

    def _make(self, todo: Sequence[_Todo], settings: dict[str, Any]) -> None:
        requests = [
            {"video": str(clip.source.path), "folder": str(clip.folder), "settings": settings, "row": clip.row}
            for clip in todo
        ]
        workers = self.config.workers or _processors()
        with progress("clip") as display, Pool(requests, workers) as pool:
            bar = display.add_task("videos to frames", total=len(todo), note="")
            frames = 0
            for answer in pool.answers():
                clip, message = todo[answer.request], answer.message
                frames += message.get("frames", 0)
                if "row" in message:
                    self.made += 1
                    self._add(message["row"])
                elif "failed" in message:
                    self._fail(clip.source, clip.row, message["failed"])
                elapsed = display.tasks[0].elapsed or 0
                display.update(bar, note=f"{frames / elapsed:.0f} frames/s" if elapsed > 1 else "")
                if "frames" not in message:
                    display.advance(bar)
                    update_manifest(self.config.frames, self.lock, self.rows)

    def _keep(self, row: Row) -> None:
        self.skipped += 1
        self._add(row)

    def _add(self, row: Row) -> None:
        self.frames += row["frames"]
        self.rows[row["source"]] = row
        if "damaged" in row["verdict"]:
            self._say(Path(row["source"]).name, row["verdict"].removeprefix("ok, "))

    def _fail(self, source: Source, row: Row, reason: str) -> None:
        self.failed.append(f"{source.relative}: {reason}")
        kept = self.records.get(row["clip"])
        if kept is not None:
            reason += " (frames made from it before are kept)"
        self.rows[source.key] = {**row, **(kept or {}), "source": source.key, "verdict": f"failed: {reason}"}
        if len(self.sources) > 1:  # of an only one the error says it all
            self._say(str(source.relative), reason)

    def _say(self, name: str, text: str) -> None:
        line = " ".join(f"{name}: {text}".split("\n"))
        line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
        self._console.print(Text(line), soft_wrap=True)

    def _nothing_used(self) -> str:
        if len(self.failed) == 1:
            return f"nothing to train on: {self.failed[0]}"
        return (
            f"not one of {len(self.failed)} files in {self.config.videos} could be used (the first: {self.failed[0]}):"
            f" see {self.config.frames / MANIFEST}"
        )


def _check_paths(config: PrepConfig) -> None:
    videos, frames = config.videos, config.frames
    if not videos.exists():
        raise UsageError(f"{videos} does not exist: give a folder of videos, or one video")
    if frames.exists() and not frames.is_dir():
        raise UsageError(f"{frames} is a file: give a folder for the frames, as in msdv prep {videos} frames/")
    if videos.resolve() == frames.resolve():
        raise UsageError(f"{frames} holds the videos: give another folder for the frames")
    if videos.is_file() and is_picture(videos):
        raise UsageError(f"{videos} is a picture: give a folder of videos, or one video")
    if videos.is_file() and videos.resolve().parent == frames.resolve():
        raise UsageError(f"{frames} holds the video itself: give another folder for the frames")


def _no_videos(config: PrepConfig, pictures: int) -> str:
    if pictures:
        return (
            f"{config.videos} holds no videos, but {_count(pictures, 'picture')}: if these are frames in a folder for"
            f" each video, train on them with msdv train --data {config.videos}"
        )
    return f"{config.videos} holds no videos: put some in, or give another folder"


def _refuse_other_settings(folder: Path, settings: FrameSettings, records: Sequence[Row]) -> None:
    for record in records:
        made_with = record.get("settings")
        if not isinstance(made_with, dict):
            continue
        for name, value in asdict(settings).items():
            if name in made_with and made_with[name] != value:
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{folder / record['clip']} was made with {flag} {made_with[name]}, not {value}: give another"
                    " folder for the frames, or --overwrite to make its clips anew"
                )


def _not_a_frame(folder: Path) -> str | None:
    """Something in a folder that --overwrite must not delete."""
    if not folder.is_dir():
        return "something else"
    ours = (RECORD,)
    return next((f.name for f in folder.iterdir() if f.is_dir() or not (is_picture(f) or f.name in ours)), None)


def _remove_leftovers(frames: Path) -> None:
    """What killed runs left: nobody else works here, so nobody misses it."""
    for path in [p for p in frames.iterdir() if is_unfinished(p)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for path in [p for folder in frames.iterdir() if folder.is_dir() for p in folder.glob(".unfinished-*")]:
        if path.is_file():
            path.unlink(missing_ok=True)


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")
