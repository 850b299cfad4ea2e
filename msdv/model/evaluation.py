"""What the temporal layers are worth: the loss on clips never trained on, with them and without."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from msdv.errors import MsdvError
from msdv.model.diffusion import TrainingSchedule, predict
from msdv.model.given import frames_given, look
from msdv.model.inflate import VideoUNet
from msdv.model.objective import error_of, flicker, training_loss


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean squared errors of the model's prediction, over clips and noise levels."""

    on: float
    """With the temporal layers."""
    off: float
    """Without them: the image model, frame by frame."""
    flicker_on: float
    """Mean squared change of the error from each frame to the next, with the temporal layers. Under noise that flows it
    is nearly all that they can lower: frames that look alike tell each other little else."""
    flicker_off: float
    """Without them."""
    noise: str
    """`independent`, `flow` or `shared`: the noise it was measured with."""
    clips: int
    levels: int
    """Noise levels a clip."""
    given: str = "none"
    """Which frames the model was shown, in the words of --condition; the loss is on the others."""
    lora: bool = False
    """Whether a LoRA trained beside the temporal layers was on and off with them."""

    @property
    def name(self) -> str:
        """What it was measured with, in words."""
        shown = {"none": "", "first-frame": ", first frame given"}.get(self.given, ", keyframes given")
        return f"{self.noise} noise{shown}"

    @property
    def tag(self) -> str:
        """The same in short: a name for a curve."""
        return self.noise if self.given == "none" else f"{self.noise}-given"

    @property
    def gain(self) -> float:
        """How much lower the loss is with the temporal layers, as a share of the loss without."""
        return 1 - self.on / self.off if self.off else 0.0

    @property
    def steadiness(self) -> float:
        """The same of the flicker."""
        return 1 - self.flicker_on / self.flicker_off if self.flicker_off else 0.0

    def as_dict(self) -> dict[str, float | int | str]:
        """For metrics and JSON."""
        return {**asdict(self), "gain": self.gain, "steadiness": self.steadiness}

    def __str__(self) -> str:
        clips = f"{self.clips} clip" + ("" if self.clips == 1 else "s")
        layers = "temporal layers and LoRA" if self.lora else "temporal layers"
        return (
            f"loss on {clips}, {self.name}: {self.on:.4f} with {layers}, "
            f"{self.off:.4f} without: {_lower_by(self.gain)}; "
            f"its flicker {self.flicker_on:.4f}, {self.flicker_off:.4f} without: {_lower_by(self.steadiness)}"
        )


def _lower_by(share: float) -> str:
    return f"{abs(share):.1%} {'lower' if share >= 0 else 'higher'}"


@torch.no_grad()
def held_out_loss(
    model: VideoUNet,
    schedule: TrainingSchedule,
    items: Iterator[tuple[Tensor, Tensor, Tensor]],
    *,
    levels: int,
    noise_kind: str,
    blank: Tensor | None = None,
    condition: str = "none",
    known: HeldOutLoss | None = None,
) -> HeldOutLoss:
    """Measure on items (latents (1, 4, f, h, w), text (1, n, d), noise like the latents), each at `levels` noise levels
    spread evenly over the schedule, shifted from clip to clip so that together they cover it. `condition`: the model is
    shown the first frame of each, or its keyframes, and the loss is on the others. Inpainting models need `blank`, the
    latents (1, 4, h, w) of a grey picture. `known` was measured on the same items before: what the
    model does without temporal layers is taken from it, as training does not change that.

    Raises MsdvError if a loss is not finite.
    """
    device = next(model.parameters()).device
    sums, clips = torch.zeros(2, 2, dtype=torch.float64), 0
    for clips, (latents, text, noise) in enumerate(items, start=1):
        latents, text, noise = (t.to(device) for t in (latents, text, noise))
        given = frames_given(condition, latents.shape[2])[None]
        some = given.to(device) if given.any() else None
        for level in range(levels):
            # The golden ratio's multiples fill an interval evenly, however many there are.
            place = (level + clips * 0.618034 % 1) / levels
            timestep = torch.tensor([int(place * schedule.num_timesteps)], device=device)
            noisy = schedule.add_noise(latents, noise, timestep)
            target = schedule.target(latents, noise, timestep)
            seen = look(noisy, timestep, latents, given, blank)
            sums[0] += _error(model, seen, text, target, some)
            if known is not None:
                continue
            with model.temporal_layers_off():
                sums[1] += _error(model, seen, text, target, some)
    count = max(1, clips * levels)
    on, off = (sums / count).tolist()
    if known is not None:
        off = [known.off, known.flicker_off]
    if not all(map(math.isfinite, [*on, *off])):
        layers = "with the temporal layers" if all(map(math.isfinite, off)) else "without temporal layers"
        raise MsdvError(f"the loss on held-out clips is not finite {layers}: try --bf16, or no --fp16")
    return HeldOutLoss(
        on=on[0],
        off=off[0],
        flicker_on=on[1],
        flicker_off=off[1],
        noise=noise_kind,
        clips=clips,
        levels=levels,
        given=condition,
        lora=bool(model.lora_parameters()),
    )


def _error(
    model: VideoUNet,
    seen: tuple[Tensor, Tensor, Tensor | None],
    text: Tensor,
    target: Tensor,
    given: Tensor | None,
) -> Tensor:
    """(2,) Loss and flicker."""
    latents, timesteps, condition = seen
    prediction = predict(model, latents, timesteps, text, condition)
    changes = flicker(error_of(prediction, target, given), given).mean()
    return torch.stack([training_loss(prediction, target, given=given), changes]).cpu()
