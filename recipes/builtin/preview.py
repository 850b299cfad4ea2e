"""Look at a base: a contact sheet, a row a prompt and a column a seed, and the mean colours of sky and ground.

python preview.py --base ../../msdv/builtin -o sheet.png --columns 8 --steps 12 --guidance 3.5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

PROMPTS = (
    "clouds timelapse",
    "timelapse of fluffy clouds drifting right over green hills, blue sky",
    "sunset",
    "sunset over the sea",
    "clouds timelapse, night",
    "night over mountains",
    "golden hour, clouds drifting left over a forest",
    "overcast sky",
    "storm clouds over the sea",
)


def main() -> None:
    """Sample every prompt with every seed and save the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=Path("sheet.png"))
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = StableDiffusionPipeline.from_pretrained(options.base).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for prompt in options.prompts:
        generators = [torch.Generator().manual_seed(seed) for seed in range(options.columns)]
        pictures = pipeline(
            [prompt] * options.columns,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=generators,
            output_type="np",
        ).images
        sky, ground = (
            part.mean((0, 1, 2)) * 255 for part in (pictures[:, : pictures.shape[1] // 2], pictures[:, -24:])
        )
        print(f"sky {sky.round().astype(int)}  ground {ground.round().astype(int)}  {prompt}", flush=True)
        rows.append(np.concatenate(list(pictures), 1))
    sheet = (np.concatenate(rows, 0) * 255 + 0.5).astype(np.uint8)
    Image.fromarray(sheet).save(options.out)


if __name__ == "__main__":
    main()
