"""An image model and the temporal layers that belong to it: found, checked against each other, put together."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msdv.config import Arch, GroupNormMode
from msdv.errors import MsdvError, UsageError
from msdv.model.base import Base
from msdv.model.inflate import VideoUNet, inflate
from msdv.weights import LINEAR, TemporalMetadata, load_temporal

ZERO_SNR = "rescale_betas_zero_snr"
"""The part of a noise schedule that training may change: see --zero-terminal-snr."""


def build_video_unet(
    base: Base,
    source: Path | dict[str, Tensor] | None,
    *,
    arch: Arch | None = None,
    mid_block: bool | None = None,
    group_norm: GroupNormMode | None = None,
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[VideoUNet, TemporalMetadata | None]:
    """The base's UNet with temporal layers from `source`: a weights file, tensors that came with the base, or None for
    untrained ones, drawn by `seed`. Metadata only where a file has it.

    Raises MsdvError if the weights were trained on another image model, naming both; UsageError if they are of another
    architecture than asked for, or were made with another group norm.
    """
    state: dict[str, Tensor] | None
    if isinstance(source, Path):
        state, metadata = load_temporal(source)
        check_match(base, metadata, source)
    else:
        state, metadata = source, None
    trained_mode = metadata.group_norm if metadata else base.group_norm if state else None
    trained_arch, trained_mid = arch_of(source, metadata), metadata.mid_block if metadata else None
    check_kind(trained_arch, trained_mid, trained_mode, arch=arch, mid_block=mid_block, group_norm=group_norm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = inflate(
            base.unet,
            trained_mode or group_norm,
            arch=trained_arch or arch or "pseudo3d",
            mid_block=bool(trained_mid or mid_block),
            channels_last=channels_last,
        )
    if state is not None:
        if isinstance(source, Path):
            _check_finite(state, source)
        model.load_temporal(state)
    return model, metadata


def check_kind(
    trained_arch: Arch | None,
    trained_mid: bool | None,
    trained_mode: GroupNormMode | None,
    *,
    arch: Arch | None,
    mid_block: bool | None,
    group_norm: GroupNormMode | None,
) -> None:
    """Raise UsageError if temporal layers to start from, of which None is known where there are none, are of another
    kind than asked for."""
    if group_norm and trained_mode and group_norm != trained_mode:
        raise UsageError(
            f"--group-norm {group_norm}: the temporal layers to start from were made with {trained_mode}: "
            "leave the option out, or start with --init none"
        )
    if arch and trained_arch and arch != trained_arch:
        raise UsageError(
            f"--arch {arch}: the temporal layers to start from are {trained_arch}, and there is no way from one to the "
            "other: leave the option out, or start with --init none"
        )
    if trained_arch == "motion-module" and mid_block is not None and mid_block != trained_mid:
        raise UsageError(
            f"--{'' if mid_block else 'no-'}mid-block: the motion modules to start from have "
            f"{'one' if trained_mid else 'none'} in the middle: leave the option out, or start with --init none"
        )


def _check_finite(state: dict[str, Tensor], source: Path) -> None:
    broken = next((key for key, tensor in state.items() if not torch.isfinite(tensor).all()), None)
    if broken is not None:
        raise MsdvError(f"{source} can't be used: {broken} is not finite: take an earlier checkpoint, or other weights")


def arch_of(source: Path | dict[str, Tensor] | None, metadata: TemporalMetadata | None) -> Arch | None:
    """Of temporal weights, as `build_video_unet` takes them."""
    if metadata is not None:
        return metadata.arch
    return None if source is None else "pseudo3d"  # what came with a base without a file of its own is of 2022


def noise_schedule(base: Base, metadata: TemporalMetadata | None) -> dict[str, Any]:
    """The configuration of a diffusers scheduler to sample with: the image model's, with what training changed."""
    if metadata is None:
        return dict(base.scheduler_config)
    if not metadata.unet_hash:  # it goes with many image models: what they predict is theirs to say
        own = (*LINEAR, ZERO_SNR) if metadata.prediction_type == base.prediction_type else LINEAR
        return {**base.scheduler_config, **{k: v for k, v in metadata.scheduler.items() if k in own}}
    schedule = {**base.scheduler_config, **metadata.scheduler}
    if ZERO_SNR not in metadata.scheduler:  # the image model had none of it when the weights were trained
        schedule.pop(ZERO_SNR, None)
    return schedule


def check_match(base: Base, metadata: TemporalMetadata, source: Path) -> None:
    """Raise MsdvError if temporal weights were trained on another image model than `base`."""
    assert base.unet_hash is not None
    if not metadata.unet_hash:  # its size is seen when the weights are put in
        return
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
        chosen = metadata.arch == "motion-module" and key.startswith("beta_")  # by --betas
        if key != ZERO_SNR and not chosen and key in base.scheduler_config and base.scheduler_config[key] != value:
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
