"""Black bars: found in what an encoder makes of them, and not seen where a picture is only dark."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from msdv.data.bars import Bars, find_bars, may_have_bars

H, W = 360, 640


def encode(frames: Sequence[np.ndarray], crf: int = 28, full_range: bool = False) -> list[np.ndarray]:
    """Luma planes of `frames` after a round trip through H.264."""
    file = io.BytesIO()
    height, width = frames[0].shape[:2]
    pixels = "yuv420p" if height % 2 == 0 == width % 2 else "yuv444p"
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"crf": str(crf), "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.thread_count = 1
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame = frame.reformat(format=pixels, dst_color_range="JPEG" if full_range else "MPEG")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        return [luma(frame) for frame in container.decode(video=0)]


def luma(frame: Any) -> np.ndarray:
    plane = frame.planes[0]
    lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return lines[:, : plane.width].copy()


def textures(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Pictures with something everywhere that moves to the left."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2 + count, 3), dtype=np.uint8)
    size = (small.shape[1] * 24, small.shape[0] * 24)
    large = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
    return [large[12 : 12 + height, 24 * i : 24 * i + width] for i in range(count)]


def barred(pictures: Sequence[np.ndarray], width: int, height: int, soft: int = 0) -> tuple[list[np.ndarray], Bars]:
    """Pictures in the middle of black, their first lines `soft`ly faded in; and the bars that this makes."""
    frames = []
    own_height, own_width = pictures[0].shape[:2]
    top, left = (height - own_height) // 2, (width - own_width) // 2
    for picture in pictures:
        fade = np.ones((own_height, own_width, 1))
        for line in range(soft):
            share = (line + 1) / (soft + 1)
            if own_height < height:
                fade[[line, -1 - line]] *= share
            if own_width < width:
                fade[:, [line, -1 - line]] *= share
        frame = np.zeros((height, width, 3), dtype=np.uint8)
        frame[top : top + own_height, left : left + own_width] = picture * fade
        frames.append(frame)
    return frames, Bars(left, top, width - own_width - left, height - own_height - top)


def assert_cut(found: Bars | None, true: Bars, spare: int) -> None:
    assert found is not None
    for side in ("left", "top", "right", "bottom"):
        wanted, cut = getattr(true, side), getattr(found, side)
        assert cut % 2 == 0
        assert cut == 0 if wanted == 0 else wanted <= cut <= wanted + spare, (side, found, true)


@pytest.mark.parametrize("size", [(1920, 1080), (1280, 720), (854, 480), (853, 481)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(lambda w, h: (w, round(w / 2.39)), id="2.39:1"),
        pytest.param(lambda w, h: (w, round(w / 1.85)), id="1.85:1"),
        pytest.param(lambda w, h: (round(h * 4 / 3), h), id="4:3"),
        pytest.param(lambda w, h: (round(h * 9 / 16), h), id="9:16"),
        pytest.param(lambda w, h: (round(h * 9 / 20), h), id="9:20"),
        pytest.param(lambda w, h: (round(w * 0.6), round(h * 0.75)), id="window box"),
    ],
)
@pytest.mark.parametrize(("crf", "full_range", "soft"), [(18, False, 0), (35, True, 0), (35, False, 3)])
def test_bars_are_cut_and_little_else(
    size: tuple[int, int],
    shape: Callable[[int, int], tuple[int, int]],
    crf: int,
    full_range: bool,
    soft: int,
) -> None:
    own_width, own_height = shape(*size)
    frames, true = barred(textures(2, own_height, own_width, seed=crf + own_width), *size, soft=soft)
    lumas = encode(frames, crf, full_range)
    assert may_have_bars(lumas[0])
    assert_cut(find_bars(lumas), true, 3 + soft)


def letterboxed(count: int = 9, show: Callable[[int, np.ndarray], np.ndarray] | None = None) -> list[np.ndarray]:
    pictures = textures(count, 264, W)
    return barred([show(i, x) if show else x for i, x in enumerate(pictures)], W, H)[0]


LETTERBOX = Bars(0, 48, 0, 48)


def test_one_frame_is_enough() -> None:
    assert_cut(find_bars(encode(letterboxed(1))), LETTERBOX, 2)


def test_black_frames_tell_nothing() -> None:
    black = np.zeros((H, W, 3), dtype=np.uint8)
    lumas = encode([black] * 5 + letterboxed(2))
    assert may_have_bars(lumas[0])
    assert_cut(find_bars(lumas), LETTERBOX, 2)
    assert find_bars(encode([black] * 3)) is None


def test_a_fade_in_between_bars() -> None:
    frames = letterboxed(show=lambda i, x: (x * (i / 8)).astype(np.uint8))
    assert_cut(find_bars(encode(frames)), LETTERBOX, 2)


def test_a_dark_scene_between_bars() -> None:
    frames = letterboxed(show=lambda i, x: (x * 0.1).astype(np.uint8))
    assert_cut(find_bars(encode(frames, 20)), LETTERBOX, 2)


def with_text(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame)
    ImageDraw.Draw(image).text((200, 325), "Where were you last night?", fill="white", font=ImageFont.load_default(20))
    return np.asarray(image)


def test_subtitles_in_some_frames_do_not_hide_a_bar() -> None:
    frames = [with_text(x) if i % 2 else x for i, x in enumerate(letterboxed())]
    assert_cut(find_bars(encode(frames)), LETTERBOX, 2)


def test_what_always_stands_in_a_bar_is_part_of_the_picture() -> None:
    assert find_bars(encode([with_text(x) for x in letterboxed()])) is None


Y, X = np.mgrid[0:H, 0:W]
SKYLINE = 230 + 30 * np.sin(X[0] / 50) + 15 * np.sign(np.sin(X[0] / 17))
RADIUS = np.hypot((X - W / 2) / (W / 2), (Y - H / 2) / (H / 2))
RNG = np.random.default_rng(1)
STARS = np.where(RNG.random((H, W)) > 0.9995, 255, 0)
LIGHTS = np.where((np.abs(Y - 220) < 45) & (RNG.random((H, W)) > 0.97), 255, 0)
NOISE = RNG.standard_normal((H, W))


def grey(luma: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(luma, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def square(x: float, y: float, half: int = 75) -> np.ndarray:
    return grey(255 * ((np.abs(X - x) < half) & (np.abs(Y - y) < half)))


def black_where(mask: np.ndarray) -> Callable[[int, np.ndarray], np.ndarray]:
    return lambda i, x: np.where(mask[..., None], 0, x).astype(np.uint8)


@pytest.mark.parametrize(
    "show",
    [
        pytest.param(lambda i, x: x, id="a picture"),
        pytest.param(lambda i, x: square(80 + 60 * i, H / 2), id="a square that moves across"),
        pytest.param(lambda i, x: square(W / 2, 80 + 25 * i), id="a square that moves down"),
        pytest.param(lambda i, x: square(80 + 60 * i, 80 + 25 * i, 50), id="a square that moves aslant"),
        pytest.param(lambda i, x: square(W / 2, H / 2), id="a square that stays"),
        pytest.param(lambda i, x: grey(255 * (RADIUS < 0.8)), id="an ellipse"),
        pytest.param(lambda i, x: grey(STARS), id="stars"),
        pytest.param(lambda i, x: grey(LIGHTS), id="lights of a town at night"),
        pytest.param(
            lambda i, x: grey(6 + 3 * NOISE + 30 * (Y > 150) * np.exp(-(((X - 300 - 9 * i) / 90) ** 2))), id="night"
        ),
        pytest.param(black_where(SKYLINE[None] < Y), id="a skyline"),
        pytest.param(black_where(Y > 300), id="a horizon"),
        pytest.param(black_where(X < W / 3), id="a black third"),
        pytest.param(black_where(Y < 48), id="one bar"),
        pytest.param(black_where((Y < 40) | (Y >= H - 80)), id="bars that are no pair"),
        pytest.param(black_where(np.abs(Y - H / 2) > 35), id="a strip of a picture"),
        pytest.param(lambda i, x: (x * np.clip(1.25 - RADIUS, 0, 1)[..., None]).astype(np.uint8), id="a vignette"),
        pytest.param(
            lambda i, x: (x * np.clip(1.3 - np.abs(Y - 180) / 120, 0, 1)[..., None]).astype(np.uint8), id="a gradient"
        ),
        pytest.param(lambda i, x: (x * (i / 8)).astype(np.uint8), id="a fade"),
        pytest.param(lambda i, x: black_where(np.abs(Y - 179.5) > 132)(i, x) if i < 4 else x, id="bars for a while"),
    ],
)
def test_a_dark_picture_has_no_bars(show: Callable[[int, np.ndarray], np.ndarray]) -> None:
    frames = [show(i, x) for i, x in enumerate(textures(9, H, W))]
    for crf, full_range in ((18, False), (35, True)):
        assert find_bars(encode(frames, crf, full_range)) is None


def test_one_frame_rules_bars_out() -> None:
    bright = encode(textures(1, H, W))[0]
    assert not may_have_bars(bright)
    assert not may_have_bars(encode([black_where(X < W / 3)(0, textures(1, H, W)[0])])[0])


def test_planes_that_say_nothing() -> None:
    assert find_bars([]) is None
    assert find_bars([np.zeros((1, 1), np.uint8)]) is None
    assert find_bars([np.zeros((16, 8192), np.uint8)]) is None
    assert not may_have_bars(np.zeros((1, 1), np.uint8))
    letterbox = encode(letterboxed(2))
    assert find_bars([*letterbox, letterbox[0][:-2]]) is None
