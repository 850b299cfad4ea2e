"""An image model and the temporal layers that belong to it: found, checked against each other, put together."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msdv.config import GroupNormMode
from msdv.errors import MsdvError, UsageError
from msdv.model.base import Base
from msdv.model.inflate import VideoUNet, inflate
from msdv.weights import TemporalMetadata, load_temporal

ZERO_SNR = "rescale_betas_zero_snr"
"""The part of a noise schedule that training may change: see --zero-terminal-snr."""


def build_video_unet(
    base: Base,
    source: Path | dict[str, Tensor] | None,
    *,
    group_norm: GroupNormMode | None = None,
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[VideoUNet, TemporalMetadata | None]:
    """The base's UNet with temporal layers from `source`: a weights file, tensors that came with the base, or None for
    untrained ones, drawn by `seed`. Metadata only where a file has it.

    Raises MsdvError if the weights were trained on another image model, naming both; UsageError if they were made with
    another group norm than asked for.
    """
    state: dict[str, Tensor] | None
    if isinstance(source, Path):
        state, metadata = load_temporal(source)
        check_match(base, metadata, source)
    else:
        state, metadata = source, None
    trained_mode = metadata.group_norm if metadata else base.group_norm if state else None
    if group_norm and trained_mode and group_norm != trained_mode:
        raise UsageError(
            f"--group-norm {group_norm}: the temporal layers to start from were made with {trained_mode}: "
            "leave the option out, or start with --init none"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = inflate(base.unet, trained_mode or group_norm or "frame", channels_last=channels_last)
    if state is not None:
        model.load_temporal(state)
    return model, metadata


def noise_schedule(base: Base, metadata: TemporalMetadata | None) -> dict[str, Any]:
    """The configuration of a diffusers scheduler to sample with: the image model's, with what training changed."""
    if metadata is None:
        return dict(base.scheduler_config)
    schedule = {**base.scheduler_config, **metadata.scheduler}
    if ZERO_SNR not in metadata.scheduler:  # the image model had none of it when the weights were trained
        schedule.pop(ZERO_SNR, None)
    return schedule


def check_match(base: Base, metadata: TemporalMetadata, source: Path) -> None:
    """Raise MsdvError if temporal weights were trained on another image model than `base`."""
    assert base.unet_hash is not None
    if metadata.unet_hash != base.unet_hash:
        raise MsdvError(
            f"{source} was trained on {metadata.base} ({metadata.unet_hash[:12]}), not on {base.name} "
            f"({base.unet_hash[:12]}): pass --base {metadata.base}, or other weights"
        )
    if metadata.prediction_type != base.prediction_type:
        raise MsdvError(
            f"{source} was trained with {metadata.prediction_type}, {base.name} predicts {base.prediction_type}: "
            f"pass --base {metadata.base}, or other weights"
        )
    for key, value in metadata.scheduler.items():
        if key != ZERO_SNR and key in base.scheduler_config and base.scheduler_config[key] != value:
            raise MsdvError(
                f"{source} was trained on a noise schedule with {key} {value}, {base.name} has "
                f"{base.scheduler_config[key]}: pass --base {metadata.base}, or other weights"
            )


def module_hash(module: Any, parts: tuple[str, ...] = ("",)) -> str:
    """Of a network's configuration and weights in their present precision: what cached results depend on. `parts` are
    the beginnings of the names that count: an autoencoder's decoder has no say in the latents."""
    config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
    # Where it was loaded from and by which version is no part of what it computes.
    config = {k: v for k, v in config.items() if not k.startswith("_") and "version" not in k and k != "dtype"}
    digest = hashlib.sha256(repr(sorted(config.items(), key=str)).encode())
    for key, value in sorted(module.state_dict().items()):
        if key.startswith(parts):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
