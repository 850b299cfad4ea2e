"""Procedural sky timelapses: what the builtin base was made from, what the demo and the tests train on.

Clouds are noise on a flat layer seen in perspective, carried along by the wind; land is a still silhouette below them.
Everything follows from a `Sky`, so the same `Sky` always gives the same pixels.
"""

from __future__ import annotations

import argparse
import functools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Sky:
    """What a clip shows. Details (cloud shapes, skyline, colour cast, place of the sun) follow from `seed`."""

    time: str  # a key of TIMES
    clouds: str  # a key of CLOUDS
    land: str  # a key of LANDS
    wind: str  # "left" or "right": where the clouds go
    speed: str  # a key of SPEEDS
    seed: int


@dataclass(frozen=True)
class Light:
    """A time of day: how often it is drawn, its colours (red, green and blue in hex) and the sun or moon."""

    weight: float
    zenith: str
    horizon: str
    lit: str  # clouds where the light falls
    shade: str  # clouds where it does not
    ground: str
    glow: str  # of the sun or moon
    glow_size: float
    change: float  # of brightness, relative, per second


@dataclass(frozen=True)
class CloudKind:
    """A kind of clouds. Density has a deviation of 1; cloud is where it is above the threshold."""

    scale: float  # noise cells per unit: larger for smaller clouds
    threshold: tuple[float, float]
    softness: float  # of edges
    opacity: float
    words: tuple[str, ...]


TIMES = {
    "day": Light(0.34, "2c6cce", "aaceee", "fffefa", "9eacc6", "3e6034", "fff4d6", 0.1, 0.0),
    "golden": Light(0.15, "6286be", "ffd692", "ffeac8", "a8928e", "58502e", "ffd682", 0.3, -0.004),
    "sunset": Light(0.22, "684e7e", "ff8e42", "ff9c64", "7a4a5e", "2e2022", "ffbe5a", 0.36, -0.006),
    "night": Light(0.12, "06091c", "161f42", "465274", "12162a", "06080e", "8c9cc4", 0.12, 0.0),
    "overcast": Light(0.08, "a8b0bc", "d6dade", "e2e4e8", "767e8c", "3a4834", "000000", 0.1, 0.0),
    "storm": Light(0.09, "464e5c", "7a828a", "a0a6ae", "2a2f3c", "18201c", "000000", 0.1, 0.0),
}
TIME_PHRASES = {
    "day": ("blue sky", "sunny day", "day", "daytime", "noon", "bright summer day", "clear day"),
    "golden": ("golden hour", "warm evening light", "late afternoon", "golden light"),
    "sunset": ("sunset", "at sunset", "sunset sky", "orange sunset", "sunrise", "dusk", "red evening sky"),
    "night": ("night", "at night", "night sky", "dark night", "moonlight", "midnight"),
    "overcast": ("overcast", "overcast sky", "gray sky", "grey cloudy day", "gloomy day"),
    "storm": ("storm", "stormy sky", "thunderstorm", "stormy weather", "before the rain"),
}
CLOUDS = {
    "puffy": CloudKind(0.44, (-0.15, 0.25), 0.75, 0.97, ("fluffy", "puffy", "white", "soft")),
    "scattered": CloudKind(0.58, (0.20, 0.50), 0.75, 0.95, ("scattered", "small", "few")),
    "thick": CloudKind(0.38, (-0.65, -0.30), 0.85, 0.97, ("thick", "heavy", "big")),
    "wispy": CloudKind(0.50, (-0.20, 0.20), 1.9, 0.75, ("wispy", "thin", "light")),
    "overcast": CloudKind(0.44, (-1.5, -1.1), 1.4, 0.97, ("gray", "low", "grey")),
    "storm": CloudKind(0.40, (-1.3, -0.9), 1.2, 0.97, ("dark", "storm", "black")),
}
LANDS = {
    "mountains": ("mountains", "the mountains", "a mountain range"),
    "hills": ("hills", "green hills", "rolling hills", "a field", "a meadow"),
    "forest": ("a forest", "trees", "the woods"),
    "sea": ("the sea", "the ocean", "the water", "a lake"),
    "desert": ("a desert", "sand dunes", "the desert"),
}
# Land colours, relative to the ground of the light.
TINTS = {"mountains": (0.78, 0.86, 1.12), "forest": (0.55, 0.78, 0.56), "desert": (2.1, 1.4, 1.3)}
# Of the top row, in picture heights a second: 0.7, 1.2, 1.8 pixels a frame at 128 pixels and 5 fps.
SPEEDS = {"slow": 0.028, "mid": 0.046, "fast": 0.072}
SPEED_WORDS = {"slow": ("slowly ", "gently "), "mid": ("",), "fast": ("fast ", "quickly ")}

HORIZON = (0.73, 0.78)  # rows from the top, as a share of the height
NEAR = 0.34  # perspective: 1 / (elevation + NEAR); larger keeps clouds near the horizon larger
FIELD = 0.75  # elevation of the top row
TEXTURE_CELLS = 14.0  # noise cells a period of a texture
CHUNK = 16  # frames rendered at once: the working set stays in cache


def sample_sky(rng: random.Random) -> Sky:
    """A random sky; times of day are drawn by their weights."""
    time = rng.choices(list(TIMES), [light.weight for light in TIMES.values()])[0]
    clouds = (
        time if time in CLOUDS else rng.choices(["puffy", "scattered", "thick", "wispy"], [0.47, 0.23, 0.23, 0.07])[0]
    )
    speed = rng.choices(list(SPEEDS), [0.25, 0.5, 0.25])[0]
    return Sky(time, clouds, rng.choice(list(LANDS)), rng.choice(["left", "right"]), speed, rng.randrange(1 << 31))


def caption(sky: Sky, rng: random.Random) -> str:
    """One of many ways to describe `sky`. Only bright times may go unnamed, so that a vague prompt means one."""
    time = rng.choice(TIME_PHRASES[sky.time])
    words = [w for w in CLOUDS[sky.clouds].words if w != "white" or sky.time == "day"]
    clouds = (rng.choice(words) + " " if rng.random() < 0.6 else "") + "clouds"
    speed = rng.choice(SPEED_WORDS[sky.speed]) if rng.random() < 0.75 else ""
    motion = f" {speed}{rng.choice(['drifting', 'moving', 'flying'])} {sky.wind}" if rng.random() < 0.6 else ""
    land = f" over {rng.choice(LANDS[sky.land])}" if rng.random() < 0.6 else ""
    unnamed = sky.time in ("day", "golden") and rng.random() < (0.4 if sky.time == "day" else 0.25)
    tail = "" if unnamed else f", {time}"
    bare = time.removeprefix("at ")
    form = rng.random()
    if form < 0.50:
        return f"{rng.choice(['timelapse of ', 'timelapse of ', 'time lapse of ', ''])}{clouds}{motion}{land}{tail}"
    if form < 0.62:
        return f"{clouds} timelapse{motion}{land}{tail}"
    if form < 0.72:
        return f"clouds timelapse{tail}"
    if form < 0.84:
        return f"{bare}{rng.choice(['', '', ' timelapse'])}{land}"
    if form < 0.93:
        return f"{bare}{land}, {clouds}{motion}"
    return f"{rng.choice(['sky', 'sky timelapse', 'clouds', 'clouds in the sky'])}{tail or motion}"


def wind_velocity(sky: Sky, rows: int) -> np.ndarray:
    """Speed of the clouds at each row from the top, in picture heights a second: right is positive, land 0. (rows,)"""
    horizon = _horizon(sky)
    elevation = (horizon - (np.arange(rows) + 0.5) / rows) / horizon * FIELD
    top = SPEEDS[sky.speed] * (1 if sky.wind == "right" else -1)
    return np.where(elevation > 0, top * (elevation + NEAR) / (FIELD + NEAR), 0.0)


def ground_mask(sky: Sky, size: int | tuple[int, int] = 128) -> np.ndarray:
    """Where land or sea is, bool (h, w)."""
    h, w = (size, size) if isinstance(size, int) else size
    rows = (np.arange(h)[:, None] + 0.5) / h
    return rows >= np.min([top for top, _ in _land(sky, w)], axis=0)[None]


@torch.no_grad()
def render(
    sky: Sky, num_frames: int, size: int | tuple[int, int] = 128, fps: float = 5.0, start: float = 0.0
) -> np.ndarray:
    """Frames of `sky` from `start` seconds on, uint8 (f, h, w, 3)."""
    h, w = (size, size) if isinstance(size, int) else size
    times = start + torch.arange(num_frames, dtype=torch.float32) / fps
    still, land = _still_parts(sky, h, w)
    frames = [_render_chunk(sky, chunk, still, land, h, w) for chunk in times.split(CHUNK)]
    return torch.cat(frames).mul_(255).add_(0.5).clamp_(0, 255).to(torch.uint8).numpy()


def _rng(sky: Sky, stream: int) -> np.random.Generator:
    """A stream of its own for every part, so that the skyline does not depend on how the clouds were drawn."""
    return np.random.default_rng([sky.seed, stream])


def _horizon(sky: Sky) -> float:
    return float(_rng(sky, 0).uniform(*HORIZON))


@functools.cache
def _textures() -> torch.Tensor:
    """Ten periodic noise fields of unit variance, the last two of low frequencies only. (10, 257, 257)"""
    size, generator = 256, torch.Generator().manual_seed(1234)
    frequency = torch.fft.fftfreq(size) * size
    radius = torch.sqrt(frequency[:, None] ** 2 + frequency[None] ** 2)
    fields = []
    for index in range(10):
        band = (radius >= 8) & (radius <= (40 if index < 8 else 16))
        amplitude = torch.where(band, (radius.clamp(min=1) / 10) ** -1.6, torch.zeros(()))
        field = torch.fft.ifft2(torch.fft.fft2(torch.randn(size, size, generator=generator)) * amplitude).real
        fields.append((field - field.mean()) / field.std())
    return F.pad(torch.stack(fields)[None], (0, 1, 0, 1), mode="circular")[0]


def _noise(index: int, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Texture `index` at `u`, `v` in noise cells. (..., h, w)"""
    grid = torch.stack([u, v], -1).div(TEXTURE_CELLS).remainder_(1).mul_(2).sub_(1)
    field = _textures()[None, None, index]
    return F.grid_sample(field, grid.reshape(1, -1, u.shape[-1], 2), align_corners=True).reshape(u.shape)


def _smoothstep(x: torch.Tensor, low: float, width: float) -> torch.Tensor:
    t = ((x - low) / width).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _profile(rng: np.random.Generator, width: int, smoothness: float) -> np.ndarray:
    """A random line between 0 and 1; sampled on a fixed grid, so that it looks the same at every width. (width,)"""
    waves = np.arange(1, 24)
    x = np.linspace(0, 1, width, endpoint=False)[:, None] * 0.5
    line = (waves**-smoothness * np.cos(2 * np.pi * (waves * x + rng.random(len(waves))))).sum(1)
    return np.asarray(0.5 + 0.5 * np.tanh(line / (waves ** (-2 * smoothness)).sum() ** 0.5))


def _land(sky: Sky, width: int) -> list[tuple[np.ndarray, float]]:
    """Layers from far to near: top edge as a share of the height from the top (width,), and nearness from 0 to 1."""
    rng, horizon = _rng(sky, 1), _horizon(sky)
    x = np.linspace(0, 1, width, endpoint=False)
    if sky.land == "mountains":
        ridge = 1 - np.abs(2 * _profile(rng, width, 1.4) - 1)
        near = _profile(rng, width, 1.8)
        return [(horizon - 0.02 - 0.08 * ridge, 0.25), (horizon + 0.01 - 0.04 * near, 0.8)]
    if sky.land == "forest":
        trees = np.zeros(width)
        for centre, tall, wide in zip(
            rng.random(26), rng.uniform(0.3, 1, 26), rng.uniform(0.02, 0.035, 26), strict=True
        ):
            trees = np.maximum(trees, tall * np.clip(1 - np.abs(x - centre) / wide, 0, 1))
        return [(horizon - 0.02 - 0.03 * _profile(rng, width, 2.2), 0.35), (horizon + 0.01 - 0.05 * trees, 1.0)]
    if sky.land == "sea":
        return [(np.full(width, horizon), 0.0)]
    low, high = (0.03, 0.05) if sky.land == "hills" else (0.02, 0.04)
    return [
        (horizon - low - high * _profile(rng, width, 2.2), 0.4),
        (horizon + 0.02 - high * _profile(rng, width, 2.4), 0.95),
    ]


def _colour(value: str) -> torch.Tensor:
    return torch.tensor([*bytes.fromhex(value)], dtype=torch.float32) / 255


def _still_parts(sky: Sky, h: int, w: int) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """What does not move: the clear sky with its glow; colour (h, w, 3) and coverage (h, w, 1) of the land."""
    light, rng, horizon = TIMES[sky.time], _rng(sky, 2), _horizon(sky)
    spread = 0.02 if sky.clouds in ("overcast", "storm") else 0.06
    cast = torch.tensor(rng.uniform(1 - spread, 1 + spread, 3), dtype=torch.float32)
    zenith, sky_low = _colour(light.zenith) * cast, _colour(light.horizon) * (0.5 + 0.5 * cast)
    y = ((torch.arange(h) + 0.5) / h)[:, None].expand(h, w)
    x = (((torch.arange(w) + 0.5) / w * 2 - 1) * w / h)[None].expand(h, w)
    climb = ((horizon - y) / horizon).clamp(min=0)
    clear = sky_low + (zenith - sky_low) * climb[..., None] ** 0.75

    # A low sun where the light is warm, a moon in some nights: few things in the sky stand still.
    low = sky.time in ("golden", "sunset")
    shining = low or (sky.time == "night" and rng.random() < 0.4)
    sun_x = float(rng.uniform(-0.7, 0.7))
    sun_y = float(
        horizon - (rng.uniform(0.02, 0.10) if sky.time == "sunset" else rng.uniform(0.08, 0.18))
        if low
        else rng.uniform(0.10, 0.30)
    )
    distance = (x - sun_x) ** 2 + ((y - sun_y) * 2) ** 2
    glow = shining * (0.5 * torch.exp(-distance / light.glow_size) + 0.95 * torch.exp(-((distance / 0.010) ** 2)))
    clear = clear + glow[..., None] * _colour(light.glow) * (1.1 - clear).clamp(min=0)

    far_light = sky_low * 0.6 + zenith * 0.4
    ground, cover = torch.zeros(h, w, 3), torch.zeros(h, w, 1)
    grain = _noise(6, x * 3 + float(rng.uniform(0, 9)), y * 7)[..., None]
    for top, nearness in _land(sky, w):
        depth = y - torch.as_tensor(top, dtype=torch.float32)[None]
        edge = _smoothstep(depth, -0.6 / h, 1.2 / h)[..., None]
        if sky.land == "sea":
            fall = (depth / (1 - horizon)).clamp(0, 1)[..., None]
            colour = (sky_low * 0.62 * (1 - fall) + (zenith * 0.45 + 0.1 * sky_low) * fall) * torch.tensor(
                [0.86, 0.96, 1.04]
            )
            ripples = _noise(5, x * 2.5, 14 * torch.log(1 + 6 * depth.clamp(min=0)) + 2)[..., None]
            path = (
                shining
                * torch.exp(-(((x - sun_x) / (0.16 + depth.clamp(min=0))) ** 2))[..., None]
                * (0.6 if low else 0.3)
            )
            colour = colour * (1 + 0.06 * ripples) + path * _colour(light.glow) * (0.55 + 0.25 * ripples).clamp(0, 1)
        else:
            own = _colour(light.ground) * torch.tensor(TINTS.get(sky.land, (1, 1, 1))) * (0.45 + 0.55 * nearness)
            colour = own + far_light * 0.5 * (1 - nearness) ** 1.3
            colour = colour * (1 + 0.05 * grain) * (1.1 - 1.1 * depth.clamp(0, 0.3))[..., None]
        ground = ground * (1 - edge) + colour * edge
        cover = torch.maximum(cover, edge)
    parts = {"clear": clear, "glow": glow, "cast": cast, "x": x, "y": y, "sun_x": torch.tensor(sun_x)}
    return parts, (ground, cover)


def _render_chunk(
    sky: Sky,
    seconds: torch.Tensor,
    still: dict[str, torch.Tensor],
    land: tuple[torch.Tensor, torch.Tensor],
    h: int,
    w: int,
) -> torch.Tensor:
    """Frames at `seconds`, (f, h, w, 3), 0 to 1."""
    kind, light, rng, horizon = CLOUDS[sky.clouds], TIMES[sky.time], _rng(sky, 3), _horizon(sky)
    threshold, evolution = float(rng.uniform(*kind.threshold)), float(rng.uniform(0.006, 0.012))
    offsets, order = rng.uniform(0, TEXTURE_CELLS, (8, 2)), [int(i) for i in rng.permutation(8)]
    scale = kind.scale * float(rng.uniform(0.85, 1.15))

    # Cloud density on every second row and column: it is smooth, and edges are cut out at full size below.
    rows = int(np.ceil(horizon * h)) + 1
    y = ((torch.arange(0, rows, 2) + 1.0) / h)[:, None]
    x = ((torch.arange(0, w, 2) + 1.0) / w * 2 - 1)[None] * w / h
    depth = 1 / (((horizon - y) / horizon).clamp(min=0) * FIELD + NEAR)
    t = seconds[:, None, None]
    drift = 2 * SPEEDS[sky.speed] * (-1 if sky.wind == "right" else 1) / (FIELD + NEAR)
    u = scale * 1.6 * (x * depth + drift * t)
    v = scale * 4.2 * depth.expand(len(seconds), -1, x.shape[1])
    warp = 0.09 if sky.clouds != "wispy" else 0.22
    slow = evolution * t
    u, v = (
        u + warp * _noise(8, u * 0.5 + offsets[0, 0] + slow, v * 0.5 + offsets[0, 1]),
        v + warp * _noise(9, u * 0.5 + offsets[1, 0], v * 0.5 + offsets[1, 1] + slow),
    )

    def density(u: torch.Tensor, v: torch.Tensor, octaves: int) -> torch.Tensor:
        total = torch.zeros(())
        for k in range(octaves):
            f = 2.2**k
            fade = torch.exp(-((depth**2 * scale * f * 0.055) ** 2))
            shift = slow * 2 * k * (-1) ** k  # finer octaves slide across: shapes change, the drift stays the wind's
            total = total + 0.5**k * fade * _noise(
                order[k], f * u + offsets[2 + k, 0], f * v + offsets[2 + k, 1] + shift
            )
        return total / 1.15

    low = sky.time in ("golden", "sunset")
    towards = (x - still["sun_x"]).clamp(-1, 1)
    thick = density(u, v, 3)
    behind = density(u - 0.18 * towards, v + (-0.16 if low else 0.28), 2)
    full = F.interpolate(torch.stack([thick, behind], 1), scale_factor=2, mode="bilinear")[:, :, :rows]
    thick, behind = full[:, 0], full[:, 1]

    alpha = _smoothstep(thick, threshold - 0.15, kind.softness) * kind.opacity
    haze = ((horizon - still["y"][:rows]) / horizon).clamp(0, 1)
    alpha = alpha * (1 - 0.5 * torch.exp(-haze / 0.10))
    if sky.clouds in ("storm", "overcast"):
        bright = (0.5 - 0.36 * thick + 0.14 * (thick - behind)).clamp(0, 1)
    else:
        bright = (0.78 - 0.34 * (behind - threshold).clamp(-1, 2) + 0.22 * (thick - behind)).clamp(0, 1)
        bright = bright * (1 - 0.16 * (thick - threshold).clamp(0, 1.8))
    shade, lit = _colour(light.shade), _colour(light.lit) * (0.6 + 0.4 * still["cast"])
    colour = shade + (lit - shade) * bright[..., None]
    if low:
        colour = colour + still["glow"][:rows, :, None] * _colour(light.glow) * 0.35 * (1 - 0.6 * alpha[..., None])
    alpha = alpha[..., None]

    frames = still["clear"].expand(len(seconds), h, w, 3).clone()
    frames[:, :rows] = frames[:, :rows] * (1 - alpha) + colour * alpha
    ground, cover = land
    frames = (frames * (1 - cover) + ground * cover) * (1 + light.change * t[..., None])
    return frames.clamp(0, 1)


def clips(count: int, seed: int = 0) -> Iterator[tuple[Sky, str]]:
    """`count` skies with a caption each, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        sky = sample_sky(rng)
        yield sky, caption(sky, rng)


def write_sky_videos(
    folder: Path | str,
    count: int,
    *,
    seconds: float = 10.0,
    size: int | tuple[int, int] = 128,
    fps: float = 10.0,
    seed: int = 0,
    write: Callable[..., object] | None = None,
) -> list[Path]:
    """Write `count` clips as `<caption>-<index>.mp4`, each with its caption in a `.txt` beside it.

    `write(path, frames, fps=...)` stores a video; by default `msdv.data.video.write_video`.
    """
    if write is None:
        from msdv.data.video import write_video  # imports PyAV, which nothing else here needs

        write = write_video
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (sky, text) in enumerate(clips(count, seed)):
        slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
        path = folder / f"{slug}-{index:04d}.mp4"
        write(path, render(sky, round(seconds * fps), size, fps), fps=fps)
        path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def main(argv: list[str] | None = None) -> None:
    """Write a folder of clips from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m msdv.data.synthetic", description="Write procedural sky timelapses with captions."
    )
    parser.add_argument("folder", type=Path, help="where the videos go")
    parser.add_argument("--count", type=int, default=24, help="videos")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each, seconds")
    parser.add_argument("--size", type=int, default=128, help="width and height, pixels")
    parser.add_argument("--fps", type=float, default=10.0, help="frames a second")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    paths = write_sky_videos(
        options.folder, options.count, seconds=options.seconds, size=options.size, fps=options.fps, seed=options.seed
    )
    print(f"{len(paths)} videos in {options.folder}")


if __name__ == "__main__":
    main()
