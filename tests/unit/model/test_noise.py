import pytest
import torch

from msdv.model.noise import clip_offset, independent_noise, mixed_noise, partly_shared_noise
from msdv.model.particles import CELL


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mixed_noise_has_variance_one_at_every_share() -> None:
    share = torch.tensor([0.0, 0.5, 0.9, 1.0]).repeat_interleave(100)
    flow = torch.tensor([2.0, 0.0]).view(1, 1, 2, 1, 1).expand(400, -1, -1, -1, -1)
    noise = mixed_noise((400, 4, 3, 8, 8), flow, share, generator())
    for part in noise.split(100):
        assert abs(part.var().item() - 1) < 0.03
    between = (noise[:, :, 0] * noise[:, :, 1]).mean((1, 2, 3))
    expected = share * (1 - 2 / CELL)
    for found in (between - expected).split(100):
        assert abs(found.mean().item()) < 0.03


def test_of_clips_only_those_flow_that_are_to() -> None:
    flow = torch.tensor([8.0, 0.0]).view(1, 1, 2, 1, 1).expand(3, -1, -1, -1, -1)
    noise = mixed_noise((3, 4, 2, 8, 8), flow, torch.tensor([0.0, 1.0, 0.0]), generator())
    torch.testing.assert_close(noise[1, :, 0, :, :-1], noise[1, :, 1, :, 1:])
    assert torch.equal(noise[[0, 2]], independent_noise((3, 4, 2, 8, 8), generator())[[0, 2]])


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
    assert torch.equal(
        independent_noise((1, 4, 3, 8, 8), generator(5)), independent_noise((1, 4, 3, 8, 8), generator(5))
    )
