"""What training and sampling share of diffusion: schedules, targets, guidance, the loop over denoising steps."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import diffusers
import torch
from torch import Tensor

from msdv.config import SchedulerName
from msdv.errors import MsdvError, UsageError
from msdv.model.inflate import VideoUNet

_SCHEDULERS: dict[SchedulerName, str] = {
    "ddim": "DDIMScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}

SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""What of a scheduler's configuration decides how noisy a timestep is: it must be the same in training and sampling."""


def make_scheduler(name: SchedulerName, config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler by name, on the noise schedule of an image model's scheduler configuration."""
    scheduler = getattr(diffusers, _SCHEDULERS[name])
    known = set(inspect.signature(scheduler.__init__).parameters)
    # DDIM's own defaults suit pictures, not latents: it would clip them to -1..1 and wash out colours.
    config = {"clip_sample": False, "set_alpha_to_one": False, **with_last_timestep(config)}
    return scheduler.from_config({k: v for k, v in config.items() if k in known})


def with_last_timestep(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration with which sampling begins at the last timestep where that one is noise alone: begun
    elsewhere, the noise would be taken for a picture (Lin et al. 2023, 2305.08891, section 3.3)."""
    return {**config, **({"timestep_spacing": "trailing"} if config.get("rescale_betas_zero_snr") else {})}


class TrainingSchedule:
    """Noisy latents and training targets on an image model's noise schedule."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        schedule = {k: config[k] for k in SCHEDULE_KEYS if k in config}
        self._scheduler = diffusers.DDPMScheduler.from_config(schedule)
        self.prediction_type: str = self._scheduler.config.prediction_type
        self.num_timesteps: int = self._scheduler.config.num_train_timesteps

    def draw_timesteps(self, count: int, shift: float, generator: torch.Generator) -> Tensor:
        """(count,) random timesteps; uniform at shift 1, noisier more often above (Esser et al. 2024, 2403.03206,
        eq. 23)."""
        u = torch.rand(count, generator=generator)
        return (shift * u / (1 + (shift - 1) * u) * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents (b, c, f, h, w) at the noise level of timesteps (b,)."""
        return self._scheduler.add_noise(latents, noise, timesteps)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratios, of variances, at timesteps of any shape."""
        signal = self._scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        return signal / (1 - signal)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model is to predict: noise, velocity or the latents, by the model's prediction type."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return self._scheduler.get_velocity(latents, noise, timesteps)
        if self.prediction_type == "sample":
            return latents
        raise MsdvError(f"prediction type {self.prediction_type} is not known: choose another --base")

    def clean(self, noisy: Tensor, predicted: Tensor, timestep: Tensor) -> Tensor:
        """The latents that a prediction for noisy ones of variance 1, at timestep (), says are below the noise."""
        signal = self._scheduler.alphas_cumprod[int(timestep.round())].item()
        if self.prediction_type == "sample":
            return predicted
        if self.prediction_type == "v_prediction":
            return signal**0.5 * noisy - (1 - signal) ** 0.5 * predicted
        return (noisy - (1 - signal) ** 0.5 * predicted) / max(signal, 1e-6) ** 0.5


def predict(
    model: VideoUNet, latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None = None
) -> Tensor:
    """One model call in the model's precision, float32 in and out.

    latents (b, 4, f, h, w); timestep (), (b,) or (b, f); text (b, n, d) or (b, f, n, d); condition (b, 5, f, h, w):
    mask and image latents, for inpainting models.
    """
    sample = latents if condition is None else torch.cat([latents, condition], dim=1)
    dtype = next(model.parameters()).dtype
    return model(sample.to(dtype), timestep, text.to(dtype)).float()


class Prediction(Protocol):
    """What is to be seen in some frames of a video that is being denoised."""

    def __call__(self, latents: Tensor, timestep: Tensor, frames: Tensor) -> Tensor:
        """latents (1, 4, n, h, w), float32, of the video's `frames` (n,), at timestep () -> a prediction like them."""


@dataclass(frozen=True)
class Followed:
    """A video that the result is to be like."""

    latents: Tensor
    """(1, 4, f, h, w)"""
    strength: float
    """How far to go from it, above 0; at 1 nothing of it is left."""

    def steps(self, steps: int) -> int:
        """How many of so many denoising steps are taken."""
        return max(1, int(steps * self.strength + 1e-6))


@torch.no_grad()
def denoise(
    prediction: Prediction,
    noise: Tensor,
    *,
    scheduler: Any,
    steps: int,
    generator: torch.Generator | None = None,
    follow: Followed | None = None,
    on_step: Callable[[int, Tensor], None] = lambda step, latents: None,
) -> Tensor:
    """From noise (1, 4, f, h, w), variance 1, to latents of the same shape, float32.

    `generator` is for schedulers that add noise. `follow`: begin with this video and as much of the noise as belongs to
    one of the later steps (SDEdit, Meng et al. 2022, 2108.01073, section 3). `on_step` is called after each step, with
    its number, from 1, and the latents. Raises MsdvError if the result is not finite.
    """
    _set_timesteps(scheduler, steps, noise.device)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if takes_generator else {}
    first = 0 if follow is None else steps - follow.steps(steps)
    if follow is None or not first:
        latents = noise.float() * scheduler.init_noise_sigma
    else:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        timesteps = scheduler.timesteps[first : first + 1]
        latents = scheduler.add_noise(follow.latents.to(noise.device, torch.float32), noise.float(), timesteps)
    frames = torch.arange(noise.shape[2], device=noise.device)
    for number, timestep in enumerate(scheduler.timesteps[first:], start=1):
        predicted = prediction(scheduler.scale_model_input(latents, timestep), timestep, frames)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False, **extra)[0]
        on_step(number, latents)
    if not torch.isfinite(latents).all():
        raise MsdvError("the denoised latents are not finite: try without --fp16, or with --bf16")
    return latents


def blank_condition(image_latents: Tensor, frames: int) -> Tensor:
    """What an inpainting model gets where no picture is given: mask 1, everything is to be painted, and the latents of
    a grey picture (1, 4, h, w) -> (1, 5, frames, h, w)."""
    image = image_latents.float().unsqueeze(2).expand(-1, -1, frames, -1, -1)
    return torch.cat([torch.ones_like(image[:, :1]), image], dim=1)


def _set_timesteps(scheduler: Any, steps: int, device: torch.device) -> None:
    """Raise UsageError where the scheduler can't take that many steps."""
    name = type(scheduler).__name__
    try:
        scheduler.set_timesteps(steps, device=device)
    except (ValueError, IndexError) as error:
        raise UsageError(f"--steps {steps}: {name} can't take so many ({error}): lower it") from error
    if int(scheduler.timesteps.max()) >= scheduler.config.num_train_timesteps:
        raise UsageError(f"--steps {steps}: {name} can't take so many on this image model's schedule: lower it")
