"""--cache: deep layers computed in some steps only."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from msdv.config import GroupNormMode
from msdv.errors import UsageError
from msdv.model.diffusion import denoise, make_scheduler
from msdv.model.guidance import Guided, OneText
from msdv.model.inflate import VideoUNet, inflate
from msdv.model.reuse import Reuse
from msdv.model.savings import Savings
from tests.tiny import SCHEDULER, tiny_unet

NOISE = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
TEXTS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))


def model(group_norm: GroupNormMode = "frame", **unet: Any) -> VideoUNet:
    return inflate(tiny_unet(blocks=4, **unet), group_norm)


def guided(unet: VideoUNet, cache: int, guidance: float = 3.0) -> Guided:
    return Guided(unet, OneText(TEXTS[:1]), OneText(TEXTS[1:]), guidance=guidance, cache=cache)


def made(unet: VideoUNet, cache: int, steps: int = 4) -> Tensor:
    return denoise(guided(unet, cache), NOISE, scheduler=make_scheduler("ddim", SCHEDULER), steps=steps)


def test_deep_layers_are_computed_in_every_nth_step_only() -> None:
    unet, calls = model(), dict.fromkeys(("first", "down", "middle", "up", "last"), 0)
    blocks = unet.unet.down_blocks[0], unet.unet.down_blocks[2], unet.unet.mid_block, *unet.unet.up_blocks[-2:]
    for name, block in zip(calls, blocks, strict=True):
        inner = next(block.children())[0] if name != "middle" else block.resnets[0]

        def count(*_: Any, name: str = name) -> None:
            calls[name] += 1

        inner.register_forward_pre_hook(count)
    made(unet, cache=3, steps=5)
    # Two predictions a step; steps 1 and 4 compute everything.
    assert calls == {"first": 10, "down": 4, "middle": 4, "up": 4, "last": 10}
    assert made(unet, cache=1).shape == NOISE.shape
    assert all("forward" not in block.__dict__ for block in unet.modules())


@pytest.mark.parametrize("group_norm", ["frame", "joint"])
@pytest.mark.parametrize("savings", [Savings(), Savings(chunk_frames=2), Savings(chunk_frames=2, stream_weights=True)])
@torch.no_grad()
def test_the_same_input_gives_the_same_whatever_is_computed(group_norm: str, savings: Savings) -> None:
    """What is kept is what would be computed, for each text its own, and stays as it is."""
    unet = model(cast(GroupNormMode, group_norm))
    unet.save_memory(savings)
    prediction, timestep, frames = guided(unet, cache=4), torch.tensor(300), torch.arange(5)
    results = [prediction(NOISE, timestep, frames) for _ in range(5)]
    for result in results[1:]:
        assert torch.equal(result, results[0])
    assert torch.equal(results[0], guided(unet, cache=1)(NOISE, timestep, frames))


def test_the_rarer_the_further_from_the_exact_result() -> None:
    unet = model()
    exact, near, far = (made(unet, cache, steps=8) for cache in (1, 2, 8))
    assert torch.equal(made(unet, 1, steps=8), exact)
    assert 0 < (near - exact).norm() < (far - exact).norm()


def test_what_sees_the_latents_still_does() -> None:
    unet = model()
    prediction, frames = guided(unet, cache=2), torch.arange(5)
    first = prediction(NOISE, torch.tensor(300), frames)
    assert not torch.equal(prediction(NOISE * 0.5, torch.tensor(300), frames), first)


def test_an_image_model_without_deep_layers_is_refused() -> None:
    unet = model()
    unet.unet.up_blocks = unet.unet.up_blocks[:1]
    with pytest.raises(UsageError, match="--cache 2: this image model has no deep layers"):
        Reuse(unet, 2)
    Reuse(unet, 1)
