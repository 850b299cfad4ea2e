"""Counts what computing takes: live storages by device, and arithmetic; on tensors without memory (placeholders.py),
which is how memory is predicted (memory.py)."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from msdv.model.host_memory import allocating_on_host
from msdv.model.placeholders import CARD, Placeholders, device_of, tensors_in

_DEVICE = torch.ops.prim.device.default
# Blocks of torch's CUDA allocator are multiples of this.
_CARD_BLOCK = 512
WORKING = "working memory"
KEPT = "kept for the backward pass"


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

    def __iadd__(self, other: "Work") -> "Work":
        self.flops += other.flops
        self.touched += other.touched
        self.moved += other.moved
        self.busy += other.busy
        self.host_busy += other.host_busy
        self.moving += other.moving
        return self

    def times(self, factor: float) -> "Work":
        """As much again and again."""
        return Work(*(type(value)(value * factor) for value in astuple(self)))

    @property
    def seconds(self) -> float:
        """An estimate: copies go on beside the device's work, the host's optimizer after it."""
        return max(self.busy, self.moving) + self.host_busy


class Ledger(TorchDispatchMode):
    """Inside it, operators are computed on placeholders, and every storage that one makes is entered, and struck out
    when it is freed. Only the thread that entered the mode is seen."""

    def __init__(self, placeholders: Placeholders, speed: Speed | None = None, host_beside: bool = False) -> None:
        """host_beside: there is a card, and what the host computes goes at the host's speed."""
        super().__init__()
        self._placeholders = placeholders
        self._host_beside = host_beside
        self.work = Work()
        self._speed = speed or Speed()
        self._blocks: list[_Block] = []
        self._numbers: dict[int, int] = {}  # of blocks, by the address of the storage
        self._time = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            # Two calls of three, and the answer needs no dispatch.
            return CARD if args[0].fake_mode.in_kernel_invocation else args[0].fake_device
        kwargs = kwargs or {}
        out, done = self._placeholders.compute(func, args, kwargs)
        if done is None:
            return out
        for tensor in (out,) if isinstance(out, Tensor) else tensors_in((out,)):
            self.enter(tensor)
        if done.cost is None:
            done.cost = self._cost(func, args, kwargs, out)
        self.work += done.cost
        return out

    def enter(self, tensor: Tensor, label: str | None = None) -> bool:
        """Count a tensor's storage from now on, or give it another label; whether it was new."""
        storage = tensor.untyped_storage()
        number = self._numbers.get(storage._cdata)
        if number is None:
            size, device = storage.nbytes(), "cpu" if allocating_on_host() else device_of(tensor).type
            if device != "cpu":
                size = -(-size // _CARD_BLOCK) * _CARD_BLOCK
            self._time += 1
            number = self._numbers[storage._cdata] = len(self._blocks)
            self._blocks.append(_Block(size, device, label, self._time))
            weakref.finalize(storage, self._strike, number, storage._cdata).atexit = False
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

    def _strike(self, number: int, address: int) -> None:
        self._time += 1
        del self._numbers[address]
        self._blocks[number].died = self._time

    def _cost(self, func: Any, args: Any, kwargs: Any, out: Any) -> Work:
        taken, made = tensors_in((*args, *kwargs.values())), tensors_in((out,))
        speed = self._speed
        touched = sum(t.numel() * t.element_size() for t in (*taken, *made))
        flops = 0
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        devices = {device_of(t).type for t in (*taken, *made) if t.ndim}
        if len(devices) > 1:
            size = sum(t.numel() * t.element_size() for t in made)
            return Work(moved=size, moving=size / speed.moved)
        if devices == {"cpu"} and self._host_beside:
            return Work(host_busy=touched / speed.host_touched)
        return Work(flops=flops, touched=touched, busy=max(flops / speed.flops, touched / speed.touched))


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
