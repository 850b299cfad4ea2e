"""Stage 6: train the decoder on clips, so that what drifts past the latents' grid drifts in the picture too.

A decoder trained on single pictures draws details where the grid has them: clouds that move by a pixel a frame stand,
and then jump. Here its errors have to move along with the wind, which is known, as the clips are rendered.

In: WORK/vae-final/. Out: WORK/vae-steady/.
Two processes: `torchrun --standalone --nproc-per-node 2 steady.py --work WORK`.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from autoencoder import reconstruction_loss
from diffusers import AutoencoderKL
from stage import Loop, read_arguments, read_settings, start_processes

from msdv.data.synthetic import ground_mask, render, sample_sky, wind_velocity

FPS = 5.0


def draw_clip(rng: random.Random, frames: int, dull: float, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """A random clip (f, 3, h, w) from -1 to 1, and how far its places go to the right from frame to frame (h, w), in
    pixels. `dull`: share of grey and dark ones, whose hue is learned last."""
    sky = sample_sky(rng)
    if rng.random() < dull:
        while sky.time not in ("night", "overcast", "storm"):
            sky = sample_sky(rng)
    pictures = torch.from_numpy(render(sky, frames, size, FPS, start=rng.uniform(0, 6))).permute(0, 3, 1, 2)
    velocity = torch.from_numpy(wind_velocity(sky, size)).float()[:, None] * (size / FPS)
    return pictures.float() / 127.5 - 1, velocity.expand(size, size) * ~torch.from_numpy(ground_mask(sky, size))


def carry(pictures: torch.Tensor, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (f, 3, h, w) one frame on, and where that is known (1, 1, h, w)."""
    height, width = velocity.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = x - velocity
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1).expand(len(pictures), -1, -1, -1)
    carried = F.grid_sample(pictures, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return carried, ((x >= 0) & (x <= width - 1)).float()[None, None]


def unsteadiness(errors: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    """How much errors (f, 3, h, w) change along the wind from frame to frame, as a mean of absolute differences."""
    carried, known = carry(errors[:-1], velocity)
    return ((errors[1:] - carried).abs() * known).mean()


def main() -> None:
    """Train by the clock; keep the moving average."""
    options = read_arguments(__doc__)
    settings = read_settings(options.settings, "steady")
    state = start_processes(seed=6)
    vae = AutoencoderKL.from_pretrained(options.work / "vae-final")
    vae.requires_grad_(False)
    assert vae.post_quant_conv is not None
    trained = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    loop = Loop(trained, lr=settings["lr"], minutes=settings["minutes"], path=options.work / "steady.ckpt")
    held_out = [draw_clip(random.Random(f"held out {i}"), 4, 0.3) for i in range(settings["held_out"])]

    def decode_clip(pictures: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.mean.float()
            decoded: torch.Tensor = vae.decode(latents + noise * torch.randn_like(latents[:1])).sample
        return decoded.float()

    @torch.no_grad()
    def validate() -> str:
        errors = [(decode_clip(pictures).clamp(-1, 1) - pictures, velocity) for pictures, velocity in held_out]
        psnr = torch.stack([10 * torch.log10(4 / error.pow(2).mean()) for error, _ in errors]).mean()
        steadiness = torch.stack([unsteadiness(*each) for each in errors]).mean() * 127.5
        return f"held out: {psnr:.2f} dB, errors change by {steadiness:.3f} of 255 along the wind"

    if state.is_main_process:
        print(f"before: {validate()}", flush=True)
    rng = random.Random(f"{state.process_index} {loop.steps}")
    printed = loop.spent
    for _ in loop:
        pictures, velocity = draw_clip(rng, settings["frames"], settings["dull"])
        decoded = decode_clip(pictures, settings["latent_noise"])
        error = decoded - pictures
        patches = F.avg_pool2d(error, 4)
        hue = patches - patches.mean(1, keepdim=True)
        loss = reconstruction_loss(decoded, pictures) + 2 * patches.abs().mean() + 6 * hue.abs().mean()
        loop.step(loss + settings["weight"] * unsteadiness(error, velocity))
        if loop.spent - printed > 60 and state.is_main_process:
            printed = loop.spent
            print(f"step {loop.steps}  {loop.spent:.0f} s  {validate()}", flush=True)
    if state.is_main_process:
        loop.save()
        loop.use_average()
        print(f"{validate()}, after {loop.steps} steps")
        vae.save_pretrained(options.work / "vae-steady")


if __name__ == "__main__":
    main()
