"""Attention on a CPU: torch's fused kernel against holding the scores, in turn, in one process.

    python tests/bench/attention.py

Prints the ratio of CPU times, fused / explicit, for the shapes of a small image model in half and single precision:
forward and backward together, and forward alone without gradients.
Above 1, holding the scores is faster; msdv/model/attention.py then does so.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from msdv.model.attention import explicit_attention

# (batch, heads, tokens of the query, tokens of the key, channels a head)
SHAPES = {
    "spatial 16x16, 32 frames": (32, 2, 256, 256, 32),
    "spatial 8x8, 32 frames": (32, 2, 64, 64, 48),
    "temporal 16 frames, 16x16": (512, 2, 16, 16, 32),
    "to text, 32 frames": (2, 2, 4096, 32, 32),
}
ROUNDS = 7


def cpu_seconds(function: Callable[[Tensor, Tensor, Tensor], Tensor], tensors: list[Tensor], train: bool) -> float:
    """CPU time of one forward and backward pass, or of a forward pass."""
    started = time.process_time()
    with torch.set_grad_enabled(train):
        out = function(*tensors)
        if train:
            out.sum().backward()
    return time.process_time() - started


def main() -> None:
    """Print a row a shape and precision."""
    torch.set_num_threads(1)
    print(f"{'shape':28} {'precision':10} fused / explicit (median of {ROUNDS}), with backward and without")
    for name, (b, heads, q, n, d) in SHAPES.items():
        for dtype in (torch.bfloat16, torch.float32):
            tensors = [torch.randn(b, heads, tokens, d, dtype=dtype, requires_grad=True) for tokens in (q, n, n)]
            medians = []
            for train in (True, False):
                ratios = []
                for _ in range(ROUNDS + 1):
                    fused = cpu_seconds(F.scaled_dot_product_attention, tensors, train)
                    ratios.append(fused / cpu_seconds(explicit_attention, tensors, train))
                medians.append(f"{statistics.median(ratios[1:]):.2f}")
            print(f"{name:28} {str(dtype).removeprefix('torch.'):10} {', '.join(medians)}", flush=True)


if __name__ == "__main__":
    main()
