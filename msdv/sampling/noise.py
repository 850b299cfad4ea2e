"""What a video is denoised from."""

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from msdv.config import SampleConfig
from msdv.errors import MsdvError, UsageError
from msdv.model.long_noise import VideoNoise
from msdv.model.windows import length_of
from msdv.sampling.steering import Steered


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
    steered: Steered,
    shape: tuple[int, ...],
    generator: torch.Generator,
    spacing: int = 1,
    first: int = 0,
) -> Tensor:
    """Initial noise (1, 4, f, h, w) of frames that are `spacing` frames apart, from frame `first` on."""
    noise = VideoNoise(shape, length_of(config), generator)
    if steered.flow is not None:
        return noise.mixed(steered.flow, torch.tensor([steered.share]), every=spacing, first=first)
    return noise.partly_shared(steered.shared) if steered.shared else noise.independent()
