"""Still overlays: found over any scene, and scenes not taken for them."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from msdv.data.overlay import Overlay, describe, find_overlays
from msdv.data.synthetic import clips, render

SIZE = 256
FRAMES = 6
Paint = Callable[[Image.Image, int, int], Image.Image]  # frame, number of the clip, number of the frame


def scene(seed: int) -> list[Image.Image]:
    """A camera that stands still before clouds, houses and panes, with a ball that passes."""
    rng, choice = np.random.default_rng(seed), random.Random(seed)
    x, y = np.meshgrid(np.fft.fftfreq(SIZE) * SIZE, np.fft.fftfreq(SIZE) * SIZE)
    frequency = np.hypot(x, y)
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, SIZE, SIZE))) * frequency**-1.5).real
    noise = 128 + 30 * noise / noise.std() + rng.uniform(-40, 40, (3, 1, 1))
    still = Image.fromarray(noise.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())
    draw = ImageDraw.Draw(still)
    if seed % 3:
        horizon, left = choice.randrange(130, 210), 0
        while left < SIZE:
            right, top = left + choice.randrange(10, 40), horizon - choice.randrange(60)
            draw.rectangle((left, top, right, SIZE), fill=tuple(choice.randrange(20, 90) for _ in range(3)))
            for row in range(top + 4, SIZE - 6, 10):
                for column in range(left + 3, right - 4, 7):
                    draw.rectangle((column, row, column + 3, row + 5), fill=choice.choice(["khaki", "black"]))
            left = right
    for _ in range(5):
        corners = [(choice.randrange(SIZE), choice.randrange(SIZE)) for _ in range(3)]
        draw.polygon(corners, fill=tuple(choice.randrange(256) for _ in range(3)))
    frames = []
    for number in range(FRAMES):
        frame = still.copy()
        middle = SIZE * (number + 0.5) / FRAMES
        ImageDraw.Draw(frame).ellipse((middle - 17, 137, middle + 17, 171), fill="red")
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def scenes() -> list[list[Image.Image]]:
    return [scene(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def skies() -> list[list[Image.Image]]:
    return [[Image.fromarray(x) for x in render(sky, FRAMES, 128, fps=1)] for sky, _ in clips(16, seed=5)]


def write(
    folder: Path,
    sources: Sequence[Sequence[Image.Image]],
    paint: Paint | None = None,
    sizes: Sequence[tuple[int, int]] = ((SIZE, SIZE),),
) -> list[list[Path]]:
    written: list[list[Path]] = []
    for clip, frames in enumerate(sources):
        (folder / f"{clip:03d}").mkdir(parents=True)
        written.append([])
        for number, frame in enumerate(frames):
            frame = frame.resize(sizes[clip % len(sizes)], Image.Resampling.BICUBIC)
            path = folder / f"{clip:03d}" / f"{number:06d}.jpg"
            (paint(frame, clip, number) if paint else frame).save(path, quality=92)
            written[-1].append(path)
    return written


def blend(frame: Image.Image, alpha: float, draw: Callable[[ImageDraw.ImageDraw, int, int], None]) -> Image.Image:
    """What `draw` draws in white, `alpha` opaque."""
    mask = Image.new("L", frame.size)
    draw(ImageDraw.Draw(mask), *frame.size)
    mask = mask.point([round(value * alpha) for value in range(256)])
    return Image.composite(Image.new("RGB", frame.size, "white"), frame, mask)


def text(draw: ImageDraw.ImageDraw, x: float, y: float, content: str, size: float) -> None:
    draw.text((x, y), content, fill=255, font=ImageFont.load_default(size))


def logo(alpha: float, clips: Callable[[int], bool] = lambda clip: True) -> Paint:
    """A disc and letters over x 0.81-1, y 0.85-0.93."""

    def shape(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
        draw.ellipse((width * 0.82, height * 0.86, width * 0.88, height * 0.92), fill=255)
        text(draw, width * 0.89, height * 0.86, "TV", height * 0.055)

    return lambda frame, clip, number: blend(frame, alpha, shape) if clips(clip) else frame


def name(frame: Image.Image, clip: int, number: int) -> Image.Image:
    return blend(frame, 0.8, lambda draw, width, height: text(draw, 10, 10, "CLOUDCAM", 12))


def clock(frame: Image.Image, clip: int, number: int) -> Image.Image:
    chance = random.Random(clip)
    now = f"{chance.randrange(24):02d}:{chance.randrange(60):02d}:{5 * number:02d}"
    return blend(frame, 0.9, lambda draw, width, height: text(draw, 175, 10, now, 16))


def assert_box(overlay: Overlay, *wanted: float) -> None:
    assert overlay.box == pytest.approx(wanted, abs=0.035)


LOGO_BOX = (0.815, 0.86, 0.95, 0.925)


@pytest.mark.parametrize("alpha", [0.35, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["scenes", "skies"])
def test_a_logo_is_found(tmp_path: Path, request: pytest.FixtureRequest, kind: str, alpha: float) -> None:
    sources = request.getfixturevalue(kind)
    found = find_overlays(write(tmp_path, sources, logo(alpha)))
    assert len(found) == 1
    assert_box(found[0], *LOGO_BOX)
    assert len(found[0].clips) >= len(sources) - 2
    assert found[0].looked_at == len(sources)


@pytest.mark.parametrize("kind", ["scenes", "skies"])
def test_a_clock_is_found_though_its_digits_change(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    sources = request.getfixturevalue(kind)
    found = find_overlays(write(tmp_path, sources, clock))
    assert len(found) == 1
    assert_box(found[0], 0.69, 0.05, 0.94, 0.11)
    assert len(found[0].clips) >= len(sources) - 1


def test_each_of_three_overlays_is_found(tmp_path: Path, skies: list[list[Image.Image]]) -> None:
    found = find_overlays(write(tmp_path, skies, lambda f, c, n: clock(name(logo(0.5)(f, c, n), c, n), c, n)))
    assert len(found) == 3
    places = sorted(describe(overlay, SIZE, SIZE).split(" (")[0] for overlay in found)
    assert places == [f"a still overlay at the {place}" for place in ("lower right", "upper left", "upper right")]


def test_a_logo_in_some_of_the_clips(tmp_path: Path, scenes: list[list[Image.Image]]) -> None:
    found = find_overlays(write(tmp_path, scenes, logo(0.6, lambda clip: clip % 3 == 0)))
    assert [overlay.clips for overlay in found] == [(0, 3, 6, 9)]


def test_a_logo_in_few_of_the_clips_is_not_worth_a_word(tmp_path: Path, skies: list[list[Image.Image]]) -> None:
    assert find_overlays(write(tmp_path, skies, logo(0.6, lambda clip: clip < 4))) == []


def test_three_clips_are_enough_and_two_are_not(tmp_path: Path, skies: list[list[Image.Image]]) -> None:
    written = write(tmp_path, skies[:3], logo(0.6))
    assert [overlay.clips for overlay in find_overlays(written)] == [(0, 1, 2)]
    assert find_overlays(written[:2]) == []
    assert find_overlays([]) == []


def test_frames_of_different_sizes(tmp_path: Path, skies: list[list[Image.Image]]) -> None:
    sizes = ((512, 512), (640, 360), (384, 256), (320, 320))
    found = find_overlays(write(tmp_path, skies, logo(0.6), sizes))
    assert len(found) == 1
    assert found[0].box[:2] == pytest.approx(LOGO_BOX[:2], abs=0.04)
    assert len(found[0].clips) >= 12


@pytest.mark.parametrize("kind", ["scenes", "skies"])
@pytest.mark.parametrize("count", [3, 5, 12])
def test_scenes_are_no_overlays(tmp_path: Path, request: pytest.FixtureRequest, kind: str, count: int) -> None:
    assert find_overlays(write(tmp_path, request.getfixturevalue(kind)[:count])) == []


def test_a_fixed_camera_is_no_overlay(tmp_path: Path, scenes: list[list[Image.Image]]) -> None:
    def dim(frame: Image.Image, clip: int, number: int) -> Image.Image:
        return frame.point([round(value * (0.5 + clip / 16)) for value in range(256)] * 3)

    assert find_overlays(write(tmp_path, [scenes[4]] * 8, dim)) == []


def test_clips_that_are_nearly_the_same_count_once(tmp_path: Path, scenes: list[list[Image.Image]]) -> None:
    twins = [scenes[clip // 4] for clip in range(12)]
    assert find_overlays(write(tmp_path / "without", twins)) == []
    found = find_overlays(write(tmp_path / "with", twins, logo(0.9)))
    assert [len(overlay.clips) for overlay in found] == [12]
    # Two of six scenes have it, in eight of twelve clips.
    twins = [scenes[clip // 4] if clip < 8 else scenes[clip] for clip in range(12)]
    assert find_overlays(write(tmp_path / "two", twins, logo(0.9, lambda clip: clip < 8))) == []


@pytest.mark.parametrize("edges", [(0, 40, 256, 216), (40, 0, 216, 256), (40, 40, 216, 216), (3, 3, 253, 253)])
def test_borders_of_pictures_are_no_overlays(
    tmp_path: Path, scenes: list[list[Image.Image]], edges: tuple[int, int, int, int]
) -> None:
    def framed(frame: Image.Image, clip: int, number: int) -> Image.Image:
        picture = Image.new("RGB", frame.size)
        picture.paste(frame.crop(edges), edges[:2])
        return picture

    assert find_overlays(write(tmp_path, scenes[:8], framed)) == []


def test_skylines_at_the_same_height_are_no_overlays(tmp_path: Path, skies: list[list[Image.Image]]) -> None:
    def land(frame: Image.Image, clip: int, number: int) -> Image.Image:
        height = 180 + 4 * np.sin(np.arange(0, SIZE, 8) / (20 + clip))
        line = [(x * 8, float(y)) for x, y in enumerate(height)]
        ImageDraw.Draw(frame).polygon([*line, (SIZE, 180), (SIZE, SIZE), (0, SIZE)], fill=(30, 25, 20))
        return frame

    assert find_overlays(write(tmp_path, skies[:8], land)) == []


def test_what_cannot_be_read_is_left_out(tmp_path: Path, skies: list[list[Image.Image]]) -> None:
    written = write(tmp_path, skies[:5], logo(0.6))
    written[0][0].write_bytes(b"not a picture")
    written[1][2].unlink()
    for file in written[2]:
        file.write_bytes(b"")
    found = find_overlays([*written, []])
    assert [overlay.clips for overlay in found] == [(0, 1, 3, 4)]
    assert found[0].looked_at == 4


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((0.8, 0.92, 0.98, 0.98), "at the lower right (x 410-502, y 471-502 of 512x512)"),
        ((0.3, 0.0, 0.7, 0.1), "at the top (x 154-358, y 0-51 of 512x512)"),
        ((0.0, 0.4, 0.1, 0.6), "at the left (x 0-51, y 205-307 of 512x512)"),
        ((0.4, 0.4, 0.6, 0.6), "in the middle (x 205-307, y 205-307 of 512x512)"),
        ((0.2, 0.9, 0.8, 1.0), "at the bottom (x 102-410, y 461-512 of 512x512)"),
    ],
)
def test_an_overlay_in_words(box: tuple[float, float, float, float], place: str) -> None:
    assert describe(Overlay(box, (1, 2, 5), 14), 512, 512) == f"a still overlay {place} in 3 of 14 clips"
