"""Clips at a glance: the first, middle and last frame of each, its name, its numbers and what there is to say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from msdv.files import write_file

Box = tuple[float, float, float, float]
_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_MOST_CLIPS = 150  # 50 rows of 3: a page of about 1,200 x 9,000 pixels
_AREA = 124**2  # pixels of a picture, whatever its shape
_WIDEST = 2.0  # shapes beyond that, in either direction, get margins
_COLUMNS = (4, 3)  # at most: of tall pictures, of others
_GAP = 4  # pixels between the pictures of a clip
_MARGIN = 16
_LINE = 17
_TEXT = 13
_HEADING = 16
_PAGE, _EMPTY, _INK, _GREY, _MARK = "#ffffff", "#e9e9ec", "#1b1b1f", "#77777f", "#d81e1e"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for bad files


@dataclass(frozen=True)
class Tile:
    """A clip on the sheet."""

    folder: Path
    frames: str | None = None
    """Beside the name, as "25 frames"; None counts the pictures in the folder."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Numbers by their names, written below the pictures in this order."""
    remark: str = ""
    """A line in red: "duplicate of a.mp4", "a still overlay"."""
    box: Box | None = None
    """A part of the picture to outline in red: left, top, right, bottom as shares of its width and height."""


def write_contact_sheet(path: Path, tiles: Sequence[Tile | Path], order: str = "name") -> None:
    """Write a JPEG with a tile a clip (a folder is a tile with nothing but its name), in the order given.

    `order` says in the heading what that order is by, as "motion" or "motion, least first"; the score of that name
    stands out. Of more than 150 clips, 150
    evenly spaced ones are shown, the first and the last among them, and the page says so. Frames that can't be read
    are grey: that is no error, the sheet is to look at, not to rely on.
    """
    count = min(len(tiles), _MOST_CLIPS)
    chosen = [tiles[round(i * (len(tiles) - 1) / max(1, count - 1))] for i in range(count)]
    shown = [tile if isinstance(tile, Tile) else Tile(tile) for tile in chosen]
    files = [_find_frames(tile.folder) for tile in shown]
    width, height = _picture_size([of_clip[len(of_clip) // 2] for of_clip in files if of_clip])
    tile_width = 3 * width + 2 * _GAP
    columns = max(1, min(_COLUMNS[width >= height], len(shown)))
    font, heading = ImageFont.load_default(_TEXT), ImageFont.load_default(_HEADING)
    rows = [slice(start, start + columns) for start in range(0, len(shown), columns)]
    heights = [height + _LINE * max(_lines(tile) for tile in shown[row]) + _MARGIN for row in rows]

    top = _MARGIN + _HEADING + _MARGIN
    sheet = Image.new("RGB", (columns * (tile_width + _MARGIN) + _MARGIN, top + sum(heights)), _PAGE)
    draw = ImageDraw.Draw(sheet)
    title = f"{count} of {len(tiles):,} clips" if count < len(tiles) else f"{count} clip" + "s" * (count != 1)
    _write(draw, (_MARGIN, _MARGIN - 4), title, heading, _INK, sheet.width - 2 * _MARGIN)
    used = draw.textlength(title, font=heading)
    more = (f"by {order}; " if len(tiles) > 1 else "") + "first, middle and last frame"
    _write(draw, (_MARGIN + used + 12, _MARGIN - 2), more, font, _GREY, sheet.width - 2 * _MARGIN - used - 12)
    for row, row_height in zip(rows, heights, strict=True):
        for column, (tile, pictures) in enumerate(zip(shown[row], files[row], strict=True)):
            left = _MARGIN + column * (tile_width + _MARGIN)
            _draw_pictures(sheet, (left, top), (width, height), pictures, tile.box)
            _draw_text(draw, (left, top + height + 3), tile_width, tile, len(pictures), order, font)
        top += row_height
    with write_file(path) as temporary:
        sheet.save(temporary, quality=88)


def _find_frames(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    except OSError:
        return []


def _picture_size(files: Sequence[Path]) -> tuple[int, int]:
    """Width and height to show pictures in: of the shape that most of them have."""
    shapes = []
    for file in files:
        try:
            with Image.open(file) as image:
                shapes.append(image.width / image.height)
        except _BROKEN:
            continue
    shape = sorted(shapes)[len(shapes) // 2] if shapes else 1.0
    shape = min(_WIDEST, max(1 / _WIDEST, shape))
    return round((_AREA * shape) ** 0.5), round((_AREA / shape) ** 0.5)


def _lines(tile: Tile) -> int:
    return 1 + bool(tile.scores) + bool(tile.remark)


def _draw_pictures(
    sheet: Image.Image, place: tuple[int, int], size: tuple[int, int], files: Sequence[Path], box: Box | None
) -> None:
    draw = ImageDraw.Draw(sheet)
    for index, chosen in enumerate((0, len(files) // 2, len(files) - 1)):
        left, top = place[0] + index * (size[0] + _GAP), place[1]
        picture = _read_picture(files[chosen], size) if files else None
        if picture is None or picture.size != size:
            draw.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), fill=_EMPTY)
        if picture is None:
            continue
        left += (size[0] - picture.width) // 2
        top += (size[1] - picture.height) // 2
        sheet.paste(picture, (left, top))
        if box is not None and index == 1:
            _draw_box(draw, (left, top), picture.size, box)


def _read_picture(path: Path, size: tuple[int, int]) -> Image.Image | None:
    """The whole picture, as large as fits."""
    try:
        with Image.open(path) as image:
            scale = min(size[0] / image.width, size[1] / image.height)
            # A pixel of difference is rounding: no margin for it.
            fitted = [round(side * scale) for side in image.size]
            fitted = [full if abs(full - side) < 2 else max(1, side) for full, side in zip(size, fitted, strict=True)]
            image.draft("RGB", (2 * fitted[0], 2 * fitted[1]))
            return image.convert("RGB").resize((fitted[0], fitted[1]), Image.Resampling.BICUBIC)
    except _BROKEN:
        return None


def _draw_box(draw: ImageDraw.ImageDraw, place: tuple[int, int], size: tuple[int, int], box: Box) -> None:
    """An outline around the part, a pixel of white around it so that it is seen on red as well."""
    corners = []
    for axis in (0, 1):
        low, high = sorted((box[axis], box[axis + 2]))
        # Outside of what it shows, inside the picture, and never too small to be seen.
        start = min(max(0, round(low * size[axis]) - 3), size[axis] - 8)
        end = max(min(size[axis], round(high * size[axis]) + 3), start + 8)
        corners.append((place[axis] + max(0, start), place[axis] + min(size[axis], end) - 1))
    (left, right), (top, bottom) = corners
    draw.rectangle((left, top, right, bottom), outline="white", width=1)
    draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=_MARK, width=2)


def _draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], width: int, tile: Tile, frames: int, order: str, font: _Font
) -> None:
    left, top = place
    label = tile.frames if tile.frames is not None else f"{frames:,} frame" + "s" * (frames != 1)
    label = _printable(label)
    room = width - draw.textlength(label, font=font)
    draw.text((left + room, top), label, fill=_GREY, font=font)
    _write(draw, (left, top), tile.folder.name, font, _INK, room - 10)
    x: float = left
    for name, value in tile.scores.items():
        text = f"{name} {value:.3g}" if abs(value) < 100 else f"{name} {value:,.0f}"
        _write(draw, (x, top + _LINE), text, font, _INK if name == order.split(",")[0] else _GREY, left + width - x)
        x += draw.textlength(_printable(text), font=font) + 14
    if tile.remark:
        _write(draw, (left, top + _LINE * (1 + bool(tile.scores))), tile.remark, font, _MARK, width)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, font: _Font, colour: str, room: float
) -> None:
    """A line of text, its middle left out where it is too long."""
    text = _printable(text)
    half = len(text) // 2
    fitted = text
    while half > 2 and draw.textlength(fitted, font=font) > room:
        fitted = f"{text[:half]}...{text[-half:]}"
        half -= 1
    if draw.textlength(fitted, font=font) <= room:
        draw.text(place, fitted, fill=colour, font=font)


def _printable(text: str) -> str:
    """Control characters and the like as question marks."""
    return "".join(c if c.isprintable() else "?" for c in text)
