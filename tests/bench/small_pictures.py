"""Frozen layers over small pictures on a CPU, in turn, in one process.

    python tests/bench/small_pictures.py

Convolutions of 3x3 as matrix products and as convolutions (msdv/model/products.py), and group norms on pictures copied
channels first and back, and as they are, channels last (msdv/model/frozen.py). Prints ratios of the shortest times, one
thread: below 1, the first way is faster.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from msdv.model import products
from msdv.model.frozen import _conv_input_gradient

PICTURES = 8
ROUNDS = 12
LAST = torch.channels_last
CONVOLUTIONS = [(1280, 2), (2560, 2), (1280, 4), (2560, 4), (1280, 8), (256, 2), (256, 4)]  # input channels, side
NORMS = [(64, 16), (640, 4), (320, 8), (320, 16), (640, 16), (320, 32)]  # channels, side


def shortest(ways: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds of each."""
    best = [float("inf")] * len(ways)
    for _ in range(ROUNDS + 1):
        for index, way in enumerate(ways):
            started = time.perf_counter()
            way()
            best[index] = min(best[index], time.perf_counter() - started)
    return best


def convolution(channels: int, side: int, dtype: torch.dtype) -> str:
    """Product / convolution, forward and gradient of the input."""
    conv = nn.Conv2d(channels, min(channels, 1280), 3, padding=1).requires_grad_(False).to(dtype, memory_format=LAST)
    x = torch.randn(PICTURES, channels, side, side).to(dtype).contiguous(memory_format=LAST)
    gradient = torch.randn_like(conv(x))

    def plain_gradient() -> Tensor:
        products.LEAST_WEIGHTS = 2**62
        return _conv_input_gradient(gradient, x.shape, conv)

    one, other, one_back, other_back = shortest(
        [
            lambda: products.convolve(x, conv),
            lambda: conv(x),
            lambda: products.input_gradient(gradient, x.shape, conv),
            plain_gradient,
        ]
    )
    return f"{one / other:.2f} {one_back / other_back:.2f}"


def norm(channels: int, side: int, dtype: torch.dtype) -> str:
    """Copied / as they are, forward and backward."""
    x = torch.randn(PICTURES, channels, side, side).to(dtype).contiguous(memory_format=LAST)
    weight, gradient = torch.ones(channels, dtype=dtype), torch.randn_like(x)
    sizes = PICTURES, channels, side * side, 32

    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten.native_group_norm(x, weight, weight, *sizes, 1e-5)

    _, mean, rstd = forward(x)

    def backward(dy: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.native_group_norm_backward(dy, x, mean, rstd, weight, *sizes, (True, False, False))[0]

    one, other, one_back, other_back = shortest(
        [
            lambda: forward(x.contiguous())[0].contiguous(memory_format=LAST),
            lambda: forward(x),
            lambda: backward(gradient.contiguous(), x.contiguous()).contiguous(memory_format=LAST),
            lambda: backward(gradient, x),
        ]
    )
    return f"{one / other:.2f} {one_back / other_back:.2f}"


def main() -> None:
    """Print a row a shape: forward and backward in bfloat16, then in float32."""
    torch.set_num_threads(1)
    kinds: list[tuple[str, Callable[[int, int, torch.dtype], str], list[tuple[int, int]]]] = [
        ("product / convolution", convolution, CONVOLUTIONS),
        ("copied / channels last, group norm", norm, NORMS),
    ]
    for title, measure, shapes in kinds:
        print(f"{title}: channels, side; bfloat16 forward, backward; float32 forward, backward")
        for shape in shapes:
            half, single = (measure(*shape, dtype) for dtype in (torch.bfloat16, torch.float32))
            print(f"  {shape[0]:5} {shape[1]:3}   {half}   {single}", flush=True)


if __name__ == "__main__":
    main()
