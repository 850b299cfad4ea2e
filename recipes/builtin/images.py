"""Stage 1: render the pictures that the base learns from.

In: nothing. Out: WORK/images.npy, uint8 (scenes, frames, h, w, 3), and WORK/skies.json, the `Sky` of each scene.
On two cores, 32,000 pictures took 75 seconds.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from stage import read_arguments, read_settings

from msdv.data.synthetic import Sky, render, sample_sky


def render_part(path: Path, first: int, skies: list[Sky], frames: int, size: int, gap: float) -> None:
    """Write the pictures of `skies` into the open array from scene `first` on."""
    torch.set_num_threads(1)
    images = np.lib.format.open_memmap(path, mode="r+")
    for index, sky in enumerate(skies, first):
        images[index] = render(sky, frames, size, fps=1 / gap)
    images.flush()


def main() -> None:
    """Render all scenes, in parts of 500, on every core."""
    options = read_arguments(__doc__)
    settings = read_settings(options.settings, "images")
    count, frames, size = settings["scenes"], settings["frames"], settings["size"]
    rng = random.Random(settings["seed"])
    skies = [sample_sky(rng) for _ in range(count)]
    path, done = options.work / "images.npy", options.work / "skies.json"
    if done.exists():
        print(f"{path} is complete")
        return
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, frames, size, size, 3)).flush()
    with ProcessPoolExecutor() as pool:
        parts = [
            pool.submit(render_part, path, first, skies[first : first + 500], frames, size, settings["gap"])
            for first in range(0, count, 500)
        ]
        for part in parts:
            part.result()
    done.write_text(json.dumps([asdict(sky) for sky in skies]), encoding="utf-8")
    print(f"{count * frames} pictures in {path}")


if __name__ == "__main__":
    main()
