"""Frozen weights that rest in host memory and come to the device unit by unit, the next one's while a unit computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from msdv.model.host_memory import Copy, SideStream, host_memory, on_card

_ALIGNMENT = 64  # elements: kernels take their fast paths from 128 bytes on


class WeightStream:
    """The frozen weights of some modules, each of which has them while it is `present`.

    At rest, a module's frozen parameters are in host memory: so `state_dict` still has them.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """`modules` in the order of execution."""
        self._index = {module: index for index, module in enumerate(modules)}
        self._weights = [_Weights(module) for module in modules]
        self._side = SideStream()
        self._present: int | None = None

    @contextmanager
    def present(self, module: nn.Module, backward: bool) -> Iterator[None]:
        """Inside the block, and on until the next, the weights of `module` are on the device. `backward`: what comes
        next is the module before it."""
        index = self._index[module]
        if index != self._present:
            if self._present is not None:
                self._weights[self._present].drop()
            self._present = index
            self._weights[index].fetch(self._side)
            self._weights[index].install()
        following = index - 1 if backward else index + 1
        if 0 <= following < len(self._weights):
            self._weights[following].fetch(self._side)
        yield

    def rest(self) -> None:
        """All weights in host memory, until a module is present again."""
        self._present = None
        for weights in self._weights:
            weights.drop()

    def close(self) -> None:
        """All weights back on the device, to stay."""
        self._present = None
        for weights in self._weights:
            weights.fetch(self._side)
            weights.install()


class _Weights:
    """Those of one module, side by side in one piece of memory, so that one copy moves them."""

    def __init__(self, module: nn.Module) -> None:
        self._places: list[tuple[nn.Module, str]] = []
        self._views: list[tuple[torch.Size, tuple[int, ...], int]] = []  # shape, strides, first element
        frozen: list[Tensor] = []
        size = 0
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    self._places.append((owner, name))
                    self._views.append((parameter.shape, parameter.stride(), size))
                    frozen.append(parameter.detach())
                    size += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        self._device = frozen[0].device
        with host_memory():
            self._host = torch.empty(size, dtype=frozen[0].dtype, device="cpu", pin_memory=on_card(frozen[0]))
        for view, weight in zip(self._cut(self._host), frozen, strict=True):
            view.copy_(weight)
        self._coming: tuple[Tensor, Copy] | None = None
        self.drop()

    def fetch(self, side: SideStream) -> None:
        """Start to copy to the device, if that has not been done."""
        if self._coming is None:
            weights = torch.empty_like(self._host, device=self._device, pin_memory=False)
            self._coming = weights, side.copy(self._host, weights)

    def install(self) -> None:
        """Wait for the copy, and put it in place."""
        assert self._coming is not None
        weights, copy = self._coming
        copy.wait()
        self._put(weights)

    def drop(self) -> None:
        """Put the weights on the host in place, and let go of those on the device."""
        self._coming = None
        self._put(self._host)

    def _put(self, weights: Tensor) -> None:
        for (owner, name), view in zip(self._places, self._cut(weights), strict=True):
            setattr(owner, name, nn.Parameter(view, requires_grad=False))

    def _cut(self, weights: Tensor) -> Iterator[Tensor]:
        return (weights.as_strided(*view) for view in self._views)
