"""prep: videos to frames, a manifest and a contact sheet.

What a run finishes is finished: each clip appears as a whole folder with its record in it, and the next run goes on
with the others. Under `accelerate launch` each process takes its share of the videos.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from msdv import __version__
from msdv.config import PrepConfig
from msdv.console import console, plain, progress
from msdv.data.captions import CaptionLists, find_caption, read_caption_lists
from msdv.data.finish import finish
from msdv.data.grading import kind_of, verdict_lines
from msdv.data.manifest import (
    CONTACT_SHEET,
    DROPPED,
    MANIFEST,
    RECORD,
    RESOLVED_CONFIG,
    FolderLock,
    FrameSettings,
    Row,
    read_manifest,
    read_records,
    scene_name,
    scene_of,
    update_manifest,
    write_record,
)
from msdv.data.pool import Pool
from msdv.data.sources import Source, assign_folders, find_sources, is_picture
from msdv.errors import MsdvError, UsageError
from msdv.files import is_unfinished, write_file
from msdv.recipe import to_toml

_MANIFEST_EVERY = 5.0  # seconds: thousands of rows take a while to write


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
    left_out: int
    """Clips that are there, and that training does not get, as was asked for."""
    frames: int
    """Frames of the clips made and skipped, without those left out."""
    contact_sheet: Path | None
    """None where there is no clip to show."""
    verdicts: tuple[str, ...] = ()
    """Lines: what became of the files."""
    overlays: tuple[str, ...] = ()
    """Lines about still overlays that stand in many clips."""

    def lines(self) -> list[str]:
        """What to print at the end."""
        other = [f"{self.skipped} made before"] if self.skipped else []
        other += [f"{self.left_out} left out"] if self.left_out else []
        other += [f"{self.failed} failed: see {self.folder / MANIFEST}"] if self.failed else []
        clips = self.made + self.skipped - self.left_out
        summary = f"{_count(clips, 'clip')}, {_count(self.frames, 'frame')} in {self.folder}"
        return [
            f"{summary} ({', '.join(other)})" if other else summary,
            *self.verdicts,
            *(f"{line}: it will be learned too, so cut it off the videos, or leave them out" for line in self.overlays),
            *([f"look at: {self.contact_sheet}"] if self.contact_sheet else []),
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
    captions = (
        CaptionLists()
        if config.caption is not None
        else read_caption_lists(config.videos, [source.path for source in sources])
    )
    config.frames.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(config.frames)
    try:
        with lock.starting() as alone:
            if alone:
                _remove_leftovers(config.frames)
        return _Preparation(config, sources, captions, lock).run()
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
    captions: CaptionLists
    lock: FolderLock
    records: dict[str, Row] = field(default_factory=dict)  # of clips made before, by folder
    overlays: dict[str, Any] = field(default_factory=dict)  # what was known of them, by clip
    rows: dict[str, Row] = field(default_factory=dict)  # of the manifest, by clip
    made: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)

    def run(self) -> PrepReport:
        """Everything, from looking at what is there to the contact sheet."""
        config, folder = self.config, self.config.frames
        rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        # Whoever is not the first must not be mute about its own files.
        self._console = console if rank == 0 else Console(stderr=True, highlight=False)
        settings = FrameSettings(**{f.name: getattr(config, f.name) for f in fields(FrameSettings)})
        self.records = {**read_records(folder / DROPPED), **read_records(folder)}
        records = self.records
        self._remove_stale_scenes()
        names = assign_folders(list(self.sources), records, config.videos.resolve().name)
        if not config.overwrite:
            _refuse_other_settings(folder, settings, [r for r in records.values() if self._is_ours(r, names)])
        if rank == 0:
            for line in self.captions.unused:
                self._console.print(Text(line), soft_wrap=True)
            with write_file(folder / RESOLVED_CONFIG) as temporary:
                temporary.write_text(to_toml("prep", config), encoding="utf-8", errors="replace")
        self.overlays = {row["clip"]: row["overlays"] for row in read_manifest(folder) if row.get("overlays")}
        # What a killed run finished and could not write down any more.
        failed = {row["clip"] for row in read_manifest(folder) if row["verdict"].startswith("failed")}
        known = {name: row for name, row in records.items() if "source" in row and name not in failed}
        update_manifest(folder, self.lock, known)
        share = self.sources[rank::processes]
        todo = [clip for source in share for clip in self._look_at(source, names[source.key])]
        try:
            self._make(todo, asdict(settings))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted after {self.made} of {_count(len(todo), 'clip')}: the same command goes on from there"
            ) from None
        finally:
            # Also of clips that were finished when no answer was heard any more.
            finished = {name: row for name, row in read_records(folder).items() if name not in self.records}
            update_manifest(folder, self.lock, {**finished, **self.rows})
        graded = finish(config, self.lock, self.overlays, looks_for_overlays=bool(self.made))
        mine = [row for row in graded.rows if row["clip"] in self.rows]
        left_out = len(graded.left_out & self.rows.keys())
        if not self.made + self.skipped and processes == 1:
            raise MsdvError(self._nothing_used())
        if left_out >= self.made + self.skipped and processes == 1:
            reason = next(row["verdict"] for row in mine if row["clip"] in self.rows and row["frames"])
            raise MsdvError(f"all clips are left out as asked ({reason}): ask for less")
        shown = folder / CONTACT_SHEET
        return PrepReport(
            folder=folder,
            made=self.made,
            skipped=self.skipped,
            failed=len(self.failed),
            left_out=left_out,
            frames=sum(
                row["frames"]
                for row in mine
                if kind_of(row["verdict"]) != "failed" and not (folder / DROPPED / row["clip"]).is_dir()
            ),
            contact_sheet=shown if shown.exists() else None,
            verdicts=tuple(verdict_lines(mine)),
            overlays=graded.overlays,
        )

    def _is_ours(self, record: Row, names: Mapping[str, str]) -> bool:
        return record["clip"] in names.values() or record.get("source") in names

    def _look_at(self, source: Source, name: str) -> Iterator[_Todo]:
        """The clip to make of a file; nothing if there is none to make, which is then in the manifest's rows."""
        folder = self.config.frames / name
        caption = self.config.caption
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
            "caption": caption if caption is not None else find_caption(source.path, self.captions.captions),
            "verdict": "",
            "version": __version__,
        }
        record = self.records.get(name)
        exists = folder.is_dir() and any(folder.iterdir())
        if exists and record is None and not self.config.overwrite:
            frames = sum(is_picture(file) for file in folder.iterdir())
            verdict = "skipped: its frames were not made by msdv prep; --overwrite makes them anew"
            self._keep({**row, "frames": frames, "verdict": verdict})
            return
        if record is not None and not self.config.overwrite:
            unchanged = (record.get("size"), record.get("mtime")) == (source.size, source.mtime)
            if source.size is None or (unchanged and not self._lost(record)):
                for clip, known in self._scenes(record):
                    kept = {**known, "source": source.key, "caption": row["caption"]}
                    if kept != known:
                        write_record(self._folder_of(clip), kept)
                    self._keep(kept)
                return
        if folder.exists() and (other := _not_a_frame(folder)):
            self._fail(source, row, f"{folder} is in the way, it holds {other}: move it elsewhere")
        elif source.problem:
            self._fail(source, row, source.problem)
        else:
            yield _Todo(source, folder, row)

    def _remove_stale_scenes(self) -> None:
        """Scenes of an earlier version of a video that had more, if the process that made fewer was killed."""
        for name in [n for n, r in self.records.items() if r.get("scene", 1) > 1]:
            first = self.records.get(scene_of(name) or "")
            if first is not None and self.records[name]["scene"] > first.get("scenes", 1):
                shutil.rmtree(self._folder_of(name), ignore_errors=True)
                del self.records[name]

    def _lost(self, record: Row) -> bool:
        """Whether a power cut came between a clip's names and its content."""
        folders = [self._folder_of(name) for name, _ in self._scenes(record)]
        return any(file.stat().st_size == 0 for folder in folders for file in folder.iterdir())

    def _scenes(self, record: Row) -> list[tuple[str, Row]]:
        """The clips that were made together with the one of this record, itself first."""
        names = [scene_name(record["clip"], number) for number in range(1, record.get("scenes", 1) + 1)]
        return [(name, self.records[name]) for name in names if name in self.records]

    def _folder_of(self, clip: str) -> Path:
        folder = self.config.frames / clip
        return folder if folder.is_dir() else self.config.frames / DROPPED / clip

    def _make(self, todo: Sequence[_Todo], settings: dict[str, Any]) -> None:
        requests = [
            {"video": str(clip.source.path), "folder": str(clip.folder), "settings": settings, "row": clip.row}
            for clip in todo
        ]
        workers = self.config.workers or _processors()
        with progress("clip") as display, Pool(requests, workers) as pool:
            bar = display.add_task("videos to frames", total=len(todo), note="")
            frames, written = 0, time.monotonic()
            for answer in pool.answers():
                clip, message = todo[answer.request], answer.message
                frames += message.get("frames", 0)
                if "rows" in message:
                    self._made(clip, message["rows"])
                elif "failed" in message:
                    self._fail(clip.source, clip.row, message["failed"])
                elapsed = display.tasks[0].elapsed or 0
                display.update(bar, note=f"{frames / elapsed:.0f} frames/s" if elapsed > 1 else "")
                if "frames" not in message:
                    display.advance(bar)
                    # What is not written yet when this process is killed, the next one finds in the records.
                    if time.monotonic() - written > _MANIFEST_EVERY:
                        update_manifest(self.config.frames, self.lock, self.rows)
                        written = time.monotonic()

    def _made(self, clip: _Todo, rows: Sequence[Row]) -> None:
        self.made += len(rows)
        names = {row["clip"] for row in rows}
        before = self.records.get(clip.folder.name)
        for name, _ in self._scenes(before) if before is not None else []:
            if name not in names:  # it had more scenes
                shutil.rmtree(self._folder_of(name), ignore_errors=True)
            else:
                shutil.rmtree(self.config.frames / DROPPED / name, ignore_errors=True)
        for row in rows:
            self._add(row)

    def _keep(self, row: Row) -> None:
        self.skipped += 1
        self._add(row)

    def _add(self, row: Row) -> None:
        self.rows[row["clip"]] = row
        if "damaged" in row["verdict"]:
            self._say(row["clip"], row["verdict"].removeprefix("ok, "))

    def _fail(self, source: Source, row: Row, reason: str) -> None:
        self.failed.append(f"{source.relative}: {reason}")
        kept = self.records.get(row["clip"])
        if kept is not None:
            reason += " (frames made from it before are kept)"
        self.rows[row["clip"]] = {**row, **(kept or {}), "source": source.key, "verdict": f"failed: {reason}"}
        if len(self.sources) > 1:  # of an only one the error says it all
            self._say(str(source.relative), reason)

    def _say(self, name: str, text: str) -> None:
        self._console.print(Text(plain(f"{name}: {text}")), soft_wrap=True)

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
    if frames.is_symlink() and not frames.exists():
        raise UsageError(f"{frames} is a link to nothing: give another folder for the frames")
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
                raise UsageError(
                    f"{folder / record['clip']} was made with {_as_typed(name, made_with[name])}, not"
                    f" {_as_typed(name, value, brief=True)}: give another folder for the frames, or --overwrite to make"
                    " its clips anew"
                )


def _as_typed(name: str, value: Any, brief: bool = False) -> str:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    return str(value) if brief else f"{flag} {value}"


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
