"""Stage 5: train only the decoder, on whole pictures and the latents that the UNet learned; these stay valid.

In: WORK/images.npy, WORK/latents.pt, WORK/vae/. Out: WORK/vae-final/.
Two processes: `torchrun --standalone --nproc-per-node 2 decoder.py --work WORK`. Took 7.5 minutes.
"""

from __future__ import annotations

import json

import numpy as np
import torch
import torch.nn.functional as F
from autoencoder import load_pictures, measure_psnr, reconstruction_loss
from diffusers import AutoencoderKL
from stage import Loop, read_arguments, read_settings, start_processes


def main() -> None:
    """Train by the clock; keep the moving average."""
    options = read_arguments(__doc__)
    settings = read_settings(options.settings, "decoder")
    state = start_processes(seed=5)
    images = np.load(options.work / "images.npy", mmap_mode="r")
    images = images.reshape(-1, *images.shape[2:])
    latents = torch.load(options.work / "latents.pt", weights_only=True)
    vae = AutoencoderKL.from_pretrained(options.work / "vae")
    vae.requires_grad_(False)
    assert vae.post_quant_conv is not None
    trained = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    loop = Loop(trained, lr=settings["lr"], minutes=settings["minutes"], path=options.work / "decoder.ckpt")
    held_out = load_pictures(images, range(settings["held_out"]))
    if state.is_main_process:
        print(f"before: {measure_psnr(vae, held_out).mean():.2f} dB", flush=True)
    # Grey and dark pictures: a small share of the set, and the ones whose hue the first training leaves wrong.
    skies = json.loads((options.work / "skies.json").read_text(encoding="utf-8"))
    dark = np.repeat([sky["time"] in ("night", "overcast", "storm") for sky in skies], len(images) // len(skies))
    everything = np.arange(settings["held_out"], len(images))
    dull = everything[dark[everything]]
    rng = np.random.default_rng([5, state.process_index, loop.steps])
    for _ in loop:
        index = [
            int(rng.choice(dull if rng.random() < settings["dull"] else everything)) for _ in range(settings["batch"])
        ]
        noisy = latents[index].float()
        noisy = noisy + settings["latent_noise"] * torch.randn_like(noisy)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(noisy).sample
        pictures = load_pictures(images, index)
        patches = F.avg_pool2d(decoded.float() - pictures, 4)
        hue = patches - patches.mean(1, keepdim=True)
        loss = reconstruction_loss(decoded, pictures) + 2 * patches.abs().mean() + 6 * hue.abs().mean()
        loop.step(loss)
        if loop.steps % 100 == 0 and state.is_main_process:
            print(f"step {loop.steps}  {loop.spent:.0f} s  loss {loss.item():.4f}", flush=True)
    if state.is_main_process:
        loop.save()
        loop.use_average()
        psnr = measure_psnr(vae, held_out)
        print(f"held out: {psnr.mean():.2f} dB, worst {psnr.min():.2f} dB, after {loop.steps} steps")
        vae.save_pretrained(options.work / "vae-final")


if __name__ == "__main__":
    main()
