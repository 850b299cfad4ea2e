"""Temporal convolution on a CPU, as a convolution and as a matrix product, in turn, in one process.

    python tests/bench/temporal_conv.py

Prints the ratio of CPU times, product / convolution, forward and forward with backward, by channels and positions of a
clip of 8 frames. Below 1, the product is faster; msdv/model/layers.py takes it for few positions.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from msdv.model.layers import TemporalConv

FRAMES = 8
SHAPES = [(640, 64), (1280, 16), (1280, 4), (128, 4)]  # channels, positions
ROUNDS = 5


def cpu_seconds(convolve: Callable[[Tensor], Tensor], x: Tensor, backward: bool) -> float:
    """CPU time of one pass."""
    started = time.process_time()
    with torch.set_grad_enabled(backward):
        y = convolve(x)
        if backward:
            y.sum().backward()
    return time.process_time() - started


def main() -> None:
    """Print a row a shape and precision."""
    torch.set_num_threads(1)
    print(f"{'channels':8} {'positions':9} {'precision':10} product / convolution: forward, forward and backward")
    for channels, positions in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            conv = TemporalConv(channels).to(dtype)
            x = torch.randn(1, FRAMES, positions, channels, dtype=dtype).permute(0, 3, 1, 2).requires_grad_()
            ratios = []
            for backward in (False, True):
                pairs = [
                    [cpu_seconds(way, x, backward) for way in (conv._as_product, conv._as_picture)]
                    for _ in range(ROUNDS + 1)
                ]
                ratios.append(statistics.median(product / picture for product, picture in pairs[1:]))
            print(f"{channels:8} {positions:9} {str(dtype)[6:]:10} {ratios[0]:.2f}, {ratios[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
