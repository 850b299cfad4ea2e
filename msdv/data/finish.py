"""The end of a preparation: all clips of a folder are graded, put where they belong, listed and shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdv.config import PrepConfig
from msdv.data.contact_sheet import write_contact_sheet
from msdv.data.grading import Grades, grade, overlays_of, put_in_place, tiles_of
from msdv.data.manifest import CONTACT_SHEET, DROPPED, FolderLock, Row, read_manifest, read_records, update_manifest
from msdv.data.overlay import describe


@dataclass(frozen=True)
class Finished:
    """A folder of frames as it is left."""

    rows: list[Row]
    """The manifest's."""
    left_out: frozenset[str]
    """Clips that are not to be trained on."""
    overlays: tuple[str, ...]
    """Lines about what is drawn on the frames, if it was looked for."""


def finish(config: PrepConfig, lock: FolderLock, overlays: Mapping[str, Any], *, looks_for_overlays: bool) -> Finished:
    """Grade all clips of `config.frames`. `overlays`: what is known of them by clip, where they are not looked for."""
    folder = config.frames
    records = {**read_records(folder / DROPPED), **read_records(folder)}
    records = {name: records[name] for name in sorted(records) if "verdict" in records[name]}
    # Of clips that are nearly the same, the first one stays.
    best = sorted(records, key=lambda name: (_worth(records[name]), name))
    before = {row["clip"]: row for row in read_manifest(folder)}
    grades = grade({name: records[name] for name in best}, config)
    with lock.writing():
        put_in_place(folder, records, grades.left_out)
    lines: tuple[str, ...] = ()
    if looks_for_overlays:
        kept = {name: record for name, record in records.items() if name not in grades.left_out}
        overlays, lines = _find_overlays(folder, kept)
    rows = {
        name: {**record, "verdict": _verdict(name, record, before, grades), "overlays": overlays.get(name, [])}
        for name, record in records.items()
    }
    all_rows = update_manifest(folder, lock, rows)
    tiles = tiles_of(folder, all_rows, config.sort)
    if tiles:
        with lock.writing():
            write_contact_sheet(folder / CONTACT_SHEET, tiles, config.sort)
    return Finished(all_rows, frozenset(grades.left_out), lines)


def _find_overlays(folder: Path, kept: Mapping[str, Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Boxes by clip, and a line for each overlay."""
    found = overlays_of(folder, kept)
    boxes = {name: [list(overlay.box) for overlay in clip] for name, clip in found.items()}
    size = {overlay: (kept[name]["width"], kept[name]["height"]) for name in found for overlay in found[name]}
    return boxes, tuple(describe(overlay, *size[overlay]) for overlay in size)


def _worth(record: Row) -> tuple[bool, int, int]:
    """What is better sorts first: with a caption, larger, longer."""
    pixels = (record.get("source_width") or 0) * (record.get("source_height") or 0)
    return not record.get("caption"), -pixels, -record.get("frames", 0)


def _verdict(name: str, record: Row, before: Mapping[str, Row], grades: Grades) -> str:
    """What the manifest says of a finished clip."""
    if name in before and before[name]["verdict"].startswith("failed"):  # frames of a file that has got worse
        return str(before[name]["verdict"])
    if name in grades.left_out:
        return f"skipped: {grades.left_out[name]}"
    verdict = str(record["verdict"])
    if name in grades.remarks:
        verdict += ("; " if "," in verdict else ", ") + grades.remarks[name]
    return verdict
