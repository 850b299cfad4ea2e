import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msdv.cli import run
from msdv.data.audit import AuditReport, audit
from msdv.data.audit_clip import ClipAudit, count_tokens
from msdv.data.clips import find_clips, read_frames
from msdv.errors import MsdvError, UsageError

SIZE = (96, 64)


def make_clip(
    data: Path, name: str, frames: int, *, first: int = 1, seed: int = 0, size: tuple[int, int] = SIZE
) -> Path:
    """A clip of noise, each frame another."""
    folder = data / name
    folder.mkdir(parents=True)
    random = np.random.default_rng([seed, *name.encode()])
    for number in range(first, first + frames):
        blocks = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:06d}.jpg", quality=95)
    return folder


def write_manifest(data: Path, *rows: dict[str, Any] | str) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (data / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def only(report: AuditReport) -> ClipAudit:
    (clip,) = report.clips
    return clip


def state(folder: Path) -> list[tuple[str, int, int]]:
    """What any writing would change."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return [(str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths]


def cut(picture: Path, keep: float = 0.5) -> None:
    data = picture.read_bytes()
    picture.write_bytes(data[: int(len(data) * keep)])


def test_a_good_folder(tmp_path: Path) -> None:
    for name in ("clouds.mp4", "sea.mp4"):
        make_clip(tmp_path, name, 8)
    write_manifest(
        tmp_path,
        {"clip": "clouds.mp4", "frames": 8, "caption": "white clouds", "fps": 5},
        {"clip": "sea.mp4", "frames": 8, "caption": "the sea", "fps": 5},
    )
    before = state(tmp_path)
    report = audit(tmp_path, 5)
    assert state(tmp_path) == before
    assert (report.ok, report.problem) == (True, None)
    assert report.lines() == [
        "clouds.mp4: 5 of 8 frames at a time: 4 places to start",
        "sea.mp4: 5 of 8 frames at a time: 4 places to start",
        f"2 clips, 16 frames in {tmp_path}: 2 to train on",
        "pictures: 96x64 in 2 clips",
        "captions: 2 from manifest.jsonl",
        f"next: msdv train --data {tmp_path} --frames 5",
    ]


def test_a_folder_of_the_2022_script(tmp_path: Path) -> None:
    make_clip(tmp_path, "white clouds.mp4", 26, first=2)
    (tmp_path / "too short.mp4").mkdir()
    report = audit(tmp_path)
    assert report.ok
    assert report.lines() == [
        "too short.mp4: left out: 0 frames, --frames 25 needs 25",
        "white clouds.mp4: 25 of 26 frames at a time: 2 places to start",
        f"2 clips, 26 frames in {tmp_path}: 1 left out, 1 to train on",
        "pictures: 96x64 in 1 clip",
        "captions: 2 from the names of folders",
        "no manifest.jsonl: captions are taken from the names of folders, and 5 fps assumed",
        f"next: msdv train --data {tmp_path}",
    ]


def test_good_clips_are_only_counted_where_there_are_many(tmp_path: Path) -> None:
    for number in range(12):
        make_clip(tmp_path, f"{number}.mp4", 3, seed=number)
    shutil.copy(tmp_path / "7.mp4" / "000001.jpg", tmp_path / "7.mp4" / "000002.jpg")
    lines = audit(tmp_path, 2).lines()
    assert lines[0] == ("7.mp4: 2 of 3 frames at a time: 2 places to start; 1 frame is the same as the one before")
    assert lines[1].startswith("12 clips, 36 frames")


def test_it_says_what_find_clips_and_read_frames_do(tmp_path: Path) -> None:
    """Of all kinds of folders: the clips, their frames and captions, and whether reading them fails."""
    for name in ("VID_1.mp4", "a b.mp4", "clip#2", "emoji \N{CLOUD}.mov", "-dash.mp4", ".hidden", ".unfinished-x"):
        make_clip(tmp_path, name, 4)
    for name in ("short", "broken", "mixed", "dot", "other", "directory"):
        make_clip(tmp_path, name, 2 if name == "short" else 5)
    cut(tmp_path / "broken" / "000003.jpg")
    cut(tmp_path / "short" / "000001.jpg")
    Image.new("RGBA", (70, 80)).save(tmp_path / "mixed" / "000006.PNG")
    Image.new("P", (99, 80)).save(tmp_path / "mixed" / "000007.webp")
    (tmp_path / "dot" / "._000001.jpg").write_bytes(b"\0\5\26\7")
    Image.new("RGB", SIZE).save(tmp_path / "other" / "000009.bmp")
    (tmp_path / "directory" / "000009.jpg").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    write_manifest(
        tmp_path,
        {"clip": "a b.mp4", "caption": "first", "fps": 8},
        {"clip": "short", "caption": None, "fps": None},
        "",
        {"clip": "a b.mp4", "caption": "last", "fps": "8"},
        {"clip": "mixed", "caption": ["a", "b"], "fps": 0},
    )
    clips, left_out = find_clips(tmp_path, 4)
    report = audit(tmp_path, 4)
    assert [(c.name, c.frames, c.caption) for c in report.clips if c.fate != "left out"] == [
        (c.name, len(c), c.caption) for c in clips
    ]
    assert [c.name for c in report.clips if c.fate == "left out"] == [line.split(":")[0] for line in left_out]
    for clip, found in zip(clips, [c for c in report.clips if c.fate != "left out"], strict=True):
        try:
            read_frames(clip.files, 64)
        except (MsdvError, OSError) as error:
            assert found.fate == "stops training"
            assert found.reason.split()[0] in str(error)
        else:
            assert found.fate == "trains"
    assert [c.name for c in report.clips if c.fate == "stops training"] == ["broken", "directory"]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(512, 512), (320, 200), (40, 30)])
def test_a_truncated_jpeg_is_found_wherever_training_stops_at_it(
    tmp_path: Path, size: tuple[int, int], progressive: bool
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg", quality=90, progressive=progressive)
    data = (tmp_path / "whole.jpg").read_bytes()
    frames = tmp_path / "frames"
    stopping = set()
    for length in {0, 1, 200, *range(len(data) // 7, len(data), len(data) // 7), *range(len(data) - 9, len(data) + 1)}:
        picture = frames / f"{length:06d}.mp4" / "000001.jpg"
        picture.parent.mkdir(parents=True)
        picture.write_bytes(data[:length])
        try:
            read_frames([picture], 64)
        except MsdvError:
            stopping.add(picture.parent.name)
    assert 5 < len(stopping) < len(list(frames.iterdir()))
    assert {clip.name for clip in audit(frames, 1).clips if clip.fate == "stops training"} == stopping


def test_broken_pictures_stop_training_and_are_named(tmp_path: Path) -> None:
    folder = make_clip(tmp_path, "a.mp4", 6)
    cut(folder / "000002.jpg")
    (folder / "000003.jpg").write_bytes(b"")
    (folder / "000004.jpg").write_text("<html>not found</html>")
    report = audit(tmp_path, 5)
    assert not report.ok
    assert only(report).fate == "stops training"
    assert re.fullmatch(
        r"a.mp4: stops training: 000002.jpg can't be decoded \(.+ truncated .+\) and 2 more", only(report).line()
    )
    assert report.problem is not None
    assert re.fullmatch(
        rf"training stops at {re.escape(str(folder))} \(000002.jpg can't be decoded .+ and 2 more\): "
        "mend or delete what is broken, and run msdv prep again",
        report.problem,
    )
    assert report.lines()[-1] == "next: mend or delete what is broken, and run msdv prep again"


def test_broken_pictures_in_a_clip_too_short_stop_nothing(tmp_path: Path) -> None:
    make_clip(tmp_path, "a.mp4", 6)
    cut(make_clip(tmp_path, "b.mp4", 3) / "000002.jpg")
    report = audit(tmp_path, 5)
    assert report.ok
    assert "b.mp4: left out: 3 frames, --frames 5 needs 5; 000002.jpg can't be decoded" in report.lines()[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names here")
def test_a_pipe_and_a_dangling_link_are_no_pictures(tmp_path: Path) -> None:
    folder = make_clip(tmp_path, "a.mp4", 3)
    os.mkfifo(folder / "000004.jpg")
    (folder / "000005.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert only(audit(tmp_path, 3)).reason == "000004.jpg is not a file and 1 more"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_can_not_be_read(tmp_path: Path) -> None:
    make_clip(tmp_path, "a.mp4", 3)
    folder = make_clip(tmp_path, "b.mp4", 3)
    folder.chmod(0)
    try:
        report = audit(tmp_path, 3)
    finally:
        folder.chmod(0o755)
    assert report.clips[1].line() == "b.mp4: stops training: can't be read (permission denied)"
    assert not report.ok


def problems_of(tmp_path: Path) -> tuple[str, ...]:
    return only(audit(tmp_path, 2)).problems


def test_gaps(tmp_path: Path) -> None:
    folder = make_clip(tmp_path, "a.mp4", 9, first=2)
    assert problems_of(tmp_path) == ()
    for number in (4, 5, 8):
        (folder / f"{number:06d}.jpg").unlink()
    assert problems_of(tmp_path) == ("3 numbers missing, what is seen jumps there (3 to 6 and 1 more)",)


def test_names_in_another_order_than_numbers(tmp_path: Path) -> None:
    folder = make_clip(tmp_path, "a.mp4", 11)
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"frame{int(path.stem)}.jpg")
    assert problems_of(tmp_path) == (
        "the names are not in the order of their numbers: give all numbers the same length",
    )


def test_pictures_that_are_no_frames(tmp_path: Path) -> None:
    folder = make_clip(tmp_path, "a.mp4", 4)
    Image.new("RGB", SIZE, "blue").save(folder / "cover.jpg")
    Image.new("RGB", SIZE, "red").save(folder / "000004.png")
    Image.new("RGB", SIZE).save(folder / ".unfinished-x.jpg")
    Image.new("RGB", SIZE).save(folder / "000005.bmp")
    assert problems_of(tmp_path) == (
        "taken for a frame, though not numbered like the others: cover.jpg",
        "several pictures have the same number (4)",
        "1 picture that training does not read (.bmp)",
        "1 unfinished file of a killed run",
    )


def test_names_without_numbers_are_no_problem(tmp_path: Path) -> None:
    folder = make_clip(tmp_path, "a.mp4", 3)
    for path, name in zip(sorted(folder.iterdir()), "abc", strict=True):
        path.rename(folder / f"{name}.jpg")
    assert problems_of(tmp_path) == ()


def test_frames_that_repeat(tmp_path: Path) -> None:
    folder = make_clip(tmp_path, "a.mp4", 6)
    shutil.copy(folder / "000001.jpg", folder / "000002.jpg")
    with Image.open(folder / "000004.jpg") as picture:
        picture.save(folder / "000005.jpg", quality=95, subsampling=0, comment=b"other bytes")
        picture.save(folder / "000004.jpg", quality=95, subsampling=0)
    assert (folder / "000004.jpg").read_bytes() != (folder / "000005.jpg").read_bytes()
    assert problems_of(tmp_path) == ("2 frames are the same as the one before",)
    for number in range(2, 7):
        shutil.copy(folder / "000001.jpg", folder / f"{number:06d}.jpg")
    assert problems_of(tmp_path) == ("all its frames are the same: nothing moves",)


def test_clips_that_are_the_same(tmp_path: Path) -> None:
    make_clip(tmp_path, "a.mp4", 3)
    make_clip(tmp_path, "b.mp4", 3)
    shutil.copytree(tmp_path / "a.mp4", tmp_path / "c.mp4")
    for name in ("d.mp4", "e.mp4"):  # of what can't be seen nothing is known
        cut(make_clip(tmp_path, name, 1, seed=7) / "000001.jpg")
    clips = audit(tmp_path, 3).clips
    assert [clip.problems for clip in clips[:3]] == [(), (), ("the same pictures as a.mp4",)]
    assert not any("same" in problem for clip in clips[3:] for problem in clip.problems)


def test_sizes(tmp_path: Path) -> None:
    folder = make_clip(tmp_path, "a.mp4", 3)
    Image.new("RGB", (128, 72)).save(folder / "000004.jpg")
    make_clip(tmp_path, "b.mp4", 3, size=(40, 24))
    report = audit(tmp_path, 2)
    assert report.clips[0].problems == (
        "pictures of 2 sizes (96x64, 128x72): training cuts each square from its own centre",
    )
    assert report.clips[1].problems == ("pictures of only 24 pixels",)
    assert "pictures: 96x64 in 1 clip, 40x24 in 1 clip" in report.lines()


def test_captions(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "sea waves.mp4", "IMG_1.mp4"):
        make_clip(tmp_path, name, 3)
    write_manifest(
        tmp_path,
        {"clip": "a.mp4", "caption": "white clouds, " * 40, "fps": 5},
        {"clip": "b.mp4", "caption": "", "fps": 24},
    )
    report = audit(tmp_path, 2)
    line = "a caption of about 122 tokens: training reads the first 77"
    assert [clip.problems for clip in report.clips] == [(), (line,), (), ()]
    assert report.lines()[-4:-1] == [
        "captions: 2 from manifest.jsonl, 2 from the names of folders; 2 empty, to train without words"
        " (IMG_1.mp4, b.mp4)",
        "frames per second differ (5 in 3 clips, 24 in 1 clip): training takes all clips alike",
        "manifest.jsonl: a clip without a row: caption from its name, 5 fps (IMG_1.mp4, sea waves.mp4)",
    ]


@pytest.mark.parametrize(
    ("caption", "tokens"),  # counted by the tokenizer itself
    [
        ("supercalifragilisticexpialidocious " * 10, 92),
        ("clouds, " * 60, 122),
        ("a cumulonimbus towering above the Zugspitze; it's 35 mm, f/2.8, and the wind doesn't stop! " * 3, 101),
        ("Wolken über dem Meer, die im Abendlicht rötlich glühen, während ein Segelboot vorüberzieht " * 4, 138),
    ],
)
def test_tokens_are_counted_to_a_tenth(caption: str, tokens: int) -> None:
    assert count_tokens(caption) == pytest.approx(tokens, rel=0.1)


def test_a_damaged_manifest_stops_training(tmp_path: Path) -> None:
    make_clip(tmp_path, "a.mp4", 3)
    write_manifest(tmp_path, {"clip": "a.mp4"}, '{"clip": "b.mp4",', "{}{}")
    with pytest.raises(MsdvError, match="damaged"):
        find_clips(tmp_path, 2)
    report = audit(tmp_path, 2)
    assert report.lines()[0].startswith("stops training: manifest.jsonl line 2 (Expecting property name")
    assert report.problem is not None
    assert "manifest.jsonl line 2 (Expecting property name" in report.problem
    assert not report.ok


def test_manifest_and_folders_that_do_not_fit(tmp_path: Path) -> None:
    make_clip(tmp_path, "a.mp4", 3)
    make_clip(tmp_path, ".dropped/still.mp4", 3)
    write_manifest(
        tmp_path,
        "\ufeff" + json.dumps({"clip": "a.mp4", "frames": 58, "fps": "fast", "caption": 7}),
        {"clip": "gone.mp4", "frames": 9},
        {"clip": "still.mp4", "frames": 3},
        {"clip": "text.txt.mp4", "frames": 0},
        {"clip": "gone.mp4", "frames": 8},
        "",
        [1],
        {"name": "x"},
    )
    report = audit(tmp_path, 2)
    assert only(report).problems == (
        "the manifest says 58 frames",
        "its caption in the manifest is no text",
        "its fps in the manifest is fast: training takes 5 for it",
    )
    assert report.notes[-5:] == (
        "manifest.jsonl: a row whose folder is gone (gone.mp4)",
        "manifest.jsonl: a clip left out because it was asked for, in .dropped (still.mp4)",
        "manifest.jsonl: a video that gave no clip, as its row says (text.txt.mp4)",
        "manifest.jsonl: a clip with several rows: the last counts (gone.mp4)",
        "manifest.jsonl: a line that is of no clip (7, 8)",
    )


def test_other_files_are_told_and_left(tmp_path: Path) -> None:
    folder = make_clip(tmp_path, "a.mp4", 3)
    for name in ("contact_sheet.jpg", "prep.toml", ".lock", ".DS_Store", "captions.csv", "sea.mp4"):
        (tmp_path / name).touch()
    for name in (".clip.json", "Thumbs.db", ".unfinished-1.json", "a.txt", "LICENSE"):
        (folder / name).touch()
    (folder / "sub").mkdir()
    make_clip(tmp_path, ".unfinished-abc", 3)
    write_manifest(tmp_path, {"clip": "a.mp4", "frames": 3})
    before = state(tmp_path)
    report = audit(tmp_path, 2)
    assert state(tmp_path) == before
    assert only(report).problems == ("1 unfinished file of a killed run",)
    assert report.notes[-4:] == (
        "1 leftover of a killed run, for the next msdv prep to remove",
        f"not looked at by training, in {tmp_path}: captions.csv, sea.mp4",
        "not looked at by training, in folders of clips: no suffix (1), .txt (1), folders (1)",
        "2 hidden files, ignored",
    )


def test_names_are_shown_in_one_line(tmp_path: Path) -> None:
    try:
        make_clip(tmp_path, "two\nlines\x1b[31m.mp4", 1)
    except OSError:
        pytest.skip("no such names here")
    assert audit(tmp_path, 2).lines()[0].startswith(r"two\nlines\x1b[31m.mp4: left out: 1 frame, --frames 2 needs 2")


def test_only_short_clips_are_an_error_with_the_longest(tmp_path: Path) -> None:
    make_clip(tmp_path, "a.mp4", 3)
    make_clip(tmp_path, "b.mp4", 2)
    report = audit(tmp_path)
    next_step = f"run msdv train --data {tmp_path} --frames 3, or use longer videos"
    assert report.problem == f"no clip in {tmp_path} has 25 frames: {next_step}"
    assert report.lines()[-1] == f"next: {next_step}"
    assert not report.ok


def test_only_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    report = audit(tmp_path)
    assert report.problem == f"no clip in {tmp_path} has frames: make them with msdv prep videos/ {tmp_path}"


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        (None, UsageError, "does not exist: give a folder of frames, as in msdv prep --check frames/"),
        ("file", UsageError, "is a file: give a folder of frames"),
        ([], MsdvError, "holds no clips: make them with msdv prep videos/"),
        (["notes.txt", "x/notes.txt", ".cache/a.safetensors"], MsdvError, "holds no clips: make them with"),
        (["sea.mp4", "x.txt"], UsageError, "holds videos (sea.mp4), not frames: run msdv prep"),
        (["sub/deep/sea.MOV"], UsageError, "holds videos (sea.MOV), not frames: run msdv prep"),
        (["000001.jpg", "000002.jpg"], MsdvError, "holds pictures itself (000001.jpg): give the folder it is in"),
        (["contact_sheet.jpg", "manifest.jsonl"], MsdvError, "holds no clips: make them with"),
        (["frames/a.mp4/000001.jpg", "x.txt"], MsdvError, "give one of them, as in msdv prep --check"),
    ],
)
def test_what_is_no_frames_folder_says_what_to_do(
    tmp_path: Path, files: list[str] | str | None, error: type[Exception], words: str
) -> None:
    data = tmp_path / "data"
    if files == "file":
        data.touch()
    elif files is not None:
        data.mkdir()
        for name in files:
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_bytes(b"x")
    with pytest.raises(error) as caught:
        audit(data)
    assert type(caught.value) is error
    assert words in str(caught.value)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_clip(tmp_path, "a.mp4", 30)
    assert run(["prep", "--check", str(tmp_path)]) == 0
    assert "a.mp4: 25 of 30 frames at a time: 6 places to start" in capsys.readouterr().out
    (folder / "000007.jpg").write_bytes(b"broken")
    assert run(["prep", "--check", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "stops training: 000007.jpg can't be decoded" in out
    assert err.startswith("msdv prep: training stops at ") and "000007.jpg" in err
    assert run(["prep", "videos", "frames", "--check", str(tmp_path)]) == 2
    assert "neither VIDEOS nor FRAMES" in capsys.readouterr().err
    assert run(["prep", "--check", str(tmp_path / "none")]) == 2
