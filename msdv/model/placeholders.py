"""Tensors that have shapes and no memory, and what torch's operators make of them: so code can be gone through at any
size, on any machine.

torch's own FakeTensorMode says what comes out of an operator; it is asked once for each operator and shapes, as the
answer takes it longer than a small tensor takes to compute.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)

CARD = torch.device("meta")
"""Stands for a graphics card: torch without CUDA can't compute on fake CUDA tensors, and the bytes are the same."""
HOST = torch.device("cpu")
"""The computer's own memory; where there is no card, the processor computes there."""

# What a number that only data could tell reads as. A flag asks whether all is well.
_UNKNOWN = {torch.bool: True, torch.int64: 0, torch.int32: 0}
_NUMBERS = (bool, int, float)


class _Made(NamedTuple):
    """A tensor that an operator makes."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Done:
    """What an operator did; the same each time that it is given tensors of the same shapes."""

    __slots__ = ("cost", "made")

    def __init__(self, made: Any) -> None:
        self.made = made
        """What it made, if that is known."""
        self.cost: Any = None
        """For those who count."""


class Placeholders:
    """Computes with tensors without memory: on `CARD` torch's own meta tensors, on `HOST` its fake ones.

    Numbers that depend on data read as 0, or as yes where the question is whether something holds.
    """

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._done: dict[Hashable, Done] = {}
        self._operators: dict[int, _Operator] = {}

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Done | None]:
        """What the operator returns, and what it did: None for views, which make nothing."""
        operator = self._operators.get(id(func))  # operators hash slowly
        if operator is None:
            operator = self._operators[id(func)] = _Operator(func)
        taken = tensors_in(args)
        if kwargs:
            taken += tensors_in(kwargs.values())
        fakes, known = 0, not operator.is_foreign
        for tensor in taken:
            if isinstance(tensor, FakeTensor):
                fakes += 1
                # Small tensors with a content count what must be counted, such as steps.
                known &= tensor.constant is None
            else:
                known &= tensor.is_meta
        if operator.reads_number and (fakes or known):
            return self._number(func, taken[0]), None
        if not known:
            return self._ask(func, args, kwargs), Done(None)
        if operator.is_view:
            if not fakes:
                return func(*args, **kwargs), None
            return (self._view if fakes == len(taken) else self._ask)(func, args, kwargs), None
        key = (id(func), _key(args), _key(kwargs) if kwargs else None)
        done = self._done.get(key)
        if operator.changes is not None:
            if done is None:
                done = self._done[key] = Done(None)
            return operator.changed(args, kwargs), done
        if done is None:
            out = self._ask(func, args, kwargs, unwrap=False)
            storages = {t.untyped_storage()._cdata for t in taken}
            if any(t.untyped_storage()._cdata in storages for t in tensors_in((out,))):
                operator.is_view = True  # some say of a view that it is none
                return self.compute(func, args, kwargs)
            done = self._done[key] = Done(_described(out))
        return self._make(done.made), done

    def _number(self, func: Any, tensor: Tensor) -> Any:
        if isinstance(tensor, FakeTensor):
            try:
                with self._fake:
                    return func(tensor)
            except DataDependentOutputException:
                pass
        return _UNKNOWN.get(tensor.dtype, 0.0)

    def _ask(self, func: Any, args: Any, kwargs: Any, unwrap: bool = True) -> Any:
        """What torch's fake tensors say."""
        args, kwargs = (_replaced(values, self._wrap) for values in (args, kwargs))
        with self._fake:
            out = func(*args, **kwargs)
        if not unwrap:
            return out
        operator = self._operators[id(func)]
        if operator.changes is not None and not any(
            getattr(t, "constant", None) is not None for t in tensors_in((out,))
        ):
            return operator.changed(args, kwargs)
        return _replaced(out, lambda t: self._make(_described(t)) if device_of(t) == CARD else t)

    def _wrap(self, tensor: Tensor) -> Tensor:
        plain = tensor.device == CARD and not isinstance(tensor, FakeTensor)
        return FakeTensor(self._fake, tensor.detach(), CARD) if plain else tensor

    def _view(self, func: Any, args: Any, kwargs: Any) -> Any:
        device = tensors_in((*args, *kwargs.values()))[0].fake_device  # type: ignore[attr-defined]
        with in_kernel_invocation_manager(self._fake):
            out = func(*args, **kwargs)
        return _replaced(out, lambda t: FakeTensor(self._fake, t, device))

    def _make(self, result: Any) -> Any:
        if isinstance(result, _Made):
            shape, stride, dtype, device = result
            plain = torch.empty_strided(shape, stride, dtype=dtype, device=CARD)
            return plain if device == CARD else FakeTensor(self._fake, plain, device)
        if isinstance(result, (list, tuple)):
            return type(result)(self._make(one) for one in result)
        return result


class _Operator:
    """What its schema says of an operator."""

    def __init__(self, func: Any) -> None:
        self.reads_number = func is torch.ops.aten._local_scalar_dense.default
        self._kept = func  # so that no other gets its id
        self.is_foreign = func.namespace != "aten"
        schema = func._schema
        self.is_view = torch.Tag.inplace_view in func.tags or (
            not schema.is_mutable and any(value.alias_info is not None for value in schema.returns)
        )
        self.changes: list[tuple[int, str]] | None = None
        """Where the arguments are that it changes and returns; None if it changes none."""
        if schema.is_mutable and not self.is_view:
            places = {
                name: (index, argument.name)
                for index, argument in enumerate(schema.arguments)
                if argument.alias_info is not None
                for name in argument.alias_info.before_set
            }
            returned = [value.alias_info for value in schema.returns if value.alias_info is not None]
            self.changes = [places[name] for alias in returned for name in alias.before_set]

    def changed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator returns that changes its arguments in place."""
        assert self.changes is not None
        out = [args[index] if index < len(args) else kwargs[name] for index, name in self.changes]
        return out[0] if len(out) == 1 else tuple(out) or None


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """All tensors in nested lists and tuples."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)) and value and not isinstance(value[0], int):
            found += tensors_in(value)
    return found


def _replaced(values: Any, new: Callable[[Tensor], Any]) -> Any:
    if isinstance(values, Tensor):
        return new(values)
    if isinstance(values, list | tuple):
        return type(values)(_replaced(value, new) for value in values)
    if isinstance(values, dict):
        return {key: _replaced(value, new) for key, value in values.items()}
    return values


def device_of(tensor: Tensor) -> torch.device:
    """The device of a placeholder."""
    # The property of a fake tensor goes through all dispatch.
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


def _key(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, device_of(value)
    if isinstance(value, list | tuple):
        return tuple([_key(one) for one in value])
    if isinstance(value, dict):
        return tuple([(name, _key(one)) for name, one in value.items()])
    return (type(value), value) if isinstance(value, _NUMBERS) else value  # 1 == 1.0 == True


def _described(values: Any) -> Any:
    return _replaced(values, lambda t: _Made(t.shape, t.stride(), t.dtype, device_of(t)))
