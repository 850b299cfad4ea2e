"""Text inside picture files: where gif, animated png and webp keep a comment, which FFmpeg does not write there.

Each format is a chain of blocks that say their own length; a comment is one block more. Sources: GIF89a specification,
section 24; PNG (W3C, third edition), 11.3.3; WebP container specification, "Extended File Format"; XMP, part 1.
"""

import io
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree
from xml.sax.saxutils import escape

_Data = bytes | mmap.mmap

_MOVED = 2**20  # bytes at a time
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEYWORD = "Comment"
_GIF_COMMENT = b"\x21\xfe"
_GIF_APPLICATION = b"\x21\xff"
_WEBP_XMP_FLAG, _WEBP_ALPHA_FLAG = 0x04, 0x10
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt>'
    '<rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>'
)
_XMP_ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"


def embed(path: Path, suffix: str, text: str) -> None:
    """Put `text` into a picture file (of kind `suffix`: .gif, .png or .webp) as its comment."""
    with path.open("rb+") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            changes = {".gif": _embed_gif, ".png": _embed_png, ".webp": _embed_webp}[suffix](data, text)
        for change in changes:
            if change.replaces:
                file.seek(change.at)
                file.write(change.new)
            else:
                _insert(file, change.at, change.new)


def extract(path: Path, suffix: str) -> str | None:
    """The comment in a picture file, or None. Raises OSError, and ValueError for what is not of this kind."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return {".gif": _extract_gif, ".png": _extract_png, ".webp": _extract_webp}[suffix](data)
    except (struct.error, IndexError, ElementTree.ParseError) as error:
        raise ValueError(f"it breaks off or is damaged ({error})") from error


@dataclass(frozen=True)
class _Change:
    """Bytes that come into a file at a place, or take the place of as many."""

    at: int
    new: bytes
    replaces: bool = False


def _insert(file: BinaryIO, at: int, new: bytes) -> None:
    """Without the file being in memory or twice on the disk: what comes after moves, the end first."""
    position = file.seek(0, io.SEEK_END)
    while position > at:
        start = max(at, position - _MOVED)
        file.seek(start)
        moved = file.read(position - start)
        file.seek(start + len(new))
        file.write(moved)
        position = start
    file.seek(at)
    file.write(new)


def _gif_extensions(data: _Data) -> Iterator[tuple[int, int, bytes]]:
    """Start, end and content of each extension block before the first picture."""
    if data[:3] != b"GIF":
        raise ValueError("not a GIF")
    flags = data[10]
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[at : at + 1] == b"\x21":
        start, content = at, data[at : at + 2]
        at += 2
        while data[at]:
            content += data[at + 1 : at + 1 + data[at]]
            at += 1 + data[at]
        at += 1
        yield start, at, content


def _embed_gif(data: _Data, text: str) -> list[_Change]:
    # Behind the block that makes it loop, which some players expect first, and before the first picture's own.
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    for _, end, content in _gif_extensions(data):
        if content.startswith(_GIF_APPLICATION):
            at = end
    content = text.encode("ascii", "backslashreplace")
    blocks = b"".join(bytes([len(content[i : i + 255])]) + content[i : i + 255] for i in range(0, len(content), 255))
    return [_Change(at, _GIF_COMMENT + blocks + b"\0")]


def _extract_gif(data: _Data) -> str | None:
    for _, _, content in _gif_extensions(data):
        if content.startswith(_GIF_COMMENT):
            return content[2:].decode("utf-8", "replace")
    return None


def _png_chunks(data: _Data) -> Iterator[tuple[bytes, bytes]]:
    if data[:8] != _PNG_SIGNATURE:
        raise ValueError("not a PNG")
    at = 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _embed_png(data: _Data, text: str) -> list[_Change]:
    # tEXt is Latin-1 and known to every reader; iTXt holds the rest.
    try:
        name, content = b"tEXt", _PNG_KEYWORD.encode() + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        name, content = b"iTXt", _PNG_KEYWORD.encode() + b"\0\0\0\0\0" + text.encode("utf-8")
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return [_Change(8 + 12 + 13, chunk)]  # behind the header


def _extract_png(data: _Data) -> str | None:
    for name, content in _png_chunks(data):
        keyword, _, rest = content.partition(b"\0")
        if keyword != _PNG_KEYWORD.encode():
            continue
        if name == b"tEXt":
            return rest.decode("latin-1")
        if name == b"iTXt" and rest[:1] == b"\0":
            return rest[2:].split(b"\0", 2)[2].decode("utf-8", "replace")
    return None


def _webp_chunks(data: _Data) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and length of each chunk's content."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("not a WebP")
    at = 12
    while at + 8 <= len(data):
        name, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        yield name, at + 8, length
        at += 8 + length + length % 2


def _embed_webp(data: _Data, text: str) -> list[_Change]:
    content = _XMP.format(escape(text)).encode("utf-8")
    new = b"\0" * (len(data) % 2) + b"XMP " + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    name, at, _ = next(_webp_chunks(data))
    header = b""
    if name == b"VP8X":
        # FFmpeg marks every animation as transparent; ours never is, and some viewers then paint a background.
        flags = _Change(at, bytes([(data[at] | _WEBP_XMP_FLAG) & ~_WEBP_ALPHA_FLAG]), replaces=True)
    else:
        # A still picture in the simple layout: the extended one starts with a header of its own. A lossy picture keeps
        # its size, 14 bits each, behind the start code of its first frame.
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, at + 6))
        size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        header = b"VP8X" + struct.pack("<I", 10) + bytes([_WEBP_XMP_FLAG]) + b"\0\0\0" + size
        flags = _Change(12, header)
    riff = _Change(4, struct.pack("<I", len(data) + len(header) + len(new) - 8), replaces=True)
    return [_Change(len(data), new), flags, riff]


def _extract_webp(data: _Data) -> str | None:
    for name, at, length in _webp_chunks(data):
        if name == b"XMP ":
            # Only ours is of use: an XMP packet with a DTD (entities that grow without end) is not.
            content = data[at : at + length]
            item = None if b"<!" in content else ElementTree.fromstring(content).find(f".//{_XMP_ITEM}")
            return None if item is None else item.text
    return None
