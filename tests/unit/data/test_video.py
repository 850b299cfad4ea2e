"""write_video and what other programs (Pillow, FFmpeg) make of its files."""

import errno
import shutil
import weakref
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from msdv.config import VIDEO_SUFFIXES
from msdv.data import encode
from msdv.data.metadata import embed, extract
from msdv.data.video import output_format, read_metadata, read_video, write_video
from msdv.errors import MsdvError, UsageError

FORMATS = [*VIDEO_SUFFIXES, ""]
SETTINGS: dict[str, Any] = {"prompt": 'wölkchen "雲" <&> \x7f', "seed": 3, "guidance": 7.5, "negative": None, "fps": 12}


def sky(count: int, width: int = 48, height: int = 32) -> list[np.ndarray]:
    """Smooth colours that move sideways: what lossy formats keep well."""
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for i in range(count):
        wave = 60 * np.sin((x + 3 * i) / 9)
        frames.append(np.stack([120 + wave, 130 + 0.5 * wave + y, 200 - y + 0 * x], axis=-1).astype(np.uint8))
    return frames


def difference(frames: np.ndarray, expected: list[np.ndarray]) -> float:
    return float(np.abs(frames.astype(int) - np.stack(expected).astype(int)).mean())


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("fps", [12, 29.97, 5])
@pytest.mark.parametrize("count", [1, 13])
def test_round_trip(tmp_path: Path, suffix: str, fps: float, count: int) -> None:
    path, frames = tmp_path / f"out{suffix}", sky(count)
    write_video(path, iter(frames), fps=fps, metadata={**SETTINGS, "fps": fps})
    again, rate = read_video(path)
    assert again.shape == (count, 32, 48, 3)
    assert difference(again, frames) < {".png": 0.001, "": 0.001, ".gif": 2}.get(suffix, 3)
    if count > 1:
        assert rate == pytest.approx(fps, rel={".gif": 0.02, ".webp": 0.002}.get(suffix, 1e-4))
    assert read_metadata(path) == {**SETTINGS, "fps": fps}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_same_frames_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}{suffix}", sky(9), fps=12, metadata=SETTINGS)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_frames_are_all_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"still{suffix}"
    write_video(path, sky(1) * 6, fps=12)
    assert len(read_video(path)[0]) == 6


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_pictures_loop_forever_and_keep_time(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_video(path, sky(25), fps=12, metadata=SETTINGS)
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        milliseconds = [frame.load() and frame.info["duration"] for frame in ImageSequence.Iterator(image)]
    assert sum(milliseconds) == pytest.approx(25 / 12 * 1000, abs=10)
    assert max(milliseconds) - min(milliseconds) <= 10  # a gif counts 1/100 s


def test_gif_of_many_frames_a_second_keeps_them_all(tmp_path: Path) -> None:
    """Browsers slow down what is faster than 2/100 s a frame."""
    write_video(tmp_path / "a.gif", sky(9), fps=120)
    frames, fps = read_video(tmp_path / "a.gif")
    assert (len(frames), fps) == (9, 50)


def test_gif_comment_is_where_readers_look(tmp_path: Path) -> None:
    write_video(tmp_path / "a.gif", sky(3), fps=12, metadata={"prompt": "x" * 1000})
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["comment"].decode() == '{"prompt": "' + "x" * 1000 + '"}'
        assert image.n_frames == 3


@pytest.mark.parametrize("prompt", ["clouds", "雲"])
def test_png_comment_is_where_readers_look(tmp_path: Path, prompt: str) -> None:
    write_video(tmp_path / "a.png", sky(3), fps=12, metadata={"prompt": prompt})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Comment"] == f'{{"prompt": "{prompt}"}}'  # type: ignore[attr-defined]
        assert image.n_frames == 3  # type: ignore[attr-defined]
        image.verify()  # checksums


@pytest.mark.parametrize("count", [1, 3])
def test_webp_comment_is_where_readers_look(tmp_path: Path, count: int) -> None:
    write_video(tmp_path / "a.webp", sky(count), fps=12, metadata={"prompt": "a < b & c"})
    with Image.open(tmp_path / "a.webp") as image:
        assert b"a &lt; b &amp; c" in image.info["xmp"]
        assert image.mode == "RGB"  # not transparent
        assert image.n_frames == count  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_video_streams_as_players_want_them(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / f"a{suffix}", sky(12), fps=12, metadata=SETTINGS)
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ({".mp4": "h264", ".webm": "vp9"}[suffix], "yuv420p")
        assert stream.codec_context.colorspace == 1
        assert container.duration == pytest.approx(1e6, abs=2000)
        frame = next(container.decode(stream))
        assert (frame.colorspace, frame.color_range) == (1, 1)
    data = (tmp_path / f"a{suffix}").read_bytes()
    if suffix == ".mp4":
        assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".webp"])
@pytest.mark.parametrize("colour", [(200, 30, 40), (20, 200, 40), (10, 10, 240), (255, 255, 255), (0, 0, 0)])
def test_colours_survive(tmp_path: Path, suffix: str, colour: tuple[int, int, int]) -> None:
    write_video(tmp_path / f"a{suffix}", [np.full((32, 32, 3), colour, dtype=np.uint8)] * 2, fps=5)
    mean = read_video(tmp_path / f"a{suffix}")[0].reshape(-1, 3).mean(axis=0)
    assert np.abs(mean - colour).max() <= 2


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_odd_sizes(tmp_path: Path, suffix: str) -> None:
    frames = sky(3, width=33, height=17)
    write_video(tmp_path / f"a{suffix}", frames, fps=12)
    again, _ = read_video(tmp_path / f"a{suffix}")
    assert again.shape[1:3] == ((18, 34) if suffix == ".mp4" else (17, 33))
    assert difference(again[:, :17, :33], frames) < 4


def test_frames_that_are_views(tmp_path: Path) -> None:
    frames = [frame[:, ::-1] for frame in sky(3)]
    write_video(tmp_path / "a.png", frames, fps=12)
    assert difference(read_video(tmp_path / "a.png")[0], frames) == 0


def test_folder(tmp_path: Path) -> None:
    write_video(tmp_path / "out", sky(2), fps=8, metadata={"prompt": "雲"})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000001.png", "000002.png", "settings.json"]
    assert "雲" in (tmp_path / "out" / "settings.json").read_text(encoding="utf-8")
    assert read_video(tmp_path / "out")[1] == 8


def test_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        write_video(tmp_path / "out", sky(2), fps=8)
    assert (tmp_path / "out" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["a.GIF", "a: b?.mp4", "50%d.png", "雲 x\ny.webm", "-a.webp"])
def test_unusual_names(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, sky(3), fps=12, metadata=SETTINGS)
    assert len(read_video(tmp_path / name)[0]) == 3
    assert read_metadata(tmp_path / name) == SETTINGS


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_error_on_the_way_leaves_what_was_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_video(path, sky(2), fps=12)
    before = read_video(path)[0]

    def broken() -> Any:
        yield sky(1)[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_video(path, broken(), fps=12)
    assert (read_video(path)[0] == before).all()
    assert len(list(tmp_path.iterdir())) == 1


def test_no_frames_and_wrong_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "a.gif", [], fps=12)
    with pytest.raises(ValueError, match="one size"):
        write_video(tmp_path / "a.gif", [*sky(1), *sky(1, width=50)], fps=12)
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.gif", [sky(1)[0].astype(float)], fps=12)
    with pytest.raises(ValueError, match="fps"):
        write_video(tmp_path / "a.gif", sky(1), fps=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mkv", "a.jpeg", "a.b.c"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.gif, \.mp4"):
        output_format(tmp_path / name)


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.gif").mkdir()
    with pytest.raises(UsageError, match="folder"):
        output_format(tmp_path / "a.gif")
    (tmp_path / "frames").touch()
    with pytest.raises(UsageError, match="file"):
        output_format(tmp_path / "frames")


def test_files_of_others(tmp_path: Path) -> None:
    for suffix in VIDEO_SUFFIXES:
        write_video(tmp_path / f"a{suffix}", sky(2), fps=12)
        assert read_metadata(tmp_path / f"a{suffix}") == {}
    with av.open(str(tmp_path / "b.mp4"), "w") as container:
        container.metadata["comment"] = "made by hand"
        stream = container.add_stream("libx264", rate=Fraction(5))
        stream.width = stream.height = 16
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(stream.encode(None))
    assert read_metadata(tmp_path / "b.mp4") == {"comment": "made by hand"}


@pytest.mark.parametrize("suffix", [*VIDEO_SUFFIXES, ".mkv"])
@pytest.mark.parametrize("content", [b"", b"hello", b"GIF89a", b"\x89PNG\r\n\x1a\n\0\0", b"RIFF\0\0\0\0WEBPVP8X"])
def test_broken_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(MsdvError, match="broken"):
        read_video(path)
    try:
        assert read_metadata(path) == {}
    except MsdvError as error:
        assert "broken" in str(error)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MsdvError, match="nowhere"):
        read_video(tmp_path / "nowhere.mp4")


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_comments_of_any_length(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / f"a{suffix}", sky(2), fps=12)
    for length in (1, 254, 255, 256, 70000):
        again = shutil.copy(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
        embed(again, suffix, "c" * length)
        assert extract(again, suffix) == "c" * length
        assert np.array_equal(read_video(again)[0], read_video(tmp_path / f"a{suffix}")[0])


def noisy(count: int) -> list[np.ndarray]:
    """A sky with grain: more colours than a gif has."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 6, (count, 64, 96, 3))
    return [np.clip(frame + g, 0, 255).astype(np.uint8) for frame, g in zip(sky(count, 96, 64), grain, strict=True)]


def test_kinds_of_dithering(tmp_path: Path) -> None:
    frames, sizes = sky(12, 96, 64), {}
    for dither in ("diffusion", "ordered", "none"):
        path = tmp_path / f"{dither}.gif"
        write_video(path, frames, fps=12, dither=dither)  # type: ignore[arg-type]
        assert difference(read_video(path)[0], frames) < 4
        sizes[dither] = path.stat().st_size
    assert sizes["none"] < min(sizes["diffusion"], sizes["ordered"])
    assert len({(tmp_path / f"{name}.gif").read_bytes() for name in sizes}) == 3


def test_frames_that_wait_on_the_disk_give_the_same_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.gif", noisy(9), fps=12)
    monkeypatch.setattr(encode, "MOST_WAITING", 1000)
    write_video(tmp_path / "b.gif", noisy(9), fps=12)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("suffix", FORMATS)
def test_frames_are_not_collected(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held, from frame to frame, is at most what the encoder looks ahead."""
    monkeypatch.setattr(encode, "MOST_WAITING", 1000)
    alive: set[int] = set()
    most = 0

    def frames() -> Any:
        nonlocal most
        for index, frame in enumerate(sky(80)):
            own = frame.copy()
            alive.add(index)
            weakref.finalize(own, alive.discard, index)
            yield own
            del own
            most = max(most, len(alive))

    write_video(tmp_path / f"a{suffix}", frames(), fps=12)
    assert most <= 3


def test_a_suffix_in_capitals(tmp_path: Path) -> None:
    for suffix in VIDEO_SUFFIXES:
        path = tmp_path / f"A{suffix.upper()}"
        write_video(path, sky(3), fps=12, metadata=SETTINGS)
        assert len(read_video(path)[0]) == 3
        assert read_metadata(path) == SETTINGS


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    def frames() -> Any:
        yield from sky(3)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_video(tmp_path / f"a{suffix}", frames(), fps=12)
    assert list(tmp_path.iterdir()) == []
