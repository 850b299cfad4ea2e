"""sample: a prompt to a moving picture."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from msdv import __version__
from msdv.config import SampleConfig
from msdv.console import progress, say
from msdv.data.video import output_format, write_video
from msdv.errors import MsdvError, UsageError
from msdv.files import refuse_overwrite
from msdv.model.base import choose_base, load_base
from msdv.model.devices import choose_device, choose_precision
from msdv.model.diffusion import blank_condition, denoise, make_scheduler
from msdv.model.noise import independent_noise, mixed_noise, velocity_for
from msdv.model.temporal import build_video_unet
from msdv.recipe import write_beside
from msdv.run import newest_run_with_weights, trained_base, weights_in
from msdv.weights import TemporalMetadata


@dataclass(frozen=True)
class SampleReport:
    """What was made."""

    out: Path
    frames: int
    seconds: float

    def lines(self) -> list[str]:
        """For the user."""
        size = sum(p.stat().st_size for p in self.out.iterdir()) if self.out.is_dir() else self.out.stat().st_size
        return [f"{self.frames} frames in {self.seconds:.0f} s: {self.out} ({size / 1e6:.1f} MB)"]


@torch.no_grad()
def sample(config: SampleConfig) -> SampleReport:
    """Denoise a video of `config.frames` frames and write it. Raises UsageError and MsdvError with the next step."""
    started = time.perf_counter()
    output_format(config.out)
    refuse_overwrite(config.out, config.overwrite)
    latents = _read_latents(config.latents, config.frames) if config.latents else None
    device = choose_device(config.device)
    precision = choose_precision(config.fp16, config.bf16, device)
    source = _choose_weights(config)
    name, note = choose_base(config.base or (trained_base(source) if source else None), device)
    base = load_base(name, device=device, dtype=precision.dtype)
    say(precision.note)
    say(note)
    weights = source or base.temporal
    if weights is None:
        raise UsageError(
            f"{base.name} has no temporal layers and there is no run under runs/: train some with msdv train, "
            "or pass --model"
        )
    model, metadata = build_video_unet(base, weights, channels_last=device.type == "cpu")
    size = config.size or (metadata.size if metadata else base.sample_size)
    height = width = size // 8
    if latents is not None:
        height, width = latents.shape[-2:]
    generator = torch.Generator().manual_seed(config.seed)
    noise, motion = _draw_noise(config, metadata, (1, 4, config.frames, height, width), generator)
    if latents is not None:
        noise, motion = latents, "from --latents"
    text = base.encode_prompts([config.prompt, config.negative])
    base.unload("text_encoder")
    condition = None
    if base.in_channels == 9:
        grey = torch.zeros(1, 3, height * 8, width * 8)
        condition = blank_condition(base.encode_frames(grey), config.frames).to(device)
    scheduler_name = config.scheduler or base.sampling.scheduler
    steps = config.steps or base.sampling.steps
    guidance = base.sampling.guidance if config.guidance is None else config.guidance
    with progress("step") as bar:
        task = bar.add_task("denoising", total=steps, note="")
        result = denoise(
            model,
            noise.to(device),
            text[:1],
            text[1:],
            scheduler=make_scheduler(scheduler_name, base.scheduler_config),
            steps=steps,
            guidance=guidance,
            generator=generator,
            condition=condition,
            on_step=lambda step: bar.update(task, completed=step),
        )
    del model
    base.unload("unet")
    resolved = config.model_copy(
        update={
            "base": base.name,
            "model": str(source) if source else None,
            "size": width * 8 if width == height else None,
            "scheduler": scheduler_name,
            "steps": steps,
            "guidance": guidance,
        }
    )
    settings = {
        "tool": f"msdv {__version__}",
        "model_hash": base.unet_hash,
        "motion_used": motion,
        **resolved.model_dump(mode="json", exclude={"out", "overwrite"}, exclude_none=True),
    }
    frames = base.decode_latents(result[0].transpose(0, 1))
    write_video(config.out, frames, fps=config.fps, metadata=settings)
    write_beside(config.out, "sample", resolved)
    for line in base.notes:
        say(line)
    return SampleReport(config.out, config.frames, time.perf_counter() - started)


def _choose_weights(config: SampleConfig) -> Path | None:
    """The weights file that --model means, or the newest run's; None for what comes with the image model."""
    if config.model is not None:
        return weights_in(config.model)
    run = newest_run_with_weights()
    if run is None:
        return None
    say(f"temporal layers of {run.folder}, the newest run")
    return run.weights


def _read_latents(path: Path, frames: int) -> Tensor:
    """Initial noise (1, 4, f, h, w) from a file.

    Raises UsageError if there is no such file or its shape is another, MsdvError if it is no safetensors file.
    """
    if not path.is_file():
        raise UsageError(f"--latents {path} does not exist: give a .safetensors file with the key latents")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MsdvError(f"--latents {path} is not a safetensors file ({error}): write it with safetensors") from error
    if "latents" not in tensors:
        raise MsdvError(f"--latents {path} has no key latents (but {', '.join(sorted(tensors)[:5])}): rename it")
    latents = tensors["latents"].float()
    if latents.ndim != 5 or latents.shape[:3] != (1, 4, frames):
        raise UsageError(
            f"--latents {path} is {tuple(latents.shape)}, not (1, 4, {frames}, height/8, width/8): "
            "match it with --frames"
        )
    return latents


def _draw_noise(
    config: SampleConfig, metadata: TemporalMetadata | None, shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, str]:
    """Initial noise (1, 4, f, h, w) and how it moves, in the words of --motion."""
    motion = metadata.motion if metadata else None
    if config.motion == "none" or (config.motion == "auto" and motion is None):
        return independent_noise(shape, generator), "none"
    if motion is None:
        raise UsageError(
            f"--motion {config.motion}: these temporal layers were not trained on noise that flows: "
            "leave it out, or train with --noise flow"
        )
    velocity, used = velocity_for(motion, config.motion, config.prompt, shape[3], shape[4], generator)
    return mixed_noise(shape, velocity, torch.tensor([motion.share]), generator), used
