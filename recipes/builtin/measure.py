"""Measure how the builtin base moves: samples prompts with `msdv.sample`, prints a table, writes a contact sheet.

    python recipes/builtin/measure.py --frames 120 --seeds 2 -o measured

Pixel change is the mean absolute difference of frames `lag` apart, of 255. Sky is the upper half of the picture, ground
the lowest eighth. Drift is the sky's sideways motion in pixels per frame, positive to the right.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from msdv.config import SampleConfig
from msdv.data.video import read_video
from msdv.model.noise import estimate_row_velocity
from msdv.sample import sample

PROMPTS = (
    "clouds timelapse",
    "timelapse of white clouds drifting left over mountains, blue sky",
    "clouds drifting right over hills, sunset",
    "sunset",
    "night",
    "clouds timelapse, night, over the sea",
    "storm clouds moving left over a forest",
    "overcast sky over a field",
    "golden hour, puffy clouds moving right",
)


def change(frames: np.ndarray, lag: int) -> float:
    """Mean absolute difference of frames `lag` apart."""
    return float(np.abs(frames[lag:].astype(np.int16) - frames[:-lag]).mean())


def main() -> None:
    """Sample, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="as in msdv sample")
    parser.add_argument("--base", default="builtin")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--motion", default="auto")
    parser.add_argument("-o", "--out", type=Path, default=Path("measured"))
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    options = parser.parse_args()
    rows = []
    print(f"{'prompt':52} seed  lag1 lag15 ratio ground drift  mean colour  seconds")
    for prompt in options.prompts:
        for seed in range(options.seeds):
            out = options.out / f"{prompt[:40].replace(' ', '-')}-{seed}"
            values = {"base": options.base, "model": options.model, "frames": options.frames, "seed": seed}
            values |= {"steps": options.steps, "guidance": options.guidance, "motion": options.motion}
            started = time.perf_counter()
            sample(SampleConfig.model_validate({**values, "prompt": prompt, "out": out, "overwrite": True}))
            seconds = time.perf_counter() - started
            frames, _ = read_video(out)
            height = frames.shape[1]
            sky, ground = frames[:, : height // 2], frames[:, -height // 8 :]
            lag1, lag15 = change(sky, 1), change(sky, 15)
            velocity = estimate_row_velocity(torch.from_numpy(frames).float().mean(-1))[: height // 16]
            colour = "/".join(f"{c:.0f}" for c in frames.mean((0, 1, 2)))
            print(
                f"{prompt[:52]:52} {seed:4} {lag1:5.2f} {lag15:5.2f} {lag1 / lag15:5.2f} {change(ground, 1):6.2f} "
                f"{velocity.mean():+5.2f}  {colour:12} {seconds:5.0f}",
                flush=True,
            )
            rows.append(np.concatenate(list(frames[np.linspace(0, len(frames) - 1, 8).astype(int)]), axis=1))
    Image.fromarray(np.concatenate(rows)).save(options.out / "sheet.png")


if __name__ == "__main__":
    main()
