from pathlib import Path

import pytest

from msdv.data.captions import CaptionLists, caption_from_name, find_caption, read_caption_lists
from msdv.errors import MsdvError


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("white_clouds-drifting 003.mp4", "white clouds drifting"),
        ("clouds.over.the.sea.mkv", "clouds over the sea"),
        ("sunset_1080p_60fps.mp4", "sunset"),
        ("storm_a3f9e1b2c4.webm", "storm"),
        ("waves [dQw4w9WgXcQ].mkv", "waves"),
        ("rain (2).mp4", "rain"),
        ("facade.mp4", "facade"),
        ("2 dogs run.mp4", "2 dogs run"),
        ("Wolken über dem Meer.mp4", "Wolken über dem Meer"),
        ("雲_空_01.mp4", "雲 空"),
        ("VID_20210304_120000.mp4", ""),
        ("VID-20210304-WA0001.mp4", ""),
        ("IMG_1234.MOV", ""),
        ("DSC01234.mp4", ""),
        ("PXL_20230101_101010123.mp4", ""),
        ("GX010123.MP4", ""),
        ("20210304_120000.mp4", ""),
        ("Screen Recording 2021-03-04 at 12.00.00.mov", ""),
        ("video(1).mp4", ""),
        ("clip_a3f9e1b2c4.mp4", ""),
        ("clouds", "clouds"),
        ("...", ""),
    ],
)
def test_caption_from_name(name: str, caption: str) -> None:
    assert caption_from_name(name) == caption


def test_sidecar_comes_first(tmp_path: Path) -> None:
    video = tmp_path / "clouds 01.mp4"
    assert find_caption(video) == "clouds"
    (tmp_path / "clouds 01.txt").write_bytes("\ufeff\n  white clouds\nover the sea \n\nphoto: me\n".encode())
    assert find_caption(video) == "white clouds over the sea"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_sidecar_in_the_encodings_of_editors(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.mp4.txt").write_bytes("Wolken über dem Meer\r\n".encode(encoding))
    assert find_caption(tmp_path / "a.mp4") == "Wolken über dem Meer"


def test_empty_sidecar_is_an_empty_caption(tmp_path: Path) -> None:
    (tmp_path / "clouds.txt").write_bytes(b" \n")
    assert find_caption(tmp_path / "clouds.mp4") == ""


def test_huge_sidecar_cut_within_a_character(tmp_path: Path) -> None:
    (tmp_path / "clouds.txt").write_bytes(("a" + "ü" * 5000).encode())
    assert set(find_caption(tmp_path / "clouds.mp4")) == {"a", "ü"}


def test_sidecar_that_ends_in_half_a_character_is_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "clouds.txt").write_bytes("café".encode("cp1252"))
    assert find_caption(tmp_path / "clouds.mp4") == "café"


def read(folder: Path, *names: str) -> CaptionLists:
    """The captions of these videos (paths below the folder), which need not exist."""
    return read_caption_lists(folder, [folder / name for name in names])


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def test_order_of_the_sources_of_a_caption(tmp_path: Path) -> None:
    video = tmp_path / "sea 01.mp4"
    write(tmp_path / "captions.csv", "file,caption\nsea 01.mp4,from the table\n")
    assert find_caption(video, read(tmp_path, "sea 01.mp4").captions) == "from the table"
    write(tmp_path / "captions.jsonl", '{"file": "sea 01.mp4", "caption": "from the lines"}\n')
    assert find_caption(video, read(tmp_path, "sea 01.mp4").captions) == "from the lines"
    write(tmp_path / "sea 01.txt", "from its own file")
    assert find_caption(video, read(tmp_path, "sea 01.mp4").captions) == "from its own file"
    assert find_caption(tmp_path / "waves.mp4", read(tmp_path, "sea 01.mp4").captions) == "waves"


@pytest.mark.parametrize("name", ["file", "file_name", "filename", "video", "path", "name", "File Name", "VIDEO"])
@pytest.mark.parametrize("text", ["caption", "text", "prompt", " Caption"])
def test_columns_and_keys(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path / "captions.csv", f"id,{text},{name}\n7,white clouds,a.mp4\n")
    assert read(tmp_path, "a.mp4").captions == {tmp_path / "a.mp4": "white clouds"}
    write(tmp_path / "captions.jsonl", f'{{"id": 7, "{text}": "grey clouds", "{name}": "a.mp4"}}\n')
    assert read(tmp_path, "a.mp4").captions == {tmp_path / "a.mp4": "grey clouds"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_tables_of_all_programs(tmp_path: Path, delimiter: str, encoding: str, newline: str) -> None:
    rows = ["file|caption|", 'a.mp4|"Wolken über\n dem ""Meer"", weiß; grau"|', "", "b.mp4|ein Café"]
    text = newline.join(rows).replace("|", delimiter).replace("\n", newline if newline != "\r" else "\n")
    write(tmp_path / "captions.csv", text, encoding)
    assert read(tmp_path, "a.mp4", "b.mp4") == CaptionLists(
        {tmp_path / "a.mp4": 'Wolken über dem "Meer", weiß; grau', tmp_path / "b.mp4": "ein Café"}
    )


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4;white clouds, over the sea",
        'a.mp4,"white clouds, over the sea"',
        'a.mp4, "white clouds, over the sea",,',
        "\n\na.mp4\twhite clouds, over the sea\n",
        "sep=;\r\nfile;caption\r\na.mp4;white clouds, over the sea\r\n",
        ',file,caption\n0,a.mp4,"white clouds, over the sea"',
    ],
)
def test_delimiter_and_header_are_seen_in_the_first_row(tmp_path: Path, text: str) -> None:
    write(tmp_path / "captions.csv", text)
    assert read(tmp_path, "a.mp4") == CaptionLists({tmp_path / "a.mp4": "white clouds, over the sea"})


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("a.mp4", "a.mp4"),
        ("a", "a.mp4"),
        ("./a.mp4", "a.mp4"),
        ("A.MP4", "a.mp4"),
        ("sub/a.mp4", "sub/a.mp4"),
        ("sub\\\\a", "sub/a.mp4"),
        ("a.mp4", "sub/a.mp4"),
        ("VIDEOS/sub/a.mp4", "sub/a.mp4"),
        ("TMP/VIDEOS/sub/a.mp4", "sub/a.mp4"),
        ("clouds.v2", "clouds.v2.mov"),
        ("cafe\u0301.mp4", "caf\u00e9.mp4"),
    ],
)
def test_names_of_videos(tmp_path: Path, name: str, video: str) -> None:
    folder = tmp_path / "videos"
    name = name.replace("TMP", tmp_path.as_posix()).replace("VIDEOS", "videos")
    write(folder / "captions.jsonl", f'{{"file": "{name}", "caption": "x"}}\n')
    assert read(folder, video, "b.mp4") == CaptionLists({folder / video: "x"})


@pytest.mark.parametrize("name", ["other/a.mp4", "a.mkv", "sub", "xa.mp4", ".", "/a.mp4", "sub/sub/a.mp4"])
def test_names_of_no_video_are_told(tmp_path: Path, name: str) -> None:
    write(tmp_path / "captions.csv", f"file,caption\nb.mp4,y\n{name},x\n")
    lists = read(tmp_path, "sub/a.mp4", "b.mp4")
    assert lists.captions == {tmp_path / "b.mp4": "y"}
    assert lists.unused == (f"{tmp_path / 'captions.csv'}: 1 row names no video (line 3: {name})",)


def test_many_names_of_no_video_take_one_line(tmp_path: Path) -> None:
    write(tmp_path / "captions.csv", "file,caption\n" + "".join(f"{n}.mp4,x\n" for n in range(9)))
    (line,) = read(tmp_path, "0.mp4").unused
    assert line.endswith("8 rows name no video (line 3: 1.mp4, line 4: 2.mp4, line 5: 3.mp4, ...)")


def test_the_exact_name_goes_before_the_others(tmp_path: Path) -> None:
    write(tmp_path / "captions.csv", "file,caption\na,both\na.mov,film\nA.mkv,big\na.mkv,small\n")
    found = read(tmp_path, "a.mp4", "a.mov", "A.mkv", "a.mkv").captions
    assert {video.name: caption for video, caption in found.items()} == {
        "a.mp4": "both",
        "a.mov": "film",
        "A.mkv": "big",
        "a.mkv": "small",
    }


def test_a_list_beside_the_video_goes_before_one_above(tmp_path: Path) -> None:
    write(tmp_path / "captions.jsonl", '{"file": "sub/a.mp4", "text": "far"}\n{"file": "sub/b.mp4", "text": "far"}\n')
    write(tmp_path / "sub" / "captions.csv", "a.mp4,near")
    found = read(tmp_path, "sub/a.mp4", "sub/b.mp4").captions
    assert found == {tmp_path / "sub/a.mp4": "near", tmp_path / "sub/b.mp4": "far"}


def test_an_empty_caption_is_one_and_a_missing_one_is_none(tmp_path: Path) -> None:
    write(tmp_path / "captions.csv", "file,caption\na.mp4,\nb.mp4\n")
    assert read(tmp_path, "a.mp4", "b.mp4").captions == {tmp_path / "a.mp4": ""}
    write(tmp_path / "captions.csv", "")
    assert read(tmp_path, "a.mp4") == CaptionLists()
    write(tmp_path / "captions.jsonl", '\ufeff{"file": "a.mp4", "caption": ""}\n\n{"file": "b.mp4", "caption": null}\n')
    assert read(tmp_path, "a.mp4", "b.mp4").captions == {tmp_path / "a.mp4": ""}


def test_one_video_of_many_leaves_the_other_rows_alone(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.touch()
    write(tmp_path / "captions.csv", "file,caption\na.mp4,x\nb.mp4,y\n")
    assert read_caption_lists(video, [video]) == CaptionLists({video: "x"})


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("captions.csv", "clip,description,id\na.mp4,x,1\n", "line 1 (clip, description, id) has no usable columns"),
        ("captions.csv", "file,description\na.mp4,x\n", "line 1 (file, description) has no usable columns"),
        ("captions.csv", "a.mp4\n", "line 1 (a.mp4) has no usable columns: expected columns file,caption"),
        ("captions.csv", "\nfile,caption\na.mp4,white, grey\n", "line 3 has 3 columns instead of 2: a caption with c"),
        ("captions.csv", 'file,caption\n\na.mp4,"white\nb.mp4,grey\n', "line 3 is damaged"),
        ("captions.csv", 'sep=,\nfile,caption\na.mp4,"x\ny"\nb.mp4,"white" grey\n', "line 5 is damaged"),
        ("captions.csv", "file,caption\na.mp4,x\n,y\n", "line 3 names no video"),
        ("captions.csv", "file,caption\na.mp4,x\nb.mp4,z\na,w\na.mp4,y\n", "two captions for a.mp4, in lines 2 and 5"),
        ("captions.csv", "file,caption\nc.mp4,x\n", "line 2 could mean"),
        ("captions.jsonl", '{"file": "a.mp4", "caption": "x"}\n{"file":\n', "line 2 is no JSON (Expecting value at"),
        ("captions.jsonl", "[" * 100_000, "line 1 is no JSON ("),
        ("captions.jsonl", '["a.mp4", "x"]\n', "line 1 is no JSON object: expected a line such as {"),
        ("captions.jsonl", '{"clip": "a.mp4", "caption": "x"}\n', "line 1 names no video (keys: clip, caption)"),
        ("captions.jsonl", '{"file": 7, "caption": "x"}\n', "line 1 names no video"),
        ("captions.jsonl", '{"file": "a.mp4", "words": "x"}\n', "line 1 has no caption (keys: file, words)"),
        ("captions.jsonl", '{"file": "a.mp4", "caption": ["x", "y"]}\n', "line 1 has a caption that is no text"),
    ],
)
def test_damaged_lists_are_named_with_the_line(tmp_path: Path, file: str, text: str, words: str) -> None:
    write(tmp_path / file, text)
    with pytest.raises(MsdvError) as caught:
        read(tmp_path, "a.mp4", "b.mp4", "1/c.mp4", "2/c.mp4")
    assert words in str(caught.value)
    assert str(tmp_path / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "captions.jsonl", '{"file": "a.mp4", "caption": "a \\ud800 sea"}\n')
    assert read(tmp_path, "a.mp4").captions == {tmp_path / "a.mp4": "a ? sea"}
