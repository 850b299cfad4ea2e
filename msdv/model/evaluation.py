"""What the temporal layers are worth: the loss on clips never trained on, with them and without."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from msdv.errors import MsdvError
from msdv.model.diffusion import TrainingSchedule, predict
from msdv.model.inflate import VideoUNet


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean squared errors of the model's prediction, over clips and noise levels."""

    on: float
    """With the temporal layers."""
    off: float
    """Without them: the image model, frame by frame."""
    noise: str
    """`independent`, `flow` or `shared`: the noise it was measured with."""
    clips: int
    levels: int
    """Noise levels a clip."""

    @property
    def gain(self) -> float:
        """How much lower the loss is with the temporal layers, as a share of the loss without."""
        return 1 - self.on / self.off if self.off else 0.0

    def as_dict(self) -> dict[str, float | int | str]:
        """For metrics and JSON."""
        return {**asdict(self), "gain": self.gain}

    def __str__(self) -> str:
        clips = f"{self.clips} clip" + ("" if self.clips == 1 else "s")
        return (
            f"loss on {clips}, {self.noise} noise: {self.on:.4f} with temporal layers, "
            f"{self.off:.4f} without: {abs(self.gain):.1%} {'lower' if self.gain >= 0 else 'higher'}"
        )


@torch.no_grad()
def held_out_loss(
    model: VideoUNet,
    schedule: TrainingSchedule,
    items: Iterator[tuple[Tensor, Tensor, Tensor]],
    *,
    levels: int,
    noise_kind: str,
    condition: Tensor | None = None,
    known_off: float | None = None,
) -> HeldOutLoss:
    """Measure on items (latents (1, 4, f, h, w), text (1, n, d), noise like the latents), each at `levels` noise levels
    spread evenly over the schedule, shifted from clip to clip so that together they cover it. `known_off` is the loss
    without temporal layers where it was measured on the same items before: training does not change it.

    Raises MsdvError if a loss is not finite.
    """
    device = next(model.parameters()).device
    on, off, clips = 0.0, 0.0, 0
    for clips, (latents, text, noise) in enumerate(items, start=1):
        latents, text, noise = (t.to(device) for t in (latents, text, noise))
        for level in range(levels):
            # The golden ratio's multiples fill an interval evenly, however many there are.
            place = (level + clips * 0.618034 % 1) / levels
            timestep = torch.tensor([int(place * schedule.num_timesteps)], device=device)
            noisy = schedule.add_noise(latents, noise, timestep)
            target = schedule.target(latents, noise, timestep)
            on += mse_loss(predict(model, noisy, timestep, text, condition), target).item()
            if known_off is not None:
                continue
            with model.temporal_layers_off():
                off += mse_loss(predict(model, noisy, timestep, text, condition), target).item()
    count = max(1, clips * levels)
    off = off / count if known_off is None else known_off
    if not math.isfinite(on + off):
        layers = "without temporal layers" if not math.isfinite(off) else "with the temporal layers"
        raise MsdvError(f"the loss on held-out clips is not finite {layers}: try --bf16, or no --fp16")
    return HeldOutLoss(on / count, off, noise_kind, clips, levels)
