"""After the clips are made: what they are like, which are left out, and the page that shows them."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

from msdv.config import PrepConfig
from msdv.console import plain
from msdv.data.contact_sheet import Tile
from msdv.data.duplicates import find_duplicates
from msdv.data.manifest import DROPPED, MANIFEST, Row
from msdv.data.overlay import Overlay, find_overlays
from msdv.data.sources import is_picture

_TELLING = 2  # frames: fewer show no motion
SCORES = ("motion", "flicker", "sharpness")
KINDS = ("ok", "ok, but", "skipped", "failed")
_MOST_LINES = 10


@dataclass(frozen=True)
class Grades:
    """What is to be said of clips, by the name of their folder."""

    left_out: dict[str, str]
    """Why a clip is left out, as was asked for."""
    remarks: dict[str, str]
    """What is not as it should be with others."""


def grade(records: Mapping[str, Row], config: PrepConfig) -> Grades:
    """Hold clips (their records, in the order that matters for duplicates) to what `config` asks for."""
    left_out: dict[str, str] = {}
    for name, record in records.items():
        if reason := _falls_short(record, config):
            left_out[name] = reason
    hashes = {name: record["hashes"] for name, record in records.items() if record.get("hashes")}
    if config.drop_duplicates:  # of a pair, the one that stays must be one that stays
        hashes = {name: value for name, value in hashes.items() if name not in left_out}
    remarks: dict[str, str] = {}
    for name, other in find_duplicates(hashes).items():
        text = f"nearly the same as {other}"
        if config.drop_duplicates:
            left_out[name] = text
        else:
            remarks[name] = text
    for name, record in records.items():
        frames = record.get("frames", 0)
        if name not in left_out and record.get("held") is not None and record["held"] >= max(1, frames - 1):
            remarks[name] = "; ".join(filter(None, [remarks.get(name), "a still picture, nothing moves"]))
        elif name not in left_out and frames < _TELLING:
            remarks[name] = "; ".join(filter(None, [remarks.get(name), "one frame"]))
    return Grades(left_out, remarks)


def _falls_short(record: Row, config: PrepConfig) -> str | None:
    limits = (
        ("motion", "below --min-motion", config.min_motion, 1),
        ("flicker", "above --max-flicker", config.max_flicker, -1),
        ("sharpness", "below --min-sharpness", config.min_sharpness, 1),
    )
    for name, relation, limit, sign in limits:
        value = record.get(name)
        if limit is not None and isinstance(value, int | float) and sign * value < sign * limit:
            return f"{name} {value:g} is {relation} {limit:g}"
    return None


def put_in_place(frames: Path, records: Mapping[str, Row], left_out: Mapping[str, str]) -> None:
    """Move the folders of clips that are left out where training does not see them, and others back."""
    for name in records:
        here, aside = frames / name, frames / DROPPED / name
        if here.is_dir() and aside.is_dir():  # made anew by a process that did not know of the other's
            shutil.rmtree(aside)
        source, target = (here, aside) if name in left_out else (aside, here)
        if source.is_dir() and not target.exists():
            target.parent.mkdir(exist_ok=True)
            source.replace(target)
    if (frames / DROPPED).is_dir() and not any((frames / DROPPED).iterdir()):
        (frames / DROPPED).rmdir()


def overlays_of(frames: Path, records: Mapping[str, Row]) -> dict[str, list[Overlay]]:
    """Still overlays by the clips they stand in. Of each video one clip is looked at."""
    names = [name for name, record in records.items() if record.get("scene", 1) == 1 and (frames / name).is_dir()]
    files = [_frames_of(frames / name) for name in names]
    found: dict[str, list[Overlay]] = {}
    for overlay in find_overlays(files):
        for clip in overlay.clips:
            found.setdefault(names[clip], []).append(overlay)
    return found


def _frames_of(folder: Path) -> list[Path]:
    """In order; none of a folder that another process has just moved."""
    try:
        return sorted(file for file in folder.iterdir() if is_picture(file))
    except OSError:
        return []


def verdict_lines(rows: Sequence[Row]) -> list[str]:
    """How many files ended in which verdict, as a table, and those that are not simply fine one by one."""
    kinds = Counter(kind_of(row["verdict"]) for row in rows)
    if set(kinds) <= {"ok"}:
        return []
    table = Table("verdict", "clips", "frames", box=None, pad_edge=False)
    for kind in KINDS:
        if kinds[kind]:
            frames = sum(row["frames"] for row in rows if kind_of(row["verdict"]) == kind)
            table.add_row(kind, f"{kinds[kind]:,}", f"{frames:,}")
    text = StringIO()
    Console(file=text, width=60).print(table)
    warned = [row for row in rows if kind_of(row["verdict"]) in ("ok, but", "skipped")]
    lines = [plain(f"{row['clip']}: {row['verdict'].removeprefix('ok, ')}") for row in warned[:_MOST_LINES]]
    if len(warned) > _MOST_LINES:
        lines.append(f"and {len(warned) - _MOST_LINES} more: see {MANIFEST}")
    return [line.rstrip() for line in text.getvalue().splitlines()] + lines


def kind_of(verdict: str) -> str:
    """Which of the four kinds a verdict is."""
    kind = verdict.partition(":")[0]
    return kind if kind in KINDS else "ok, but"


def tiles_of(frames: Path, rows: Sequence[Row], order: str) -> list[Tile]:
    """Tiles of the contact sheet: by name, or by a score with those first that one may want to leave out; clips
    without scores come last. Clips that are left out are shown too, and marked."""

    def key(row: Row) -> tuple[float, str]:
        value = row.get(order)
        if not isinstance(value, int | float):
            return (float("inf") if order != "name" else 0.0), row["clip"]
        return -value if order == "flicker" else value, row["clip"]

    tiles = []
    for row in sorted(rows, key=key):
        folder = frames / row["clip"]
        folder = folder if folder.is_dir() else frames / DROPPED / row["clip"]
        if not _frames_of(folder):
            continue
        scores = {name: row[name] for name in SCORES if isinstance(row.get(name), int | float)}
        remark = row["verdict"].removeprefix("ok").removeprefix(", ")
        boxes = row.get("overlays") or [None]
        if row.get("overlays"):
            remark = "; ".join(filter(None, [remark, "a still overlay"]))
        tiles.append(Tile(folder, scores=scores, remark=remark, box=tuple(boxes[0]) if boxes[0] else None))
    return tiles
