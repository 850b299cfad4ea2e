"""One clip of a folder of frames: whether its pictures can be decoded, what is odd about it, what training does with
it."""

import hashlib
import json
import re
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from msdv.console import plain
from msdv.data.captions import caption_from_name
from msdv.data.clips import VIDEO_SUFFIXES, frame_files
from msdv.data.manifest import RECORD, Row
from msdv.data.sources import is_picture
from msdv.files import is_unfinished

Fate = Literal["trains", "left out", "stops training"]

DEFAULT_FPS = 5.0
"""What training takes for the frames per second of a clip, where the manifest does not say it."""
_MOST_TOKENS = 77  # of CLIP's text encoder, with the two that mark start and end
_VOCABULARY = Path(__file__).parents[1] / "configs" / "tokenizer" / "vocab.json"
_TOO_SMALL = 64  # pixels: a latent of 8x8, in which nothing is to be seen
_THUMBNAIL = 64  # pixels: JPEG decodes to it in less than half the time, and fails at the same damages
_AHEAD = 64  # pictures decoded before they are asked for


@dataclass(frozen=True)
class ClipAudit:
    """What was found in the folder of a clip."""

    name: str
    frames: int
    """Files that training takes for its frames."""
    fate: Fate
    reason: str
    """In words: what training does with the clip."""
    problems: tuple[str, ...]
    """What else should be known of it."""
    caption: str
    """What training takes for its caption."""
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of its pictures, most frequent first; empty if none could be decoded."""
    digest: bytes
    """Of all its pictures, decoded; empty where one can't be."""
    unread: tuple[str, ...]
    """Names of what else lies in the folder, hidden files aside."""
    hidden: int
    """Number of hidden files that are no frames."""

    def line(self) -> str:
        """The clip in one line."""
        what = self.reason if self.fate == "trains" else f"{self.fate}: {self.reason}"
        return plain("; ".join([f"{self.name}: {what}", *self.problems]))


def audit_clip(folder: Path, row: Row, clip_frames: int, decoders: Executor, tick: Callable[[], None]) -> ClipAudit:
    """Decode all pictures of a clip, which the manifest's `row` (empty if there is none) is about.

    `decoders` is an executor of threads; `tick` is called once a picture.
    """
    caption = str(row["caption"]) if row.get("caption") is not None else caption_from_name(folder.name)
    try:
        files = frame_files(folder)
        others = sorted(path for path in folder.iterdir() if path not in set(files) and path.name != RECORD)
    except OSError as error:
        reason = f"can't be read ({reason_of(error)})"
        return ClipAudit(folder.name, 0, "stops training", reason, (), caption, (), b"", (), 0)
    pictures = _Pictures()
    for file, look in zip(files, _look_at_all(files, decoders), strict=True):
        pictures.add(file, look)
        tick()
    unfinished = sum(map(is_unfinished, others))
    visible = [path for path in others if not is_hidden(path)]
    fate, reason = _fate(len(files), pictures, clip_frames)
    problems = [and_more(pictures.broken)] if pictures.broken and fate == "left out" else []
    problems += [*_about_numbers(files), *pictures.problems(), *_about_others(visible, len(files))]
    if unfinished:
        problems.append(f"{count_of(unfinished, 'unfinished file')} of a killed run")
    problems += _about_row(row, len(files))
    if (tokens := count_tokens(caption)) > _MOST_TOKENS:
        problems.append(f"a caption of about {tokens} tokens: training reads the first {_MOST_TOKENS}")
    return ClipAudit(
        folder.name,
        len(files),
        fate,
        reason,
        tuple(problems),
        caption,
        tuple(size for size, _ in pictures.sizes.most_common()),
        b"" if pictures.broken or not files else pictures.digest.digest(),
        tuple(path.name + "/" if path.is_dir() else path.name for path in visible),
        len(others) - len(visible) - unfinished,
    )


def _fate(count: int, pictures: "_Pictures", clip_frames: int) -> tuple[Fate, str]:
    if count < clip_frames:
        return "left out", f"{count_of(count, 'frame')}, --frames {clip_frames} needs {clip_frames}"
    if pictures.broken:
        return "stops training", and_more(pictures.broken)
    places = count_of(count - clip_frames + 1, "place")
    return "trains", f"{clip_frames} of {count:,} frames at a time: {places} to start"


@dataclass(frozen=True)
class _Look:
    """What decoding a picture gave."""

    size: tuple[int, int] | None
    digest: bytes = b""
    problem: str | None = None


def _look(path: Path) -> _Look:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may never end
            return _Look(None, problem="is not a file")
        with Image.open(path) as image:
            size = image.size
            # As training does it, in small: all of the file is read and decoded.
            image.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
            pixels = image.convert("RGB").tobytes()
    except Exception as error:  # decoders raise all kinds, and training stops at each
        return _Look(None, problem=f"can't be decoded ({reason_of(error)})")
    return _Look(size, hashlib.blake2b(pixels + repr(size).encode(), digest_size=16).digest())


def _look_at_all(files: Sequence[Path], decoders: Executor) -> Iterator[_Look]:
    """In order; decoding runs outside of Python's lock. Few are held at a time, however long the clip is."""
    running: deque[Future[_Look]] = deque()
    for file in files:
        running.append(decoders.submit(_look, file))
        if len(running) > _AHEAD:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


@dataclass
class _Pictures:
    """What the pictures of a clip are, added up."""

    broken: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    repeated: int = 0
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    _last: bytes = b""

    def add(self, file: Path, look: _Look) -> None:
        """The next picture of the clip."""
        if look.problem:
            self.broken.append(f"{file.name} {look.problem}")
        if look.size:
            self.sizes[look.size] += 1
            self.repeated += look.digest == self._last
        self._last = look.digest
        self.digest.update(look.digest)

    def problems(self) -> list[str]:
        """What is odd about them."""
        problems = []
        if self.repeated and self.repeated == self.sizes.total() - 1:
            problems.append("all its frames are the same: nothing moves")
        elif self.repeated:
            are = "frame is" if self.repeated == 1 else "frames are"
            problems.append(f"{self.repeated:,} {are} the same as the one before")
        sizes = [f"{width}x{height}" for (width, height), _ in self.sizes.most_common()]
        if len(sizes) > 1:
            problems.append(
                f"pictures of {len(sizes)} sizes ({and_more(sizes, 3)}): training cuts each square from its own centre"
            )
        smallest = min((min(size) for size in self.sizes), default=_TOO_SMALL)
        if smallest < _TOO_SMALL:
            problems.append(f"pictures of only {count_of(smallest, 'pixel')}")
        return problems


def _about_numbers(files: Sequence[Path]) -> list[str]:
    """Gaps and the like: training takes the frames in the order of their names, as if nothing were missing."""
    problems: list[str] = []
    matches = [(file.name, re.fullmatch(r"(.*?)(\d+)", file.stem, re.DOTALL)) for file in files]
    kinds = Counter(match[1] for _, match in matches if match)
    if not kinds:
        return problems
    kind = kinds.most_common(1)[0][0]
    numbers = [int(match[2]) for _, match in matches if match and match[1] == kind]
    strangers = [name for name, match in matches if not match or match[1] != kind]
    if strangers and len(strangers) < len(numbers):
        problems.append(f"taken for a frame, though not numbered like the others: {and_more(strangers)}")
    ordered = sorted(numbers)
    if numbers != ordered:
        problems.append("the names are not in the order of their numbers: give all numbers the same length")
    twice = [a for a, b in pairwise(ordered) if a == b]
    if twice:
        problems.append(f"several pictures have the same number ({and_more([str(number) for number in twice])})")
    gaps = [f"{a} to {b}" for a, b in pairwise(ordered) if b > a + 1]
    if gaps:
        missing = sum(b - a - 1 for a, b in pairwise(ordered) if b > a + 1)
        problems.append(f"{count_of(missing, 'number')} missing, what is seen jumps there ({and_more(gaps)})")
    return problems


def _about_others(others: Sequence[Path], frames: int) -> list[str]:
    problems: list[str] = []
    kinds = Counter(path.suffix.lower() for path in others if is_picture(path))
    if kinds:
        problems.append(f"{count_of(kinds.total(), 'picture')} that training does not read ({', '.join(kinds)})")
    videos = [path.name for path in others if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos and not frames:
        problems.append(f"holds a video ({and_more(videos)}), of which msdv prep makes frames")
    return problems


def _about_row(row: Row, count: int) -> list[str]:
    problems: list[str] = []
    said = row.get("frames")
    if isinstance(said, int) and said != count:
        problems.append(f"the manifest says {count_of(said, 'frame')}")
    if not isinstance(row.get("caption"), str | None):
        problems.append("its caption in the manifest is no text")
    if row.get("fps") is not None and rate_of(row) is None:
        problems.append(f"its fps in the manifest is {str(row['fps'])[:20]}: training takes {DEFAULT_FPS:g} for it")
    return problems


def rate_of(row: Row) -> float | None:
    """Frames per second in a row of the manifest, if training can use them."""
    fps = row.get("fps")
    return float(fps) if isinstance(fps, int | float) and fps > 0 else None


@cache
def _vocabulary() -> frozenset[str]:
    return frozenset(json.loads(_VOCABULARY.read_text(encoding="utf-8")))


def count_tokens(caption: str) -> int:
    """About how many tokens CLIP makes of a caption: each word cut into the longest known pieces, from its start."""
    if len(caption.encode("utf-8", "replace")) + 2 <= _MOST_TOKENS:
        return 2 + len(caption.split())  # as good as any number: it fits
    vocabulary = _vocabulary()
    tokens = 2.0
    for word in re.findall(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|(?:[^\w\s]|_)+", caption.lower()):
        if not word.isascii():
            # Pieces of bytes: a Chinese character is mostly two, a letter with an accent one.
            tokens += sum(2 if c > "\u2000" else 0.35 if c.isascii() else 1 for c in word)
            continue
        rest = word + "</w>"
        while rest and rest != "</w>":
            length = next((n for n in range(len(rest), 1, -1) if rest[:n] in vocabulary), 1)
            tokens, rest = tokens + 1, rest[length:]
    return round(tokens)


def is_hidden(path: Path) -> bool:
    """Whether a file is one that systems put everywhere, or hide."""
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini")


def reason_of(error: BaseException) -> str:
    """What an error says, as a part of a sentence."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    said = said or type(error).__name__
    return "no picture" if said.startswith("cannot identify image file") else said[:1].lower() + said[1:]


def and_more(names: Sequence[str], shown: int = 1) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest:,} more" if rest > 0 else "")


def count_of(number: int, thing: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")
