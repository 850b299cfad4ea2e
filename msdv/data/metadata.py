"""Text inside picture files: where gif, animated png and webp keep a comment, which FFmpeg does not write there.

Each format is a chain of blocks that say their own length; a comment is one block more. Sources: GIF89a specification,
section 24; PNG (W3C, third edition), 11.3.3; WebP container specification, "Extended File Format"; XMP, part 1.
"""

import struct
import zlib
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.sax.saxutils import escape

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


def embed(data: bytes, suffix: str, text: str) -> bytes:
    """The picture file `data` (of kind `suffix`: .gif, .png or .webp) with `text` as its comment."""
    return {".gif": _embed_gif, ".png": _embed_png, ".webp": _embed_webp}[suffix](data, text)


def extract(data: bytes, suffix: str) -> str | None:
    """The comment in a picture file, or None. Raises ValueError for data that is not of this kind."""
    try:
        return {".gif": _extract_gif, ".png": _extract_png, ".webp": _extract_webp}[suffix](data)
    except (struct.error, IndexError, ElementTree.ParseError) as error:
        raise ValueError(f"it breaks off or is damaged ({error})") from error


def _gif_extensions(data: bytes) -> Iterator[tuple[int, int, bytes]]:
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


def _embed_gif(data: bytes, text: str) -> bytes:
    # Behind the block that makes it loop, which some players expect first, and before the first picture's own.
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    for _, end, content in _gif_extensions(data):
        if content.startswith(_GIF_APPLICATION):
            at = end
    content = text.encode("ascii", "backslashreplace")
    blocks = b"".join(bytes([len(content[i : i + 255])]) + content[i : i + 255] for i in range(0, len(content), 255))
    return data[:at] + _GIF_COMMENT + blocks + b"\0" + data[at:]


def _extract_gif(data: bytes) -> str | None:
    for _, _, content in _gif_extensions(data):
        if content.startswith(_GIF_COMMENT):
            return content[2:].decode("utf-8", "replace")
    return None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if data[:8] != _PNG_SIGNATURE:
        raise ValueError("not a PNG")
    at = 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _embed_png(data: bytes, text: str) -> bytes:
    # tEXt is Latin-1 and known to every reader; iTXt holds the rest.
    try:
        name, content = b"tEXt", _PNG_KEYWORD.encode() + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        name, content = b"iTXt", _PNG_KEYWORD.encode() + b"\0\0\0\0\0" + text.encode("utf-8")
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    header_end = 8 + 12 + 13
    return data[:header_end] + chunk + data[header_end:]


def _extract_png(data: bytes) -> str | None:
    for name, content in _png_chunks(data):
        keyword, _, rest = content.partition(b"\0")
        if keyword != _PNG_KEYWORD.encode():
            continue
        if name == b"tEXt":
            return rest.decode("latin-1")
        if name == b"iTXt" and rest[:1] == b"\0":
            return rest[2:].split(b"\0", 2)[2].decode("utf-8", "replace")
    return None


def _webp_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("not a WebP")
    chunks, at = [], 12
    while at + 8 <= len(data):
        name, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        chunks.append((name, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return chunks


def _embed_webp(data: bytes, text: str) -> bytes:
    chunks = _webp_chunks(data)
    if chunks[0][0] != b"VP8X":
        # A still picture in the simple layout: the extended one starts with a header of its own. A lossy picture keeps
        # its size, 14 bits each, behind the start code of its first frame.
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", chunks[0][1], 6))
        size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        chunks.insert(0, (b"VP8X", b"\0\0\0\0" + size))
    header = bytearray(chunks[0][1])
    # FFmpeg marks every animation as transparent; ours never is, and some viewers then paint a background.
    header[0] = (header[0] | _WEBP_XMP_FLAG) & ~_WEBP_ALPHA_FLAG
    chunks[0] = (b"VP8X", bytes(header))
    chunks.append((b"XMP ", _XMP.format(escape(text)).encode("utf-8")))
    body = b"".join(name + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for name, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _extract_webp(data: bytes) -> str | None:
    for name, content in _webp_chunks(data):
        if name == b"XMP ":
            # Only ours is of use: an XMP packet with a DTD (entities that grow without end) is not.
            item = None if b"<!" in content else ElementTree.fromstring(content).find(f".//{_XMP_ITEM}")
            return None if item is None else item.text
    return None
