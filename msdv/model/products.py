"""Frozen convolutions as matrix products: on a CPU, over small pictures, a convolution with many weights spends its
time on their layout, and on the padding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where a product takes less time than the convolution (docs/measurements.md).
MOST_POSITIONS = 16
"""Of a picture."""
LEAST_WEIGHTS = 2**20


def is_product(conv: nn.Conv2d, shape: torch.Size, layout: torch.memory_format) -> bool:
    """Whether `conv` over pictures of this shape (n, c, h, w) and memory format is faster as a product."""
    weight = conv.weight
    if weight.device.type != "cpu" or layout != torch.channels_last or shape[2:].numel() > MOST_POSITIONS:
        return False
    plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1
    return plain and weight.numel() >= LEAST_WEIGHTS and weight.is_contiguous(memory_format=torch.channels_last)


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """(n, c, h, w) -> (n, c', h', w'), channels last."""
    (high, wide), (down, across) = conv.kernel_size, _padding(conv)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, across, across, down, down))
    windows = padded.unfold(1, high, 1).unfold(2, wide, 1)  # n h' w' c kh kw
    return F.linear(windows.permute(0, 1, 2, 4, 5, 3).flatten(3), _matrix(conv), conv.bias).permute(0, 3, 1, 2)


def input_gradient(gradient: Tensor, shape: torch.Size, conv: nn.Conv2d) -> Tensor:
    """The gradient of the input (n, c, h, w), of this shape, from that of the result; channels last."""
    n, c, h, w = shape
    (high, wide), (down, across) = conv.kernel_size, _padding(conv)
    rows = gradient.permute(0, 2, 3, 1)  # n h' w' c'
    windows = (rows @ _matrix(conv)).unflatten(3, (high, wide, c))
    # In float32, for the sum to be rounded once.
    padded = gradient.new_zeros(n, h + 2 * down, w + 2 * across, c, dtype=torch.float32)
    for i in range(high):
        for j in range(wide):
            padded[:, i : i + rows.shape[1], j : j + rows.shape[2]] += windows[:, :, :, i, j]
    inner = padded[:, down : down + h, across : across + w]
    return inner.to(gradient.dtype).contiguous().permute(0, 3, 1, 2)


def _matrix(conv: nn.Conv2d) -> Tensor:
    return conv.weight.permute(0, 2, 3, 1).flatten(1)  # c' (kh kw c): a view


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(conv.padding, str)
    down, across = conv.padding
    return down, across
