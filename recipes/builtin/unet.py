"""Stage 4: train the UNet and the text encoder together, from nothing.

In: WORK/latents.pt, WORK/captions.pt, WORK/tokenizer/. Out: WORK/unet.ckpt (parameters and their moving average).
Two processes: `torchrun --standalone --nproc-per-node 2 unet.py --work WORK`. Took 29.5 minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from stage import Loop, read_arguments, read_settings, start_processes
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from words import tokenize


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule with zero terminal SNR (Lin et al. 2023, section 3.1): else no picture is dark."""
    scheduler: DDIMScheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
    return scheduler


def build_models(settings: dict[str, Any], tokenizer: CLIPTokenizer, latent_size: int = 16) -> torch.nn.ModuleDict:
    """The untrained `unet` and `text_encoder`."""
    channels, width = tuple(settings["channels"]), settings["text_width"]
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=settings["text_layers"],
            num_attention_heads=4,
            max_position_embeddings=settings["tokens"],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=latent_size,
        block_out_channels=channels,
        layers_per_block=settings["layers"],
        cross_attention_dim=width,
        down_block_types=("CrossAttnDownBlock2D",) * (len(channels) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(channels) - 1),
        norm_num_groups=16,
        attention_head_dim=settings["heads"],
    )
    unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward is slow in bf16 on a CPU
    return torch.nn.ModuleDict({"unet": unet.to(memory_format=torch.channels_last), "text_encoder": text})


def diffusion_loss(
    models: torch.nn.ModuleDict,
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    tokens: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of the velocity (Salimans & Ho 2022, section 4 and appendix D) on `latents` (b, c, h, w)."""
    noise = torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
    target = scheduler.get_velocity(latents, noise, timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        states = models["text_encoder"](tokens).last_hidden_state
        predicted = models["unet"](noisy, timesteps, states).sample
    return F.mse_loss(predicted.float(), target)


def main() -> None:
    """Train by the clock; the held-out loss is printed every minute."""
    options = read_arguments(__doc__)
    settings = read_settings(options.settings, "unet")
    state = start_processes(seed=2)
    work: Path = options.work
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer", model_max_length=settings["tokens"])
    latents, captions = (
        torch.load(work / "latents.pt", weights_only=True),
        torch.load(work / "captions.pt", weights_only=True),
    )
    per_scene, held_out, batch = len(latents) // len(captions), settings["held_out"], settings["batch"]
    empty, scheduler = tokenize(tokenizer, [""])[0], build_scheduler()
    torch.manual_seed(2)  # the same first weights in every process
    models = build_models(settings, tokenizer, latents.shape[-1])
    if state.is_main_process:
        print({name: f"{sum(p.numel() for p in m.parameters()) / 1e6:.2f} M" for name, m in models.items()}, flush=True)
    loop = Loop(models, lr=settings["lr"], minutes=settings["minutes"], path=work / "unet.ckpt")

    @torch.no_grad()
    def validate() -> float:
        with torch.random.fork_rng():
            torch.manual_seed(9)
            timesteps = torch.linspace(10, 989, held_out).long()
            rows = torch.arange(held_out)
            parts = [
                diffusion_loss(models, scheduler, latents[i].float(), captions[i // per_scene, 0].long(), timesteps[i])
                for i in rows.split(64)
            ]
        return float(torch.stack(parts).mean())

    torch.manual_seed(2000 + loop.steps * 2 + state.process_index)
    losses, printed = [], loop.spent
    for _ in loop:
        index = torch.randint(held_out, len(latents), (batch,))
        choice = torch.randint(0, captions.shape[1], (batch,))
        tokens = captions[index // per_scene, choice].long()
        tokens = torch.where((torch.rand(batch) < settings["caption_dropout"])[:, None], empty, tokens)
        loss = diffusion_loss(models, scheduler, latents[index].float(), tokens, torch.randint(0, 1000, (batch,)))
        loop.step(loss)
        losses.append(loss.item())
        if loop.spent - printed > 60 and state.is_main_process:
            printed = loop.spent
            seen = loop.steps * batch * state.num_processes
            mean = sum(losses) / len(losses)
            losses.clear()
            print(
                f"step {loop.steps}  {seen} images  {loop.spent:.0f} s  loss {mean:.4f}  held out {validate():.4f}",
                flush=True,
            )
    if state.is_main_process:
        loop.save()
        loop.use_average()
        print(f"done: {loop.steps} steps, held out {validate():.4f} with averaged weights")


if __name__ == "__main__":
    main()
