"""Where numbers stop being finite: found by going through a step once more with a look at each layer."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Finding:
    """The first place where something was not finite."""

    what: str
    """`weight`, `output`, `gradient` or `loss`."""
    layer: str = ""
    """Name of a layer, or of a parameter for weights and gradients."""
    largest_input: float | None = None
    """For an output: the largest number that went into the layer."""

    def __str__(self) -> str:
        if self.what == "weight":
            return f"the weight {self.layer} is not finite"
        if self.what == "gradient":
            return f"the first gradient that is not finite is that of {self.layer}"
        if self.what == "loss":
            return "every layer gives finite numbers, only the loss is not"
        what = f"the first layer whose output is not finite is {self.layer}"
        if self.largest_input is None:
            return what
        if not math.isfinite(self.largest_input):
            return f"{what}, and what goes in is not finite either"
        return f"{what} (numbers up to {self.largest_input:.3g} go in)"


def find_not_finite(
    model: nn.Module, forward: Callable[[], Tensor], backward: Callable[[Tensor], None] | None = None
) -> Finding | None:
    """Compute `forward()`, a loss, and its gradients by `backward(loss)`, if given, once more, and say where in `model`
    something was not finite first; None if nothing was. Gradients that this leaves behind are the caller's to drop."""
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return Finding("weight", name)
    found: list[Finding] = []
    with _watched_outputs(model, found), torch.set_grad_enabled(backward is not None):
        loss = forward()
    if not found and not torch.isfinite(loss):
        return Finding("loss")
    if found or backward is None:
        return found[0] if found else None
    with _watched_gradients(model, found):
        backward(loss)
    return found[0] if found else None


@contextmanager
def _watched_outputs(model: nn.Module, found: list[Finding]) -> Iterator[None]:
    # A layer is done before the ones around it: the first to be seen is the innermost.
    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(map(_is_finite, _tensors(output))):
                largest = max((float(x.detach().abs().max()) for x in _tensors(inputs) if x.numel()), default=None)
                found.append(Finding("output", name, largest))

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watched_gradients(model: nn.Module, found: list[Finding]) -> Iterator[None]:
    def watch(name: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            if not found and not _is_finite(gradient):
                found.append(Finding("gradient", name))

        return look

    handles = [p.register_hook(watch(name)) for name, p in model.named_parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a layer takes or gives."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())
