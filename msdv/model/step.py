"""The optimizer step of a training: what the loop computes, and what a rehearsal of its memory goes through."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from msdv.model.diffusion import TrainingSchedule, predict
from msdv.model.given import look
from msdv.model.inflate import VideoUNet
from msdv.model.objective import min_snr_weight, training_loss
from msdv.model.optimizer import MasterOptimizer


@dataclass(frozen=True)
class Objective:
    """Which error the steps minimise."""

    schedule: TrainingSchedule
    min_snr: float | None = None
    temporal_loss: float = 0.0
    flicker_loss: float = 0.0

    def loss(
        self,
        model: VideoUNet,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        text: Tensor,
        *,
        given: Tensor | None = None,
        blank: Tensor | None = None,
        anchor: Tensor | None = None,
    ) -> Tensor:
        """The loss () of noisy clips, to go backward from.

        latents and noise (b, 4, f, h, w), timesteps (b,), text (b, n, d), all on the model's device. given (b, f) bool,
        in the computer's memory: frames that the model is shown as they are; None for none. blank (1, 4, h, w): latents
        of a grey picture, for inpainting models. anchor (b,): with a temporal loss, the frames it refers to.
        """
        schedule, weight = self.schedule, None
        if self.min_snr is not None:
            weight = min_snr_weight(schedule.snr(timesteps), self.min_snr, schedule.prediction_type)
        noisy = schedule.add_noise(latents, noise, timesteps)
        target = schedule.target(latents, noise, timesteps)
        condition, counted = None, None
        if given is not None or blank is not None:
            which = torch.zeros(len(latents), latents.shape[2], dtype=torch.bool) if given is None else given
            noisy, timesteps, condition = look(noisy, timesteps, latents, which, blank)
            counted = None if given is None else given.to(latents.device)
        prediction = predict(model, noisy, timesteps, text, condition)
        return training_loss(
            prediction,
            target,
            weight=weight,
            temporal_loss=self.temporal_loss,
            flicker_loss=self.flicker_loss,
            anchor=anchor,
            given=counted,
        )


def add_gradients(optimizer: MasterOptimizer, loss: Callable[[int], Tensor], count: int) -> float:
    """`count` forward and backward passes, each from `loss(index)` (); the mean of their losses."""
    total = 0.0
    for index in range(count):
        one = loss(index)
        total += one.item() / count
        optimizer.backward(one / count)
    return total
