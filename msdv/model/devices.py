"""Which device computes, and in which precision."""

import os
import re
import sys
from dataclasses import dataclass

import psutil
import torch

from msdv.errors import UsageError


@dataclass(frozen=True)
class Precision:
    """The dtype that frozen weights are stored and computed in, and a line where it isn't what was asked for."""

    dtype: torch.dtype
    note: str | None = None


def choose_device(name: str | None) -> torch.device:
    """`cuda`, `cuda:1`, `mps` or `cpu`; None takes the best there is (CUDA, then MPS, then the CPU).

    Under a launcher of several processes `cuda` is this process's own card.

    Raises:
        UsageError: for another name, or a device that this machine doesn't have.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"(cpu|mps|cuda(?::(\d+))?)", name.strip().lower())
    if not match:
        raise UsageError(f"--device {name}: unknown, take cuda, cuda:1, mps or cpu")
    kind = match[1].partition(":")[0]
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError(f"--device {name}: no Apple graphics (MPS) here, take --device cpu")
        return torch.device("mps")
    if not torch.cuda.is_available():
        reason = (
            f"this torch ({torch.__version__}) is built without CUDA" if torch.version.cuda is None else "no card found"
        )
        raise UsageError(f"--device {name}: no CUDA device here ({reason}); take --device cpu")
    count = torch.cuda.device_count()
    index = match[2] or os.environ.get("LOCAL_RANK")
    if index is None:
        return torch.device("cuda")
    if int(index) >= count:
        raise UsageError(f"--device {name}: this machine has {count} CUDA device(s), the last is cuda:{count - 1}")
    return torch.device("cuda", int(index))


def choose_precision(fp16: bool, bf16: bool, device: torch.device) -> Precision:
    """Half precision if asked for and if the device computes in it, else float32.

    A CPU has no fast float16 convolution (over a hundred times slower than bfloat16), so there `fp16` means bfloat16.

    Raises:
        UsageError: for both at once, or bfloat16 on a device that doesn't have it.
    """
    if fp16 and bf16:
        raise UsageError("--fp16 and --bf16 exclude each other: choose one")
    if fp16 and device.type == "cpu":
        note = "on a CPU --fp16 computes in bfloat16: float16 is over a hundred times slower there"
        return Precision(torch.bfloat16, note)
    if fp16:
        return Precision(torch.float16)
    if bf16 and not _has_bfloat16(device):
        raise UsageError(f"--bf16: {device} doesn't compute in bfloat16 (RTX 30 and newer do), take --fp16")
    return Precision(torch.bfloat16 if bf16 else torch.float32)


def plan_precision(fp16: bool, bf16: bool, card: bool) -> torch.dtype:
    """What `choose_precision` would give on a card or a processor that isn't here."""
    if fp16 or bf16:
        return torch.float16 if fp16 and card else torch.bfloat16
    return torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # torch counts emulation as support; emulated, it is slower than float32. Ampere is 8.0.
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type == "mps":
        try:
            torch.zeros(1, device=device, dtype=torch.bfloat16)
        except (TypeError, RuntimeError):
            return False
    return True


def memory_used(device: torch.device) -> float:
    """Peak memory so far of the device, or of the process, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float(psutil.Process().memory_info().peak_wset) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30
