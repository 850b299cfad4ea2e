import pytest
import torch

from msdv.model.long_noise import VideoNoise, endless_flow, noise_order, periodic_flow
from msdv.model.noise import CELL, independent_noise, mixed_noise, partly_shared_noise
from msdv.model.windows import Length

WINDOWS, LOOP = Length(25, 8), Length(25, 8, loop=True)
VELOCITY = torch.tensor([[2.3] * 4 + [-1.7] * 2 + [0.0] * 2])


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
        "mixed": lambda: noise.mixed(VELOCITY.repeat(40, 1), torch.full((40,), 0.8)),
    }[kind]()
    for f in (0, 1, 24, 25, 34, 35, 36, 68, 69):
        frame = made[:, :, f]
        assert abs(frame.mean().item()) < 0.025
        assert abs(frame.var().item() - 1) < 0.04
        for axis in (-1, -2):
            assert abs((frame * frame.roll(1, axis)).mean().item()) < 0.025


MOVING = torch.tensor([[CELL / 4] * 2 + [-CELL / 4] * 2 + [0.0] * 4])


def moved(noise: torch.Tensor, at: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What is to be alike after four frames, in which MOVING goes by one latent."""
    first, later = noise[:, :, at], noise[:, :, (at + 4) % noise.shape[2]]
    return [
        (first[..., :2, :-1], later[..., :2, 1:]),
        (first[..., 2:4, 1:], later[..., 2:4, :-1]),
        (first[..., 4:, :], later[..., 4:, :]),
    ]


def test_rows_move_by_their_velocity_over_any_number_of_frames() -> None:
    noise = endless_flow((3, 4, 200, 8, 16), MOVING.repeat(3, 1), generator())
    for at in (0, 27, 30, 97, 150, 195):  # 32 of them are made at a time
        for a, b in moved(noise, at):
            torch.testing.assert_close(a, b)


def test_periodic_flow_moves_everywhere() -> None:
    noise = periodic_flow((30, 4, 66, 8, 16), MOVING.repeat(30, 1), generator())
    for at in (0, 20, 32, 33, 50, 62, 65):
        for a, b in moved(noise, at):
            assert (a * b).mean() / (a * a).mean() == pytest.approx(1, abs=0.04)
    assert torch.equal(noise[..., 4:, :], noise[:, :, :1, 4:].expand(-1, -1, 66, -1, -1))


def test_the_last_frame_of_periodic_flow_leads_into_the_first() -> None:
    velocity = torch.full((40, 8), 2.0)
    for frames in (24, 25):
        noise = periodic_flow((40, 4, frames, 8, 16), velocity, generator())
        like = [(noise[:, :, f] * noise[:, :, (f + 1) % frames]).mean().item() for f in range(frames)]
        assert max(like) - min(like) < 0.06
        assert like[-1] == pytest.approx(1 - 2 / CELL, abs=0.04)
    flowing = endless_flow((40, 4, 24, 8, 16), velocity, generator())
    assert abs((flowing[:, :, -1] * flowing[:, :, 0]).mean().item()) < 0.05


def test_fast_rows_and_ten_thousand_frames() -> None:
    fast = endless_flow((1, 4, 80, 4, 4), torch.tensor([[500.0, -900.0, 0.0, 0.04]]), generator())
    assert fast.isfinite().all() and abs(fast[:, :, :, :2].var().item() - 1) < 0.2
    assert endless_flow((1, 4, 10_000, 2, 4), torch.tensor([[3.0, 1.0]]), generator()).shape == (1, 4, 10_000, 2, 4)
