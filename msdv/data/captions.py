"""Captions: what a video shows, in words, from the text file beside it, from a list of captions, or from its name.

A list is a `captions.jsonl` (a JSON object a line) or a `captions.csv` (a header with one of NAME_COLUMNS and one of
TEXT_COLUMNS, or no header and two columns), in the folder of videos or in a folder below it.
"""

import codecs
import csv
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from msdv.errors import MsdvError

NAME_COLUMNS = ("file", "file_name", "filename", "video", "path", "name")
"""Columns or keys, in any case, that say which video a caption is for; the first of them that is there counts."""
TEXT_COLUMNS = ("caption", "text", "prompt")
"""Columns or keys that have the caption."""

# What cameras, phones and programs call a video: no word of it says what is to be seen.
_CAMERA = re.compile(
    r"(vid|img|dsc[nf]?|mvi|mov|gopr|g[xhp]|pxl|dji|mah|sam|wp|wa|clip|video|movie|untitled|output|download)?\d*[a-z]?",
    re.IGNORECASE,
)
_SCREEN = re.compile(r"(screen[ _-]?(recording|cast|capture)|whatsapp[ _-]?video|signal)\b.*\d", re.IGNORECASE)
# Numbers, dates, resolutions; hexadecimal hashes; ids of video sites, which mix digits into 11 letters.
_TAIL = re.compile(
    r"\d+(p|fps)?|\d+x\d+|[248]k|u?hd|wa\d+|(?=.*\d)[0-9a-f]{6,}|(?=\w*\d)(?=\w*[a-z])(?=\w*[A-Z])\w{11}", re.ASCII
)
_LONGEST = 4096  # bytes read of a text file: CLIP takes 77 tokens


def caption_from_name(name: str) -> str:
    """A caption from the name of a video (or of its folder of frames), empty if the name says nothing.

    `white_clouds-drifting 003.mp4` is "white clouds drifting"; `VID_20210304_120000.mp4` is "".
    """
    stem = re.sub(r"\.[A-Za-z][A-Za-z0-9]{1,4}$", "", name)
    if _SCREEN.match(stem):
        return ""
    words = re.sub(r"[\W_]+", " ", stem).split()
    if all(_CAMERA.fullmatch(word) for word in words):
        return ""
    while words and (_TAIL.fullmatch(words[-1]) or _TAIL.fullmatch(words[-1].lower())):
        words.pop()
    return "" if all(_CAMERA.fullmatch(word) for word in words) else " ".join(words)


def find_caption(video: Path, listed: Mapping[Path, str] = MappingProxyType({})) -> str:
    """The first paragraph of `clouds.txt` (or `clouds.mp4.txt`) beside clouds.mp4 in one line, else what is `listed`
    for it (see `read_caption_lists`), else from its name."""
    for sidecar in (video.with_suffix(".txt"), video.with_name(video.name + ".txt")):
        try:
            with sidecar.open("rb") as file:
                data = file.read(_LONGEST)
        except (OSError, ValueError):
            continue
        text = _decode(data, cut=len(data) == _LONGEST)
        lines = [line.strip() for line in text.strip().splitlines()]
        return " ".join(lines[: lines.index("")] if "" in lines else lines)
    return listed[video] if video in listed else caption_from_name(video.name)


@dataclass(frozen=True)
class CaptionLists:
    """What the lists of captions in a folder of videos say."""

    captions: dict[Path, str] = field(default_factory=dict)
    """By video; may be empty, which is a caption too: train without words."""
    unused: tuple[str, ...] = ()
    """A line about the rows of each list that caption no video."""


@dataclass(frozen=True)
class _Row:
    """A caption in a list."""

    line: int
    name: str
    caption: str


def read_caption_lists(videos: Path, sources: Sequence[Path]) -> CaptionLists:
    """Match the lists in `videos`, and in the folders of the `sources` below it, to the sources (absolute paths).

    A row names a video by its file name or by the last parts of its path, separated by / or \\, with or without the
    extension; case matters only between names that differ in nothing else. A list nearer to the video goes first, and
    captions.jsonl before captions.csv. A row without a caption (null, or no such key or cell) says nothing.

    Raises MsdvError, naming file and line, for a list that can't be read, two captions for one video in it, and a name
    that several videos have.
    """
    root = videos.resolve()
    alone = not root.is_dir()
    root = root.parent if alone else root
    folders = {root}
    for source in sources:
        folders.update(folder for folder in source.parents if folder.is_relative_to(root))
    captions: dict[Path, str] = {}
    unused: list[str] = []
    # The deepest first: what is nearer to a video is there before what is farther.
    for folder in sorted(folders, key=lambda folder: (-len(folder.parts), folder)):
        for path, read in _lists_in(folder):
            try:
                rows = list(read(path, _decode(path.read_bytes())))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise MsdvError(f"{path} can't be read ({reason}): mend or remove it") from error
            found, strangers = _match(path, rows, [source for source in sources if source.is_relative_to(folder)])
            captions = {**found, **captions}
            if strangers and not alone:  # for one video out of many, the rows of the others are no mistake
                unused.append(_describe(path, strangers))
    return CaptionLists(captions, tuple(unused))


def _lists_in(folder: Path) -> list[tuple[Path, Callable[[Path, str], Iterator[_Row]]]]:
    readers = {"captions.jsonl": _read_jsonl, "captions.csv": _read_csv}
    try:
        found = sorted(path for path in folder.iterdir() if path.name.lower() in readers and path.is_file())
    except OSError:  # prep says so of the folder
        return []
    return [(path, reader) for name, reader in readers.items() for path in found if path.name.lower() == name]


def _read_jsonl(path: Path, text: str) -> Iterator[_Row]:
    expected = 'expected a line such as {"file": "clouds.mp4", "caption": "white clouds"}'
    # Not splitlines: JSON's strings may hold other characters that Python takes for the end of a line.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            where = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise MsdvError(f"{path} line {number} is no JSON ({where}): {expected}") from error
        if not isinstance(row, dict):
            raise MsdvError(f"{path} line {number} is no JSON object: {expected}")
        cells = {_column(key): value for key, value in row.items()}
        name = next((cells[key] for key in NAME_COLUMNS if cells.get(key) is not None), None)
        if not isinstance(name, str) or not name.strip():
            raise MsdvError(f"{path} line {number} names no video (keys: {', '.join(row) or 'none'}): {expected}")
        caption = next((cells[key] for key in TEXT_COLUMNS if cells.get(key) is not None), None)
        if caption is None:
            if not any(key in cells for key in TEXT_COLUMNS):
                raise MsdvError(f"{path} line {number} has no caption (keys: {', '.join(row)}): {expected}")
            continue
        if not isinstance(caption, str):
            raise MsdvError(f"{path} line {number} has a caption that is no text: {expected}")
        yield _Row(number, name, _in_one_line(caption))


def _read_csv(path: Path, text: str) -> Iterator[_Row]:
    expected = "expected columns file,caption, or two columns without a header: the video's name and its caption"
    told = re.match(r"sep=(.)\r?\n", text)  # how spreadsheets are told the delimiter
    table = text[told.end() :] if told else text
    records = _records(path, table, told[1] if told else _delimiter(table), skipped=1 if told else 0)
    line, header = next(records, (0, []))
    if not header:
        return
    columns = [_column(cell) for cell in header]
    name = next((columns.index(known) for known in NAME_COLUMNS if known in columns), None)
    caption = next((columns.index(known) for known in TEXT_COLUMNS if known in columns), None)
    if name is not None and caption is not None:
        width = len(columns)
    elif len(header) == 2 and name is None and caption is None:
        name, caption, width = 0, 1, 2
        yield _Row(line, header[0], _in_one_line(header[1]))
    else:
        shown = ", ".join(cell[:40] for cell in header[:8])
        raise MsdvError(f"{path} line {line} ({shown}) has no usable columns: {expected}")
    for line, cells in records:
        if len(cells) > width:
            raise MsdvError(
                f"{path} line {line} has {len(cells)} columns instead of {width}:"
                ' a caption with commas in it needs quotes, as in clouds.mp4,"clouds, and a sea"'
            )
        if len(cells) <= name or not cells[name].strip():
            raise MsdvError(f"{path} line {line} names no video: {expected}")
        if len(cells) > caption:
            yield _Row(line, cells[name], _in_one_line(cells[caption]))


def _delimiter(text: str) -> str:
    """The one of , ; and tab that ends the first cell soonest: behind it, it may be a part of the caption."""
    cells = {}
    for delimiter in ",;\t":
        record = next((row for row in csv.reader(text[:_LONGEST].splitlines(), delimiter=delimiter) if any(row)), [""])
        if len(record) > 1:
            cells[delimiter] = len(record[0])
    return min(cells, key=lambda delimiter: cells[delimiter]) if cells else ","


def _records(path: Path, text: str, delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, without the empty cells at their end, with the number of their first line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    # Strict: a quote that is never closed would otherwise make one caption of the rest of the file.
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    width = 2
    while True:
        number = skipped + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise MsdvError(
                f"{path} line {number} is damaged ({error}): put a caption with quotes or commas in it into double"
                ' quotes, each quote in it written twice ("")'
            ) from error
        if cells is None:
            return
        while len(cells) > width and not cells[-1].strip():
            cells.pop()
        if any(cell.strip() for cell in cells):
            width = max(width, len(cells))
            yield number, cells


def _column(name: str) -> str:
    """`File name` is file_name."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _in_one_line(text: str) -> str:
    # Half a surrogate pair, which JSON can hold, is no text to any tokenizer.
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def _match(path: Path, rows: Sequence[_Row], videos: Sequence[Path]) -> tuple[dict[Path, str], list[_Row]]:
    """The captions of a list by video, and its rows that name no video."""
    by_last: dict[str, list[Path]] = defaultdict(list)
    for video in videos:
        name = _parts(video.as_posix())[-1]
        for last in {name.casefold(), PurePosixPath(name).stem.casefold()}:
            by_last[last].append(video)
    found: dict[Path, tuple[int, _Row]] = {}
    strangers = []
    for row in rows:
        parts = _parts(row.name)
        candidates = by_last.get(parts[-1].casefold(), []) if parts else []
        grades = {video: _grade(parts, video, path.parent) for video in candidates}
        best = min(grades.values(), default=_NO_MATCH)
        if best == _NO_MATCH:
            strangers.append(row)
            continue
        meant = [video for video, grade in grades.items() if grade == best]
        if len({video.parent for video in meant}) > 1:
            raise MsdvError(
                f"{path} line {row.line} could mean {meant[0]} or {meant[1]}: write the folder before {row.name}"
            )
        for video in meant:
            known = found.get(video)
            if known is None or best < known[0]:
                found[video] = (best, row)
            elif best == known[0] and row.caption != known[1].caption:
                raise MsdvError(
                    f"{path} has two captions for {video.name}, in lines {known[1].line} and {row.line}: remove one"
                )
    return {video: row.caption for video, (_, row) in found.items()}, strangers


_NO_MATCH = 8


def _grade(parts: Sequence[str], video: Path, folder: Path) -> int:
    """How well a row's path fits a video, 0 (as it is written in the folder of the list) to 8 (not at all)."""
    names = _parts(video.as_posix())
    in_folder = len(names) - len(video.relative_to(folder).parts)
    for without_suffix, last in enumerate((names[-1], PurePosixPath(names[-1]).stem)):
        tail = [*names[:-1], last][-len(parts) :]
        if [part.casefold() for part in tail] == [part.casefold() for part in parts]:
            elsewhere = len(names) - len(parts) not in (0, in_folder)
            return 4 * without_suffix + 2 * elsewhere + (tail != parts)
    return _NO_MATCH


def _parts(name: str) -> list[str]:
    """`.\\clips\\clouds.mp4` is clips, clouds.mp4."""
    normal = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    return [part for part in PurePosixPath(normal).parts if part != "."]


def _describe(path: Path, rows: Sequence[_Row]) -> str:
    named = ", ".join(f"line {row.line}: {_in_one_line(row.name)}" for row in rows[:3]) + (
        ", ..." if len(rows) > 3 else ""
    )
    count = "1 row names no video" if len(rows) == 1 else f"{len(rows):,} rows name no video"
    return f"{path}: {count} ({named})"


def _decode(data: bytes, *, cut: bool = False) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # what old Windows editors call Unicode
        return data.decode("utf-16", "replace")
    try:
        # What was cut may end within a character.
        return codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=not cut)
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")
