import pytest
import torch
from torch import Tensor, nn

from msdv.model import products
from msdv.model.frozen import FrozenConv2d

LAST = torch.channels_last


def frozen_conv(kernel: int | tuple[int, int], padding: int | tuple[int, int], dtype: torch.dtype) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(12, 20, kernel, padding=padding).requires_grad_(False).to(dtype, memory_format=LAST)


def with_gradient(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = conv(x)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, x, gradient.contiguous(memory_format=LAST))[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (1, 0), ((3, 1), (1, 0)), (3, 0), ((1, 3), (2, 1))])
def test_a_product_is_the_convolution(
    monkeypatch: pytest.MonkeyPatch,
    kernel: int | tuple[int, int],
    padding: int | tuple[int, int],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    conv = frozen_conv(kernel, padding, dtype)
    x = torch.randn(5, 12, 4, 3).to(dtype).contiguous(memory_format=LAST)
    expected = with_gradient(conv, x)
    calls: list[str] = []
    for name in ("convolve", "input_gradient"):
        way = getattr(products, name)
        monkeypatch.setattr(products, name, lambda *given, way=way, name=name: (calls.append(name), way(*given))[1])
    monkeypatch.setattr(products, "LEAST_WEIGHTS", 1)
    mine = with_gradient(FrozenConv2d(conv), x)
    assert calls == ["convolve", "input_gradient"]
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
        assert one.is_contiguous(memory_format=LAST)


def test_few_positions_and_many_weights_make_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LEAST_WEIGHTS", 20 * 12 * 9)
    conv, small = frozen_conv(3, 1, torch.float32), torch.Size([5, 12, 4, 4])
    assert products.is_product(conv, small, LAST)
    assert not products.is_product(conv, torch.Size([5, 12, 4, 5]), LAST)
    assert not products.is_product(conv, small, torch.contiguous_format)
    for other in (
        nn.Conv2d(12, 20, 3, padding=1),
        nn.Conv2d(12, 20, 3, padding=1, stride=2).to(memory_format=LAST),
        nn.Conv2d(12, 20, 3, padding=1, dilation=2).to(memory_format=LAST),
        nn.Conv2d(24, 20, 3, padding=1, groups=2).to(memory_format=LAST),
        nn.Conv2d(11, 20, 3, padding=1).to(memory_format=LAST),
    ):
        assert not products.is_product(other, small, LAST)
