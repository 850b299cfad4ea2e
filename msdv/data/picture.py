"""A decoded frame to a JPEG: upright, square pixels, right colours, cut or padded to the size asked for.

What is thrown away is cut off before anything is scaled, and colours change their matrix after the picture is small.
"""

import struct
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Literal

import av
import numpy as np
from av.video.frame import PictureType

from msdv.data.bars import Bars

# AVColorSpace as FFmpeg numbers it (ITU-T H.273) -> the scale filter's name.
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_UNSPECIFIED, _FULL_RANGE = 2, 2
# AVColorTransferCharacteristic of high dynamic range (what phones record) -> the scale filter's name.
_HIGH_DYNAMIC_RANGE = {16: "smpte2084", 18: "arib-std-b67"}
# BT.709 to JFIF's BT.601 and full range. The scale filter does it too, through RGB, at three to six times the cost of
# scaling; `fast` leaves out transfer and primaries, which both share.
_TO_JFIF = (
    "ispace=bt709:iprimaries=bt709:itrc=bt709:irange={range}:"
    "space=bt470bg:primaries=bt709:trc=bt709:range=pc:format=yuv420p:fast=1"
)
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
_SMALL = 64  # pixels, the short side of `Encoded.small`
_WIDEST_SMALL = 3  # times that, at most


@dataclass(frozen=True)
class PictureSettings:
    """How a picture is to be made."""

    width: int  # of the JPEG
    height: int
    fit: Literal["crop", "pad"] = "crop"
    as_script: bool = False
    """As the 2022 script did: pixels taken as square, one matrix of colours as good as another, fields not parted."""


@dataclass(frozen=True)
class Encoded:
    """A picture, and a small one to measure."""

    jpeg: bytes
    small: np.ndarray
    """(h, w, 3) uint8, Y, Cb, Cr in full range; the short side 64 pixels, the long one at most three times that."""
    luma: np.ndarray
    """(height, width) uint8, Y of the JPEG."""


class PictureEncoder:
    """Turns frames of one video into JPEGs.

    With `crop` the picture covers width x height and the centre is cut out; with `pad` the whole of it is fitted in,
    and black fills the rest. Frames are taken as the file says they are to be shown: `pixel_aspect` (width/height of a
    pixel), rotation and mirroring, matrix and range of the colours (not said: BT.709 from 720 lines on, else BT.601, as
    players do); high dynamic range is brought down to that of a JPEG, interlaced frames to those of one field. JPEGs
    are JFIF: full range, BT.601, 4:2:0, the highest quality of FFmpeg's encoder.
    """

    def __init__(self, settings: PictureSettings, pixel_aspect: Fraction | None, bars: Bars | None = None) -> None:
        self._settings = settings
        self._bars = bars or Bars(0, 0, 0, 0)
        sane = pixel_aspect is not None and Fraction(1, 10) <= pixel_aspect <= 10 and not settings.as_script
        self._pixel_aspect = pixel_aspect if sane and pixel_aspect else Fraction(1)
        self._graph: Any = None
        self._source: Any = None
        self._sinks: list[Any] = []
        self._graph_key: tuple[Any, ...] = ()
        self._count = 0
        self._held = False  # the graph has a frame inside that was given already
        encoder: Any = av.CodecContext.create("mjpeg", "w")
        encoder.width, encoder.height = settings.width, settings.height
        encoder.pix_fmt, encoder.time_base, encoder.sample_aspect_ratio = "yuvj420p", Fraction(1, 25), Fraction(1)
        encoder.color_range, encoder.thread_count = _FULL_RANGE, 1
        encoder.qmin = encoder.qmax = 2
        encoder.options = {"huffman": "default"}  # tables made for each picture save 1 % of it for a quarter more time
        encoder.flags |= av.codec.context.Flags.bitexact
        self._encoder = encoder

    def encode(self, frame: Any) -> Encoded:
        """The frame as a JPEG and small. The frame is not to be used afterwards."""
        interlaced = frame.interlaced_frame and not self._settings.as_script
        colours = (frame.format.name, frame.colorspace, frame.color_range, frame.color_trc)
        key = (frame.width, frame.height, colours, _orientation(frame), interlaced)
        if key != self._graph_key:  # streams glued together may change in the middle
            self._build(frame, _orientation(frame), interlaced)
            self._graph_key, self._held = key, False
        # The graph says what the colours are, and has been told without labels.
        frame.colorspace = _UNSPECIFIED
        self._push(frame)
        if interlaced:  # the filter gives a frame when the next one comes: the same again, which is left inside
            if self._held:
                self._pull()
            self._push(frame)
        self._held = interlaced
        picture, small = self._pull()
        picture.pict_type = PictureType.NONE  # a B-frame's type would otherwise be asked of the encoder
        picture.time_base = Fraction(1, 25)
        jpeg = b"".join(bytes(packet) for packet in self._encoder.encode(picture))
        return Encoded(jpeg, np.stack([_plane(plane) for plane in small.planes], axis=-1), _plane(picture.planes[0]))

    def _push(self, frame: Any) -> None:
        frame.pts, frame.time_base = self._count, Fraction(1, 25)
        self._count += 1
        self._source.push(frame)

    def _pull(self) -> tuple[Any, Any]:
        picture, small = (sink.pull() for sink in self._sinks)
        return picture, small

    def _build(self, frame: Any, orientation: tuple[int, int, int, int], interlaced: bool) -> None:
        graph: Any = av.filter.Graph()
        graph.threads = 1
        nodes = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))
        ]
        if interlaced:
            # Fields of one frame are moments apart. This filter needs no frames before and after.
            nodes.append(graph.add("estdif", "mode=frame:deint=interlaced"))
        turned = bool(orientation[1])
        width, height = self._settings.width, self._settings.height
        target = (height, width) if turned else (width, height)
        if self._settings.as_script and self._bars == Bars(0, 0, 0, 0) and width == height:
            layout = _script_layout(frame.width, frame.height, width)
        else:
            layout = _layout(self._bars, frame.width, frame.height, self._pixel_aspect, target, self._settings.fit)
        if layout.cut != (0, 0, frame.width, frame.height):
            x, y, w, h = layout.cut
            nodes.append(graph.add("crop", f"x={x}:y={y}:w={w}:h={h}:exact=1"))
        nodes += [graph.add(name, options) for name, options in self._colour_filters(frame, layout.scaled)]
        (scaled_width, scaled_height), (target_width, target_height) = layout.scaled, target
        if scaled_width > target_width or scaled_height > target_height:
            nodes.append(graph.add("crop", f"w={target_width}:h={target_height}:exact=1"))
        elif layout.scaled != target:
            nodes.append(graph.add("pad", f"w={target_width}:h={target_height}:x=-1:y=-1:color=black"))
        nodes += [graph.add(name, arguments or None) for name, arguments in _ORIENTATIONS[orientation]]
        split = graph.add("split")
        for earlier, later in zip(nodes, [*nodes[1:], split], strict=True):
            earlier.link_to(later)
        picture_sink, small_sink = graph.add("buffersink"), graph.add("buffersink")
        small_width, small_height = _small_size(width, height)
        same = "in_color_matrix=bt601:out_color_matrix=bt601:in_range=pc:out_range=pc"
        small = graph.add("scale", f"w={small_width}:h={small_height}:flags=area+accurate_rnd:{same}")
        form = graph.add("format", "pix_fmts=yuv444p|yuvj444p")
        split.link_to(picture_sink, 0, 0)
        split.link_to(small, 1, 0)
        small.link_to(form)
        form.link_to(small_sink)
        graph.configure()
        self._graph = graph  # which ends with its last reference, and its filters with it
        self._source, self._sinks = nodes[0], [picture_sink, small_sink]

    def _colour_filters(self, frame: Any, scaled: tuple[int, int]) -> list[tuple[str, str]]:
        """Filters that scale and give JFIF's colours."""
        size = f"w={scaled[0]}:h={scaled[1]}:flags=bicubic+accurate_rnd"
        jfif = f"{size}+full_chroma_int:out_range=pc:out_color_matrix=bt601"
        if frame.format.is_rgb or len(frame.format.components) < 3:
            return [("scale", jfif), ("format", "pix_fmts=yuvj420p")]
        high = frame.height >= 720 or frame.width >= 1280
        matrix = _MATRICES.get(frame.colorspace, "bt709" if high else "bt601")
        colour_range = "pc" if frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj") else "tv"
        if frame.color_trc in _HIGH_DYNAMIC_RANGE:
            jfif += f":in_color_matrix={matrix}:in_range={colour_range}"
            jfif += f":in_primaries=bt2020:in_transfer={_HIGH_DYNAMIC_RANGE[frame.color_trc]}"
            jfif += ":out_primaries=bt709:out_transfer=bt709:intent=perceptual"
            return [("scale", jfif), ("format", "pix_fmts=yuvj420p")]
        if matrix == "bt601" or self._settings.as_script:
            size += ":in_color_matrix=bt601:out_color_matrix=bt601"
            return [("scale", f"{size}:in_range={colour_range}:out_range=pc"), ("format", "pix_fmts=yuvj420p")]
        if matrix == "bt709" and scaled[0] % 2 == scaled[1] % 2 == 0:
            size += f":in_color_matrix=bt709:out_color_matrix=bt709:in_range={colour_range}:out_range={colour_range}"
            to_jfif = _TO_JFIF.format(range=colour_range)
            return [("scale", size), ("format", "pix_fmts=yuv420p"), ("colorspace", to_jfif)]
        return [
            ("scale", f"{jfif}:in_color_matrix={matrix}:in_range={colour_range}"),
            ("format", "pix_fmts=yuvj420p"),
        ]


@dataclass(frozen=True)
class _Layout:
    cut: tuple[int, int, int, int]  # x, y, width, height of the coded picture that are used
    scaled: tuple[int, int]  # to which size


def _layout(
    bars: Bars, width: int, height: int, pixel_aspect: Fraction, target: tuple[int, int], fit: Literal["crop", "pad"]
) -> _Layout:
    """What part of a coded picture is used, and how big it becomes, before it is turned upright."""
    left, top = bars.left, bars.top
    width, height = width - left - bars.right, height - top - bars.bottom
    across = target[0] / (width * pixel_aspect)  # how much bigger a shown pixel becomes, if the width fits exactly
    down = Fraction(target[1], height)
    if fit == "pad":
        scale = min(across, down)
        fitted = (width * pixel_aspect * scale, height * scale)
        even = tuple(min(most, max(2, 2 * round(side / 2))) for side, most in zip(fitted, target, strict=True))
        return _Layout((left, top, width, height), (even[0], even[1]))
    scale = max(across, down)
    needed = (target[0] / (scale * pixel_aspect), target[1] / scale)
    x, cut_width = _centred(width, needed[0])
    y, cut_height = _centred(height, needed[1])
    scaled = (
        _covering(cut_width * pixel_aspect * scale, target[0]),
        _covering(cut_height * scale, target[1]),
    )
    return _Layout((left + x, top + y, cut_width, cut_height), scaled)


def _script_layout(width: int, height: int, side: int) -> _Layout:
    """As `scale=-1:side` does (`side:-1`, if the picture is not wide): the other side rounded, nothing cut before."""
    if width > height:
        return _Layout((0, 0, width, height), ((2 * width * side + height) // (2 * height), side))
    return _Layout((0, 0, width, height), (side, (2 * height * side + width) // (2 * width)))


def _centred(length: int, needed: Fraction) -> tuple[int, int]:
    """Where to begin and how many pixels of `length` to take so that `needed` are among them, as much is left over on
    either side, and chroma samples stay whole."""
    kept = ceil(needed)
    kept = min(length, kept + (length - kept) % 4)
    return (length - kept) // 2, kept


def _covering(side: Fraction, target: int) -> int:
    """The side to scale to: the target itself where that distorts by less than 1 %, else one that chroma can be cut
    evenly from."""
    if abs(side - target) <= target / Fraction(100):
        return target
    return target + 4 * max(0, round((side - target) / 4))


def _small_size(width: int, height: int) -> tuple[int, int]:
    short = min(width, height)
    return tuple(min(_SMALL * _WIDEST_SMALL, round(side * _SMALL / short)) for side in (width, height))  # type: ignore[return-value]


def _plane(plane: Any) -> np.ndarray:
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _orientation(frame: Any) -> tuple[int, int, int, int]:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return (1, 0, 0, 1)
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)
