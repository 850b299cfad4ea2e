"""A decoded frame to a square JPEG: upright, square pixels, right colours."""

import struct
from fractions import Fraction
from typing import Any

import av
from av.video.frame import PictureType

# Pictures wider than this (long side / short side) are cut before they are scaled: 8192x16 would become 262144x512.
_WIDE = 3
# AVColorSpace as FFmpeg numbers it (ITU-T H.273) -> the scale filter's name.
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_FULL_RANGE = 2
# AVColorTransferCharacteristic of high dynamic range (what phones record) -> the scale filter's name.
_HIGH_DYNAMIC_RANGE = {16: "smpte2084", 18: "arib-std-b67"}
# The display matrix's upper left (a, b, c, d): where a frame's right and down go -> filters that do it.
_ORIENTATIONS: dict[tuple[int, int, int, int], tuple[tuple[str, str], ...]] = {
    (1, 0, 0, 1): (),
    (-1, 0, 0, 1): (("hflip", ""),),
    (1, 0, 0, -1): (("vflip", ""),),
    (-1, 0, 0, -1): (("hflip", ""), ("vflip", "")),
    (0, 1, -1, 0): (("transpose", "dir=clock"),),
    (0, -1, 1, 0): (("transpose", "dir=cclock"),),
    (0, 1, 1, 0): (("transpose", "dir=cclock_flip"),),
    (0, -1, -1, 0): (("transpose", "dir=clock_flip"),),
}


class SquareJpeg:
    """Turns frames of one video into JPEGs of `size` x `size` pixels.

    The short side is scaled to `size` and the centre cut out. Frames are taken as the file says they are to be shown:
    `pixel_aspect` (width/height of a pixel), rotation and mirroring, matrix and range of the colours (not said: BT.709
    from 720 lines on, else BT.601, as players do); high dynamic range is brought down to that of a JPEG. JPEGs are
    JFIF: full range, BT.601, 4:2:0, the highest quality of FFmpeg's encoder.
    """

    def __init__(self, size: int, pixel_aspect: Fraction | None) -> None:
        self._size = size
        sane = pixel_aspect is not None and Fraction(1, 10) <= pixel_aspect <= 10
        self._pixel_aspect = pixel_aspect if sane and pixel_aspect else Fraction(1)
        self._graph: Any = None
        self._graph_key: tuple[Any, ...] = ()
        self._count = 0
        encoder: Any = av.CodecContext.create("mjpeg", "w")
        encoder.width = encoder.height = size
        encoder.pix_fmt, encoder.time_base, encoder.sample_aspect_ratio = "yuvj420p", Fraction(1, 25), Fraction(1)
        encoder.color_range, encoder.thread_count = _FULL_RANGE, 1
        encoder.qmin = encoder.qmax = 2
        encoder.flags |= av.codec.context.Flags.bitexact
        self._encoder = encoder

    def encode(self, frame: Any) -> bytes:
        colours = (frame.format.name, frame.colorspace, frame.color_range, frame.color_trc)
        key = (frame.width, frame.height, colours, _orientation(frame))
        if key != self._graph_key:  # streams glued together may change in the middle
            self._graph, self._graph_key = self._build(frame, key[-1]), key
        frame.pts, frame.time_base = self._count, Fraction(1, 25)
        self._count += 1
        self._graph.push(frame)
        square = self._graph.pull()
        square.pict_type = PictureType.NONE  # a B-frame's type would otherwise be asked of the encoder
        square.time_base = Fraction(1, 25)
        return b"".join(bytes(packet) for packet in self._encoder.encode(square))

    def _build(self, frame: Any, orientation: tuple[int, int, int, int]) -> Any:
        graph: Any = av.filter.Graph()
        graph.threads = 1
        nodes = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))
        ]
        width, height = frame.width, frame.height
        shown = Fraction(width) * self._pixel_aspect / height  # width / height on a screen
        if shown > _WIDE:
            width = _centred(width, height * 2 / self._pixel_aspect)
        elif shown < Fraction(1, _WIDE):
            height = _centred(height, width * 2 * self._pixel_aspect)
        if (width, height) != (frame.width, frame.height):
            nodes.append(graph.add("crop", f"w={width}:h={height}:exact=1"))
        shown_width, short = width * self._pixel_aspect, min(width * self._pixel_aspect, Fraction(height))
        scaled_width = max(self._size, round(shown_width * self._size / short))
        scaled_height = max(self._size, round(height * self._size / short))
        scale = f"w={scaled_width}:h={scaled_height}:flags=bicubic+accurate_rnd+full_chroma_int"
        scale += ":out_range=pc:out_color_matrix=bt601"
        if not frame.format.is_rgb and len(frame.format.components) >= 3:
            high = frame.height >= 720 or frame.width >= 1280
            matrix = _MATRICES.get(frame.colorspace, "bt709" if high else "bt601")
            full = frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")
            scale += f":in_color_matrix={matrix}:in_range={'pc' if full else 'tv'}"
            if frame.color_trc in _HIGH_DYNAMIC_RANGE:
                scale += f":in_primaries=bt2020:in_transfer={_HIGH_DYNAMIC_RANGE[frame.color_trc]}"
                scale += ":out_primaries=bt709:out_transfer=bt709:intent=perceptual"
        nodes.append(graph.add("scale", scale))
        nodes.append(graph.add("format", "pix_fmts=yuvj420p"))
        if (scaled_width, scaled_height) != (self._size, self._size):
            nodes.append(graph.add("crop", f"w={self._size}:h={self._size}:exact=1"))
        nodes += [graph.add(name, arguments or None) for name, arguments in _ORIENTATIONS[orientation]]
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes).configure()
        return graph


def _centred(length: int, wanted: Fraction) -> int:
    """About `wanted` pixels of `length` that leave as much on either side, and chroma samples whole."""
    kept = max(2, round(wanted))
    return min(length, kept + (length - kept) % 4)


def _orientation(frame: Any) -> tuple[int, int, int, int]:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return (1, 0, 0, 1)
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)
