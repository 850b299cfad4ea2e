"""Named tensors from files, and into modules: nothing is run that a file holds, nothing is dropped in silence."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from msdv.errors import MsdvError
from msdv.tensors import TensorFile, read_json

__all__ = ["TensorFile", "fill_module", "read_json"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def fill_module(module: nn.Module, tensors: Mapping[str, Tensor], origin: str | Path) -> None:
    """Give a module (made without memory) its weights: every one it has, and no other.

    Raises:
        MsdvError: naming the tensors that are missing, unknown, of another shape, or not finite.
    """
    wanted = module.state_dict()
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        lacks = f"lacks {_name(missing)}" if missing else ""
        holds = f"holds {_name(unknown)} that its configuration has no place for" if unknown else ""
        raise MsdvError(f"{origin} {' and '.join(filter(None, (lacks, holds)))}: take a complete copy of the model")
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            raise MsdvError(
                f"{origin}: {key} is {_shape(tensor.shape)}, its configuration wants {_shape(wanted[key].shape)}: "
                "weights and configuration are of two models"
            )
        if tensor.dtype not in _DTYPES:
            raise MsdvError(f"{origin}: {key} is {tensor.dtype}: quantized weights don't work here, take an fp16 file")
        # One pass without a temporary: the ends of the range carry any NaN or infinity.
        if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
            raise MsdvError(f"{origin}: {key} has values that are not a number: the file is damaged, take another copy")
    module.load_state_dict(dict(tensors), assign=True)
    module.requires_grad_(False).eval()


def _name(keys: list[str]) -> str:
    if len(keys) == 1:
        return f"the tensor {keys[0]}"
    return f"{len(keys)} tensors ({', '.join(keys[:2])}{' ...' if len(keys) > 2 else ''})"


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
