"""What the first and the last frame of a video look like, beside the others: shown to the model once, as a plain model
would see them, and twice (msdv/model/ends.py).

    python tests/bench/ends.py

Prints how much each frame changes to the next, of 255: at the two ends, next to them, and in the middle.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from msdv.config import SampleConfig
from msdv.model.preview import preview_of
from msdv.sampling import sampler
from msdv.sampling.results import decoded_frames

PROMPTS = ("clouds timelapse", "sunset")


def changes(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame (f, h, w, 3) to the next. (f-1,)"""
    return np.asarray(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3)))


@torch.no_grad()
def main() -> None:
    """Sample each prompt both ways from the same noise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    values = {"prompt": PROMPTS[0], "out": Path("unused.gif"), "frames": options.frames}
    config = SampleConfig.model_validate(values | {"base": "builtin", "model": "builtin"})
    makes = sampler.Sampler(config)
    configs = [
        config.model_copy(update={"prompt": prompt, "seed": seed})
        for prompt in PROMPTS
        for seed in range(options.seeds)
    ]
    makes.encode_texts(configs)
    twice = sampler.with_ends
    print("| ends shown | first two | next two | middle | the two before | last two | ground: first, middle, last |")
    print("|---|---|---|---|---|---|---|")
    for name, wrap in (("once", lambda prediction, *_: prediction), ("twice", twice)):
        sampler.with_ends = wrap
        rows = []
        for each in configs:
            with preview_of(None) as preview:
                latents, _ = makes.denoise(each, preview)
            frames = np.stack(list(decoded_frames(makes.base, latents)))
            rows.append((changes(frames), changes(frames[:, -frames.shape[1] // 8 :])))
        whole, ground = np.mean(rows, axis=0)
        cells = [whole[0], whole[1], whole[2:-2].mean(), whole[-2], whole[-1]]
        low = [ground[0], ground[2:-2].mean(), ground[-1]]
        print(
            f"| {name} | {' | '.join(f'{v:.2f}' for v in cells)} | {', '.join(f'{v:.2f}' for v in low)} |", flush=True
        )
    sampler.with_ends = twice


if __name__ == "__main__":
    main()
