"""All clips at a glance: the first, middle and last frame of each, its name and its number of frames."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from msdv.files import write_file

_THUMBNAIL = 112  # pixels
_TEXT = 20
_MARGIN = 10
_COLUMNS = 3
_MOST_CLIPS = 150  # 50 rows: a page of 1,100 x 7,000 pixels


def write_contact_sheet(path: Path, folders: Sequence[Path]) -> None:
    """Write a JPEG with a tile a clip. Of more than 150 clips, 150 evenly spaced ones are shown, and the page says so.

    Frames that can't be read stay empty. Raises nothing for that: the sheet is to look at, not to rely on.
    """
    count = min(len(folders), _MOST_CLIPS)
    shown = [folders[i * len(folders) // count] for i in range(count)]
    columns = min(_COLUMNS, max(1, len(shown)))
    tile_width, tile_height = 3 * _THUMBNAIL + _MARGIN, _THUMBNAIL + _TEXT + _MARGIN
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * tile_width + _MARGIN, rows * tile_height + _TEXT + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    part = f"{len(shown)} of {len(folders)} clips: " if len(shown) < len(folders) else ""
    draw.text((_MARGIN, 6), f"{part}first, middle and last frame", fill="black", font=font)
    for position, folder in enumerate(shown):
        left = _MARGIN + position % columns * tile_width
        top = _TEXT + _MARGIN + position // columns * tile_height
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for place, index in enumerate((0, len(files) // 2, len(files) - 1)):
            thumbnail = _thumbnail(files[index]) if files else None
            if thumbnail:
                sheet.paste(thumbnail, (left + place * _THUMBNAIL, top))
        label = f"  {len(files)} frames"
        room = 3 * _THUMBNAIL - draw.textlength(label, font=font)
        draw.text((left, top + _THUMBNAIL + 2), _fit(draw, folder.name, room, font) + label, fill="black", font=font)
    with write_file(path) as temporary:
        sheet.save(temporary, quality=88)


def _thumbnail(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
            return ImageOps.fit(image.convert("RGB"), (_THUMBNAIL, _THUMBNAIL), Image.Resampling.BICUBIC)
    except (OSError, ValueError):
        return None


def _fit(draw: ImageDraw.ImageDraw, text: str, width: float, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The name, its middle left out where it is too long; control characters and the like as boxes would be."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if draw.textlength(text, font=font) <= width:
        return text
    half = len(text) // 2
    while half > 2 and draw.textlength(f"{text[:half]}...{text[-half:]}", font=font) > width:
        half -= 1
    return f"{text[:half]}...{text[-half:]}"
