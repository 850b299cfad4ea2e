"""Layers worked off part by part, so that what lies between input and output is never there as a whole.

In the backward pass each part is computed again when its turn comes: of everything, only the input is kept.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msdv.model.stores import Store

Ranges = Sequence[slice]
"""Frames worked off together: slices that cover the folded batch (b f) in order. More than one: none holds frames of
two clips."""


@dataclass(frozen=True)
class Again:
    """What computing again in the backward pass needs."""

    store: Store | None = None
    """Where the input waits; None leaves it to autograd."""
    weights: Callable[[], AbstractContextManager[None]] = nullcontext
    """What to compute inside, so that weights are there."""


def by_frames(
    compute: Callable[[Tensor, slice], Tensor],
    x: Tensor,
    ranges: Ranges,
    again: Again = Again(),
    *,
    over: bool = False,
    trained: Sequence[Tensor] = (),
) -> Tensor:
    """`compute(x[r], r)` for all ranges of frames. `compute` must see each frame for itself, and be frozen but for the
    parameters `trained`. `over`: without gradients the result, which is as large as x, may take its place."""
    if len(ranges) == 1:
        return compute(x, ranges[0])
    if over and not torch.is_grad_enabled():
        return put_together(lambda part: compute(x[part], part), x.shape[0], ranges, over=x)
    return _ByFrames.apply(x, compute, ranges, again, *trained)


def by_positions(
    compute: Callable[[Tensor], Tensor],
    x: Tensor,
    parts: int,
    trained: Sequence[Tensor],
    again: Again = Again(),
) -> Tensor:
    """`compute(x)` for x (n, p, c), worked off in about so many parts of the p positions, each of which `compute` must
    see for itself. `trained`: its parameters. Without gradients the result takes the place of x."""
    if parts == 1:
        return compute(x)
    size = -(-x.shape[1] // parts)
    if torch.is_grad_enabled():
        return _ByPositions.apply(x, compute, size, again, *trained)
    for part in x.split(size, dim=1):
        part.copy_(compute(part))
    return x


class _ByFrames(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, compute: Callable[[Tensor, slice], Tensor], ranges: Ranges, again: Again, *trained: Tensor
    ) -> Tensor:
        ctx.compute, ctx.ranges, ctx.trained = compute, ranges, trained
        _keep(ctx, x, again)
        return put_together(lambda part: compute(x[part], part), x.shape[0], ranges)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x = _take(ctx)
        sums = _Sums(ctx.trained)

        def compute(part: slice) -> Tensor:
            frames = x[part].detach().requires_grad_()
            with torch.enable_grad():
                y = ctx.compute(frames, part)
            found, *of_trained = torch.autograd.grad(y, [frames, *ctx.trained], gradient[part])
            sums.add(of_trained)
            return found

        with ctx.again.weights():
            return put_together(compute, x.shape[0], ctx.ranges), None, None, None, *sums.results()


class _ByPositions(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, compute: Callable[[Tensor], Tensor], size: int, again: Again, *trained: Tensor
    ) -> Tensor:
        ctx.compute, ctx.size, ctx.trained = compute, size, trained
        _keep(ctx, x, again)
        out = torch.empty_like(x)
        for own, part in zip(out.split(size, dim=1), x.split(size, dim=1), strict=True):
            own.copy_(compute(part))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x = _take(ctx)
        dx = torch.empty_like(x)
        sums = _Sums(ctx.trained)
        for own, part, of_part in zip(*(t.split(ctx.size, dim=1) for t in (dx, x, gradient)), strict=True):
            positions = part.detach().requires_grad_()
            with torch.enable_grad():
                y = ctx.compute(positions)
            found, *of_trained = torch.autograd.grad(y, [positions, *ctx.trained], of_part)
            own.copy_(found)
            sums.add(of_trained)
        return dx, None, None, None, *sums.results()


class _Sums:
    """Gradients of parameters, of all parts together: in float32, for the sum not to depend on their number."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._dtypes = [p.dtype for p in parameters]
        self._totals = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]

    def add(self, of_part: Sequence[Tensor]) -> None:
        for total, one in zip(self._totals, of_part, strict=True):
            total += one

    def results(self) -> list[Tensor]:
        return [total.to(dtype) for total, dtype in zip(self._totals, self._dtypes, strict=True)]


def _keep(ctx: Any, x: Tensor, again: Again) -> None:
    ctx.again, ctx.kept = again, None
    if again.store is None:
        ctx.save_for_backward(x)
    else:
        ctx.kept = again.store.keep(x.detach())


def _take(ctx: Any) -> Tensor:
    if ctx.again.store is None:
        return ctx.saved_tensors[0]
    kept, ctx.kept = ctx.kept, None  # this node of the graph outlives the backward pass
    return kept.take()


def put_together(compute: Callable[[slice], Tensor], n: int, ranges: Ranges, *, over: Tensor | None = None) -> Tensor:
    """`compute(r)` for all ranges of a batch of n, in the memory format of the first. `over`: a tensor of the result's
    size, frame by frame one after the other in memory, that is no longer needed where a range has been computed."""
    first = compute(ranges[0])
    if len(ranges) == 1:
        return first
    layout = memory_format(first) if first.ndim == 4 else torch.contiguous_format
    if over is None:
        out = torch.empty((n, *first.shape[1:]), dtype=first.dtype, device=first.device, memory_format=layout)
    else:
        out = over.as_strided((n, *first.shape[1:]), (first[0].numel(), *first.stride()[1:]))
    out[ranges[0]] = first
    del first
    for part in ranges[1:]:
        out[part] = compute(part)
    return out


def memory_format(x: Tensor) -> torch.memory_format:
    """Whether a picture batch lies in memory channels last or contiguous."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
