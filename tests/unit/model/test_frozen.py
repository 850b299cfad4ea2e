"""Frozen layers against torch's own: the same results and gradients, and less kept."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from msdv.model.chunks import by_frames, by_positions
from msdv.model.frozen import FrozenConv2d, convolve, geglu, norm_silu, upsample

WHOLE = [slice(0, 6)]
PARTS = [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6)]  # two clips of three frames


def pictures(n: int = 6, c: int = 8, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    x = torch.randn(n, c, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype) + 1
    return x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def frozen(module: nn.Module, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    layout = torch.channels_last if channels_last else torch.preserve_format
    return module.requires_grad_(False).to(dtype, memory_format=layout)


def with_gradient(compute: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the gradient of x under one that differs everywhere."""
    x = x.detach().requires_grad_()
    y = compute(x)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, x, gradient)[0]


def kept_bytes(compute: Callable[[Tensor], Tensor], x: Tensor, weights: nn.Module) -> int:
    """Bytes of all tensors held for the backward pass, weights and input left out."""
    own = {t.untyped_storage().data_ptr() for t in [x, *weights.parameters()]}
    held: dict[int, int] = {}

    def hold(t: Tensor) -> Tensor:
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        compute(x.requires_grad_())
    return sum(size for pointer, size in held.items() if pointer not in own)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{"padding": 1}, {"padding": 1, "stride": 2}, {"bias": False}])
def test_a_convolution_gives_the_same_bytes(settings: dict, dtype: torch.dtype, channels_last: bool) -> None:
    conv = frozen(nn.Conv2d(8, 4, 3, **settings), dtype, channels_last)
    x = pictures(dtype=dtype, channels_last=channels_last)
    ours = FrozenConv2d(conv)  # type: ignore[arg-type]
    assert list(ours.state_dict()) == list(conv.state_dict())
    for mine, plain in zip(with_gradient(ours, x), with_gradient(conv, x), strict=True):
        assert torch.equal(mine, plain)
        assert mine.stride() == plain.stride()
    assert kept_bytes(ours, x.clone(), conv) == 0


def test_a_convolution_that_is_trained_after_all_gets_its_gradient() -> None:
    conv = nn.Conv2d(8, 4, 3)
    ours = FrozenConv2d(conv)
    ours(pictures().requires_grad_()).sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.abs().max() > 0


def five_dimensional(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """The 2022 model's: over clips (b, c, f, h, w), b 2."""
    clip = x.unflatten(0, (2, -1)).transpose(1, 2)
    return F.group_norm(clip, norm.num_groups, norm.weight, norm.bias, norm.eps).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("side", [4, 8, 33])
def test_a_group_norm_in_half_precision_is_the_one_in_single(side: int) -> None:
    norm = nn.GroupNorm(4, 16).requires_grad_(False)
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
        norm.bias.uniform_(-1, 1)
    x = torch.randn(2, 16, side, side).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    half = copy.deepcopy(norm).to(torch.bfloat16)
    mine = with_gradient(lambda t: norm_silu((t,), half, None, [slice(0, 2)], None), x)
    expected = with_gradient(lambda t: F.silu(norm(t)), x.float())
    for one, other in zip(mine, expected, strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one.float(), other, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("ranges", [WHOLE, PARTS], ids=["whole", "parts"])
@pytest.mark.parametrize("clips", [None, 2], ids=["frame", "joint"])
@pytest.mark.parametrize("with_conv", [False, True])
def test_norm_silu_and_convolution(
    clips: int | None, ranges: list[slice], with_conv: bool, channels_last: bool
) -> None:
    norm = frozen(nn.GroupNorm(4, 8))
    conv = frozen(nn.Conv2d(8, 4, 3, padding=1), channels_last=channels_last) if with_conv else nn.Identity()
    x = pictures(channels_last=channels_last)

    def ours(x: Tensor) -> Tensor:
        return norm_silu((x,), norm, conv if with_conv else None, ranges, clips)  # type: ignore[arg-type]

    def plain(x: Tensor) -> Tensor:
        return conv(F.silu(norm(x) if clips is None else five_dimensional(norm, x)))  # type: ignore[arg-type]

    mine, expected = with_gradient(ours, x), with_gradient(plain, x)
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)
    if clips is None and ranges is WHOLE:
        assert torch.equal(mine[0], expected[0])
        assert torch.equal(mine[1], expected[1])
    assert mine[0].is_contiguous(memory_format=torch.channels_last) == channels_last
    assert kept_bytes(ours, x.clone(), nn.ModuleList([norm, conv])) == 0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("ranges", [WHOLE, PARTS], ids=["whole", "parts"])
@pytest.mark.parametrize("clips", [None, 2], ids=["frame", "joint"])
def test_pictures_side_by_side_are_as_if_concatenated(
    clips: int | None, ranges: list[slice], channels_last: bool
) -> None:
    norm = frozen(nn.GroupNorm(4, 16))  # a group of it spans both
    conv = frozen(nn.Conv2d(16, 4, 3, padding=1), channels_last=channels_last)
    values = pictures(c=10, channels_last=channels_last), pictures(c=6, channels_last=channels_last) - 2
    results = []
    for together in (False, True):
        x = [value.clone().requires_grad_() for value in values]
        of = (torch.cat(x, dim=1),) if together else x
        y = norm_silu(of, norm, conv, ranges, clips) + convolve(of, conv, ranges)  # type: ignore[arg-type]
        gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        results.append([y.detach(), *torch.autograd.grad(y, x, gradient)])
    torch.testing.assert_close(results[0], results[1], atol=2e-6, rtol=1e-5)
    first, second = results[0][1:]
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    assert second.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("ranges", [WHOLE, PARTS], ids=["whole", "parts"])
def test_clips_of_one_frame_have_the_statistics_of_frames(ranges: list[slice]) -> None:
    norm = frozen(nn.GroupNorm(4, 8))
    mine, expected = (
        with_gradient(lambda x, clips=clips: norm_silu((x,), norm, None, ranges, clips), pictures())  # type: ignore[misc]
        for clips in (6, None)
    )
    torch.testing.assert_close(mine, expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clips", [None, 2], ids=["frame", "joint"])
@pytest.mark.parametrize("ranges", [WHOLE, PARTS], ids=["whole", "parts"])
def test_norm_in_half_precision_is_as_near_as_torchs_own(
    dtype: torch.dtype, clips: int | None, ranges: list[slice]
) -> None:
    exact = frozen(nn.GroupNorm(4, 8))
    half = copy.deepcopy(exact).to(dtype)
    x = pictures(dtype=dtype)

    def plain(norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
        return lambda x: F.silu(norm(x) if clips is None else five_dimensional(norm, x))

    true = with_gradient(plain(copy.deepcopy(half).float()), x.float())  # type: ignore[arg-type]
    mine = with_gradient(lambda x: norm_silu((x,), half, None, ranges, clips), x)  # type: ignore[arg-type]
    torchs = with_gradient(plain(half), x)  # type: ignore[arg-type]
    for one, other, exactly in zip(mine, torchs, true, strict=True):
        assert one.dtype == dtype
        assert (one - exactly).abs().mean() <= 1.05 * (other - exactly).abs().mean()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("ranges", [WHOLE, PARTS], ids=["whole", "parts"])
@pytest.mark.parametrize("size", [[12, 10], [7, 9]])
def test_upsampling(size: list[int], ranges: list[slice], channels_last: bool) -> None:
    conv = frozen(nn.Conv2d(8, 4, 3, padding=1), channels_last=channels_last)
    x = pictures(channels_last=channels_last)

    def ours(x: Tensor) -> Tensor:
        return upsample(x, size, conv, ranges)  # type: ignore[arg-type]

    mine = with_gradient(ours, x)
    expected = with_gradient(lambda x: conv(F.interpolate(x, size=size, mode="nearest")), x)
    torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)
    assert ranges is PARTS or all(torch.equal(one, other) for one, other in zip(mine, expected, strict=True))
    assert kept_bytes(ours, x.clone(), conv) == 0


def test_geglu_keeps_its_input_alone() -> None:
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))

    def plain(x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)

    for one, other in zip(with_gradient(geglu, x), with_gradient(plain, x), strict=True):
        assert torch.equal(one, other)
    assert kept_bytes(geglu, x, nn.Identity()) == 0


def test_frames_in_parts_give_the_gradients_of_the_whole() -> None:
    layer = frozen(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))
    x = torch.randn(6, 7, 8, generator=torch.Generator().manual_seed(0))
    offset = torch.arange(6.0)[:, None, None]

    def compute(ranges: list[slice]) -> Callable[[Tensor], Tensor]:
        return lambda x: by_frames(lambda part_of_x, part: layer(part_of_x) * offset[part], x, ranges)

    for one, other in zip(with_gradient(compute(PARTS), x), with_gradient(compute(WHOLE), x), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert kept_bytes(compute(PARTS), x, layer) == 0


@pytest.mark.parametrize("clips", [None, 2])
def test_fake_tensors_pass_through(clips: int | None) -> None:
    with FakeTensorMode():
        norm, conv = nn.GroupNorm(4, 8).requires_grad_(False), nn.Conv2d(8, 4, 3, padding=1).requires_grad_(False)
        x = torch.empty(6, 8, 6, 5, requires_grad=True)
        y = FrozenConv2d(nn.Conv2d(8, 8, 1).requires_grad_(False))(x)
        norm_silu((y,), norm, conv, PARTS, clips).sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape


def test_positions_in_parts_give_the_gradients_of_the_whole() -> None:
    torch.manual_seed(3)
    layer = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    x = torch.randn(6, 7, 8, generator=torch.Generator().manual_seed(0))

    def compute(x: Tensor) -> Tensor:  # sees all of the first dimension, but one position at a time
        return layer(x).cumsum(0) + x

    results = []
    for parts in (1, 3, 7):
        layer.zero_grad()
        one = with_gradient(lambda x: by_positions(compute, x, 1, list(layer.parameters())), x)
        x_in = x.clone().requires_grad_()
        y = by_positions(compute, x_in, parts, list(layer.parameters()))
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
        assert x_in.grad is not None
        results.append([y.detach(), x_in.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
        assert len(results[-1]) == 6
        torch.testing.assert_close(results[-1][:2], list(one), atol=1e-5, rtol=1e-5)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-5)
    assert kept_bytes(lambda x: by_positions(compute, x, 3, list(layer.parameters())), x, layer) == 0
