"""Units of a model that keep only their input and compute everything else again in the backward pass (Chen et al. 2016,
"Training deep nets with sublinear memory cost", arXiv:1604.06174)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from msdv.model.frames import FrameContext
from msdv.model.stores import Store
from msdv.model.streaming import WeightStream


class Unit(nn.Module):
    """A part of the model that can be checkpointed: it keeps everything it needs for the backward pass (`store` None),
    or its input in a store. Its frozen weights can be streamed. Draws no random numbers."""

    def __init__(self, context: FrameContext) -> None:
        super().__init__()
        self.context = context
        self.store: Store | None = None
        self.stream: WeightStream | None = None

    def compute(self, *inputs: Any) -> Tensor:
        """What the unit does: of the tensors and the rest that `run` is given."""
        raise NotImplementedError

    def run(self, inputs: tuple[Tensor, ...], *rest: Any) -> Tensor:
        """`compute`, checkpointed if it is to be. `rest` needs no gradients."""
        if self.store is None or not (torch.is_grad_enabled() and self.context.enabled):
            with self.weights():
                return self.compute(*inputs, *rest)
        trained = [p for p in self.parameters() if p.requires_grad]
        return _Checkpoint.apply(self, rest, len(inputs), *inputs, *trained)

    def weights(self, backward: bool = False) -> AbstractContextManager[None]:
        """Around everything that needs the frozen weights, which may be streamed."""
        return nullcontext() if self.stream is None else self.stream.present(self, backward)


class _Checkpoint(torch.autograd.Function):
    # The trained parameters are inputs, so that their gradients are results like any other and accumulate, and set off
    # hooks, as if nothing had been computed twice.

    @staticmethod
    def forward(ctx: Any, unit: Unit, rest: tuple, count: int, *tensors: Tensor) -> Tensor:
        assert unit.store is not None
        inputs, trained = tensors[:count], tensors[count:]
        ctx.unit, ctx.rest, ctx.trained = unit, rest, trained
        ctx.kept = [(unit.store.keep(x.detach()), x.requires_grad) for x in inputs]
        ctx.frames, ctx.enabled = unit.context.frames, unit.context.enabled
        with unit.weights():
            return unit.compute(*inputs, *rest)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kept is None:
            raise RuntimeError("a checkpointed unit has been gone through backward before")
        inputs = [kept.take().requires_grad_(needs) for kept, needs in reversed(ctx.kept)][::-1]
        ctx.kept = None  # this node of the graph outlives the backward pass
        wanted = [*inputs, *ctx.trained]
        with ctx.unit.weights(backward=True):
            with torch.enable_grad(), ctx.unit.context.as_of(ctx.frames, ctx.enabled):
                y = ctx.unit.compute(*inputs, *ctx.rest)
            # The result itself is known already; what holds it up here is let go before the backward pass.
            edge = torch.autograd.graph.get_gradient_edge(y)
            del y
            needed = [t for t in wanted if t.requires_grad]
            found = iter(torch.autograd.grad(edge, needed, gradient, allow_unused=True))
        return None, None, None, *(next(found) if t.requires_grad else None for t in wanted)
