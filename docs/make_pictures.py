"""Writes the pictures that the pages show: docs/images/contact_sheet.jpg and shapes.jpg, from made-up videos, for
how-to/prep.md; choose.webp, windows.png, loop.webp and evening.png for how-to/sample.md; clouds.gif for the
README. experiments.jpg is written by `python recipes/experiments/run.py --picture`.

python docs/make_pictures.py
"""

import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from msdv.config import PrepConfig, SampleConfig
from msdv.data.prepare import prepare
from msdv.data.synthetic import render, sample_sky
from msdv.data.video import read_video, write_video
from msdv.sample import sample

IMAGES = Path(__file__).parent / "images"
NAMES = ("white clouds", "evening sky", "storm", "morning haze", "night over hills", "harbour sky", "long sunset")
NAMES += ("valley", "grey day")


def with_logo(frames: np.ndarray) -> np.ndarray:
    """Two letters, seven tenths white, at the lower right."""
    mask = np.zeros((20, 56))
    mask[2:18, 2:8] = mask[2:18, 20:26] = mask[2:8, 2:26] = mask[12:18, 32:54] = mask[2:18, 32:38] = 0.7
    marked = frames.copy()
    height, width = frames.shape[1:3]
    place = (slice(None), slice(height - 34, height - 14), slice(width - 70, width - 14))
    marked[place] = (marked[place] * (1 - mask[..., None]) + 255 * mask[..., None]).astype(np.uint8)
    return marked


def write_faulty_videos(folder: Path) -> None:
    """Skies: one still, one that flickers, one blurred, one twice, and a logo in all but one."""
    for number, name in enumerate(NAMES):
        frames = render(sample_sky(random.Random(40 + number)), 50, 256)
        if name == "valley":
            frames = np.repeat(frames[:1], 50, axis=0)
        if name == "storm":
            jumps = np.where(np.arange(50) % 2, -18, 18)[:, None, None, None]
            frames = np.clip(frames.astype(int) + jumps, 0, 255).astype(np.uint8)
        if name == "morning haze":
            frames = np.stack([np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(4))) for f in frames])
        if name != "night over hills":
            frames = with_logo(frames)
        write_video(folder / f"{name}.mp4", list(frames), fps=5)
        if name == "white clouds":
            write_video(folder / "white clouds copy.mp4", list(frames[3:, 2:-2, 2:-2]), fps=5)


def prep(videos: Path, frames: Path, **options: object) -> Path:
    """The frames of `videos`, nothing trimmed."""
    given = {"videos": videos, "frames": frames, "size": 256, "trim_start": 0, "trim_end": 0, **options}
    prepare(PrepConfig.model_validate(given))
    return frames


def write_shapes(work: Path) -> None:
    """One video with black bars, as it is and four ways."""
    (work / "wide").mkdir()
    boxed = np.zeros((30, 270, 480, 3), np.uint8)
    boxed[:, 31:239] = render(sample_sky(random.Random(5)), 30, (208, 480))
    write_video(work / "wide" / "evening.mp4", list(boxed), fps=5)
    ways: dict[str, dict[str, object]] = {
        "(no options)": {},
        "--no-crop-bars": {"crop_bars": False},
        "--fit pad": {"fit": "pad"},
        "--size 384x256": {"size": "384x256"},
    }
    tiles = [("the video", Image.fromarray(boxed[15]))]
    for name, options in ways.items():
        tiles.append((name, Image.open(prep(work / "wide", work / name, **options) / "evening.mp4" / "000016.jpg")))
    tiles = [(name, image.resize((round(image.width * 200 / image.height), 200))) for name, image in tiles]
    sheet = Image.new("RGB", (sum(image.width + 12 for _, image in tiles) + 12, 240), "white")
    draw, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(14), 12
    for name, image in tiles:
        sheet.paste(image, (left, 8))
        draw.text((left, 212), name, fill="black", font=font)
        left += image.width + 12
    sheet.save(IMAGES / "shapes.jpg", quality=85)


FRONT = (
    ("fluffy clouds timelapse over hills, blue sky", "left", 4),
    ("sunset over the sea, clouds timelapse", "right", 9),
    ("golden hour, puffy clouds over mountains", "right", 12),
    ("clouds timelapse, night", "left", 8),
)
"""Prompt, --motion and seed of what the README shows."""


def write_front(work: Path) -> None:
    """Four videos in one."""
    videos = []
    for prompt, motion, seed in FRONT:
        values = {"prompt": prompt, "motion": motion, "seed": seed, "frames": 72}
        values |= {"base": "builtin", "model": "builtin", "device": "cpu", "out": work / f"front-{seed}"}
        sample(SampleConfig.model_validate(values))
        videos.append(read_video(work / f"front-{seed}")[0])
    rows = [np.concatenate(videos[:2], axis=2), np.concatenate(videos[2:], axis=2)]
    write_video(IMAGES / "clouds.gif", list(np.concatenate(rows, axis=1)), fps=12)


def write_choice(work: Path) -> None:
    """Videos of several seeds, as in the page's first command of that section."""
    values = {"prompt": "sunset clouds over the sea", "seeds": "0-5", "frames": 16, "base": "builtin"}
    sample(SampleConfig.model_validate({**values, "model": "builtin", "device": "cpu", "out": work / "choose.webp"}))
    shutil.copy(work / "choose.webp", IMAGES)


def write_lengths(work: Path) -> None:
    """A long video, a loop, and texts that change: the commands of those sections. The long one takes minutes."""
    values = {"base": "builtin", "model": "builtin", "device": "cpu"}
    clouds = {**values, "prompt": "white clouds drifting left over hills"}
    sample(SampleConfig.model_validate({**clouds, "frames": 360, "window": 25, "overlap": 8, "out": work / "long"}))
    write_strip(work / "long", 51, IMAGES / "windows.png")
    sample(SampleConfig.model_validate({**clouds, "frames": 40, "loop": True, "out": work / "loop.webp"}))
    shutil.copy(work / "loop.webp", IMAGES)
    texts = ("30:sunset clouds over hills", "60:night sky over hills")
    evening = {"prompt": "white clouds, blue sky over hills", "frames": 72, "window": 25, "prompt_at": texts}
    sample(SampleConfig.model_validate({**values, **evening, "out": work / "evening"}))
    write_strip(work / "evening", 9, IMAGES / "evening.png")


def write_strip(video: Path, every: int, path: Path) -> None:
    """Frames of a video side by side."""
    frames, _ = read_video(video)
    Image.fromarray(np.concatenate(list(frames[::every][:8]), axis=1)).save(path, optimize=True)


def main() -> None:
    """All pictures."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "videos").mkdir()
        write_faulty_videos(work / "videos")
        with Image.open(prep(work / "videos", work / "frames") / "contact_sheet.jpg") as sheet:
            sheet.save(IMAGES / "contact_sheet.jpg", quality=80)
        write_shapes(work)
        write_front(work)
        write_choice(work)
        write_lengths(work)


if __name__ == "__main__":
    main()
