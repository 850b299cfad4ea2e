"""Tensors without memory: that their shapes are those of real ones, and that nothing else is known of them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from msdv.model import memory
from msdv.model.job import Job
from msdv.model.known import Architecture
from msdv.model.ledger import Ledger
from msdv.model.memory import Rehearsal
from msdv.model.placeholders import CARD, HOST, Done, Placeholders, device_of
from msdv.model.savings import Savings
from tests.tiny import tiny_text_encoder, tiny_unet, tiny_vae


class Forgetful(Placeholders):
    """Asks torch each time."""

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Done | None]:
        self._done.clear()
        return super().compute(func, args, kwargs)


@pytest.mark.parametrize("card", [True, False])
def test_what_is_remembered_is_what_torch_says_each_time(card: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Architecture("tiny", dict(tiny_unet().config), dict(tiny_vae().config), tiny_text_encoder().config.to_dict())
    job = Job(tiny, frames=5, height=64, width=64, dtype=torch.bfloat16, card=card, group_norm="joint")
    savings = Savings("full", host_checkpoints=True, chunk_frames=2, stream_weights=True)
    remembered = Rehearsal(job).train(savings, offload_optim=True)
    monkeypatch.setattr(memory, "Placeholders", Forgetful)
    assert Rehearsal(job).train(savings, offload_optim=True) == remembered


@pytest.mark.parametrize("device", [CARD, HOST])
def test_shapes_and_places_are_those_of_real_tensors(device: torch.device) -> None:
    def results(device: torch.device) -> list[Tensor]:
        x = torch.zeros(2, 4, 8, 8, device=device)
        weight = torch.zeros(6, 4, 3, 3, device=device)
        y = F.conv2d(x, weight, stride=2)
        return [
            x,
            y,
            y.transpose(1, 2)[:, 1:],
            torch.cat([y, y]).sum(1),
            y.mul_(2),
            x.to(torch.float16),
            *x.split(3, 1),
        ]

    with Ledger(Placeholders()):
        without = results(device)
    for placeholder, real in zip(without, results(torch.device("cpu")), strict=True):
        assert device_of(placeholder) == device
        assert placeholder.shape == real.shape
        assert placeholder.dtype == real.dtype
        assert placeholder.stride() == real.stride()


def test_copies_go_from_place_to_place_and_views_share_their_storage() -> None:
    with Ledger(Placeholders()) as ledger:
        x = torch.zeros(256, device=CARD)
        there = torch.empty_like(x, device=HOST)
        assert there.copy_(x) is there
        assert device_of(x.to(HOST)) == HOST
        assert device_of(there.to(CARD)) == CARD
        before = ledger.peak("meta").size
        view = x.view(16, 16).t()[1:]
        assert ledger.peak("meta").size == before
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_numbers_that_data_decide_read_as_zero_and_questions_as_yes() -> None:
    with Ledger(Placeholders()):
        for device in (CARD, HOST):
            x = torch.ones(3, device=device)
            assert x.sum().item() == 0
            assert bool(torch.isfinite(x).all())
