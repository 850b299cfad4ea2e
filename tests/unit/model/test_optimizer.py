import pytest
import torch
from torch import nn

from msdv.model.optimizer import MasterOptimizer

CONV, LINEAR, BIAS = "a.temporal_conv.weight", "b.attn_temporal.to_q.weight", "a.temporal_conv.bias"


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        CONV: nn.Parameter(nn.init.dirac_(torch.empty(4, 4, 3)).to(dtype)),
        BIAS: nn.Parameter(torch.zeros(4, dtype=dtype)),
        LINEAR: nn.Parameter(torch.randn(4, 4, generator=generator).to(dtype)),
    }


def optimizer(weights: dict[str, nn.Parameter], **changes: object) -> MasterOptimizer:
    settings = {"lr": 0.01, "conv_lr": 1.0, "weight_decay": 0.0, **changes}
    return MasterOptimizer(weights, **settings)  # type: ignore[arg-type]


def loss_of(weights: dict[str, nn.Parameter]) -> torch.Tensor:
    return sum(((p.float() - 0.3) ** 2).sum() for p in weights.values())  # type: ignore[return-value]


def test_steps_are_those_of_adamw() -> None:
    ours, theirs = parameters(), parameters()
    mine = optimizer(ours)
    reference = torch.optim.AdamW(theirs.values(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(5):
        mine.backward(loss_of(ours))
        norm = mine.step(0.01, 1.0)
        reference.zero_grad()
        loss_of(theirs).backward()
        assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0).item(), rel=1e-5)
        reference.step()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-6, rtol=1e-5)


def test_small_steps_are_not_lost_in_half_precision() -> None:
    weights = parameters(torch.bfloat16)
    mine = optimizer(weights, lr=1e-5)
    for _ in range(200):
        mine.backward(loss_of(weights))
        mine.step(1e-5, 1.0)
    moved = mine.weights()[LINEAR] - parameters()[LINEAR].bfloat16().float()
    # Each step is smaller than the spacing of bfloat16 near these weights.
    torch.testing.assert_close(moved.abs().mean(), torch.tensor(200 * 1e-5), rtol=0.1, atol=0)


def test_decay_pulls_convolutions_to_the_identity_and_spares_biases() -> None:
    weights = parameters()
    with torch.no_grad():
        weights[CONV].add_(0.5)
        weights[BIAS].fill_(0.5)
    mine = optimizer(weights, weight_decay=0.5, lr=0.1)
    for _ in range(100):
        mine.backward(sum(p.sum() * 0.0 for p in weights.values()))  # type: ignore[arg-type]
        mine.step(0.1, 1.0)
    torch.testing.assert_close(weights[CONV].detach(), nn.init.dirac_(torch.empty(4, 4, 3)), atol=0.01, rtol=0)
    assert torch.equal(weights[BIAS].detach(), torch.full((4,), 0.5))
    assert weights[LINEAR].abs().max() < 0.05


def test_convolutions_learn_at_their_own_rate() -> None:
    weights, start = parameters(), parameters()
    mine = optimizer(weights, conv_lr=0.25)
    mine.backward(loss_of(weights))
    mine.step(0.01, 100.0)
    moved = {key: (weights[key] - start[key]).abs().max().item() for key in weights}
    assert moved[LINEAR] == pytest.approx(0.01, rel=0.01)
    assert moved[CONV] == pytest.approx(0.0025, rel=0.01)


def test_gradients_add_up_until_the_step() -> None:
    once, twice = parameters(), parameters()
    one, two = optimizer(once), optimizer(twice)
    one.backward(loss_of(once))
    for _ in range(2):
        two.backward(loss_of(twice) / 2)
    torch.testing.assert_close(one.gradients, two.gradients)
    assert all(p.grad is None for p in twice.values())


def test_an_overflow_is_skipped_and_lowers_the_loss_scale() -> None:
    weights = parameters()
    mine = optimizer(weights, loss_scaling=True, ema=0.9)
    before, scale = {k: p.detach().clone() for k, p in weights.items()}, mine.scaler.get_scale()
    mine.backward(loss_of(weights) * float("inf"))
    mine.step(0.01, 1.0)
    assert all(torch.equal(weights[k], before[k]) for k in weights)
    assert mine.scaler.get_scale() == scale / 2
    mine.backward(loss_of(weights))
    mine.step(0.01, 1.0)
    assert not torch.equal(weights[LINEAR], before[LINEAR])
    assert all(torch.isfinite(w).all() for w in mine.weights().values())


def test_averaged_weights_lag_behind_and_can_be_swapped_in() -> None:
    weights = parameters()
    mine = optimizer(weights, ema=0.99)
    for _ in range(30):
        mine.backward(loss_of(weights))
        mine.step(0.01, 1.0)
    current, average = weights[LINEAR].detach().clone(), mine.weights()[LINEAR]
    start = parameters()[LINEAR]
    assert (average - start).norm() < (current - start).norm()
    mine.use_average(True)
    torch.testing.assert_close(weights[LINEAR].detach(), average)
    mine.use_average(False)
    assert torch.equal(weights[LINEAR].detach(), current)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_restored_state_goes_on_as_if_it_had_not_stopped(tmp_path: object, ema: float) -> None:
    straight, weights = parameters(), parameters()
    whole, first = optimizer(straight, ema=ema), optimizer(weights, ema=ema)
    for mine, own in ((whole, straight), (first, weights)):
        for _ in range(3):
            mine.backward(loss_of(own))
            mine.step(0.01, 1.0)
    file = tmp_path / "state.pt"  # type: ignore[operator]
    torch.save(first.state_dict(), file)
    later = parameters()
    second = optimizer(later, ema=ema)
    second.load_state_dict(torch.load(file, weights_only=True))
    for mine, own in ((whole, straight), (second, later)):
        for _ in range(3):
            mine.backward(loss_of(own))
            mine.step(0.01, 1.0)
    for key in straight:
        assert torch.equal(straight[key], later[key])
        assert torch.equal(whole.weights()[key], second.weights()[key])


def test_gradients_leave_the_model_as_they_are_made() -> None:
    weights = parameters(torch.bfloat16)
    mine = optimizer(weights, on_host=True)
    left: list[int] = []
    first = weights[CONV]
    first.register_post_accumulate_grad_hook(lambda _: left.append(sum(p.grad is not None for p in weights.values())))
    loss = loss_of(weights)
    gradients = torch.autograd.grad(loss_of(weights), list(weights.values()))
    mine.backward(loss)
    assert left == [0]
    for key, gradient in zip(weights, gradients, strict=True):
        assert torch.equal(mine.masters[key].grad, gradient.float())  # type: ignore[arg-type]
    loss_of(weights).backward()  # someone else's
    assert all(p.grad is not None for p in weights.values())


def test_an_optimizer_that_was_replaced_takes_no_gradients() -> None:
    weights = parameters()
    optimizer(weights)
    mine = optimizer(weights)
    mine.backward(loss_of(weights))
    assert mine.gradients.abs().max() > 0
    mine.drop_gradients()
    assert mine.gradients.abs().max() == 0
    assert all(p.grad is None for p in weights.values())
