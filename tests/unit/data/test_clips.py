import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msdv.data.clips import find_clips, read_frames
from msdv.errors import MsdvError, UsageError


def make_clip(data: Path, name: str, frames: int, size: tuple[int, int] = (24, 16)) -> Path:
    folder = data / name
    folder.mkdir(parents=True)
    for number in range(1, frames + 1):
        Image.new("RGB", size, (number * 10, 0, 0)).save(folder / f"{number:06d}.jpg", quality=95)
    return folder


def test_a_folder_of_the_2022_script_is_read_as_it_is(tmp_path: Path) -> None:
    make_clip(tmp_path, "white clouds.mp4", 5)
    make_clip(tmp_path, "GOPR0042.MP4", 4)
    clips, left_out = find_clips(tmp_path, 4)
    assert [(c.name, len(c), c.caption, c.fps) for c in clips] == [
        ("GOPR0042.MP4", 4, "", 5.0),
        ("white clouds.mp4", 5, "white clouds", 5.0),
    ]
    assert left_out == []


def test_captions_come_from_the_manifest(tmp_path: Path) -> None:
    make_clip(tmp_path, "a.mp4", 3)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"clip": "a.mp4", "caption": "a sea", "fps": 8}) + "\n")
    clips, _ = find_clips(tmp_path, 2)
    assert (clips[0].caption, clips[0].fps) == ("a sea", 8.0)


def test_scenes_know_their_video(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mp4#2", "a.mp4#13", "b.mp4#2", "old.mp4", "old.mp4#3", "take #1"):
        make_clip(tmp_path, name, 3)
    rows = [{"clip": "a.mp4", "source": "x/a.mp4"}, {"clip": "a.mp4#2", "source": "x/a.mp4"}]
    rows += [{"clip": "b.mp4#2", "source": "y/b.mp4"}]  # its first scene was left out
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {clip.name: clip.source for clip in find_clips(tmp_path, 2)[0]}
    assert sources["a.mp4"] == sources["a.mp4#2"] == sources["a.mp4#13"] == "x/a.mp4"
    assert sources["b.mp4#2"] == "y/b.mp4"
    assert sources["old.mp4"] == sources["old.mp4#3"] == "old.mp4"
    assert sources["take #1"] == "take #1"


def test_short_clips_are_left_out_and_named(tmp_path: Path) -> None:
    make_clip(tmp_path, "long.mp4", 6)
    make_clip(tmp_path, "short.mp4", 2)
    clips, left_out = find_clips(tmp_path, 5)
    assert [c.name for c in clips] == ["long.mp4"]
    assert left_out == ["short.mp4: 2 frames, too short for --frames 5"]


def test_unfinished_and_hidden_folders_are_no_clips(tmp_path: Path) -> None:
    for name in ("a.mp4", ".cache", ".unfinished-xyz"):
        make_clip(tmp_path, name, 3)
    assert [c.name for c in find_clips(tmp_path, 2)[0]] == ["a.mp4"]


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        (None, UsageError, "does not exist: make it with msdv prep"),
        ([], MsdvError, "holds no clips: make them with msdv prep"),
        (["sea.mp4"], UsageError, "holds videos (sea.mp4), not frames: run msdv prep"),
        (["sub/sea.MOV"], UsageError, "holds videos (sea.MOV), not frames: run msdv prep"),
    ],
)
def test_what_is_no_frames_folder_says_what_to_run(
    tmp_path: Path, files: list[str] | None, error: type[Exception], words: str
) -> None:
    data = tmp_path / "data"
    for name in files or []:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"x")
    if files == []:
        data.mkdir()
    with pytest.raises(error) as caught:
        find_clips(data, 2)
    assert type(caught.value) is error
    assert words in str(caught.value)


def test_only_short_clips_is_an_error_that_says_so(tmp_path: Path) -> None:
    make_clip(tmp_path, "a.mp4", 3)
    with pytest.raises(MsdvError, match=r"no clip in .* has 25 frames \(a.mp4: 3 frames.*lower --frames"):
        find_clips(tmp_path, 25)


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    make_clip(tmp_path, "a.mp4", 3)
    (tmp_path / "manifest.jsonl").write_text('{"clip": \n')
    with pytest.raises(MsdvError, match=r"manifest.jsonl is damaged .*: run msdv prep again"):
        find_clips(tmp_path, 2)


@pytest.mark.parametrize("size", [(24, 16), (16, 24), (16, 16), (97, 33), (640, 480)])
def test_frames_are_cut_square_from_the_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    side = min(size)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    picture[top : top + side, left : left + side] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    frame = read_frames([tmp_path / "a.png"], 16)
    assert frame.shape == (1, 16, 16, 3)
    assert frame.dtype == np.uint8
    assert frame[0, 2:-2, 2:-2].min() > 190


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "000001.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    with pytest.raises(MsdvError, match=r"000001.jpg can't be decoded .*run msdv prep again"):
        read_frames([tmp_path / "000001.jpg"], 16)
