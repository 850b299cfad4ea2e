"""Where tensors wait for the backward pass: on the device, or in host memory, where they go while the device goes on
computing, and from where they come back in time."""

import weakref
from typing import Protocol

import torch
from torch import Tensor

from msdv.model.host_memory import Copy, SideStream, empty_on_host


class Kept(Protocol):
    """One tensor in a store."""

    def take(self) -> Tensor:
        """The tensor, on its device; once, in the reverse order of keeping."""


class Store(Protocol):
    """Takes charge of tensors."""

    def keep(self, x: Tensor) -> Kept:
        """Take charge of `x`."""


class OnDevice:
    """Keeps tensors where they are."""

    def keep(self, x: Tensor) -> Kept:
        """Take charge of `x`."""
        return _OnDevice(x)


class _OnDevice:
    def __init__(self, x: Tensor) -> None:
        self._x: Tensor | None = x

    def take(self) -> Tensor:
        x, self._x = self._x, None
        assert x is not None
        return x


class OnHost:
    """A store in host memory, last in, first out. Each tensor leaves while the device goes on computing, and comes back
    while the one kept after it is in use. The next step uses the same host memory."""

    def __init__(self) -> None:
        self._side = SideStream()
        self._free: dict[tuple[object, ...], list[Tensor]] = {}
        self._waiting: list[weakref.ref[_OnHost]] = []  # a step that failed forgets what it kept

    def keep(self, x: Tensor) -> "_OnHost":
        """Take charge of `x`."""
        free = self._free.setdefault((x.shape, x.stride(), x.dtype), [])
        host = free.pop() if free else empty_on_host(x)
        self._side.send(x, host)
        kept = _OnHost(self, host, free, x.device)
        self._waiting.append(weakref.ref(kept))
        return kept

    def fetch(self, host: Tensor, device: torch.device) -> tuple[Tensor, Copy]:
        """Start to copy back."""
        self._side.wait()
        x = torch.empty_like(host, device=device, pin_memory=False)
        return x, self._side.copy(host, x)

    def next_after(self, kept: "_OnHost") -> "_OnHost | None":
        """What was kept before `kept`, which is forgotten, and will be taken after it."""
        while self._waiting and self._waiting.pop()() is not kept:
            pass
        return self._waiting[-1]() if self._waiting else None


class _OnHost:
    def __init__(self, store: OnHost, host: Tensor, free: list[Tensor], device: torch.device) -> None:
        self._store, self._host, self._free, self._device = store, host, free, device
        self._coming: tuple[Tensor, Copy] | None = None

    def take(self) -> Tensor:
        x, copy = self._fetched()
        copy.wait()
        self._coming = None
        self._free.append(self._host)  # the next copy into it starts after the one out of it
        following = self._store.next_after(self)
        if following is not None:
            following._fetched()
        return x

    def _fetched(self) -> tuple[Tensor, Copy]:
        if self._coming is None:
            self._coming = self._store.fetch(self._host, self._device)
        return self._coming
