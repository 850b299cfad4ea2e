"""Counts what computing takes: live storages by device, and arithmetic. On real tensors, or on fake ones that have
shapes and no memory (torch's FakeTensorMode), which is how memory is predicted (memory.py).

In a prediction a graphics card is the fake device `meta`: torch without CUDA can't compute on fake CUDA tensors, the
bytes are the same, and it is told apart from the computer's own memory, `cpu`.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from msdv.model.host_memory import allocating_on_host

CARD = torch.device("meta")
HOST = torch.device("cpu")
# Blocks of torch's CUDA allocator are multiples of this.
_CARD_BLOCK = 512
WORKING = "working memory"
KEPT = "kept for the backward pass"


# What a number that fake data decide reads as: see Ledger. A flag asks whether all is well.
_UNKNOWN = {torch.bool: True, torch.int64: 0, torch.int32: 0}


def _device(tensor: Tensor) -> str:
    # The property of a fake tensor goes through all dispatch, and this is asked a hundred thousand times.
    return tensor.fake_device.type if isinstance(tensor, FakeTensor) else tensor.device.type


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))


@dataclass
class _Block:
    size: int
    device: str
    label: str | None
    born: int
    died: int | None = None


@dataclass
class Peak:
    """The most bytes alive at one time on one device, and what held them then."""

    size: int = 0
    parts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """What a device does in a second; the default is a middling home card (an RTX 3060 in half precision, at what
    convolutions reach of it) in a middling computer."""

    flops: float = 20e12
    touched: float = 300e9
    moved: float = 12e9
    host_touched: float = 12e9


@dataclass
class Work:
    """What was computed: multiplications and additions, bytes read and written, bytes between card and host, and the
    seconds that the device and the host are busy with it."""

    flops: int = 0
    touched: int = 0
    moved: int = 0
    busy: float = 0.0
    host_busy: float = 0.0
    moving: float = 0.0

    @property
    def seconds(self) -> float:
        """An estimate: copies go on beside the device's work, the host's optimizer after it."""
        return max(self.busy, self.moving) + self.host_busy


class Ledger(TorchDispatchMode):
    """Inside it, every storage that an operation makes is entered, and struck out when it is freed.

    Only the thread that entered the mode is seen, and with fake tensors numbers that depend on data read as 0 (whether
    something holds, as yes).
    """

    def __init__(self, speed: Speed | None = None, host_beside: bool = False) -> None:
        """host_beside: there is a card, and what the host computes goes at the host's speed."""
        super().__init__()
        self._host_beside = host_beside
        self.work = Work()
        self._speed = speed or Speed()
        self._blocks: list[_Block] = []
        self._numbers: Any = WeakIdKeyDictionary(ref_type=weakref.ref)
        self._time = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            # Two calls of three, and the answer needs no dispatch.
            return CARD if args[0].fake_mode.in_kernel_invocation else args[0].fake_device
        kwargs = kwargs or {}
        try:
            out = func(*args, **kwargs)
        except DataDependentOutputException:
            return _UNKNOWN.get(args[0].dtype, 0.0)
        made = list(_tensors(out))
        new = [tensor for tensor in made if self.enter(tensor)]
        if new or (made and func._schema.is_mutable):
            self._count(func, args, kwargs, out, list(_tensors((args, kwargs))), made)
        return out

    def enter(self, tensor: Tensor, label: str | None = None) -> bool:
        """Count a tensor's storage from now on, or give it another label; whether it was new."""
        storage = tensor.untyped_storage()
        number = self._numbers.get(storage)
        if number is None:
            size, device = storage.nbytes(), "cpu" if allocating_on_host() else _device(tensor)
            if device != "cpu":
                size = -(-size // _CARD_BLOCK) * _CARD_BLOCK
            self._time += 1
            number = len(self._blocks)
            self._blocks.append(_Block(size, device, label, self._time))
            self._numbers[storage] = number
            weakref.finalize(storage, self._strike, number).atexit = False
            return True
        if label is not None:
            self._blocks[number].label = label
        return False

    def label(self, tensors: Iterable[Tensor], label: str) -> None:
        """Say what some storages hold."""
        for tensor in tensors:
            self.enter(tensor, label)

    def label_alive(self, label: str) -> None:
        """Say what all storages hold that are alive and have no label."""
        for block in self._blocks:
            if block.died is None and block.label is None:
                block.label = label

    @property
    def now(self) -> int:
        """A moment between two events, for `peak`."""
        return self._time

    def peak(self, device: str, since: int = 0) -> Peak:
        """The peak on `cpu`, `meta` or `cuda` since a moment."""
        changes = []
        for block in self._blocks:
            if block.device == device and block.size:
                changes.append((block.born, block.size))
                if block.died is not None:
                    changes.append((block.died, -block.size))
        now, most, when = 0, 0, since
        for time, change in sorted(changes):
            now += change
            if now > most or time <= since:
                most, when = now, max(time, since)
        parts: Counter[str] = Counter()
        for block in self._blocks:
            alive = block.born <= when and (block.died is None or block.died > when)
            if alive and block.device == device:
                parts[block.label or WORKING] += block.size
        return Peak(most, {name: size for name, size in parts.most_common() if size})

    def _strike(self, number: int) -> None:
        self._time += 1
        self._blocks[number].died = self._time

    def _count(
        self, func: Any, args: Any, kwargs: Any, out: Any, taken: Sequence[Tensor], made: Sequence[Tensor]
    ) -> None:
        touched = sum(t.numel() * t.element_size() for t in (*taken, *made))
        flops = 0
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        speed, work = self._speed, self.work
        devices = {_device(t) for t in (*taken, *made) if t.ndim}
        if len(devices) > 1:
            size = sum(t.numel() * t.element_size() for t in made)
            work.moved += size
            work.moving += size / speed.moved
        elif devices == {"cpu"} and self._host_beside:
            work.host_busy += touched / speed.host_touched
        else:
            work.flops += flops
            work.touched += touched
            work.busy += max(flops / speed.flops, touched / speed.touched)


@contextmanager
def card_kernels() -> Iterator[None]:
    """Inside it, attention on `CARD` is what CUDA computes, without a matrix of scores: flash attention in half
    precision for heads of up to 256 channels, memory-efficient attention else."""
    # Not a TorchFunctionMode: it would be off where the backward pass recomputes.
    real = F.scaled_dot_product_attention

    def choose(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (_card_attention if query.device == CARD else real)(query, *args, **kwargs)

    with mock.patch.object(F, "scaled_dot_product_attention", choose):
        yield


def _card_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    half = query.dtype in (torch.float16, torch.bfloat16)
    if half and attn_mask is None and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0:
        return torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:2], query.shape[2], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, keep, dropout_p, is_causal, scale=scale
    )[0]
