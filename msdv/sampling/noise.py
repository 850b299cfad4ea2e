"""What a video is denoised from."""

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from msdv.config import SampleConfig
from msdv.errors import MsdvError, UsageError
from msdv.model.long_noise import VideoNoise
from msdv.model.noise import velocity_for
from msdv.model.windows import length_of
from msdv.weights import TemporalMetadata


def read_latents(config: SampleConfig) -> Tensor:
    """Initial noise (1, 4, f, h, w) from a file.

    As many frames as it has, where --frames does not say how many. Raises UsageError if there is no such file or its
    shape is another, MsdvError if it is no safetensors file or holds something else than finite floats.
    """
    path = config.latents
    assert path is not None
    if not path.is_file():
        raise UsageError(f"--latents {path} does not exist: give a .safetensors file with the key latents")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MsdvError(f"--latents {path} is not a safetensors file ({error}): write it with safetensors") from error
    if "latents" not in tensors:
        raise MsdvError(f"--latents {path} has no key latents (but {', '.join(sorted(tensors)[:5])}): rename it")
    found = tensors["latents"]
    if not found.is_floating_point() or not torch.isfinite(found).all():
        what = "numbers that are none" if found.is_floating_point() else f"whole numbers ({found.dtype})"
        raise MsdvError(f"--latents {path} holds {what.replace('torch.', '')}: write normally distributed floats")
    latents = found.float()
    frames = config.frames
    if "frames" not in config.model_fields_set and latents.ndim == 5:
        frames = max(1, latents.shape[2])
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


def draw_noise(
    config: SampleConfig,
    metadata: TemporalMetadata | None,
    shape: tuple[int, ...],
    generator: torch.Generator,
    spacing: int = 1,
) -> tuple[Tensor, str]:
    """Initial noise (1, 4, f, h, w) of frames that are `spacing` frames apart, and how it moves, in the words of
    --motion."""
    motion = metadata.motion if metadata else None
    noise = VideoNoise(shape, length_of(config), generator)
    if config.motion == "auto" and metadata and metadata.shared_noise:
        return noise.partly_shared(metadata.shared_noise), f"shared {metadata.shared_noise:g}"
    if config.motion == "none" or (config.motion == "auto" and motion is None):
        return noise.independent(), "none"
    if motion is None:
        raise UsageError(
            f"--motion {config.motion}: these temporal layers were not trained on noise that flows: "
            "leave it out, or train with --noise flow"
        )
    velocity, used = velocity_for(motion, config.motion, config.prompt, shape[3], shape[4], generator)
    return noise.mixed(spacing * velocity, torch.tensor([motion.share])), used
