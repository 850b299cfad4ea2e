import random

import pytest
import torch

from msdv.data.synthetic import render, sample_sky
from msdv.model.noise import (
    CELL,
    clip_offset,
    estimate_row_velocity,
    flowing_noise,
    independent_noise,
    mixed_noise,
    motion_of,
    partly_shared_noise,
    velocity_for,
)
from msdv.weights import Motion

MOTION = Motion(profile=(1.0, 0.5, 0.0, 0.0), speed=0.01, share=0.9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_frame_of_flowing_noise_is_white_and_of_variance_one() -> None:
    velocity = torch.tensor([[2.3] * 4 + [-1.7] * 2 + [0.0] * 2]).repeat(300, 1)
    noise = flowing_noise((300, 4, 5, 8, 16), velocity, generator())
    for f in range(5):
        frame = noise[:, :, f]
        assert abs(frame.mean().item()) < 0.01
        assert abs(frame.var().item() - 1) < 0.02
        for axis in (-1, -2):
            shifted = frame.roll(1, axis)
            assert abs((frame * shifted).mean().item()) < 0.01


def test_flowing_noise_moves_by_its_velocity() -> None:
    velocity = torch.tensor([[CELL / 4] * 2 + [-CELL / 4] * 2 + [0.0] * 4]).repeat(300, 1)
    noise = flowing_noise((300, 4, 5, 8, 16), velocity, generator())
    first, last = noise[:, :, 0], noise[:, :, 4]  # four frames: one latent
    torch.testing.assert_close(first[..., :2, :-1], last[..., :2, 1:])
    torch.testing.assert_close(first[..., 2:4, 1:], last[..., 2:4, :-1])
    torch.testing.assert_close(first[..., 4:, :], last[..., 4:, :])


def test_mixed_noise_has_variance_one_at_every_share() -> None:
    share = torch.tensor([0.0, 0.5, 0.9, 1.0]).repeat_interleave(100)
    noise = mixed_noise((400, 4, 3, 8, 8), torch.full((400, 8), 1.5), share, generator())
    for part in noise.split(100):
        assert abs(part.var().item() - 1) < 0.03
    between = (noise[:, :, 0] * noise[:, :, 1]).mean((1, 2, 3))
    expected = share * (1 - 1.5 / CELL)
    # The offset is rounded to pixels: 2 of 8, not 1.5.
    assert ((between - expected).split(100)[2].mean().abs() < 0.1).item()
    assert (between[:100].mean().abs() < 0.02).item()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
def test_partly_shared_noise_has_variance_one_and_a_part_in_common(alpha: float) -> None:
    noise = partly_shared_noise((400, 4, 3, 8, 8), alpha, generator())
    assert abs(noise.var().item() - 1) < 0.02
    assert abs(noise.mean().item()) < 0.02
    between = (noise[:, :, 0] * noise[:, :, 2]).mean().item()
    assert between == pytest.approx(alpha**2 / (1 + alpha**2), abs=0.02)
    across = (noise * noise.roll(1, -1)).mean().item(), (noise[1:] * noise[:-1]).mean().item()
    assert max(map(abs, across)) < 0.02


def test_without_a_shared_part_the_noise_is_independent_noise() -> None:
    shape = (1, 4, 3, 8, 8)
    assert torch.equal(partly_shared_noise(shape, 0.0, generator(5)), independent_noise(shape, generator(5)))


def test_offset_noise_is_one_value_a_clip_and_channel() -> None:
    offset = clip_offset((3000, 4, 5, 8, 8), 0.1, generator())
    assert offset.shape == (3000, 4, 1, 1, 1)
    assert offset.std().item() == pytest.approx(0.1, rel=0.05)
    assert abs(offset.mean().item()) < 0.005


def test_noise_follows_from_the_generator_alone() -> None:
    velocity = torch.full((1, 8), 0.7)
    assert torch.equal(
        flowing_noise((1, 4, 3, 8, 8), velocity, generator(5)), flowing_noise((1, 4, 3, 8, 8), velocity, generator(5))
    )
    assert torch.equal(
        independent_noise((1, 4, 3, 8, 8), generator(5)), independent_noise((1, 4, 3, 8, 8), generator(5))
    )


def test_a_long_video_needs_memory_like_its_latents() -> None:
    noise = flowing_noise((1, 4, 1000, 8, 8), torch.full((1, 8), 2.0), generator())
    assert noise.shape == (1, 4, 1000, 8, 8)
    assert torch.isfinite(noise).all()


@pytest.mark.parametrize("speed", [-2.0, -0.75, 0.5, 1.5])
def test_the_velocity_of_a_moving_texture_over_a_still_ground_is_found(speed: float) -> None:
    texture = torch.nn.functional.avg_pool1d(torch.randn(1, 64, 400, generator=generator()), 9, 1, 4)[0] * 60
    ground = torch.randn(64, 128, generator=generator(1)) * 20
    frames = []
    for f in range(24):
        x = torch.arange(128) + 150 - speed * f
        low = x.floor().long()
        moving = texture[:, low] * (1 - (x - low)) + texture[:, low + 1] * (x - low)
        frames.append(torch.cat([moving[:32], ground[32:]]))
    velocity = estimate_row_velocity(torch.stack(frames) + 128)
    torch.testing.assert_close(velocity[:3], torch.full((3,), speed), atol=0.12, rtol=0)
    assert velocity[5:].abs().max() < 0.01


def test_the_wind_of_sky_clips_is_found() -> None:
    rng = random.Random(11)
    for _ in range(6):
        sky = sample_sky(rng)
        clip = torch.from_numpy(render(sky, 24, size=64)).float().mean(-1)
        velocity = estimate_row_velocity(clip)
        assert (velocity[:4].mean() > 0) == (sky.wind == "right"), sky
        assert velocity[-1].abs() < 0.05, sky


def test_clips_without_motion_give_no_motion() -> None:
    still = torch.randn(1, 64, 64, generator=generator()).repeat(12, 1, 1) * 30
    velocity = estimate_row_velocity(still)
    assert torch.equal(velocity, torch.zeros(8))
    assert motion_of(velocity[None], 64, 0.9) is None


def test_motion_of_clips_is_their_common_profile() -> None:
    velocities = torch.tensor([[2.0, 1.0, 0.0], [-1.0, -0.5, 0.0], [0.0, 0.0, 0.0]])
    motion = motion_of(velocities, 100, 0.8)
    assert motion == Motion(profile=(1.0, 0.5, 0.0), speed=0.01, share=0.8)


@pytest.mark.parametrize(
    ("wish", "prompt", "expected"),
    [
        ("left", "clouds moving right", (-1.28, "left:1.28")),
        ("right:2.5", "", (2.5, "right:2.5")),
        ("auto", "clouds drifting left over hills", (-1.28, "left:1.28")),
        ("auto", "clouds drifting right", (1.28, "right:1.28")),
    ],
)
def test_motion_can_be_wished_for(wish: str, prompt: str, expected: tuple[float, str]) -> None:
    velocity, used = velocity_for(MOTION, wish, prompt, 16, 16, generator())
    assert velocity.shape == (1, 16)
    assert velocity[0, 0].item() == pytest.approx(expected[0])
    assert torch.equal(velocity[0, -6:], torch.zeros(6))
    assert used == expected[1]


def test_without_a_word_the_direction_is_left_to_chance() -> None:
    used = {velocity_for(MOTION, "auto", "clouds", 16, 16, generator(seed))[1].split(":")[0] for seed in range(16)}
    assert used == {"left", "right"}
