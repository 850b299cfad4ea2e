from pathlib import Path

import pytest

from msdv.data.captions import caption_from_name, find_caption


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
