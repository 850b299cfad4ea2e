import pytest
import torch

from msdv.model import attention as module
from msdv.model.attention import attention, explicit_attention, flash_usable


def definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v, one batch item and head at a time, in float64."""
    out = torch.empty_like(q, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h].double() @ k[b, :, h].double().T / q.shape[-1] ** 0.5
            out[b, :, h] = scores.exp() / scores.exp().sum(-1, keepdim=True) @ v[b, :, h].double()
    return out


def tensors(b: int = 3, q: int = 5, n: int = 7, heads: int = 2, d: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(b, tokens, heads, d, generator=generator) for tokens in (q, n, n))


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_attention_is_the_definition(needs_gradient: bool) -> None:
    q, k, v = tensors()
    q.requires_grad_(needs_gradient)
    torch.testing.assert_close(attention(q, k, v).double(), definition(q.detach(), k, v), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_gradients_are_those_of_torch(dtype: torch.dtype, tolerance: float) -> None:
    ours = [t.to(dtype).requires_grad_() for t in tensors()]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    attention(*ours).square().sum().backward()
    out = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in theirs)).transpose(1, 2)
    out.square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("most", [1, 2, 4, 5, 100])
def test_a_batch_too_large_for_one_grid_is_split(most: int) -> None:
    q, k, v = tensors()
    torch.testing.assert_close(attention(q, k, v, max_batch_heads=most), attention(q, k, v))


@pytest.mark.parametrize(
    ("dtype", "gradient", "most", "held"),
    [
        (torch.bfloat16, True, 2**27, True),
        (torch.bfloat16, True, 0, False),
        (torch.bfloat16, False, 2**27, True),
        (torch.float32, True, 2**27, False),
    ],
)
def test_scores_are_held_only_where_that_is_faster_and_fits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, gradient: bool, most: int, held: bool
) -> None:
    calls: list[int] = []

    def watched(*tensors: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return explicit_attention(*tensors)

    monkeypatch.setattr(module, "MAX_CPU_SCORES", most)
    monkeypatch.setattr(module, "explicit_attention", watched)
    q, k, v = (t.to(dtype).requires_grad_(gradient) for t in tensors())
    attention(q, k, v)
    assert bool(calls) == held


def test_explicit_attention_scales_by_the_head_size() -> None:
    q, k, v = (t.transpose(1, 2) for t in tensors(d=16))
    torch.testing.assert_close(explicit_attention(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_flash_is_not_used_on_a_cpu() -> None:
    assert not flash_usable(torch.zeros(1, 2, 1, 8, dtype=torch.float16))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_temporal_batches_work_on_cuda(dtype: torch.dtype) -> None:
    q = torch.randn(9000, 4, 8, 40, device="cuda", dtype=dtype)
    expected = definition(q[-2:].float().cpu(), q[-2:].float().cpu(), q[-2:].float().cpu())
    torch.testing.assert_close(attention(q, q, q)[-2:].double().cpu(), expected, atol=2e-2, rtol=2e-2)
