"""Stage 3: turn pictures into latents and skies into captions, once.

In: WORK/images.npy, WORK/skies.json, WORK/vae/. Out: WORK/latents.pt, half precision (n, 4, h, w);
WORK/tokenizer/ and WORK/captions.pt, token ids (scenes, captions, tokens). Took 5 minutes.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from autoencoder import load_pictures
from diffusers import AutoencoderKL
from stage import read_arguments, read_settings
from words import add_filler, build_tokenizer, tokenize

from msdv.data.synthetic import Sky, caption


@torch.no_grad()
def encode_part(work: Path, first: int, last: int) -> torch.Tensor:
    """Latents of pictures `first` to `last`."""
    torch.set_num_threads(1)
    images = np.load(work / "images.npy", mmap_mode="r")
    images = images.reshape(-1, *images.shape[2:])
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    parts = []
    for start in range(first, last, 16):
        pictures = load_pictures(images, range(start, min(start + 16, last)))
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(pictures).latent_dist.mean.half())
    return torch.cat(parts)


def main() -> None:
    """Tokenizer and captions first, then latents on every core."""
    options = read_arguments(__doc__)
    settings = read_settings(options.settings, "unet")
    skies = [Sky(**row) for row in json.loads((options.work / "skies.json").read_text(encoding="utf-8"))]
    rng = random.Random(3)
    texts = [
        add_filler(caption(sky, rng), rng) if rng.random() < settings["filler"] else caption(sky, rng)
        for sky in skies
        for _ in range(settings["captions"])
    ]
    tokenizer = build_tokenizer(options.work / "tokenizer", settings["tokens"])
    tokens = tokenize(tokenizer, texts).to(torch.int16)
    torch.save(tokens.view(len(skies), settings["captions"], -1), options.work / "captions.pt")
    print(f"{len(texts)} captions, {len(tokenizer)} tokens known")

    count = int(np.prod(np.load(options.work / "images.npy", mmap_mode="r").shape[:2]))
    with ProcessPoolExecutor() as pool:
        jobs = [
            pool.submit(encode_part, options.work, first, min(first + 1000, count)) for first in range(0, count, 1000)
        ]
        latents = torch.cat([job.result() for job in jobs])
    torch.save(latents, options.work / "latents.pt")
    print(f"latents {tuple(latents.shape)}, mean {latents.float().mean():.3f}, deviation {latents.float().std():.3f}")


if __name__ == "__main__":
    main()
