"""prep --check: what is in a folder of frames, whoever made it, and what training will do with each clip.

It only reads. What training does is what `find_clips` and `read_frames` do.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from msdv.config import TrainConfig
from msdv.console import plain, progress
from msdv.data.audit_clip import (
    DEFAULT_FPS,
    ClipAudit,
    Fate,
    and_more,
    audit_clip,
    count_of,
    is_hidden,
    rate_of,
    reason_of,
)
from msdv.data.clips import PICTURE_SUFFIXES, VIDEO_SUFFIXES, frame_files
from msdv.data.manifest import CONTACT_SHEET, DROPPED, LOCK, MANIFEST, RESOLVED_CONFIG, Row
from msdv.errors import MsdvError, UsageError
from msdv.files import is_unfinished

_MADE_BY_PREP = (MANIFEST, CONTACT_SHEET, RESOLVED_CONFIG, LOCK)
_FEWEST = 2  # frames that train takes for --frames
_FEW = 10  # clips; of more, those without problems are only counted


@dataclass(frozen=True)
class AuditReport:
    """What is in a folder of frames."""

    folder: Path
    clip_frames: int
    """Frames of a training clip."""
    clips: tuple[ClipAudit, ...]
    manifest_damage: str | None
    """What training stops at in the manifest."""
    notes: tuple[str, ...]
    """Lines about the folder as a whole."""

    @property
    def problem(self) -> str | None:
        """Why training would stop or find nothing to learn from, with the next step; None if it would go on."""
        return ": ".join(self._trouble) if self._trouble else None

    @property
    def _trouble(self) -> tuple[str, str] | None:
        """What stands in training's way, and the next step."""
        if self.manifest_damage:
            where = f"training stops at {self.folder / MANIFEST} {self.manifest_damage}"
            return where, "mend or delete what is damaged, or run msdv prep again"
        stopping = [clip for clip in self.clips if clip.fate == "stops training"]
        if stopping:
            others = f", and at {count_of(len(stopping) - 1, 'other clip')}" if len(stopping) > 1 else ""
            where = f"training stops at {self.folder / stopping[0].name} ({stopping[0].reason}){others}"
            return plain(where), "mend or delete what is broken, and run msdv prep again"
        if any(clip.fate == "trains" for clip in self.clips):
            return None
        longest = max(clip.frames for clip in self.clips)
        if longest < _FEWEST:
            return f"no clip in {self.folder} has frames", f"make them with msdv prep videos/ {self.folder}"
        return f"no clip in {self.folder} has {self.clip_frames} frames", (
            f"run msdv train --data {self.folder} --frames {longest}, or use longer videos"
        )

    @property
    def ok(self) -> bool:
        """Whether training would run."""
        return self.problem is None

    def lines(self) -> list[str]:
        """What to print: a line about each clip that has something about it, a summary, the next step."""
        order: list[Fate] = ["stops training", "left out", "trains"]
        shown = [c for c in self.clips if c.problems or c.fate != "trains" or len(self.clips) <= _FEW]
        lines = [clip.line() for fate in order for clip in shown if clip.fate == fate]
        if self.manifest_damage:
            lines.insert(0, f"stops training: {MANIFEST} {self.manifest_damage}")
        fates = Counter(clip.fate for clip in self.clips)
        words = {"stops training": "stopping training", "left out": "left out", "trains": "to train on"}
        counts = [f"{fates[fate]:,} {words[fate]}" for fate in order if fates[fate]]
        frames = sum(clip.frames for clip in self.clips)
        lines.append(
            f"{count_of(len(self.clips), 'clip')}, {count_of(frames, 'frame')} in {self.folder}: {', '.join(counts)}"
        )
        lines += [plain(note) for note in self.notes]
        usual = self.clip_frames == TrainConfig.model_fields["frames"].default
        train = f"msdv train --data {self.folder}" + ("" if usual else f" --frames {self.clip_frames}")
        return [*lines, f"next: {self._trouble[1] if self._trouble else train}"]


def audit(frames: Path, clip_frames: int = 25) -> AuditReport:
    """Look at everything in a folder of frames; decode every picture. Writes nothing.

    `clip_frames` is train's --frames.

    Raises UsageError if there is no such folder or it holds videos, MsdvError if it holds no clips.
    """
    folders = _clip_folders(frames)
    manifest = _Manifest.read(frames / MANIFEST)
    clips: list[ClipAudit] = []
    twins: dict[bytes, str] = {}
    with progress("frame") as display, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as decoders:
        total = sum(_count_frames(folder) for folder in folders)
        bar = display.add_task("decoding frames", total=total, note="")
        for folder in folders:
            row = manifest.rows.get(folder.name, {})
            clip = audit_clip(folder, row, clip_frames, decoders, lambda: display.advance(bar))
            twin = twins.setdefault(clip.digest, clip.name)
            if clip.digest and twin != clip.name:
                clip = replace(clip, problems=(f"the same pictures as {twin}", *clip.problems))
            clips.append(clip)
    notes = [
        *_about_pictures(clips),
        *_about_captions(clips, manifest),
        *manifest.notes([folder.name for folder in folders], _dropped(frames)),
        *_about_files(frames, clips),
    ]
    return AuditReport(frames, clip_frames, tuple(clips), manifest.damage, tuple(notes))


def _clip_folders(frames: Path) -> list[Path]:
    """The folders that training takes for clips, by name."""
    if not frames.exists():
        raise UsageError(f"{frames} does not exist: give a folder of frames, as in msdv prep --check frames/")
    if not frames.is_dir():
        raise UsageError(f"{frames} is a file: give a folder of frames, as in msdv prep --check frames/")
    inside = sorted(frames.iterdir())
    folders = [p for p in inside if p.is_dir() and not p.name.startswith(".") and not is_unfinished(p)]
    if any(_count_frames(folder) for folder in folders):
        return folders
    pictures = [p for p in inside if p.suffix.lower() in PICTURE_SUFFIXES and p.name not in _MADE_BY_PREP]
    if pictures:
        raise MsdvError(
            f"{frames} holds pictures itself ({plain(pictures[0].name)}): give the folder it is in,"
            f" as in msdv prep --check {frames.absolute().parent}"
        )
    below = next((p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES), None)
    if below:
        raise MsdvError(
            f"{frames} holds folders of clips, not clips: give one of them, as in"
            f" msdv prep --check {below.parent.parent}"
        )
    video = next((p for p in frames.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file()), None)
    if video:
        raise UsageError(
            f"{frames} holds videos ({plain(video.name)}), not frames: run msdv prep {frames} frames/, then"
            " msdv prep --check frames/"
        )
    # Folders that are all empty are what is left of videos too short for the 2022 script: worth a report.
    if not folders or any(any(folder.iterdir()) for folder in folders):
        raise MsdvError(f"{frames} holds no clips: make them with msdv prep videos/ {frames}")
    return folders


def _count_frames(folder: Path) -> int:
    try:
        return len(frame_files(folder))
    except OSError:  # said of the clip
        return 0


@dataclass
class _Manifest:
    """What training reads in the manifest."""

    exists: bool = False
    rows: dict[str, Row] = field(default_factory=dict)
    damage: str | None = None
    """The first line at which training stops, and why."""
    ignored: list[int] = field(default_factory=list)
    """Lines that are of no clip."""
    twice: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "_Manifest":
        manifest = cls(path.is_file())
        if not manifest.exists:
            return manifest
        try:
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        except OSError as error:
            manifest.damage = f"({reason_of(error)})"
            return manifest
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                where = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                manifest.damage = manifest.damage or f"line {number} ({where})"
                continue
            if not isinstance(row, dict) or not isinstance(row.get("clip"), str):
                manifest.ignored.append(number)
                continue
            if row["clip"] in manifest.rows:
                manifest.twice.append(row["clip"])
            manifest.rows[row["clip"]] = row
        return manifest

    def notes(self, folders: Sequence[str], dropped: frozenset[str]) -> list[str]:
        """What does not fit together."""
        if not self.exists:
            return [f"no {MANIFEST}: captions are taken from the names of folders, and {DEFAULT_FPS:g} fps assumed"]
        absent = [name for name in self.rows if name not in set(folders)]
        failed = [name for name in absent if self.rows[name].get("frames") == 0]
        aside = [name for name in absent if name in dropped]
        gone = [name for name in absent if name not in {*failed, *aside}]
        new = [name for name in folders if name not in self.rows]
        numbers = [str(number) for number in self.ignored]
        said = [
            (f"a clip without a row: caption from its name, {DEFAULT_FPS:g} fps", new),
            ("a row whose folder is gone", gone),
            (f"a clip left out because it was asked for, in {DROPPED}", aside),
            ("a video that gave no clip, as its row says", failed),
            ("a clip with several rows: the last counts", self.twice),
            ("a line that is of no clip", numbers),
        ]
        return [f"{MANIFEST}: {what} ({and_more(names, 3)})" for what, names in said if names]


def _dropped(frames: Path) -> frozenset[str]:
    folder = frames / DROPPED
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


def _about_pictures(clips: Sequence[ClipAudit]) -> list[str]:
    sizes = Counter(clip.sizes[0] for clip in clips if clip.sizes)
    shown = [f"{width}x{height} in {count_of(n, 'clip')}" for (width, height), n in sizes.most_common(4)]
    rest = f", other sizes in {sizes.total() - sum(n for _, n in sizes.most_common(4))}" if len(sizes) > 4 else ""
    return [f"pictures: {', '.join(shown)}{rest}"] if shown else []


def _about_captions(clips: Sequence[ClipAudit], manifest: _Manifest) -> list[str]:
    given = sum(manifest.rows.get(clip.name, {}).get("caption") is not None for clip in clips)
    sources = [(given, f"from {MANIFEST}"), (len(clips) - given, "from the names of folders")]
    line = "captions: " + ", ".join(f"{count:,} {source}" for count, source in sources if count)
    silent = [clip.name for clip in clips if not clip.caption.strip()]
    lines = [f"{line}; {len(silent):,} empty, to train without words ({and_more(silent, 3)})" if silent else line]
    rates = Counter(rate_of(manifest.rows.get(clip.name, {})) or DEFAULT_FPS for clip in clips)
    if len(rates) > 1:
        shown = ", ".join(f"{rate:g} in {count_of(n, 'clip')}" for rate, n in rates.most_common(4))
        lines.append(f"frames per second differ ({shown}): training takes all clips alike")
    return lines


def _about_files(frames: Path, clips: Sequence[ClipAudit]) -> list[str]:
    """What lies about that training does not look at."""
    notes = []
    inside = [path for path in frames.iterdir() if path.name not in _MADE_BY_PREP]
    leftovers = sum(map(is_unfinished, inside))
    files = sorted(path.name for path in inside if not path.is_dir() and not is_hidden(path))
    hidden = sum(clip.hidden for clip in clips)
    hidden += sum(1 for path in inside if not path.is_dir() and is_hidden(path) and not is_unfinished(path))
    if leftovers:
        notes.append(f"{count_of(leftovers, 'leftover')} of a killed run, for the next msdv prep to remove")
    if files:
        notes.append(f"not looked at by training, in {frames}: {and_more(files, 5)}")
    unread = Counter(
        "folders" if n.endswith("/") else PurePath(n).suffix.lower() or "no suffix" for c in clips for n in c.unread
    )
    if unread:
        kinds = ", ".join(f"{suffix} ({count:,})" for suffix, count in unread.most_common(5))
        notes.append(f"not looked at by training, in folders of clips: {kinds}")
    if hidden:
        notes.append(f"{count_of(hidden, 'hidden file')}, ignored")
    return notes
