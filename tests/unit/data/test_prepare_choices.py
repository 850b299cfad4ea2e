"""What prep finds out about clips, and what it does about it: scenes, still ends, bars, scores, duplicates."""

import json
import random
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from msdv.config import PrepConfig
from msdv.data.clips import find_clips
from msdv.data.prepare import PrepReport, prepare
from msdv.data.synthetic import render, sample_sky
from msdv.errors import MsdvError
from tests.unit.data.video_fixtures import write_clip

SIZE = 128


def prep(videos: Path, frames: Path, **options: Any) -> PrepReport:
    defaults = {"fps": 5, "size": 64, "trim_start": 0, "trim_end": 0, "workers": 1}
    if options.get("trim") == "auto":
        del defaults["trim_start"], defaults["trim_end"]
    return prepare(PrepConfig.model_validate({"videos": videos, "frames": frames, **defaults, **options}))


def manifest(frames: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (frames / "manifest.jsonl").read_text().splitlines()]
    return {row["clip"]: row for row in rows}


def film(path: Path, *scenes: np.ndarray, **options: Any) -> Path:
    """An mp4 of pictures (f, h, w, 3), 5 a second."""
    pictures = [picture for scene in scenes for picture in scene]
    height, width = pictures[0].shape[:2]
    return write_clip(
        path,
        len(pictures),
        rate=5,
        size=(width, height),
        picture=lambda i: pictures[i],
        options={"preset": "veryfast", "crf": "18"},
        **options,
    )


@pytest.fixture(scope="module")
def clouds() -> Callable[[int], np.ndarray]:
    made: dict[int, np.ndarray] = {}

    def make(seed: int) -> np.ndarray:
        if seed not in made:
            made[seed] = render(sample_sky(random.Random(seed)), 24, SIZE)
        return made[seed]

    return make


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    return tmp_path / "frames"


def folders(frames: Path) -> dict[str, int]:
    return {f.name: len(list(f.glob("*.jpg"))) for f in sorted(frames.iterdir()) if f.is_dir() and f.name[0] != "."}


def test_scenes_become_folders(videos: Path, frames: Path, clouds: Callable[[int], np.ndarray]) -> None:
    film(videos / "cut.mp4", clouds(0)[:16], clouds(1)[:20], clouds(2)[:12])
    film(videos / "one.mp4", clouds(0))
    assert prep(videos, frames).made == 2
    assert folders(frames) == {"cut.mp4": 48, "one.mp4": 24}
    other = frames.with_name("scenes")
    report = prep(videos, other, scenes=True)
    assert folders(other) == {"cut.mp4": 16, "cut.mp4#2": 20, "cut.mp4#3": 12, "one.mp4": 24}
    assert (report.made, report.frames) == (4, 72)
    rows = manifest(other)
    assert [(rows[n]["scene"], rows[n]["scenes"]) for n in ("cut.mp4", "cut.mp4#2", "cut.mp4#3")] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    assert [(rows[n]["start"], rows[n]["end"]) for n in ("cut.mp4", "cut.mp4#2")] == [(0.0, 3.2), (3.2, 7.2)]
    assert sorted(path.name for path in (other / "cut.mp4#2").glob("*.jpg"))[0] == "000001.jpg"
    # The frames are the same as without.
    whole = [path.read_bytes() for path in sorted((frames / "cut.mp4").glob("*.jpg"))]
    parts = [p.read_bytes() for n in ("", "#2", "#3") for p in sorted((other / f"cut.mp4{n}").glob("*.jpg"))]
    assert parts == whole
    assert len(find_clips(other, 10)[0]) == 4
    again = prep(videos, other, scenes=True)
    assert (again.made, again.skipped) == (0, 4)
    # A version with fewer scenes leaves none of the old ones behind.
    film(videos / "cut.mp4", clouds(0)[:16], clouds(1)[:20])
    prep(videos, other, scenes=True)
    assert folders(other) == {"cut.mp4": 16, "cut.mp4#2": 20, "one.mp4": 24}
    assert set(manifest(other)) == {"cut.mp4", "cut.mp4#2", "one.mp4"}


def test_a_video_called_like_a_scene(videos: Path, frames: Path, clouds: Callable[[int], np.ndarray]) -> None:
    film(videos / "a.mp4", clouds(0)[:10], clouds(1)[:10])
    film(videos / "x.mp4", clouds(2)[:10]).rename(videos / "a.mp4#2")
    assert prep(videos, frames, scenes=True).made == 3
    rows = manifest(frames)
    assert len(rows) == 3
    assert {Path(row["source"]).name for row in rows.values()} == {"a.mp4", "a.mp4#2"}
    assert Path(rows["a.mp4#2"]["source"]).name == "a.mp4"


def test_still_ends_are_left_out(videos: Path, frames: Path, clouds: Callable[[int], np.ndarray]) -> None:
    moving = clouds(0)
    film(videos / "a.mp4", np.repeat(moving[:1], 12, axis=0), moving, np.repeat(moving[-1:], 9, axis=0))
    assert prep(videos, frames).frames == 45
    assert manifest(frames)["a.mp4"]["held"] == 12 + 9
    report = prep(videos, frames.with_name("auto"), trim="auto")
    assert report.frames == 24
    row = manifest(frames.with_name("auto"))["a.mp4"]
    assert (row["held"], row["start"], row["end"]) == (0, 2.4, 7.2)
    # With seconds besides, both.
    assert prep(videos, frames.with_name("both"), trim="auto", trim_start=4, trim_end=0).frames == 16


def test_bars_are_cut_off(videos: Path, frames: Path, clouds: Callable[[int], np.ndarray]) -> None:
    wide = np.concatenate([clouds(0), clouds(0)[:, :, ::-1]], axis=2)
    boxed = np.zeros((len(wide), 192, 256, 3), np.uint8)
    boxed[:, 32:160] = wide
    film(videos / "a.mp4", boxed)
    prep(videos, frames)
    row = manifest(frames)["a.mp4"]
    assert row["bars"][0] == row["bars"][2] == 0
    assert 32 <= row["bars"][1] <= 36 and 32 <= row["bars"][3] <= 36
    for path in (frames / "a.mp4").glob("*.jpg"):
        picture = np.asarray(Image.open(path)).astype(int)
        assert picture[0].mean() > 20 and picture[-1].mean() > 10
    prep(videos, frames.with_name("kept"), crop_bars=False)
    kept = np.asarray(Image.open(frames.with_name("kept") / "a.mp4" / "000001.jpg"))
    assert kept[0].mean() < 3 and kept[-1].mean() < 3


@pytest.mark.parametrize(("size", "fit"), [("96x64", "crop"), ("64x96", "crop"), ("96x64", "pad"), ("64x128", "pad")])
def test_sizes_and_shapes(videos: Path, frames: Path, size: str, fit: str) -> None:
    """A square of colours in the middle of a wide picture: where it goes, and that it stays a square."""
    picture = np.full((96, 192, 3), (60, 90, 150), np.uint8)
    picture[24:72, 72:120] = (200, 60, 40)
    write_clip(videos / "a.mp4", 10, rate=5, size=(192, 96), picture=lambda i: picture)
    prep(videos, frames, size=size, fit=fit)
    width, height = map(int, size.split("x"))
    row = manifest(frames)["a.mp4"]
    assert (row["width"], row["height"]) == (width, height)
    got = np.asarray(Image.open(frames / "a.mp4" / "000001.jpg")).astype(int)
    assert got.shape == (height, width, 3)
    scale = max(width / 192, height / 96) if fit == "crop" else min(width / 192, height / 96)
    red = (got[..., 0] > 130) & (got[..., 2] < 90)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    for found, side in ((rows, height), (columns, width)):
        assert abs(len(found) - 48 * scale) <= 2
        assert abs((found[0] + found[-1] + 1) / 2 - side / 2) <= 1
    black = (got < 16).all(-1)
    assert black.any() == (fit == "pad")
    if fit == "pad":
        margin = (height - round(96 * scale)) // 2
        assert black[: margin - 1].all() and black[height - margin + 1 :].all() and not black[height // 2].any()


def test_clips_are_left_out_only_if_asked(videos: Path, frames: Path, clouds: Callable[[int], np.ndarray]) -> None:
    film(videos / "still.mp4", np.repeat(clouds(0)[:1], 24, axis=0))
    film(videos / "moving.mp4", np.stack([np.roll(clouds(1)[0], 6 * i, axis=1) for i in range(24)]))
    flickering = [np.clip(p.astype(int) + (25, -25)[i % 2], 0, 255).astype(np.uint8) for i, p in enumerate(clouds(2))]
    film(videos / "flicker.mp4", np.stack(flickering))
    report = prep(videos, frames)
    assert (report.made, report.left_out, len(folders(frames))) == (3, 0, 3)
    rows = manifest(frames)
    assert rows["still.mp4"]["verdict"] == "ok, a still picture, nothing moves"
    assert rows["moving.mp4"]["verdict"] == "ok"
    assert rows["still.mp4"]["motion"] < 0.2 < 3 < rows["moving.mp4"]["motion"]
    assert rows["flicker.mp4"]["flicker"] > 10 > 2 > rows["moving.mp4"]["flicker"]
    written = (frames / "moving.mp4" / "000001.jpg").stat().st_mtime_ns

    report = prep(videos, frames, min_motion=1)
    assert report.made == 0 and "still.mp4" not in folders(frames) and "moving.mp4" in folders(frames)
    verdict = manifest(frames)["still.mp4"]["verdict"]
    assert verdict == "skipped: motion 0 is below --min-motion 1"
    assert any(verdict in line for line in report.lines())
    assert "still.mp4" not in [clip.name for clip in find_clips(frames, 10)[0]]

    # Nothing is lost: asked for less, it is back, and nothing was made again.
    report = prep(videos, frames, max_flicker=5)
    assert folders(frames) == {"moving.mp4": 24, "still.mp4": 24} and report.made == 0
    assert manifest(frames)["flicker.mp4"]["verdict"].startswith("skipped: flicker ")
    prep(videos, frames)
    assert set(folders(frames)) == {"moving.mp4", "still.mp4", "flicker.mp4"}
    assert not (frames / ".dropped").exists()
    assert (frames / "moving.mp4" / "000001.jpg").stat().st_mtime_ns == written
    with pytest.raises(MsdvError, match="all clips are left out as asked"):
        prep(videos, frames, min_motion=1000)


def test_nearly_the_same(videos: Path, frames: Path, clouds: Callable[[int], np.ndarray]) -> None:
    film(videos / "a.mp4", clouds(0))
    film(videos / "b.mp4", clouds(0)[:, 2:-2, 2:-2])
    film(videos / "c.mp4", clouds(1))
    prep(videos, frames)
    assert [row["verdict"] for row in manifest(frames).values()] == ["ok", "ok, nearly the same as a.mp4", "ok"]
    report = prep(videos, frames, drop_duplicates=True)
    assert set(folders(frames)) == {"a.mp4", "c.mp4"} and report.left_out == 1
    assert manifest(frames)["b.mp4"]["verdict"] == "skipped: nearly the same as a.mp4"
    assert "2 clips, 48 frames" in report.lines()[0] and "1 left out" in report.lines()[0]


def test_a_logo_in_all_clips_is_reported(videos: Path, frames: Path, clouds: Callable[[int], np.ndarray]) -> None:
    for seed in range(5):
        marked = clouds(seed).copy()
        marked[:, 104:120, 84:88] = marked[:, 104:108, 84:116] = marked[:, 116:120, 84:116] = 255
        marked[:, 104:120, 112:116] = 255
        film(videos / f"{seed}.mp4", marked)
    report = prep(videos, frames, size=128)
    assert len(report.overlays) == 1 and "lower right" in report.overlays[0] and "in 5 of 5 clips" in report.overlays[0]
    boxes = [row["overlays"] for row in manifest(frames).values()]
    assert len(boxes) == 5
    for ((left, top, right, bottom),) in boxes:
        assert 0.6 < left < 84.5 / 128 < 115.5 / 128 < right < 0.96
        assert 0.75 < top < 104.5 / 128 < 119.5 / 128 < bottom < 1
    # Known from the manifest where nothing is made.
    prep(videos, frames, size=128)
    assert [row["overlays"] for row in manifest(frames).values()] == boxes


def test_script_pictures_are_the_script_s(videos: Path, frames: Path) -> None:
    """BT.709 taken for BT.601, and pixels for square: as the script's ffmpeg did."""
    green = np.full((720, 1280, 3), (30, 160, 60), np.uint8)
    write_clip(videos / "a.mp4", 25, rate=5, size=(1280, 720), picture=lambda i: green, colorspace=1)
    prep(videos, frames)
    prep(videos, frames.with_name("script"), select="script", trim_start=2, trim_end=2)
    right = np.asarray(Image.open(frames / "a.mp4" / "000001.jpg"))[32, 32].astype(int)
    script = np.asarray(Image.open(frames.with_name("script") / "a.mp4" / "000002.jpg"))[32, 32].astype(int)
    assert abs(right - (30, 160, 60)).max() <= 3
    assert abs(script - right).max() > 10
    for options in ({"scenes": True}, {"trim": "auto"}):
        with pytest.raises(ValueError, match="takes the frames that the 2022 script took"):
            PrepConfig(videos=videos, frames=frames, select="script", **options)


def test_order_of_the_contact_sheet(videos: Path, frames: Path, clouds: Callable[[int], np.ndarray]) -> None:
    film(videos / "a.mp4", np.stack([np.roll(clouds(1)[0], 6 * i, axis=1) for i in range(12)]))
    film(videos / "b.mp4", np.repeat(clouds(0)[:1], 12, axis=0))
    sheets = {}
    for order in ("motion", "name"):
        prep(videos, frames, sort=order)
        with Image.open(frames / "contact_sheet.jpg") as image:
            sheets[order] = np.asarray(image.convert("L")).astype(int)
    assert np.abs(sheets["motion"] - sheets["name"]).max() > 50


@pytest.mark.parametrize("size", [(854, 480), (406, 720)])
def test_script_pictures_are_scaled_as_the_script_did(videos: Path, frames: Path, size: tuple[int, int]) -> None:
    """Fine lines, where a fraction of a pixel shows: against `scale=-1:512` and `crop=512:512`."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    waves = 128 + 60 * np.sin(2 * np.pi * x / 9) + 40 * np.sin(2 * np.pi * y / 11)
    picture = np.repeat(waves[..., None], 3, axis=-1).astype(np.uint8)
    path = write_clip(videos / "a.mp4", 30, rate=5, size=size, picture=lambda i: picture, options={"crf": "10"})
    prep(videos, frames, select="script", trim_start=2, trim_end=2, size=512)
    ours = np.asarray(Image.open(frames / "a.mp4" / "000002.jpg").convert("L")).astype(float)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        graph: Any = av.filter.Graph()
        wide = width > height
        chain = [
            graph.add_buffer(width=width, height=height, format=frame.format, time_base=frame.time_base),
            graph.add("scale", "-1:512" if wide else "512:-1"),
            graph.add("crop", "512:512:exact=1"),
            graph.add("scale", "out_range=pc"),
            graph.add("format", "pix_fmts=gray"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*chain).configure()
        graph.push(frame)
        theirs = graph.pull().to_ndarray().astype(float)
    assert 10 * np.log10(255**2 / ((ours - theirs) ** 2).mean()) > 38


def test_the_better_of_two_that_are_the_same_stays(
    videos: Path, frames: Path, clouds: Callable[[int], np.ndarray]
) -> None:
    film(videos / "VID_20210101_000000.mp4", clouds(0))
    film(videos / "white clouds.mp4", clouds(0)[:, 2:-2, 2:-2])
    prep(videos, frames, drop_duplicates=True)
    assert set(folders(frames)) == {"white clouds.mp4"}


def test_what_a_killed_run_left_of_more_scenes_is_removed(
    videos: Path, frames: Path, clouds: Callable[[int], np.ndarray]
) -> None:
    film(videos / "a.mp4", clouds(0)[:12], clouds(1)[:12])
    prep(videos, frames, scenes=True)
    shutil.copytree(frames / "a.mp4#2", frames / "a.mp4#3")
    record = json.loads((frames / "a.mp4#3" / ".clip.json").read_text())
    (frames / "a.mp4#3" / ".clip.json").write_text(json.dumps({**record, "clip": "a.mp4#3", "scene": 3}))
    prep(videos, frames, scenes=True)
    assert set(folders(frames)) == {"a.mp4", "a.mp4#2"}


def test_rate_of_a_video_whose_rate_varies(videos: Path, frames: Path) -> None:
    """A recording of a screen: it says 30 frames a second, and has a new one now and then."""
    times = [int(1000 * 0.55 * i) for i in range(30)]
    write_clip(videos / "screen.mp4", times=times, rate=30, time_base=Fraction(1, 1000))
    prep(videos, frames)
    row = manifest(frames)["screen.mp4"]
    assert (row["frames"], row["verdict"]) == (29, "ok")
    assert row["fps"] == pytest.approx(1 / 0.55, abs=0.01)
