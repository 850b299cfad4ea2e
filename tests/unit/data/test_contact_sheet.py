from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msdv.data import contact_sheet
from msdv.data.contact_sheet import Tile, write_contact_sheet

GREEN, BLUE = (0, 160, 60), (20, 40, 200)


def make_clip(folder: Path, size: tuple[int, int] = (64, 64), frames: int = 3, colour: object = GREEN) -> Path:
    folder.mkdir(parents=True)
    for number in range(1, frames + 1):
        Image.new("RGB", size, colour).save(folder / f"{number:06d}.png")
    return folder


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def close_to(sheet: np.ndarray, colour: tuple[int, int, int], within: int = 40) -> np.ndarray:
    return (np.abs(sheet - colour) < within).all(-1)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """left, top, right, bottom of where it is true."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on the sheet."""
    written: list[str] = []
    text = contact_sheet.ImageDraw.ImageDraw.text

    def record(self, place, string, *args, **kwargs):
        written.append(string)
        return text(self, place, string, *args, **kwargs)

    monkeypatch.setattr(contact_sheet.ImageDraw.ImageDraw, "text", record)
    return written


def test_plain_folders(tmp_path: Path, texts: list[str]) -> None:
    write_contact_sheet(
        tmp_path / "sheet.jpg", [make_clip(tmp_path / "a.mp4"), make_clip(tmp_path / "b.mp4", frames=1)]
    )
    assert {"2 clips", "a.mp4", "b.mp4", "3 frames", "1 frame"} <= set(texts)
    assert "by name; first, middle and last frame" in texts


def test_what_a_tile_says(tmp_path: Path, texts: list[str]) -> None:
    scores = {"motion": 1.234, "flicker": 0.0, "sharpness": 61.3}
    folder = make_clip(tmp_path / "a.mp4")
    tiles = [Tile(folder, "25 frames", scores, "duplicate of b.mp4"), Tile(folder)]
    write_contact_sheet(tmp_path / "sheet.jpg", tiles, "motion, least first")
    assert {"a.mp4", "25 frames", "motion 1.23", "flicker 0", "sharpness 61.3", "duplicate of b.mp4"} <= set(texts)
    assert any("by motion, least first" in text for text in texts)


@pytest.mark.parametrize("size", [(768, 512), (512, 896), (512, 512), (896, 512)])
def test_pictures_are_whole_and_keep_their_shape(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = tmp_path / "a.mp4"
    folder.mkdir()
    picture = Image.new("RGB", size, BLUE)
    picture.paste(GREEN, (8, 8, size[0] - 8, size[1] - 8))
    picture.save(folder / "000001.png")
    write_contact_sheet(tmp_path / "sheet.png", [folder])
    sheet = read(tmp_path / "sheet.png")
    left, top, right, bottom = extent(close_to(sheet, GREEN) | close_to(sheet, BLUE, 60))
    width = (right - left - 2 * contact_sheet._GAP) / 3
    assert width / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.03)
    # All four edges of it are there.
    edge = close_to(sheet, BLUE, 60)
    assert edge[top + 20, left] and edge[top + 20, right - 1] and edge[top, left + 20] and edge[bottom - 1, left + 20]


def test_mixed_shapes_are_whole(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path / str(index)) for index in range(3)]
    clips.append(make_clip(tmp_path / "wide", (120, 40), colour=BLUE))
    write_contact_sheet(tmp_path / "sheet.png", clips)
    left, top, right, bottom = extent(close_to(read(tmp_path / "sheet.png"), BLUE, 5))
    assert (right - left - 2 * contact_sheet._GAP) / 3 / (bottom - top) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("box", [(0.5, 0.25, 0.75, 0.5), (0.0, 0.0, 0.01, 0.01), (0.98, 0.97, 1.0, 1.0)])
def test_box_is_on_the_middle_picture(tmp_path: Path, box: tuple[float, float, float, float]) -> None:
    write_contact_sheet(tmp_path / "sheet.png", [Tile(make_clip(tmp_path / "a", (300, 200)), box=box)])
    sheet = read(tmp_path / "sheet.png")
    left, top, right, bottom = extent(close_to(sheet, GREEN))
    width, height = (right - left - 2 * contact_sheet._GAP) / 3, bottom - top
    middle = left + width + contact_sheet._GAP
    found = extent(close_to(sheet, (216, 30, 30), 20))
    assert middle <= found[0] < found[2] <= middle + width and top <= found[1] < found[3] <= bottom
    assert found[2] - found[0] >= 6 and found[3] - found[1] >= 6
    for axis, (size, start) in enumerate(((width, middle), (height, top))):
        assert found[axis] == pytest.approx(start + box[axis] * size, abs=8)
        assert found[axis + 2] == pytest.approx(start + box[axis + 2] * size, abs=8)
    write_contact_sheet(tmp_path / "none.png", [tmp_path / "a"])
    assert not close_to(read(tmp_path / "none.png"), (216, 30, 30), 20).any()


def test_150_of_many_with_both_ends(tmp_path: Path, texts: list[str]) -> None:
    folders = [tmp_path / f"clip{index}" for index in range(1000)]
    write_contact_sheet(tmp_path / "sheet.jpg", folders)
    names = [text for text in texts if text.startswith("clip")]
    assert "150 of 1,000 clips" in texts
    assert len(names) == 150 and names[0] == "clip0" and names[-1] == "clip999"
    steps = np.diff([int(name[4:]) for name in names])
    assert steps.min() >= 6 and steps.max() <= 7


def test_unreadable_frames_and_odd_names(tmp_path: Path, texts: list[str]) -> None:
    broken = make_clip(tmp_path / "broken")
    for file in broken.iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "000001.jpg").write_text("not a picture")
    long = make_clip(tmp_path / ("a long name " * 12))
    tiles = [broken, tmp_path / "text", tmp_path / "gone", Path("line\nbreak\udcff.mp4"), long]
    write_contact_sheet(tmp_path / "sheet.jpg", [*tiles, Tile(long, remark="r" * 500)])
    assert {"broken", "text", "gone", "line?break?.mp4"} <= set(texts)
    assert sum("..." in text for text in texts) == 3


def test_no_clips(tmp_path: Path, texts: list[str]) -> None:
    write_contact_sheet(tmp_path / "sheet.jpg", [])
    assert "0 clips" in texts
