"""What a model may do to need less memory on its device, and what each checkpoint would save and cost."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from msdv.model.checkpointing import Unit

if TYPE_CHECKING:
    from msdv.model.inflate import VideoUNet


@dataclass(frozen=True)
class Savings:
    """Settings of a `VideoUNet`. None changes what it computes, but for rounding."""

    checkpoint: tuple[str, ...] | Literal["none", "full"] = "none"
    """Units that keep their input alone and compute everything else again in the backward pass: by name, or all."""
    host_checkpoints: bool = False
    """These inputs wait in host memory."""
    chunk_frames: int = 0
    """Frames that what sees each frame for itself works off at a time, and temporal attention as many positions in
    proportion; 0: all at once. In training, what lies inside is then computed again in the backward pass."""
    stream_weights: bool = False
    """Frozen weights of the units rest in host memory and come to the device unit by unit. In training, then all units
    are checkpointed, whatever `checkpoint` says."""


@dataclass(frozen=True)
class UnitCost:
    """What checkpointing one unit saves and costs in a training step."""

    name: str
    saved_bytes: int
    """Memory no longer held from the forward to the backward pass, less that of the input kept instead."""
    flops: int
    """Floating-point operations of computing it again."""


def unit_costs(model: "VideoUNet", sample: Tensor, timesteps: Tensor, text: Tensor) -> list[UnitCost]:
    """Of all units, in the order of execution, by one forward pass without checkpoints, for which fake tensors will do.
    Arguments as of `VideoUNet.forward`."""
    weights = {_storage(p) for p in model.parameters()}
    costs: list[UnitCost] = []

    def measured(name: str, unit: Unit, *inputs: Any) -> Tensor:
        known = weights | {_storage(t) for t in inputs if isinstance(t, Tensor)}
        held: dict[int, Tensor] = {}

        def hold(t: Tensor) -> Tensor:
            if _storage(t) not in weights:
                held[_storage(t)] = t
            return t

        counter = FlopCounterMode(display=False)
        with counter, torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
            out = type(unit).compute(unit, *inputs)
        # Inputs are held in any case, but for the first, which may be so by the checkpoint alone.
        size = sum(t.untyped_storage().nbytes() for key, t in held.items() if key not in known)
        size -= 0 if _storage(inputs[0]) in held else inputs[0].nbytes
        costs.append(UnitCost(name, size, counter.get_total_flops()))
        return out

    units, savings = model.units(), model.savings
    model.save_memory(Savings(chunk_frames=savings.chunk_frames))
    try:
        for name, unit in units.items():
            unit.__dict__["compute"] = functools.partial(measured, name, unit)
        with torch.enable_grad():
            model(sample, timesteps, text)
    finally:
        for unit in units.values():
            unit.__dict__.pop("compute", None)
        model.save_memory(savings)
    return costs


def cheapest_first(costs: Iterable[UnitCost]) -> list[str]:
    """Names of the units worth checkpointing, the one that saves most memory for its computation first."""
    worth = [cost for cost in costs if cost.saved_bytes > 0]
    return [cost.name for cost in sorted(worth, key=lambda cost: cost.flops / cost.saved_bytes)]


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata
