"""What a video starts from, off the disk: pictures, a mask, the end of another video.

Everything is scaled so that it covers the size wanted, and the centre is cut out, as prep does.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from msdv.data.clips import frame_files
from msdv.data.decode import VideoReader
from msdv.data.picture import PictureSettings
from msdv.data.selection import select_grid
from msdv.data.timeline import Timeline, read_timeline
from msdv.data.video import read_metadata
from msdv.errors import MsdvError, UsageError

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_PILLOW_FORMATS = (".gif", ".png", ".webp")
_FPS = 12.0
"""Frames shown per second where nothing says it: what sample takes."""


@dataclass(frozen=True)
class Placed:
    """A picture at a frame of the video."""

    frame: int | None
    """Counted from 0; None where none was named, which means the start."""
    path: Path
    picture: Image.Image
    """Upright, RGB, as large as it is."""
    option: str
    """As it was given, for messages."""

    @property
    def at(self) -> int:
        """The frame."""
        return self.frame or 0


def read_pictures(wishes: Sequence[str], frames: int) -> list[Placed]:
    """What `--image` was given, read, in the order of their frames; `frames` are those of the video.

    Raises UsageError for a file that does not exist or a frame that the video has not, or has twice; MsdvError for a
    picture that can't be read.
    """
    places: dict[int, Placed] = {}
    for wish in wishes:
        frame, path = place_of(wish)
        if not wish.strip():
            raise UsageError("--image: no file is named: give a picture, with a frame before it or not: 60:b.png")
        if not path.is_file():
            what = "that is a folder" if path.is_dir() else "there is no such file"
            raise UsageError(f"--image {wish}: {what}: give a picture, with a frame before it or not: 60:b.png")
        if frame is not None and not -frames <= frame < frames:
            raise UsageError(
                f"--image {wish}: the video has frames 0 to {frames - 1} (-1 is the last one): choose one of them, "
                "or raise --frames"
            )
        placed = Placed(None if frame is None else frame % frames, path, read_picture(path, "--image"), wish)
        if placed.at in places:
            raise UsageError(
                f"--image {wish}: frame {placed.at} has a picture already ({places[placed.at].option}): "
                "give one of them another frame"
            )
        places[placed.at] = placed
    return [places[frame] for frame in sorted(places)]


def place_of(wish: str) -> tuple[int | None, Path]:
    """The frame before a colon, if there is one, and the file: C:\\a.png has none."""
    match = re.fullmatch(r"(-?[0-9]{1,9}):(.+)", wish, re.DOTALL)
    # Such names are possible: what is there is meant, if it can't be meant otherwise.
    if not match or (Path(wish).is_file() and not Path(match[2]).is_file()):
        return None, Path(wish).expanduser()
    return int(match[1]), Path(match[2]).expanduser()


def read_picture(path: Path, option: str) -> Image.Image:
    """A picture of any mode, upright as its camera says, RGB. What it lets shine through is white.

    Raises MsdvError, with the option that named it, if it can't be read.
    """
    with _Opened(path, option) as image:
        return _rgb(image)


def read_mask(path: Path, picture: Placed) -> Image.Image:
    """A mask for a picture: L, white (255) or black (0), where it is brighter than middle grey or not. What lets shine
    through is black.

    Raises UsageError if there is no such file or its shape is not the picture's, MsdvError if it can't be read.
    """
    if not path.is_file():
        raise UsageError(f"--mask {path} does not exist: give a picture, white where the model is to paint")
    with _Opened(path, "--mask") as image:
        mask = _rgb(image, background=_BLACK).convert("L")
    if mask.size != picture.picture.size:
        raise UsageError(
            f"--mask {path} is {mask.width}x{mask.height}, {picture.path} {picture.picture.width}x"
            f"{picture.picture.height}: make the mask as large as the picture"
        )
    return mask.point(lambda grey: 255 if grey >= 128 else 0)


class _Opened:
    """A picture file; whatever Pillow makes of a broken one becomes a MsdvError."""

    def __init__(self, path: Path, option: str) -> None:
        self._path, self._option = path, option

    def __enter__(self) -> Image.Image:
        try:
            with warnings.catch_warnings():
                # What is large is no attack here; what is enormous stays an error.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                self._image = Image.open(self._path)
        except Exception as error:
            raise self._unreadable(error) from error
        try:
            self._image.load()
        except Exception as error:
            self._image.close()
            raise self._unreadable(error) from error
        return self._image

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._image.close()
        if isinstance(error, Exception):
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> MsdvError:
        why = "it is no picture" if isinstance(error, UnidentifiedImageError) else f"{error}".split("\n")[0]
        other = "another video" if self._option in ("--continue", "--video") else "a .png, .jpg or .webp"
        return MsdvError(f"{self._option} {self._path} can't be read ({why}): give {other}")


def _rgb(image: Image.Image, background: tuple[int, int, int] = _WHITE) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        over = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(over, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of numbers from 0 to 1: Pillow would cut off what is above 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    top = 65535.0 if image.mode.startswith("I") else 1.0 if values.max(initial=0) <= 1 else 255.0
    return Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))


def covering(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """The centre (height, width, 3), or (height, width) of a mask, uint8, of a picture scaled to cover it."""
    scale = max(width / picture.width, height / picture.height)
    if picture.size != (width, height):
        # The part that will be seen first: a panorama would become enormous.
        seen = min(picture.width, width / scale), min(picture.height, height / scale)
        left, top = (picture.width - seen[0]) / 2, (picture.height - seen[1]) / 2
        box = (left, top, left + seen[0], top + seen[1])
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(picture)


class Footage:
    """A video to go on with: any that prep reads, an animated picture, a folder of pictures."""

    def __init__(self, path: Path, option: str) -> None:
        """Look at it. `option` named it. Raises UsageError if there is no such file or folder, MsdvError if it can't be
        read."""
        self._path, self._option = path, option
        self._timeline: Timeline | None = None
        self._files: list[Path] = []
        if not path.exists():
            raise UsageError(f"{option} {path} does not exist: give a video, or a folder of pictures")
        self.fps = _FPS
        """Frames shown per second."""
        if path.is_dir():
            self._files = frame_files(path)
            self.count = len(self._files)
        elif path.suffix.lower() in _PILLOW_FORMATS:
            self.count, self.fps = self._look_at_animation()
        else:
            try:
                self._timeline = read_timeline(path)
            except MsdvError as error:
                raise self._unreadable(error) from error
            self.count, self.fps = len(self._timeline.times), _rate(self._timeline)
        said = self._said_rate() if self.count else None
        # Some formats round the times of frames.
        if said and (path.is_dir() or abs(said - self.fps) < 0.02 * said):
            self.fps = said
        if not self.count:
            raise MsdvError(f"{option} {path} has no frames: give a video, or a folder of pictures")

    def last(self, count: int, height: int, width: int) -> list[np.ndarray]:
        """Its last frames, `count` of them or as many as there are. Raises MsdvError where they can't be read."""
        found: list[np.ndarray] = []
        # The end of a recording is often damaged: the last that can be decoded count.
        for more in (count, count + 64):
            found = list(self.frames(height, width, first=max(0, self.count - more)))
            if len(found) >= min(count, self.count):
                break
        if not found:
            raise MsdvError(f"{self._option} {self._path} ends with frames that can't be decoded: cut it shorter")
        return found[-count:]

    def frames(self, height: int, width: int, *, first: int = 0) -> Iterator[np.ndarray]:
        """Its frames (height, width, 3), uint8, one after the other, from frame `first` on.

        Raises MsdvError where they can't be read.
        """
        if self._timeline is not None:
            reader = VideoReader(self._path, self._timeline, PictureSettings(width, height))
            frame: np.ndarray | None = None
            position = first
            try:
                for picture in reader.pictures(range(first, self.count)):
                    before, frame = frame, np.asarray(Image.open(io.BytesIO(picture.jpeg)))
                    # In the place of frames that can't be decoded the one before is shown on.
                    for _ in range(position, picture.index):
                        yield frame if before is None else before
                    position = picture.index + 1
                    yield frame
            except MsdvError as error:
                raise self._unreadable(error) from error
            if frame is not None:
                for _ in range(position, self.count):
                    yield frame
        elif self._files:
            for file in self._files[first:]:
                yield covering(read_picture(file, self._option), height, width)
        else:
            with _Opened(self._path, self._option) as image:
                for index in range(first, self.count):
                    image.seek(index)
                    yield covering(_rgb(image), height, width)

    def at_rate(self, fps: float) -> list[int]:
        """Which frames, in their order, are on display at times 1/fps s apart; all of them, where they are slower or
        have no times: a folder of pictures, and what msdv made, which shows each frame of its model for as long as one
        likes."""
        if self._files or str(read_metadata(self._path).get("tool", "")).startswith("msdv"):
            return list(range(self.count))
        if self._timeline is not None:
            times = self._timeline.times
            end = times[len(times) - 1] + 1 / Fraction(self.fps)
            grid = {"fps": Fraction(fps), "start": times[0], "tolerance": self._timeline.tolerance}
            return select_grid(times, end, **grid)
        count = min(self.count, math.ceil(self.count / self.fps * fps))
        return [min(self.count - 1, index * self.count // count) for index in range(count)]

    def some(self, indices: Sequence[int], height: int, width: int) -> Iterator[np.ndarray]:
        """The frames (height, width, 3), uint8, of these indices, which rise; one that can't be decoded is like the one
        before. Raises MsdvError where none can be."""
        if self._timeline is None:
            wanted = set(indices)
            yield from (frame for index, frame in enumerate(self.frames(height, width)) if index in wanted)
            return
        reader = VideoReader(self._path, self._timeline, PictureSettings(width, height))
        done = 0
        frame: np.ndarray | None = None
        try:
            for picture in reader.pictures(indices):
                before, frame = frame, np.asarray(Image.open(io.BytesIO(picture.jpeg)))
                while indices[done] < picture.index:
                    yield frame if before is None else before
                    done += 1
                yield frame
                done += 1
        except MsdvError as error:
            raise self._unreadable(error) from error
        if frame is None:
            raise MsdvError(f"{self._option} {self._path} has no frame that can be decoded: give another video")
        for _ in indices[done:]:
            yield frame

    def _said_rate(self) -> float | None:
        """Frames per second, of a video that msdv made, as it was told."""
        try:
            fps = read_metadata(self._path).get("fps")
        except MsdvError:
            return None
        return float(fps) if isinstance(fps, int | float) and 0 < fps <= 120 else None

    def _look_at_animation(self) -> tuple[int, float]:
        milliseconds = 0.0
        with _Opened(self._path, self._option) as image:
            count = getattr(image, "n_frames", 1)
            for index in range(count):
                image.seek(index)
                image.load()
                milliseconds += image.info.get("duration", 0)
        return count, min(120.0, count * 1000 / milliseconds) if milliseconds else _FPS

    def _unreadable(self, error: Exception) -> MsdvError:
        return MsdvError(f"{self._option} {self._path} can't be read ({error}): give another video")


def _rate(timeline: Timeline) -> float:
    """Frames per second: as the file has it, where its times agree."""
    guessed, times = float(timeline.guessed_rate), timeline.times
    if len(times) > 1 and times[len(times) - 1] > times[0]:
        measured = (len(times) - 1) / float(times[len(times) - 1] - times[0])
        guessed = guessed if abs(guessed - measured) < 0.02 * measured else measured
    return min(120.0, max(0.1, guessed))
