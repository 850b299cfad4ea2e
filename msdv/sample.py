"""sample: a prompt to a moving picture."""

import hashlib
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
from msdv.model.base import Base, load_base
from msdv.model.devices import choose_device, choose_precision
from msdv.model.diffusion import blank_condition, denoise, make_scheduler
from msdv.model.inflate import VideoUNet
from msdv.model.known import Architecture
from msdv.model.memory import Job
from msdv.model.noise import independent_noise, mixed_noise, partly_shared_noise, velocity_for
from msdv.model.plan import choose_savings
from msdv.model.temporal import build_video_unet, noise_schedule
from msdv.recipe import settings_beside, write_beside
from msdv.run import newest_run_with_weights, trained_base, weights_in
from msdv.weights import TemporalMetadata, read_metadata


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
    _check(config)
    latents = _read_latents(config) if config.latents else None
    device = choose_device(config.device)
    precision = choose_precision(config.fp16, config.bf16, device)
    say(precision.note)
    base, weights = _load(config, device, precision.dtype)
    model, metadata = build_video_unet(base, weights, channels_last=device.type == "cpu")
    size = config.size or (metadata.size if metadata else base.sample_size)
    height = width = size // 8
    if latents is not None:
        height, width = latents.shape[-2:]
    model_hash = _hash(model)
    job = Job(
        Architecture(base.name, base.unet_config, base.vae_config),
        frames=config.frames,
        height=height * 8,
        width=width * 8,
        dtype=precision.dtype,
        card=device.type != "cpu",
        group_norm=model.group_norm,
        guidance=base.sampling.guidance if config.guidance is None else config.guidance,
    )
    memory, savings, line = choose_savings(job, config)
    say(line)
    model.save_memory(savings)
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
            scheduler=make_scheduler(scheduler_name, noise_schedule(base, metadata)),
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
            "model": str(weights) if isinstance(weights, Path) and weights != base.temporal else None,
            "size": width * 8 if width == height else None,
            "scheduler": scheduler_name,
            "steps": steps,
            "guidance": guidance,
            "chunk_frames": memory.chunk_frames,
            "stream_weights": memory.stream_weights,
            "vram": None,
        }
    )
    settings = {
        "tool": f"msdv {__version__}",
        "model_hash": model_hash,
        "base_hash": base.unet_hash,
        **({"trained_steps": metadata.steps} if metadata else {}),
        "motion_used": motion,
        **resolved.model_dump(mode="json", exclude={"out", "overwrite", "plan", "json_output"}, exclude_none=True),
    }
    frames = base.decode_latents(result[0].transpose(0, 1))
    write_video(config.out, frames, fps=config.fps, metadata=settings)
    if config.out.suffix:  # a folder has them inside
        write_beside(config.out, "sample", resolved)
    for line in base.notes:
        say(line)
    return SampleReport(config.out, config.frames, time.perf_counter() - started)


def _check(config: SampleConfig) -> None:
    """Raise UsageError for what can't work, before the work."""
    suffix = output_format(config.out)
    refuse_overwrite(config.out, config.overwrite)
    if suffix:
        refuse_overwrite(settings_beside(config.out), config.overwrite)
    if config.latents and config.motion not in ("auto", "none"):
        raise UsageError(f"--motion {config.motion}: the noise in --latents moves as it does: leave one of them out")
    if config.negative and config.guidance == 1:
        raise UsageError(f"--negative {config.negative}: without guidance it does nothing: raise --guidance above 1")


def _load(config: SampleConfig, device: torch.device, dtype: torch.dtype) -> tuple[Base, Path | dict[str, Tensor]]:
    """The image model and the temporal layers that --model and --base mean.

    Without --model: the newest run's, else those that come with the image model. A --base that the newest run was not
    trained on, but that has temporal layers of its own, is sampled with those.
    """
    if config.model is not None:
        weights = weights_in(config.model)
        return load_base(config.base or trained_base(weights), device=device, dtype=dtype), weights
    run = newest_run_with_weights()
    if config.base is None and run is None:
        say("no run under runs/: image model and temporal layers are builtin (--model takes others)")
    name = config.base or (trained_base(run.weights) if run else "builtin")
    base = load_base(name, device=device, dtype=dtype)
    own = base.temporal
    if run is not None and (own is None or read_metadata(run.weights).unet_hash == base.unet_hash):
        say(f"temporal layers of {run.folder}, the newest run")
        return base, run.weights
    if own is None:
        raise UsageError(
            f"{base.name} has no temporal layers and there is no run under runs/: train some with msdv train, "
            "or pass --model"
        )
    if run is not None:
        say(f"temporal layers that come with {base.name}: the newest run was trained on another image model")
    return base, own


def _hash(model: VideoUNet) -> str:
    """Of the temporal weights as they are sampled with: tells trainings on one image model apart."""
    digest = hashlib.sha256()
    for key, value in sorted(model.temporal_parameters().items()):
        digest.update(key.encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().data)
    return digest.hexdigest()


def _read_latents(config: SampleConfig) -> Tensor:
    """Initial noise (1, 4, f, h, w) from a file.

    Raises UsageError if there is no such file or its shape is another, MsdvError if it is no safetensors file.
    """
    path, frames = config.latents, config.frames
    assert path is not None
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
    if config.size and latents.shape[-2:] != (config.size // 8, config.size // 8):
        raise UsageError(
            f"--size {config.size}: the noise in --latents is for {latents.shape[-2] * 8}x{latents.shape[-1] * 8}: "
            "leave the option out"
        )
    return latents


def _draw_noise(
    config: SampleConfig, metadata: TemporalMetadata | None, shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, str]:
    """Initial noise (1, 4, f, h, w) and how it moves, in the words of --motion."""
    motion = metadata.motion if metadata else None
    if config.motion == "auto" and metadata and metadata.shared_noise:
        return partly_shared_noise(shape, metadata.shared_noise, generator), f"shared {metadata.shared_noise:g}"
    if config.motion == "none" or (config.motion == "auto" and motion is None):
        return independent_noise(shape, generator), "none"
    if motion is None:
        raise UsageError(
            f"--motion {config.motion}: these temporal layers were not trained on noise that flows: "
            "leave it out, or train with --noise flow"
        )
    velocity, used = velocity_for(motion, config.motion, config.prompt, shape[3], shape[4], generator)
    return mixed_noise(shape, velocity, torch.tensor([motion.share]), generator), used
