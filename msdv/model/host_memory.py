"""Host memory, and copies between it and the device beside the computation."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

_allocating: ContextVar[bool] = ContextVar("allocating on the host", default=False)


@contextmanager
def host_memory() -> Iterator[None]:
    """Marks what is allocated inside as host memory, for those who count bytes of tensors that are all on a CPU."""
    token = _allocating.set(True)
    try:
        yield
    finally:
        _allocating.reset(token)


def allocating_on_host() -> bool:
    """Whether the code that asks runs inside `host_memory`."""
    return _allocating.get()


def on_card(x: Tensor) -> bool:
    """Whether `x` is in a CUDA device's memory, which can be copied from and to beside the computation."""
    return x.is_cuda and not is_fake(x)


def empty_on_host(like: Tensor) -> Tensor:
    """Uninitialized host memory for a tensor like `like`, page-locked where a CUDA device copies to it."""
    with host_memory():
        return torch.empty_like(like, device="cpu", pin_memory=on_card(like))


class Copy:
    """A copy that may be under way."""

    def __init__(self, event: torch.cuda.Event | None = None, device: torch.device | None = None) -> None:
        """`event`: when it is done, on a CUDA device; None, it is done."""
        self._event, self._device = event, device

    def wait(self) -> None:
        """What the device computes from now on does so after the copy."""
        if self._event is not None:
            torch.cuda.current_stream(self._device).wait_event(self._event)

    def is_done(self) -> bool:
        """Whether the host can read the result."""
        return self._event is None or self._event.query()

    def finish(self) -> None:
        """Come back when the host can read the result."""
        if self._event is not None:
            self._event.synchronize()


class SideStream:
    """Copies between a CUDA device and the host beside the computation; elsewhere they are copies like any other."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._leaving: tuple[Tensor, Copy] | None = None

    def copy(self, source: Tensor, target: Tensor) -> Copy:
        """Start to copy, after what the device has been given to compute so far and the copies before this one. The
        memory of both must stay theirs until the device has waited for the copy."""
        device = next((t.device for t in (source, target) if on_card(t)), None)
        if device is None:
            target.copy_(source)
            return Copy()
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return Copy(self._stream.record_event(), device)

    def send(self, source: Tensor, target: Tensor) -> Copy:
        """`copy` to the host. Holds on to `source` until it has arrived: the device waits for that at the next call."""
        self.wait()
        copy = self.copy(source, target)
        self._leaving = source, copy
        return copy

    def wait(self) -> None:
        """Let go of what was sent, after its arrival."""
        if self._leaving is not None:
            self._leaving[1].wait()
            self._leaving = None
