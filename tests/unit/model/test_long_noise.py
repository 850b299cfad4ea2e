import pytest
import torch

from msdv.model.long_noise import VideoNoise, noise_order, periodic_noise
from msdv.model.noise import independent_noise, mixed_noise, partly_shared_noise
from msdv.model.particles import CELL, carried_noise
from msdv.model.windows import Length

WINDOWS, LOOP = Length(25, 8), Length(25, 8, loop=True)


def rows(*speeds: float) -> torch.Tensor:
    """Flow (1, 1, 2, rows, 1): each of the rows to the right."""
    right = torch.tensor(speeds).view(1, 1, 1, -1, 1)
    return torch.cat([right, torch.zeros_like(right)], 2)


VELOCITY = rows(*[2.3] * 4, *[-1.7] * 2, *[0.0] * 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [Length(), Length(25, 8), Length(8, 3)])
def test_without_windows_it_is_the_noise_that_it_was(length: Length) -> None:
    shape, share = (1, 4, 8, 8, 6), torch.tensor([0.8])

    def noise() -> VideoNoise:
        return VideoNoise(shape, length, generator())

    assert torch.equal(noise().independent(), independent_noise(shape, generator()))
    assert torch.equal(noise().partly_shared(0.7), partly_shared_noise(shape, 0.7, generator()))
    assert torch.equal(noise().mixed(VELOCITY, share), mixed_noise(shape, VELOCITY, share, generator()))


def test_each_window_has_the_noise_of_the_first_in_another_order() -> None:
    order = noise_order(200, WINDOWS, generator()).tolist()
    assert order[:25] == list(range(25))
    for start in range(0, 176, 17):  # where windows are as planned
        assert sorted(order[start : start + 25]) == list(range(25))
    assert order[25:42] != order[:17]
    for start in range(176):  # and elsewhere nearly so
        assert len(set(order[start : start + 25])) >= 16
    assert order == noise_order(200, WINDOWS, generator()).tolist()
    assert order != noise_order(200, WINDOWS, generator(1)).tolist()


@pytest.mark.parametrize("frames", [26, 30, 60, 61, 100])
def test_round_a_loop_no_noise_comes_back_within_an_overlap(frames: int) -> None:
    for seed in range(20):
        order = noise_order(frames, LOOP, generator(seed)).tolist()
        for at in range(frames - LOOP.overlap, frames):
            near = [order[(at + distance) % frames] for distance in range(1, LOOP.overlap + 1)]
            following = [noise for place, noise in enumerate(near, at + 1) if place >= frames]
            assert order[at] not in following


@pytest.mark.parametrize("length", [WINDOWS, LOOP, Length(loop=True), Length(30, 29), Length(2, 1)])
@pytest.mark.parametrize("kind", ["independent", "shared", "mixed"])
def test_every_frame_is_white_and_of_variance_one(length: Length, kind: str) -> None:
    noise = VideoNoise((40, 4, 70, 8, 16), length, generator())
    made = {
        "independent": noise.independent,
        "shared": lambda: noise.partly_shared(1.0),
        "mixed": lambda: noise.mixed(VELOCITY.expand(40, -1, -1, -1, -1), torch.full((40,), 0.8)),
    }[kind]()
    for f in (0, 1, 24, 25, 34, 35, 36, 68, 69):
        frame = made[:, :, f]
        assert abs(frame.mean().item()) < 0.025
        assert abs(frame.var().item() - 1) < 0.04
        for axis in (-1, -2):
            assert abs((frame * frame.roll(1, axis)).mean().item()) < 0.025


# Between rows of different speeds lies a latent in which it changes from the one to the other.
MOVING = rows(*[CELL / 4] * 8, *[-CELL / 4] * 8, *[0.0] * 8)


def moved(noise: torch.Tensor, at: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What is to be alike after four frames, in which MOVING goes by one latent."""
    first, later = noise[:, :, at], noise[:, :, (at + 4) % noise.shape[2]]
    return [
        (first[..., :3, 1:-2], later[..., :3, 2:-1]),
        (first[..., 5:7, 2:-1], later[..., 5:7, 1:-2]),
        (first[..., 9:, :], later[..., 9:, :]),
    ]


def test_it_moves_over_any_number_of_frames() -> None:
    noise = carried_noise((1, 4, 120, 12, 16), MOVING, generator())
    for at in (0, 27, 30, 97, 115):
        for a, b in moved(noise, at):
            torch.testing.assert_close(a, b)


def test_periodic_noise_moves_everywhere() -> None:
    noise = periodic_noise((12, 4, 66, 12, 16), MOVING.expand(12, -1, -1, -1, -1), generator())
    for at in (0, 20, 32, 33, 50, 62, 65):
        for a, b in moved(noise, at):
            assert (a * b).mean() / (a * a).mean() == pytest.approx(1, abs=0.06)
    assert torch.equal(noise[..., 9:, :], noise[:, :, :1, 9:].expand(-1, -1, 66, -1, -1))


def test_the_last_frame_of_periodic_noise_leads_into_the_first() -> None:
    flow = rows(2.0).expand(20, -1, -1, -1, -1)
    for frames in (24, 25):
        noise = periodic_noise((20, 4, frames, 8, 16), flow, generator())
        like = [(noise[:, :, f] * noise[:, :, (f + 1) % frames]).mean().item() for f in range(frames)]
        assert max(like) - min(like) < 0.08
        assert like[-1] == pytest.approx(1 - 2 / CELL, abs=0.05)
    flowing = carried_noise((20, 4, 24, 8, 16), flow, generator())
    assert abs((flowing[:, :, -1] * flowing[:, :, 0]).mean().item()) < 0.05


def test_in_a_loop_both_noises_take_the_flow_of_their_frame() -> None:
    """Eight frames of which the first four go right by a latent each, and then back."""
    flow = torch.zeros(1, 8, 2, 1, 1)
    flow[:, :, 0] = torch.tensor([8.0] * 4 + [-8.0] * 4).view(1, 8, 1, 1)
    noise = periodic_noise((1, 64, 8, 4, 24), flow.expand(1, -1, -1, -1, -1), generator())
    for f in range(8):
        a, b = noise[:, :, f], noise[:, :, (f + 1) % 8]
        step = 1 if f < 4 else -1
        assert (a.roll(step, -1) * b)[..., 6:-6].mean().item() > 0.75


def test_flow_begins_where_it_is_told_to() -> None:
    flow = torch.zeros(1, 6, 2, 1, 1)
    flow[:, 3:, 0] = 8.0
    noise = VideoNoise((1, 4, 2, 8, 8), Length(), generator()).mixed(flow, torch.ones(1), every=2, first=3)
    torch.testing.assert_close(noise[:, :, 0][..., :-2], noise[:, :, 1][..., 2:])


def test_fast_flow() -> None:
    fast = carried_noise((1, 4, 80, 4, 4), rows(500.0, -900.0, 0.0, 0.04), generator())
    assert fast.isfinite().all()
    assert abs(fast[:, :, :, :2].var().item() - 1) < 0.2
