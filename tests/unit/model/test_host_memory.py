"""Copies beside the computation, on a machine without a card: played by copies that are late."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from msdv.model import host_memory
from msdv.model.host_memory import Copy, SideStream, allocating_on_host, empty_on_host
from msdv.model.inflate import inflate
from msdv.model.optimizer import MasterOptimizer
from msdv.model.savings import Savings
from msdv.model.stores import OnHost
from tests.tiny import tiny_unet


class LateCopy(Copy):
    """Takes place when it is waited for, after all that were started before it."""

    queue: list["LateCopy"] = []  # noqa: RUF012

    def __init__(self, source: Tensor, target: Tensor) -> None:
        super().__init__()
        target.fill_(float("nan"))
        self._copy: tuple[Tensor, Tensor] | None = (source, target)
        self.queue.append(self)

    def wait(self) -> None:
        while self._copy is not None:
            first = self.queue.pop(0)
            assert first._copy is not None
            source, target = first._copy
            target.copy_(source)
            first._copy = None

    finish = wait

    def is_done(self) -> bool:
        return self._copy is None


@pytest.fixture
def late_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(SideStream, "copy", lambda self, source, target: LateCopy(source.detach(), target))
    yield
    LateCopy.queue.clear()


def test_what_is_allocated_for_the_host_says_so() -> None:
    assert not allocating_on_host()
    with host_memory.host_memory():
        assert allocating_on_host()
    assert not allocating_on_host()
    x = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert empty_on_host(x).stride() == x.stride()


@pytest.mark.usefixtures("late_copies")
def test_tensors_come_back_from_the_host_as_they_were() -> None:
    store = OnHost()
    for _ in range(3):
        tensors = [torch.randn(2, 3), torch.randn(3, 4).T, torch.randn(2, 3), torch.randn(8)[::2]]
        kept = [store.keep(x) for x in tensors]
        forgotten = store.keep(torch.zeros(2, 3))
        del forgotten
        for x, waiting in zip(reversed(tensors), reversed(kept), strict=True):
            assert torch.equal(waiting.take(), x)


@pytest.mark.usefixtures("late_copies")
def test_a_step_with_late_copies_gives_the_same_gradients() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = inflate(tiny_unet())
        inputs = torch.randn(1, 4, 4, 8, 8), torch.tensor([500]), torch.randn(1, 7, 32)
    optimizer = MasterOptimizer(model.temporal_parameters(), lr=1e-4, conv_lr=1.0, weight_decay=0.0)

    def gradients(savings: Savings) -> Tensor:
        model.save_memory(savings)
        optimizer.drop_gradients()
        optimizer.backward(model(*inputs).square().mean())
        return optimizer.gradients.clone()

    expected = gradients(Savings())
    for chunk in (0, 2):
        for _ in range(2):
            got = gradients(Savings("full", host_checkpoints=True, chunk_frames=chunk, stream_weights=True))
            torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-4)


@pytest.mark.usefixtures("late_copies")
def test_gradients_that_arrive_late_are_added_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {f"{i}.to_q.weight": nn.Parameter(torch.randn(3, 3)) for i in range(4)}
    optimizer = MasterOptimizer(weights, lr=0.1, conv_lr=1.0, weight_decay=0.0, on_host=True)
    # As if the weights were on a device of their own.
    monkeypatch.setattr(optimizer, "_is_home", lambda gradient: False)
    loss = sum((p**2).sum() for p in weights.values())
    for times in (1, 2):
        optimizer.backward(loss if times == 1 else sum((p**2).sum() for p in weights.values()))  # type: ignore[arg-type]
        for key, parameter in weights.items():
            assert parameter.grad is None
            torch.testing.assert_close(optimizer.masters[key].grad, 2 * times * parameter.detach())
