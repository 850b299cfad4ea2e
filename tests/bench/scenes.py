"""Scene changes: FFmpeg's scdet, PySceneDetect where it is installed, and msdv/data/scenes.py, on clips whose cuts are
known.

    python tests/bench/scenes.py [--rounds 2] [--seed 0] [--video FILE ...]

Clips of three scenes joined by cuts, fades and dissolves, and clips of one scene with what is no cut, H.264 at crf 23.
A transition is hit by a cut between one kept frame before it and one after; a second cut there and any cut elsewhere is
a false alarm. Prints hits of the transitions and false alarms, a row a kind. Scenes of `--video` files take part.
"""

import argparse
import importlib
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from msdv.data.scenes import CutFinder
from msdv.data.synthetic import render, sample_sky
from msdv.data.video import write_video

RATE = 25
KEEP = 5  # every fifth frame is kept: 5 a second
WIDTH, HEIGHT = 320, 180
SCENE = 125  # frames, or up to a fifth more

Frames = np.ndarray  # (f, h, w, 3), uint8


@dataclass
class Clip:
    """A synthesised clip and where its scenes change: (last frame wholly of the old one, first of the new one)."""

    kind: str
    frames: Frames
    truth: list[tuple[int, int]] = field(default_factory=list)


def texture(rng: np.random.Generator, height: int, width: int, slope: float = 1.6) -> np.ndarray:
    """A coloured picture with the spectrum of a photograph, float (h, w, 3) in 0 to 255."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / max(height, width)) ** -slope
    noise = rng.standard_normal((4, height, width))
    planes = np.fft.irfft2(np.fft.rfft2(noise) * radius, s=(height, width))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    grey, colour = planes[0], planes[1:]
    colour = colour - colour.mean(axis=0)
    mean, contrast = rng.uniform(70, 170, 3) * 0.5 + rng.uniform(70, 170) * 0.5, rng.uniform(25, 55)
    return np.clip(mean + contrast * grey[..., None] + 14 * colour.transpose(1, 2, 0), 0, 255)


def window(picture: np.ndarray, x: float, y: float, zoom: float = 1.0) -> np.ndarray:
    """The view of `picture` whose upper left corner is at (x, y), uint8."""
    box = (x, y, x + WIDTH / zoom, y + HEIGHT / zoom)
    image = Image.fromarray(picture.astype(np.uint8))
    return np.asarray(image.transform((WIDTH, HEIGHT), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR))


def scene_sky(rng: np.random.Generator, count: int) -> Frames:
    """A timelapse of clouds, ten times as fast or not at all, now and then with a flickering exposure."""
    sky = sample_sky(random.Random(int(rng.integers(1 << 30))))
    frames = render(sky, count, (HEIGHT, WIDTH), fps=RATE / float(rng.choice([1, 3, 10])))
    if rng.random() < 0.3:
        gains = rng.normal(1, 0.04, count)[:, None, None, None]
        frames = np.clip(frames * gains, 0, 255).astype(np.uint8)
    return frames


def scene_drift(rng: np.random.Generator, count: int) -> Frames:
    """A slow pan and zoom."""
    picture = texture(rng, HEIGHT * 2, WIDTH * 2)
    speed, growth = rng.uniform(-0.6, 0.6, 2), rng.uniform(0, 0.002)
    start = (WIDTH / 2 - speed[0] * count / 2, HEIGHT / 2 - speed[1] * count / 2)
    return np.stack([window(picture, *(start + speed * i), 1.1 + growth * i) for i in range(count)])


def scene_hand(rng: np.random.Generator, count: int) -> Frames:
    """A camera held by a shaking hand."""
    picture = texture(rng, HEIGHT * 2, WIDTH * 2)
    path = np.cumsum(np.cumsum(rng.normal(0, 0.5, (count, 2)), axis=0) * 0.12, axis=0)
    path = np.clip(path - path.mean(axis=0) + (WIDTH / 2, HEIGHT / 2), 0, (WIDTH, HEIGHT))
    return np.stack([window(picture, *path[i]) for i in range(count)])


def scene_action(rng: np.random.Generator, count: int) -> Frames:
    """Large things crossing before a still background."""
    background = window(texture(rng, HEIGHT, WIDTH), 0, 0)
    shapes = [(texture(rng, 90, 70), rng.uniform((0, 0), (WIDTH, HEIGHT)), rng.uniform(-5, 5, 2)) for _ in range(4)]
    frames = np.repeat(background[None], count, axis=0)
    for i in range(count):
        for shape, start, speed in shapes:
            x, y = ((start + speed * i) % (WIDTH + 140, HEIGHT + 180) - (70, 90)).astype(int)
            top, left, bottom, right = max(y, 0), max(x, 0), min(y + 90, HEIGHT), min(x + 70, WIDTH)
            if top < bottom and left < right:
                frames[i, top:bottom, left:right] = shape[top - y : bottom - y, left - x : right - x]
    return frames


def scene_still(rng: np.random.Generator, count: int) -> Frames:
    """A camera on a tripod with a noisy sensor."""
    picture = window(texture(rng, HEIGHT, WIDTH), 0, 0).astype(np.float32)
    noise = rng.standard_normal((8, HEIGHT, WIDTH, 3)).astype(np.float32) * rng.uniform(2, 10)
    return np.stack([np.clip(picture + noise[i % 8], 0, 255).astype(np.uint8) for i in range(count)])


SCENES: list[Callable[[np.random.Generator, int], Frames]] = [
    scene_sky,
    scene_sky,
    scene_drift,
    scene_hand,
    scene_action,
    scene_still,
]


def read_scene(path: Path) -> Frames:
    """A file's frames, small."""
    with av.open(f"file:{path}") as container:
        frames = [
            frame.reformat(width=WIDTH, height=HEIGHT, format="rgb24").to_ndarray()
            for frame in container.decode(video=0)
        ]
    return np.stack(frames)


def blend(first: Frames, second: Frames, weights: np.ndarray) -> Frames:
    w = weights[:, None, None, None]
    return (first * (1 - w) + second * w).astype(np.uint8)


def join(scenes: Sequence[Frames], kind: str, length: int) -> Clip:
    """Scenes one after the other; `length` is that of a dissolve, or of either half of a fade, in frames."""
    parts, truth, at = [scenes[0]], [], len(scenes[0])
    for scene in scenes[1:]:
        before = parts[-1]
        if kind == "dissolve":
            weights = np.arange(1, length + 1) / (length + 1)
            parts[-1] = before[:-length]
            parts += [blend(before[-length:], scene[:length], weights), scene[length:]]
            truth.append((at - length - 1, at))
            at += len(scene) - length
            continue
        if kind in ("black", "white"):
            colour = np.full_like(scene[:length], 0 if kind == "black" else 255)
            weights = np.arange(1, length + 1) / length
            parts[-1] = np.concatenate([before[:-length], blend(before[-length:], colour, weights)])
            scene = np.concatenate([blend(colour, scene[:length], weights), scene[length:]])
        parts.append(scene)
        truth.append((at - 1 - length, at + length))
        at += len(scene)
    return Clip("", np.concatenate(parts), truth)


def transitions(rng: np.random.Generator, films: Sequence[Frames]) -> Iterator[Clip]:
    def some() -> list[Frames]:
        makers = rng.choice(len(SCENES), 3)
        scenes = [SCENES[i](rng, int(rng.integers(SCENE, SCENE * 6 // 5))) for i in makers]
        if films and rng.random() < 0.3:
            scenes[int(rng.integers(3))] = films[int(rng.integers(len(films)))]
        return scenes

    for name, kind, length in (
        ("cut", "cut", 0),
        ("fade through black, 0.4 s", "black", 5),
        ("fade through black, 2 s", "black", 25),
        ("fade through white, 0.8 s", "white", 10),
        ("dissolve, 0.4 s", "dissolve", 10),
        ("dissolve, 1 s", "dissolve", 25),
        ("dissolve, 2 s", "dissolve", 50),
    ):
        clip = join(some(), kind, length)
        clip.kind = name
        yield clip
    # Of the same kind: skies, or parts of the same place.
    skies = join([scene_sky(rng, 70) for _ in range(3)], "cut", 0)
    skies.kind = "cut, sky to sky"
    yield skies
    place = texture(rng, HEIGHT * 3, WIDTH * 3)
    views = []
    for x, y in ((0.1, 0.1), (1.5, 0.2), (0.8, 1.6)):
        speed = rng.uniform(-0.4, 0.4, 2)
        views.append(np.stack([window(place, *((x * WIDTH, y * HEIGHT) + speed * i), 1.0) for i in range(70)]))
    views_clip = join(views, "cut", 0)
    views_clip.kind = "cut, views of a place"
    yield views_clip


def no_transitions(rng: np.random.Generator, films: Sequence[Frames]) -> Iterator[Clip]:
    def one() -> Frames:
        return SCENES[int(rng.integers(len(SCENES)))](rng, 150)

    yield Clip("nothing", one())
    frames = one().astype(np.float32)
    for start in range(20, 140, 40):
        for i in range(int(rng.integers(1, 3))):
            frames[start + i] = frames[start + i] * 0.3 + 255 * 0.7 * (0.9**i)
    yield Clip("camera flash, 1 to 2 frames", np.clip(frames, 0, 255).astype(np.uint8))
    frames = one().astype(np.float32)
    for start in range(20, 130, 40):
        for i, power in enumerate(np.exp(-np.arange(12) / 4) * rng.uniform(0.5, 1, 12)):
            frames[start + i] += (255 - frames[start + i]) * power
    yield Clip("lightning, 0.4 s", np.clip(frames, 0, 255).astype(np.uint8))
    for name, speed in (("pan, 1 width/s", WIDTH / RATE), ("whip pan, 3 widths/s", 3 * WIDTH / RATE)):
        picture = texture(rng, HEIGHT, WIDTH * 4)
        x = np.cumsum([speed if 40 <= i < 40 + 2.5 * WIDTH / speed else 0 for i in range(150)])
        yield Clip(name, np.stack([window(picture, left, 0) for left in x]))
    gains = np.interp(np.arange(150), [0, 30, 90, 150], [1, 1, rng.uniform(0.2, 0.5), 1])
    yield Clip("exposure ramp", (one() * gains[:, None, None, None]).astype(np.uint8))
    gains = np.repeat(rng.uniform(0.5, 1.3, 6), 25)
    yield Clip("exposure steps", np.clip(one() * gains[:, None, None, None], 0, 255).astype(np.uint8))
    frames = one()
    for start in range(10, 140, 30):
        top = int(rng.integers(0, HEIGHT // 2))
        kind = int(rng.integers(3))
        garbage = texture(rng, HEIGHT - top, WIDTH) if kind else np.full((HEIGHT - top, WIDTH, 3), 128)
        frames[start, top if kind < 2 else 0 :] = garbage if kind < 2 else texture(rng, HEIGHT, WIDTH)
    yield Clip("damaged frames", frames)
    frames = one()
    noise = rng.normal(0, 22, (6, *frames.shape[1:]))
    noisy = [np.clip(frame + noise[i % 6], 0, 255).astype(np.uint8) for i, frame in enumerate(frames)]
    yield Clip("noise", np.stack(noisy))
    frames = one()
    occluder = texture(rng, HEIGHT, WIDTH * 3 // 4)
    for i in range(150):
        left = (i % 75) * 18 - WIDTH
        a, b = max(left, 0), min(left + occluder.shape[1], WIDTH)
        if a < b:
            frames[i, :, a:b] = occluder[:, a - left : b - left]
    yield Clip("something passes close by", frames)
    for film in films:
        yield Clip("films without a cut", film)


def shrink(frame: Any) -> np.ndarray:
    """As prep hands them to CutFinder: uint8 (h, w, 3), Y, Cb, Cr of full range, the short side 64."""
    scale = 64 / min(frame.width, frame.height)
    width, height = round(frame.width * scale), round(frame.height * scale)
    small = frame.reformat(
        width=width, height=height, format="yuvj444p", dst_color_range="JPEG", interpolation="AREA"
    ).to_ndarray()
    return small.transpose(1, 2, 0) if small.shape[0] == 3 else small


def scdet(threshold: float, step: int) -> Callable[[list[Any], Path], list[int]]:
    """FFmpeg's filter on every `step`-th frame."""

    def find(frames: list[Any], path: Path) -> list[int]:
        graph: Any = av.filter.Graph()
        source = graph.add_buffer(width=WIDTH, height=HEIGHT, format=frames[0].format, time_base=Fraction(1, RATE))
        filters = [source, graph.add("scdet", f"threshold={threshold}"), graph.add("buffersink")]
        graph.link_nodes(*filters).configure()
        cuts = []
        for index in range(0, len(frames), step):
            frames[index].pts, frames[index].time_base = index, Fraction(1, RATE)
            graph.push(frames[index])
            if "lavfi.scd.time" in graph.pull().metadata:
                cuts.append(-(-index // KEEP))
        return cuts

    return find


def pyscenedetect(name: str) -> Callable[[list[Any], Path], list[int]]:
    detectors: Any = importlib.import_module("scenedetect.detectors")
    library: Any = importlib.import_module("scenedetect")

    def find(frames: list[Any], path: Path) -> list[int]:
        scenes = library.detect(str(path), getattr(detectors, name)(min_scene_len=5))
        return [-(-start.frame_num // KEEP) for start, _ in scenes[1:]]

    return find


def own(frames: list[Any], path: Path) -> list[int]:
    finder = CutFinder()
    for frame in frames[::KEEP]:
        finder.add(shrink(frame))
    return finder.cuts()


def score(cuts: Sequence[int], truth: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Hits and false alarms; `truth` is in frames of the source, `cuts` in kept ones."""
    spans = [(-(-(last + 1) // KEEP) - 1, -(-first // KEEP) + 1) for last, first in truth]
    hits = sum(any(low <= cut <= high for cut in cuts) for low, high in spans)
    return hits, len(cuts) - hits


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="clips of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--video", type=Path, nargs="*", default=[], help="files of one scene")
    parser.add_argument("--verbose", action="store_true", help="tell of each clip where ours went wrong")
    options = parser.parse_args()
    finders: dict[str, Callable[[list[Any], Path], list[int]]] = {
        "scdet, all frames": scdet(10, 1),
        "scdet at 5, all frames": scdet(5, 1),
        "scdet, kept frames": scdet(10, KEEP),
    }
    try:
        for name in ("AdaptiveDetector", "ContentDetector", "HistogramDetector"):
            finders[f"PySceneDetect {name}"] = pyscenedetect(name)
    except ImportError:
        print("PySceneDetect is not installed: left out")
    finders["CutFinder, kept frames"] = own
    films = [read_scene(path) for path in options.video]
    table: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    known: dict[str, int] = defaultdict(int)
    clips: dict[str, int] = defaultdict(int)
    spent: dict[str, float] = defaultdict(float)
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for number in range(options.rounds):
            rng = np.random.default_rng((options.seed, number))
            for clip in (*transitions(rng, films), *no_transitions(rng, films if number == 0 else [])):
                write_video(path, clip.frames, fps=RATE)
                with av.open(f"file:{path}") as container:
                    frames = list(container.decode(video=0))
                known[clip.kind] += len(clip.truth)
                clips[clip.kind] += 1
                count += len(frames)
                for name, find in finders.items():
                    started = time.process_time()
                    cuts = find(frames, path)
                    spent[name] += time.process_time() - started
                    hits, alarms = score(cuts, clip.truth)
                    table[clip.kind][name][0] += hits
                    table[clip.kind][name][1] += alarms
                    if options.verbose and name.startswith("Cut") and (hits < len(clip.truth) or alarms):
                        print(number, clip.kind, [(a / KEEP, b / KEEP) for a, b in clip.truth], cuts)
    print(f"| {sum(clips.values())} clips, {count} frames | there | {' | '.join(finders)} |")
    print("|---|---|" + "---|" * len(finders))
    for kind, row in table.items():
        cells = [f"{h}, {a} false" if known[kind] and a else str(h if known[kind] else a) for h, a in row.values()]
        what = f"{known[kind]}" if known[kind] else f"0 in {clips[kind]}"
        print(f"| {kind} | {what} | {' | '.join(cells)} |")
    totals = [[sum(row[name][i] for row in table.values()) for i in range(2)] for name in finders]
    print(f"| all | {sum(known.values())} | {' | '.join(f'**{h}, {a} false**' for h, a in totals)} |")
    cells = [f"{1000 * spent[name] / count:.3f}" for name in finders]
    print(f"| CPU, ms a frame of the source (PySceneDetect's with decoding) | | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
