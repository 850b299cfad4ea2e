"""What the ends of a video look like, beside its middle: with the first and the last frame shown to the model once, as
a plain model would see them; twice; and with frames made around the video besides, as `msdv sample` does where noise
flows (msdv/model/ends.py).

    python tests/bench/ends.py

Prints how much each frame changes to the next, of 255, and how far the upper half moves, in pixels: at the two ends,
next to them, and in the middle.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from msdv.config import SampleConfig
from msdv.data.flow import flows
from msdv.model.preview import preview_of
from msdv.sampling import sampler
from msdv.sampling.results import decoded_frames

PROMPTS = ("clouds timelapse", "sunset")


@contextmanager
def ends_shown(how: str) -> Iterator[None]:
    """Inside the block, samplers show ends `once`, `twice` or with frames `around` them."""
    with ExitStack() as stack:
        if how != "around":
            stack.enter_context(patch.object(sampler, "around_video", lambda *_: 0))
        if how == "once":
            stack.enter_context(patch.object(sampler, "with_ends", lambda prediction, *_: prediction))
        yield


def steps(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From each frame (f, h, w, 3) to the next: mean absolute difference, and mean flow of the upper half. (f-1,)"""
    change = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))
    moved = [np.linalg.norm(flow[: frames.shape[1] // 2], axis=-1).mean() for flow in flows(frames)]
    return change, np.array(moved)


@torch.no_grad()
def main() -> None:
    """Sample each prompt all ways from the same noise, but for frames around, which have more of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    values = {"prompt": PROMPTS[0], "out": Path("unused.gif"), "frames": options.frames}
    config = SampleConfig.model_validate(values | {"base": "builtin", "model": "builtin"})
    configs = [
        config.model_copy(update={"prompt": prompt, "seed": seed})
        for prompt in PROMPTS
        for seed in range(options.seeds)
    ]
    places = ("first two", "next two", "middle", "the two before", "last two")
    print(f"| ends | {' | '.join(f'{what}, {place}' for what in ('change', 'flow') for place in places)} |")
    print("|---" * (1 + 2 * len(places)) + "|")
    for how in ("once", "twice", "around"):
        with ends_shown(how):
            makes = sampler.Sampler(config)
            makes.encode_texts(configs)
            rows = []
            for each in configs:
                with preview_of(None) as preview:
                    latents, _ = makes.denoise(each, preview)
                rows.append(steps(np.stack(list(decoded_frames(makes.base, latents)))))
        cells = [
            f"{value:.2f}"
            for part in np.mean(rows, axis=0)
            for value in (part[0], part[1], part[2:-2].mean(), part[-2], part[-1])
        ]
        print(f"| {how} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
