import functools
import math

import pytest
import torch
from torch import Tensor, nn

from msdv.model.diagnosis import find_not_finite
from msdv.model.inflate import VideoUNet, inflate
from msdv.model.savings import Savings
from tests.tiny import tiny_unet

LAYER = "up_blocks.0.resnets.1.conv2.temporal_conv"


def loss_of(model: VideoUNet, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = scale * torch.randn(1, 4, 3, 8, 8, generator=generator)
    text = torch.randn(1, 5, 32, generator=generator)
    return model(latents, torch.tensor([5]), text).square().mean()


def find(model: VideoUNet, scale: float = 1.0) -> str:
    return str(find_not_finite(model.unet, functools.partial(loss_of, model, scale), Tensor.backward))


@pytest.mark.parametrize("savings", [Savings(), Savings(checkpoint="full", chunk_frames=2)], ids=["plain", "saving"])
def test_the_first_layer_that_overflows_is_named(savings: Savings, monkeypatch: pytest.MonkeyPatch) -> None:
    model = inflate(tiny_unet())
    model.save_memory(savings)
    assert find(model) == "None"
    broken = model.unet.get_submodule(LAYER)
    real = broken.forward
    monkeypatch.setattr(broken, "forward", lambda *a, **k: real(*a, **k) * torch.tensor(math.inf))
    found = find(model)
    assert found.startswith("the first layer whose output is not finite is up_blocks.0.resnets.1.conv2")
    assert "numbers up to" in found
    for module in model.unet.modules():
        assert not module._forward_hooks


def test_what_comes_in_broken_is_told_from_what_breaks() -> None:
    assert "conv_in" in find(inflate(tiny_unet()), math.nan)
    assert "what goes in is not finite either" in find(inflate(tiny_unet()), math.nan)


def test_weights_that_are_not_finite_are_named() -> None:
    model = inflate(tiny_unet())
    with torch.no_grad():
        model.unet.get_parameter(f"{LAYER}.bias")[0] = math.nan
    assert find(model) == f"the weight {LAYER}.bias is not finite"


def test_the_first_gradient_that_is_not_finite_is_named() -> None:
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * math.inf

    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    found = find_not_finite(net, lambda: net[1](Overflow.apply(net[0](torch.ones(2, 3)))).sum(), Tensor.backward)
    assert str(found) in {f"the first gradient that is not finite is that of 0.{name}" for name in ("weight", "bias")}


def test_a_loss_that_alone_is_not_finite_is_told() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    found = find_not_finite(net, lambda: net(torch.ones(2, 3)).sum() * math.nan, Tensor.backward)
    assert str(found) == "every layer gives finite numbers, only the loss is not"
