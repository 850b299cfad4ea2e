from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msdv.data.clips import read_frames
from msdv.data.start import Footage, covering, place_of, read_mask, read_picture, read_pictures
from msdv.data.video import write_video
from msdv.errors import MsdvError, UsageError


def picture(path: Path, width: int = 24, height: int = 16, mode: str = "RGB", **saving: object) -> Path:
    """Red on the left, blue on the right, smooth in between."""
    across = np.linspace(255, 0, width).round().astype(np.uint8)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = across, across[::-1]
    Image.fromarray(pixels).convert(mode).save(path, **saving)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("a.png", (None, "a.png")),
        ("60:a.png", (60, "a.png")),
        ("-1:a.png", (-1, "a.png")),
        ("0:C:\\a.png", (0, "C:\\a.png")),
        ("C:\\a.png", (None, "C:\\a.png")),
        ("C:/a.png", (None, "C:/a.png")),
        ("b:a.png", (None, "b:a.png")),
        ("6:", (None, "6:")),
    ],
)
def test_a_number_before_a_colon_is_a_frame_and_a_letter_is_a_drive(
    wish: str, expected: tuple[int | None, str]
) -> None:
    assert place_of(wish) == (expected[0], Path(expected[1]))


def test_a_file_whose_name_looks_like_a_frame_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "7:a.png")
    assert place_of("7:a.png") == (None, Path("7:a.png"))
    picture(tmp_path / "a.png")
    assert place_of("7:a.png") == (7, Path("a.png"))


def test_pictures_come_in_the_order_of_their_frames_counted_from_either_end(tmp_path: Path) -> None:
    a, b = picture(tmp_path / "a.png"), picture(tmp_path / "b.jpg")
    placed = read_pictures([f"-1:{b}", f"4:{a}", str(b)], 9)
    assert [(p.at, p.frame, p.path) for p in placed] == [(0, None, b), (4, 4, a), (8, 8, b)]


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (["9:{a}"], "--image 9:{a}: the video has frames 0 to 8 (-1 is the last one): choose one of them, or raise"),
        (["-10:{a}"], "--image -10:{a}: the video has frames 0 to 8"),
        (["{a}", "-9:{b}"], "--image -9:{b}: frame 0 has a picture already ({a}): give one of them another frame"),
        (["{a}.gone"], "--image {a}.gone: there is no such file: give a picture, with a frame before it or not: 60:b"),
        (["3:{folder}"], "--image 3:{folder}: that is a folder: give a picture"),
    ],
)
def test_places_that_cannot_be_meant(tmp_path: Path, wishes: list[str], words: str) -> None:
    names = {"a": picture(tmp_path / "a.png"), "b": picture(tmp_path / "b.png"), "folder": tmp_path}
    with pytest.raises(UsageError) as caught:
        read_pictures([wish.format(**names) for wish in wishes], 9)
    assert words.format(**names) in str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "F"])
def test_pictures_of_any_mode_are_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / {"CMYK": "a.jpg", "YCbCr": "a.jpg", "F": "a.tiff"}.get(mode, "a.png")
    if mode in ("I;16", "F"):
        grey = np.linspace(0, 1, 16)[None].repeat(16, 0)
        Image.fromarray((grey * 65535).astype(np.uint16) if mode == "I;16" else grey.astype(np.float32)).save(path)
        expected = (grey[..., None] * 255).repeat(3, -1)
    else:
        picture(path, mode=mode, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}))
        expected = np.asarray(Image.open(path).convert("RGB")).astype(float)
    read = read_picture(path, "--image")
    assert read.mode == "RGB"
    assert np.abs(np.asarray(read) - expected).max() <= 1


def test_what_shines_through_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.new("P", (4, 4), 0).save(tmp_path / "b.png", transparency=0)
    read = np.asarray(read_picture(tmp_path / "a.png", "--image"))
    assert (read[:2] == 0).all()
    assert (read[2:] == 255).all()
    assert (np.asarray(read_picture(tmp_path / "b.png", "--image")) == 255).all()


def test_a_picture_stands_upright_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise
    picture(tmp_path / "a.jpg", 24, 16, exif=exif)
    read = read_picture(tmp_path / "a.jpg", "--image")
    assert read.size == (16, 24)
    assert read.getpixel((8, 2))[0] > 200  # type: ignore[index]


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_an_unreadable_picture_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture(path).read_bytes()[:60] if content is None else content)
    with pytest.raises(MsdvError, match=r"^--image .*a.png can't be read \(.*\): give a .png, .jpg or .webp$"):
        read_picture(path, "--image")


def test_masks_are_black_and_white_and_of_the_shape_of_their_picture(tmp_path: Path) -> None:
    (placed,) = read_pictures([str(picture(tmp_path / "a.png", 6, 4))], 1)
    grey = np.array([[0, 100, 127, 128, 200, 255]] * 4, np.uint8)
    Image.fromarray(grey).save(tmp_path / "m.png")
    mask = np.asarray(read_mask(tmp_path / "m.png", placed))
    assert mask[0].tolist() == [0, 0, 0, 255, 255, 255]
    picture(tmp_path / "n.png", 6, 5)
    with pytest.raises(UsageError, match=r"n.png is 6x5, .*a.png 6x4: make the mask as large as the picture"):
        read_mask(tmp_path / "n.png", placed)
    with pytest.raises(UsageError, match=r"--mask gone.png does not exist"):
        read_mask(Path("gone.png"), placed)


@pytest.mark.parametrize("size", [(24, 16), (16, 24), (64, 16), (300, 20), (16, 16), (5, 3)])
def test_the_centre_is_cut_out_as_training_does_it(tmp_path: Path, size: tuple[int, int]) -> None:
    path = picture(tmp_path / "a.png", *size)
    cut = covering(read_picture(path, "--image"), 16, 16)
    assert cut.shape == (16, 16, 3)
    assert np.abs(cut.astype(int) - read_frames([path], 16)[0]).max() < 12
    assert covering(read_picture(path, "--image"), 8, 40).shape == (8, 40, 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.png", "a.webp", "folder"])
def test_footage_of_every_kind_gives_its_frames_and_its_rate(tmp_path: Path, name: str) -> None:
    shades = [40, 80, 120, 160, 200]
    frames = [np.full((32, 48, 3), shade, np.uint8) for shade in shades]
    write_video(tmp_path / name, frames, fps=6, metadata={"fps": 6})
    footage = Footage(tmp_path / name, "--continue")
    assert (footage.count, footage.fps) == (5, 6)
    read = list(footage.frames(16, 16))
    assert [frame.shape for frame in read] == [(16, 16, 3)] * 5
    assert [int(frame.mean()) for frame in read] == pytest.approx(shades, abs=3)
    assert [int(frame.mean()) for frame in footage.last(2, 16, 16)] == pytest.approx([160, 200], abs=3)
    assert len(footage.last(9, 16, 16)) == 5


def test_rates_of_others_are_measured(tmp_path: Path) -> None:
    write_video(tmp_path / "a.webm", [np.zeros((16, 16, 3), np.uint8)] * 8, fps=7)
    assert Footage(tmp_path / "a.webm", "--continue").fps == pytest.approx(7, rel=0.01)
    (tmp_path / "folder").mkdir()
    picture(tmp_path / "folder" / "1.jpg")
    assert Footage(tmp_path / "folder", "--continue").fps == 12


def test_a_damaged_end_is_filled_up(tmp_path: Path) -> None:
    frames = [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8) for i in range(30)]
    write_video(tmp_path / "a.webm", frames, fps=6)
    whole = (tmp_path / "a.webm").read_bytes()
    (tmp_path / "a.webm").write_bytes(whole[: len(whole) * 3 // 4])
    footage = Footage(tmp_path / "a.webm", "--continue")
    assert 5 < footage.count < 30
    assert len(list(footage.frames(16, 16))) == footage.count
    assert len(footage.last(4, 16, 16)) == 4


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("gone.mp4", None, UsageError, "does not exist: give a video, or a folder of pictures"),
        ("a.mp4", b"text", MsdvError, r"can't be read \(not a video, or broken beyond reading\): give another video"),
        ("a.gif", b"text", MsdvError, r"can't be read \(it is no picture\): give another video"),
        ("folder", None, MsdvError, "has no frames: give a video, or a folder of pictures"),
    ],
)
def test_footage_that_cannot_be_used_says_why(
    tmp_path: Path, name: str, content: bytes | None, error: type[Exception], words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif name == "folder":
        (tmp_path / name).mkdir()
    with pytest.raises(error, match=rf"--continue .*{name} {words}"):
        Footage(tmp_path / name, "--continue")
