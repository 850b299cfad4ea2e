"""Noise that is carried along (msdv/model/particles.py): what is lost on the way, and what it takes.

    python tests/bench/noise.py

For flows of several kinds, under 16x16 latents: how many of a hundred particles are gone from a frame to the next, at
first and after a hundred frames, and the processor time of a frame of 64x64 latents. What leaves the picture is in it.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from msdv.data.flow import coarse_flows
from msdv.data.synthetic import Sky, render
from msdv.model.particles import CELL, Particles
from msdv.model.steering import flow_for
from msdv.run import BUILTIN
from msdv.weights import read_metadata

Flow = Callable[[int, int], Tensor]
"""Of a frame, by its number, for so many latents each way: (2, 8n, 8n)."""


def place(n: int) -> tuple[Tensor, Tensor]:
    """To the right and down of the middle, in pixels, of each pixel."""
    axis = torch.arange(CELL * n) + 0.5 - CELL * n / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def rough(step: int, n: int) -> Tensor:
    """Another one in each frame, 0.3 pixels a cell of 4."""
    field = 0.3 * torch.randn(1, 2, 2 * n, 2 * n, generator=torch.Generator().manual_seed(step))
    return stretched(field, n)


def stretched(field: Tensor, n: int) -> Tensor:
    """Of any size, to all pixels."""
    return torch.nn.functional.interpolate(field, size=(CELL * n, CELL * n), mode="bilinear", align_corners=False)[0]


def automatic(step: int, n: int) -> Tensor:
    """What `--motion right` of the built-in model is, with its gain."""
    motion = read_metadata(BUILTIN / "temporal.safetensors").motion
    assert motion is not None
    return stretched(flow_for(motion, "right", "", n, n, torch.Generator())[0][0], n)


def clip_flows() -> Flow:
    """The optical flow of a rendered clip, begun again where it ends."""
    frames = render(Sky("day", "puffy", "mountains", "left", "fast", 4), 25, 128, fps=5)
    fields = [torch.from_numpy(field).permute(2, 0, 1)[None] for field in coarse_flows(frames, 128, 128)]
    return lambda step, n: stretched(fields[step % len(fields)], n)


def lost(flow: Flow, frames: range, particles: Particles, n: int) -> float:
    """Share of the particles that are gone in the next frame, on average."""
    shares = []
    for step in frames:
        before = particles._values[:, 0]
        particles.move(flow(step, n))
        shares.append(1 - np.isin(before, particles._values[:, 0]).mean())
    return float(np.mean(shares))


def main() -> None:
    """A line a flow."""
    flows: dict[str, Flow] = {
        "sideways, 0.75 pixels": lambda _, n: torch.stack([torch.full((CELL * n, CELL * n), 0.75), place(n)[0] * 0]),
        "zoom, 1 %": lambda _, n: torch.stack(place(n)) * 0.01,
        "rotation, 0.02 radians": lambda _, n: torch.stack(
            [-place(n)[1] * math.sin(0.02), place(n)[0] * math.sin(0.02)]
        ),
        "rough, 0.3 pixels": rough,
        "the built-in model's `--motion right`": automatic,
        "along a rendered clip": clip_flows(),
    }
    print(f"{'':40}lost, of 100: first 10 frames  after 100  ms a frame, 64x64")
    for name, flow in flows.items():
        generator = torch.Generator().manual_seed(0)
        particles = Particles(4, 16, 16, generator)
        first = lost(flow, range(10), particles, 16)
        lost(flow, range(10, 100), particles, 16)
        later = lost(flow, range(100, 110), particles, 16)
        large, fields = Particles(4, 64, 64, generator), [flow(step, 64) for step in range(5)]
        started = time.process_time()
        for field in fields:
            large.move(field)
            large.latents()
        spent = (time.process_time() - started) / len(fields)
        print(f"{name:40}{100 * first:28.2f}{100 * later:11.2f}{1000 * spent:19.1f}")


if __name__ == "__main__":
    main()
