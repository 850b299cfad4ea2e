import copy
from typing import get_args

import diffusers
import pytest
import torch

from msdv.config import SchedulerName
from msdv.errors import MsdvError
from msdv.model.diffusion import TrainingSchedule, blank_condition, denoise, make_scheduler
from msdv.model.guidance import Guided, OneText
from msdv.model.inflate import VideoUNet, inflate
from tests.tiny import SCHEDULER, tiny_unet

VELOCITY = {**SCHEDULER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def noise(frames: int = 3) -> torch.Tensor:
    return torch.randn(1, 4, frames, 8, 8, generator=torch.Generator().manual_seed(0))


def text(unet: object, seed: int) -> torch.Tensor:
    return torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(seed))


def with_guidance(model: VideoUNet, guidance: float) -> Guided:
    return Guided(model, OneText(text(model.unet, 1)), OneText(text(model.unet, 2)), guidance=guidance)


@pytest.mark.parametrize("name", get_args(SchedulerName))
@pytest.mark.parametrize("config", [SCHEDULER, VELOCITY], ids=["epsilon", "velocity"])
def test_every_scheduler_denoises_the_same_for_the_same_seed(name: SchedulerName, config: dict) -> None:
    model = inflate(tiny_unet())
    results = []
    steps: list[int] = []
    for _ in range(2):
        results.append(
            denoise(
                with_guidance(model, 3.0),
                noise(),
                scheduler=make_scheduler(name, config),
                steps=3,
                generator=torch.Generator().manual_seed(5),
                on_step=lambda step, latents: steps.append(step),
            )
        )
    assert steps == [1, 2, 3] * 2
    assert results[0].shape == noise().shape
    assert torch.equal(*results)


def test_guidance_is_that_of_diffusers_pipeline() -> None:
    unet = tiny_unet()
    model = inflate(copy.deepcopy(unet))
    result = denoise(with_guidance(model, 7.5), noise(1), scheduler=make_scheduler("ddim", SCHEDULER), steps=4)
    scheduler = diffusers.DDIMScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(4)
    latents = noise(1)[:, :, 0]
    with torch.no_grad():
        for t in scheduler.timesteps:
            both = unet(latents.repeat(2, 1, 1, 1), t, torch.cat([text(model, 2), text(model, 1)])).sample
            unguided, guided = both.chunk(2)
            latents = scheduler.step(unguided + 7.5 * (guided - unguided), t, latents).prev_sample
    torch.testing.assert_close(result[:, :, 0], latents, atol=1e-4, rtol=1e-4)


def test_guidance_one_needs_no_second_prediction() -> None:
    model = inflate(tiny_unet())
    calls: list[torch.Tensor] = []
    model.unet.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    denoise(with_guidance(model, 1.0), noise(), scheduler=make_scheduler("ddim", SCHEDULER), steps=3)
    assert len(calls) == 3


def test_results_that_are_not_finite_are_an_error() -> None:
    model = inflate(tiny_unet())
    with torch.no_grad():
        model.unet.conv_out.spatial_conv.bias.fill_(float("nan"))
    with pytest.raises(MsdvError, match="not finite: try without --fp16"):
        denoise(with_guidance(model, 1.0), noise(), scheduler=make_scheduler("ddim", SCHEDULER), steps=2)


def test_targets_are_what_undoes_the_noise() -> None:
    latents, eps = noise(), torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    t = torch.tensor([400])
    schedule, velocity = TrainingSchedule(SCHEDULER), TrainingSchedule(VELOCITY)
    noisy = schedule.add_noise(latents, eps, t)
    assert torch.equal(schedule.target(latents, eps, t), eps)
    a = diffusers.DDIMScheduler.from_config(SCHEDULER).alphas_cumprod[400]
    torch.testing.assert_close((noisy - (1 - a).sqrt() * eps) / a.sqrt(), latents, atol=1e-4, rtol=1e-3)
    a = diffusers.DDIMScheduler.from_config(VELOCITY).alphas_cumprod[400]
    noisy = velocity.add_noise(latents, eps, t)
    v = velocity.target(latents, eps, t)
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * v, latents, atol=1e-4, rtol=1e-3)


def test_shifted_timesteps_are_noisier() -> None:
    schedule = TrainingSchedule(SCHEDULER)
    plain = schedule.draw_timesteps(4000, 1.0, torch.Generator().manual_seed(0)).float()
    shifted = schedule.draw_timesteps(4000, 3.0, torch.Generator().manual_seed(0)).float()
    assert abs(plain.mean() - 500) < 15
    assert shifted.mean() > 620
    assert shifted.min() >= 0
    assert shifted.max() <= 999


def test_a_blank_condition_asks_for_everything() -> None:
    condition = blank_condition(torch.full((1, 4, 2, 2), 0.5), 3)
    assert condition.shape == (1, 5, 3, 2, 2)
    assert (condition[:, 0] == 1).all()
    assert (condition[:, 1:] == 0.5).all()
