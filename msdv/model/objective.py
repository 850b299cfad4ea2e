"""What a training learns: on which noise and noise schedule, and which error its steps minimise."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from msdv.config import Arch, NoiseKind, TrainConfig, keyframe_distance
from msdv.errors import UsageError
from msdv.model.base import Base
from msdv.model.temporal import ZERO_SNR, noise_schedule
from msdv.weights import LINEAR, TemporalMetadata


def kind_of_noise(config: TrainConfig, start: TemporalMetadata | None) -> tuple[NoiseKind, float]:
    """Independent or flowing, and how much of it is the same in all frames: as asked for, else as in the weights to
    start from, where that goes together with what was asked for.

    Raises UsageError if both are asked for.
    """
    noise, shared = config.noise, config.shared_noise
    if noise is None:
        noise = start.noise if start and not shared else "independent"
    if shared is None:
        shared = start.shared_noise if start and noise == "independent" else 0.0
    if shared and noise == "flow":
        raise UsageError(
            f"--shared-noise {shared:g}: noise that flows is shared along the motion already: "
            "leave one of --shared-noise and --noise flow out"
        )
    return noise, shared


def what_is_given(config: TrainConfig, start: TemporalMetadata | None) -> str:
    """What the layers learn to start from, in the words of --condition: as asked for, else as in the weights to start
    from.

    Raises UsageError where clips are too short for it.
    """
    condition = config.condition or (start.condition if start else "none")
    every = keyframe_distance(condition)
    if every and config.frames <= every:
        raise UsageError(
            f"--condition {condition}: clips of --frames {config.frames} have one keyframe: train on "
            f"{every + 1} frames or more, best {every} times a number and 1"
        )
    return condition


def schedule_to_train_on(config: TrainConfig, base: Base, start: TemporalMetadata | None) -> dict[str, Any]:
    """The scheduler configuration of the image model, or of the weights to start from, with other betas if they are
    asked for, and with nothing of a clip left at its last step if that is (Lin et al. 2023, 2305.08891, section 3.1).

    Raises UsageError where nothing could be learned there.
    """
    schedule, wish = noise_schedule(base, start), config.zero_terminal_snr
    if config.betas == "linear":
        schedule |= LINEAR
    elif config.betas == "base":
        schedule |= {key: value for key, value in base.scheduler_config.items() if key in LINEAR}
    if wish is not None and wish != bool(schedule.get(ZERO_SNR)):
        schedule[ZERO_SNR] = wish
    if not schedule.get(ZERO_SNR):
        return schedule
    if wish and base.prediction_type == "epsilon":
        raise UsageError(
            f"--zero-terminal-snr: {base.name} predicts the noise, and where all is noise there is nothing to learn: "
            "leave it out, or choose a --base that predicts v, such as Stable Diffusion 2.1"
        )
    if config.min_snr is not None:
        raise UsageError(
            f"--min-snr {config.min_snr:g}: gives no weight to the last step of a schedule with --zero-terminal-snr, "
            "where sampling starts: leave one of them out"
        )
    return schedule


def check_options(config: TrainConfig, arch: Arch) -> None:
    """Raise UsageError for what only motion modules can be trained with."""
    if arch == "motion-module":
        return
    for given, option in ((config.betas == "linear", "--betas linear"), (config.mid_block, "--mid-block")):
        if given:
            raise UsageError(f"{option}: is for --arch motion-module: leave it out, or train such layers")


def betas_of(schedule: Mapping[str, Any], base: Base) -> Literal["base", "linear"]:
    """A noise schedule in the words of --betas."""
    return "base" if all(schedule.get(key) == base.scheduler_config.get(key) for key in LINEAR) else "linear"


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Weights of squared errors at signal-to-noise ratios `snr`, any shape: those that count an error in the latents
    min(snr, gamma) times, whatever the model predicts (Hang et al. 2023, 2303.09556).

    prediction_type: `epsilon`, `v_prediction` or `sample`, as diffusers names them.
    """
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)  # min(snr, gamma) / snr, without 0/0
    counted = snr.clamp(max=gamma)
    return counted / (snr + 1) if prediction_type == "v_prediction" else counted


def training_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    temporal_loss: float = 0.0,
    flicker_loss: float = 0.0,
    anchor: Tensor | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """Mean squared error () of predictions (b, c, f, h, w).

    given (b, f) bool: frames that are not to be predicted, which count nothing.

    weight (b,): how much each clip counts. With `temporal_loss`, so many times the mean squared error of the
    differences between each frame and the clip's frame `anchor` (b,) is added: an error that all frames have in common,
    such as one in looks, adds nothing to it. After the appearance-debiased loss of MotionDirector (Zhao et al. 2023,
    2310.08465), which subtracts the frame from sqrt(2) times each other and so still counts such errors a little. With
    `flicker_loss`, so many times the mean squared change of the error from each frame to the next is added. Both leave
    the best prediction what it is, the mean of all clips that may have been meant: they say which errors to mend first.
    """
    if weight is None and not temporal_loss and not flicker_loss and given is None:
        return mse_loss(prediction, target)
    error = error_of(prediction, target, given)
    loss = _mean_of_clips(error.square(), given)
    if temporal_loss:
        assert anchor is not None
        clips = torch.arange(len(error), device=error.device)
        at_anchor = error[clips, :, anchor].unsqueeze(2)  # (b, c, 1, h, w)
        loss = loss + temporal_loss * _mean_of_clips((error - at_anchor).square(), given)
    if flicker_loss:
        loss = loss + flicker_loss * flicker(error, given)
    return (loss if weight is None else weight * loss).mean()


def error_of(prediction: Tensor, target: Tensor, given: Tensor | None = None) -> Tensor:
    """Errors (b, c, f, h, w), 0 in frames that are given (b, f)."""
    error = prediction - target
    return error if given is None else error.masked_fill(given[:, None, :, None, None], 0.0)


def flicker(error: Tensor, given: Tensor | None = None) -> Tensor:
    """Mean squared change (b,) of errors (b, c, f, h, w), f at least 2, from each frame to the next; not
    between frames that are both given (b, f)."""
    return _mean_of_clips(error.diff(dim=2).square(), None if given is None else given[:, 1:] & given[:, :-1])


def _mean_of_clips(errors: Tensor, given: Tensor | None) -> Tensor:
    """Means (b,) of errors (b, c, f, h, w) over the frames that are not given."""
    if given is None:
        return errors.mean((1, 2, 3, 4))
    made = (~given).to(errors)
    return (errors.mean((1, 3, 4)) * made).sum(1) / made.sum(1)
