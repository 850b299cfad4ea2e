"""Captions: what a video shows, in words, from the text file beside it or from its name."""

import codecs
import re
from pathlib import Path

# What cameras, phones and programs call a video: no word of it says what is to be seen.
_CAMERA = re.compile(
    r"(vid|img|dsc[nf]?|mvi|mov|gopr|g[xhp]|pxl|dji|mah|sam|wp|wa|clip|video|movie|untitled|output|download)?\d*[a-z]?",
    re.IGNORECASE,
)
_SCREEN = re.compile(r"(screen[ _-]?(recording|cast|capture)|whatsapp[ _-]?video|signal)\b.*\d", re.IGNORECASE)
# Numbers, dates, resolutions; hexadecimal hashes; ids of video sites, which mix digits into 11 letters.
_TAIL = re.compile(
    r"\d+(p|fps)?|\d+x\d+|[248]k|u?hd|wa\d+|(?=.*\d)[0-9a-f]{6,}|(?=\w*\d)(?=\w*[a-z])(?=\w*[A-Z])\w{11}", re.ASCII
)
_LONGEST = 4096  # bytes read of a text file: CLIP takes 77 tokens


def caption_from_name(name: str) -> str:
    """A caption from the name of a video (or of its folder of frames), empty if the name says nothing.

    `white_clouds-drifting 003.mp4` is "white clouds drifting"; `VID_20210304_120000.mp4` is "".
    """
    stem = re.sub(r"\.[A-Za-z][A-Za-z0-9]{1,4}$", "", name)
    if _SCREEN.match(stem):
        return ""
    words = re.sub(r"[\W_]+", " ", stem).split()
    if all(_CAMERA.fullmatch(word) for word in words):
        return ""
    while words and (_TAIL.fullmatch(words[-1]) or _TAIL.fullmatch(words[-1].lower())):
        words.pop()
    return "" if all(_CAMERA.fullmatch(word) for word in words) else " ".join(words)


def find_caption(video: Path) -> str:
    """The first paragraph of `clouds.txt` (or `clouds.mp4.txt`) beside clouds.mp4 in one line, else from its name."""
    for sidecar in (video.with_suffix(".txt"), video.with_name(video.name + ".txt")):
        try:
            with sidecar.open("rb") as file:
                text = _decode(file.read(_LONGEST))
        except (OSError, ValueError):
            continue
        lines = [line.strip() for line in text.strip().splitlines()]
        return " ".join(lines[: lines.index("")] if "" in lines else lines)
    return caption_from_name(video.name)


def _decode(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # what old Windows editors call Unicode
        return data.decode("utf-16", "replace")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(data)  # may end within a character
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")
