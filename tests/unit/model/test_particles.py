import numpy as np
import pytest
import torch
from torch import Tensor

from msdv.model.particles import CELL, Particles, _steps, carried_noise

SIDE = 8  # latents


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def place() -> tuple[Tensor, Tensor]:
    """Down and to the right of the middle, in pixels, of a grid of 16x16."""
    axis = (torch.arange(2 * SIDE) + 0.5) * CELL / 2 - SIDE * CELL / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return y, x


def flow_of(kind: str) -> Tensor:
    """(n, 2, 16, 16)"""
    y, x = place()
    nothing = torch.zeros_like(x)
    fields = {
        "nothing": (nothing, nothing),
        "sideways": (nothing + 0.75, nothing),
        "slanting": (nothing - 2.3, nothing + 1.4),
        "far": (nothing + 40, nothing - 500),
        "zoom in": (0.02 * x, 0.02 * y),
        "zoom out": (-0.03 * x, -0.03 * y),
        "rotation": (-0.05 * y, 0.05 * x),
        "skyline": (1.3 * (y < 3), nothing),
    }
    if kind == "rough":  # and another one from each frame to the next
        return 2 * torch.randn(3, 2, 2 * SIDE, 2 * SIDE, generator=generator(7))
    return torch.stack(fields[kind])[None]


def made(kind: str, frames: int = 6, clips: int = 150) -> Tensor:
    flow = flow_of(kind)[None].expand(clips, -1, -1, -1, -1)
    return carried_noise((clips, 2, frames, SIDE, SIDE), flow, generator())


KINDS = ["nothing", "sideways", "slanting", "far", "zoom in", "zoom out", "rotation", "skyline", "rough"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_white_whatever_the_flow(kind: str) -> None:
    noise = made(kind)  # 19,200 values a frame: a correlation of nothing is 0.007 off, a variance 0.01
    for f in (0, 1, 5):
        frame = noise[:, :, f]
        assert abs(frame.mean().item()) < 0.03
        assert abs(frame.var().item() - 1) < 0.045
        assert abs((frame**4).mean().item() - 3) < 0.3  # Gaussian
        neighbours = {
            "right": (frame[..., 1:], frame[..., :-1]),
            "below": (frame[..., 1:, :], frame[..., :-1, :]),
            "diagonal": (frame[..., 1:, 1:], frame[..., :-1, :-1]),
            "other diagonal": (frame[..., 1:, :-1], frame[..., :-1, 1:]),
            "two further": (frame[..., 2:], frame[..., :-2]),
            "channel": (frame[:, :1], frame[:, 1:]),
            "clip": (frame[1:], frame[:-1]),
        }
        for name, (a, b) in neighbours.items():
            assert abs((a * b).mean().item()) < 0.035, name
    # In each place, too, such as at the border and at the skyline.
    variance = noise.transpose(0, 2).flatten(0, 2).square().mean(0)
    assert (variance - 1).abs().max() < 0.35 / (1 if kind == "nothing" else 1.2)


def likeness(a: Tensor, b: Tensor) -> float:
    return ((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()).item()


@pytest.mark.parametrize(("x", "y"), [(2.0, 0.0), (-4.0, 0.0), (0.0, 2.0), (2.0, -2.0), (1.6, 0.4)])
def test_what_goes_somewhere_arrives_whole(x: float, y: float) -> None:
    flow = torch.tensor([x, y]).view(1, 1, 2, 1, 1)
    frames = round(CELL / max(abs(x), abs(y)) * (4 if x == 1.6 else 1)) + 1  # a whole number of latents
    noise = carried_noise((1, 4, frames, 16, 16), flow, generator())
    right, down = (round(v * (frames - 1) / CELL) for v in (x, y))
    moved = noise[:, :, 0].roll((down, right), (-2, -1))
    edge = max(abs(right), abs(down)) + (x == 1.6)  # new ones come in up to half a latent from the border
    inner = slice(edge, 16 - edge)
    torch.testing.assert_close(moved[..., inner, inner], noise[:, :, -1][..., inner, inner])


@pytest.mark.parametrize("speed", [0.1, 0.25, 0.5, 1.3])
def test_fractions_of_a_pixel_add_up(speed: float) -> None:
    flow = torch.tensor([speed, 0.0]).view(1, 1, 2, 1, 1).expand(12, -1, -1, -1, -1)
    noise = carried_noise((12, 4, 17, 8, 16), flow, generator())
    for frames in (1, 4, 5):  # so long that no more than a latent is gone
        gone = frames * speed
        alike = [likeness(noise[:, :, at], noise[:, :, at + frames]) for at in range(17 - frames)]
        assert sum(alike) / len(alike) == pytest.approx(1 - gone / CELL, abs=0.05)


@pytest.mark.parametrize("kind", ["zoom in", "zoom out", "rotation"])
def test_noise_follows_the_flow(kind: str) -> None:
    """Carried along by hand, a frame is like the next, and far more so than where it stays."""
    noise = made(kind, frames=9, clips=40)
    y, x = place()
    right, down = flow_of(kind)[0]
    scale = SIDE * CELL / 2
    back = torch.stack([(x - 8 * right) / scale, (y - 8 * down) / scale], -1)
    # On the pixels' grid, since between latents there is nothing to interpolate in white noise.
    fine = torch.nn.functional.interpolate(noise[:, :, 0], scale_factor=CELL, mode="nearest")
    back = torch.nn.functional.interpolate(back.permute(2, 0, 1)[None], scale_factor=CELL / 2, mode="bilinear")
    carried = torch.nn.functional.grid_sample(
        fine, back.permute(0, 2, 3, 1).expand(40, -1, -1, -1), mode="nearest", align_corners=False
    )
    carried = torch.nn.functional.avg_pool2d(carried, CELL)
    far = torch.nn.functional.avg_pool2d(torch.hypot(8 * right, 8 * down)[None], 2)[0] > 0.5 * CELL
    far[[0, -1]], far[:, [0, -1]] = False, False  # to which something comes from outside
    followed, stayed = (likeness(frame[:, :, far], noise[:, :, -1][:, :, far]) for frame in (carried, noise[:, :, 0]))
    assert followed > 0.3
    assert followed > stayed + 0.05


def test_what_stands_still_stays_for_good_beside_what_moves() -> None:
    noise = carried_noise((2, 4, 60, SIDE, SIDE), flow_of("skyline")[None].expand(2, -1, -1, -1, -1), generator())
    ground = noise[..., 6:, :]  # the field falls to 0 between 4.5 and 5 latents from the top
    assert torch.equal(ground, ground[:, :, :1].expand_as(ground))
    sky = noise[..., :4, :]
    assert likeness(sky[:, :, 0], sky[:, :, -1]) < 0.15


@pytest.mark.parametrize("kind", ["zoom out", "rotation", "uneven"])
def test_nothing_is_lost_but_what_leaves_the_picture(kind: str) -> None:
    """After a hundred frames as little as at first."""
    if kind == "uneven":  # a hundredth of a pixel more or less from place to place, as measured flow is
        flow = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1) + 0.01 * torch.randn(1, 2, 16, 16, generator=generator(2))
    else:
        flow = flow_of(kind) / (10 if kind == "zoom out" else 4)  # what comes together is left out
    leave = {"zoom out": 0.007, "rotation": 0.007, "uneven": 0.009}[kind]
    particles, fields = Particles(1, SIDE, SIDE, generator()), _steps(flow, SIDE, SIDE, 0)
    shares = []
    for _ in range(120):
        before = particles._values[:, 0]
        particles.move(next(fields))
        shares.append(1 - np.isin(before, particles._values[:, 0]).mean())
    for part in (shares[:20], shares[-20:]):
        assert sum(part) / len(part) < leave


def test_no_latent_is_ever_empty_nor_crowded() -> None:
    for kind in KINDS:
        particles, fields = Particles(1, SIDE, SIDE, generator()), _steps(flow_of(kind), SIDE, SIDE, 0)
        for _ in range(60):
            particles.move(next(fields))
        cell = torch.from_numpy(particles._y // CELL * SIDE + particles._x // CELL).long()
        number = torch.bincount(cell, minlength=SIDE * SIDE)
        assert number.min() >= 32, kind  # 64 at first
        assert number.max() <= 128, kind


def test_what_comes_down_vanishes_behind_what_stands_still() -> None:
    y, x = place()
    flow = torch.stack([torch.zeros_like(x), 6.0 * (y < 3)])[None, None]
    noise = carried_noise((1, 4, 30, SIDE, SIDE), flow, generator())
    ground = noise[..., 5:, :]
    assert torch.equal(ground, ground[:, :, :1].expand_as(ground))


def test_where_they_crowd_the_fastest_are_left_out() -> None:
    particles = Particles(1, 1, 1, generator())
    rows = np.repeat(np.arange(4.0), 10)  # 40 in the first block, which is for 32: ten in a row of four pixels
    particles._x, particles._y = np.tile(np.arange(10) * 0.38, 4), rows + 0.5
    particles._values = rows[:, None].astype(np.float32)
    flow = torch.zeros(2, CELL, CELL)
    flow[0] = 0.05 + 0.01 * torch.arange(CELL)[:, None]
    particles.move(flow)
    left = [int((particles._values == row).sum()) for row in range(4)]
    assert left == [10, 10, 10, 2]


def test_what_trembles_at_rest_stays() -> None:
    flow = 0.04 * torch.randn(1, 24, 2, 16, 16, generator=generator(3))
    noise = carried_noise((1, 4, 25, SIDE, SIDE), flow, generator())
    assert likeness(noise[:, :, 0], noise[:, :, -1]) > 0.97


def test_flow_is_taken_in_turn_and_begun_again() -> None:
    to_and_fro = torch.tensor([[8.0, 0.0], [-8.0, 0.0]]).view(1, 2, 2, 1, 1)
    noise = carried_noise((1, 4, 6, 8, 8), to_and_fro, generator())
    inner = (slice(None), slice(None), slice(None), slice(1, -1))
    for f in (2, 4):
        torch.testing.assert_close(noise[:, :, 0][inner], noise[:, :, f][inner])
    torch.testing.assert_close(noise[:, :, 0][..., :-1], noise[:, :, 1][..., 1:])
    other = carried_noise((1, 4, 2, 8, 8), to_and_fro, generator(), first=1)
    torch.testing.assert_close(other[:, :, 0][..., 1:], other[:, :, 1][..., :-1])


def test_frames_that_are_apart_are_those_of_a_longer_video() -> None:
    flow = flow_of("rough")[None]
    whole = carried_noise((1, 4, 9, 8, 8), flow, generator(5))
    torch.testing.assert_close(carried_noise((1, 4, 3, 8, 8), flow, generator(5), every=4), whole[:, :, ::4])


def test_it_follows_from_the_generator_alone() -> None:
    flow = flow_of("rough")[None]
    one, again, other = (carried_noise((1, 4, 5, 8, 8), flow, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_thousand_frames_of_any_shape() -> None:
    noise = carried_noise((1, 4, 1000, 2, 5), flow_of("zoom in")[None].half(), generator())
    assert noise.shape == (1, 4, 1000, 2, 5)
    assert abs(noise.var().item() - 1) < 0.05
