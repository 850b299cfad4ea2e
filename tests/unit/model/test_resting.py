import pytest
import torch

from msdv.model.inflate import inflate
from msdv.model.resting import off_card
from msdv.model.savings import Savings
from tests.tiny import tiny_unet

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_a_model_that_was_off_the_card_computes_the_same(device: str, streamed: bool) -> None:
    model = inflate(tiny_unet()).to(device)
    model.save_memory(Savings(stream_weights=streamed))
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 2, 8, 8, generator=generator).to(device)
    inputs = sample, torch.tensor(5, device=device), torch.randn(1, 7, 32, generator=generator).to(device)
    before = model(*inputs)
    places = {parameter.device.type for parameter in model.parameters()}
    for _ in range(2):
        with off_card(model):
            assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
        assert torch.equal(model(*inputs), before)
        assert {parameter.device.type for parameter in model.parameters()} == places


@torch.no_grad()
def test_what_ends_the_time_off_the_card_brings_the_model_back() -> None:
    model = inflate(tiny_unet())
    with pytest.raises(KeyboardInterrupt), off_card(model):
        raise KeyboardInterrupt
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
