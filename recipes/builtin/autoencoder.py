"""Stage 2: train the autoencoder, three colours at 128x128 to four latent channels at 16x16.

In: WORK/images.npy. Out: WORK/vae/, diffusers' AutoencoderKL; its latents have mean 0 and variance 1.
Two processes: `torchrun --standalone --nproc-per-node 2 autoencoder.py --work WORK`. Took 25 minutes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from stage import Loop, read_arguments, read_settings, start_processes

KL_WEIGHT = 2e-4


def load_pictures(images: np.ndarray, indices: list[int] | range) -> torch.Tensor:
    """Pictures of the flattened set `images` (n, h, w, 3) as (b, 3, h, w) from -1 to 1."""
    chosen = np.stack([images[i] for i in indices])
    return torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(decoded: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, error of edges, and error of large areas, which keeps the colours right."""
    error = decoded.float() - pictures
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    areas = F.avg_pool2d(error, 16)
    return error.abs().mean() + error.pow(2).mean() + across.abs().mean() + down.abs().mean() + areas.abs().mean()


@torch.no_grad()
def measure_psnr(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio of each picture after the autoencoder, dB. (b,)"""
    values = []
    for part in pictures.split(16):
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(vae.encode(part).latent_dist.mean).sample
        error = (decoded.float().clamp(-1, 1) - part).pow(2).mean((1, 2, 3))
        values.append(10 * torch.log10(4 / error))
    return torch.cat(values)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Fold mean and deviation of each latent channel into the 1x1 convolutions around the latents."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(32)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before is not None and after is not None and before.bias is not None and after.bias is not None
    channels = len(mean)
    after.bias.data += after.weight.data[:, :, 0, 0] @ mean
    after.weight.data *= deviation[None, :, None, None]
    before.weight.data[:channels] /= deviation[:, None, None, None]
    before.bias.data[:channels] = (before.bias.data[:channels] - mean) / deviation
    before.bias.data[channels:] -= 2 * deviation.log()
    vae.register_to_config(scaling_factor=1.0)


def main() -> None:
    """Train on crops, then on whole pictures; keep the moving average."""
    options = read_arguments(__doc__)
    settings = read_settings(options.settings, "vae")
    state = start_processes(seed=1)
    images = np.load(options.work / "images.npy", mmap_mode="r")
    size, held_out, channels = images.shape[2], settings["held_out"], tuple(settings["channels"])
    images = images.reshape(-1, *images.shape[2:])
    torch.manual_seed(1)  # the same first weights in every process
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    )
    loop = Loop(vae, lr=settings["lr"], minutes=settings["minutes"], path=options.work / "vae.ckpt")
    torch.manual_seed(1000 + loop.steps + state.process_index)
    rng = np.random.default_rng([1, state.process_index, loop.steps])
    for share in loop:
        whole = share >= settings["crops"]
        count, side = (settings["batch"] // 4, size) if whole else (settings["batch"], settings["crop"])
        pictures = load_pictures(images, list(rng.integers(held_out, len(images), count)))
        if not whole:
            corners = rng.integers(0, size - side + 1, (count, 2))
            pictures = torch.stack(
                [p[:, y : y + side, x : x + side] for p, (y, x) in zip(pictures, corners, strict=True)]
            )
        if rng.random() < 0.5:
            pictures = pictures.flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            decoded = vae.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean)).sample
        divergence = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(decoded, pictures) + KL_WEIGHT * divergence
        loop.step(loss)
        if loop.steps % 100 == 0 and state.is_main_process:
            psnr = 10 * torch.log10(4 / (decoded.detach().float() - pictures).pow(2).mean((1, 2, 3)))
            print(
                f"step {loop.steps}  {loop.spent:.0f} s  loss {loss.item():.4f}  psnr {psnr.mean():.2f} dB", flush=True
            )
    if state.is_main_process:
        loop.save()
        loop.use_average()
        vae.eval()
        normalise_latents(vae, load_pictures(images, range(held_out, held_out + 512)))
        psnr = measure_psnr(vae, load_pictures(images, range(held_out)))
        print(f"held out: {psnr.mean():.2f} dB, worst {psnr.min():.2f} dB, after {loop.steps} steps")
        vae.save_pretrained(options.work / "vae")


if __name__ == "__main__":
    main()
