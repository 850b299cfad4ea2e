"""msdv with a positional encoding in the temporal attention of pseudo-3D layers, which have none.

    python recipes/experiments/positions.py train --config recipes/experiments/experiments.toml --out run

Sines and cosines of the frame's number (Vaswani et al. 2017, 1706.03762, section 3.5) are added to what each temporal
attention sees, as AnimateDiff's motion modules do it; here nothing ends the table, so that any number of frames can be
asked for. Takes msdv's own commands and options; what it trains must be evaluated and sampled with it too.
"""

import math

import torch
from torch import Tensor

from msdv.cli import main
from msdv.model.layers import TemporalAttention


def sines(frames: int, channels: int) -> Tensor:
    """(f, c): of each frame's number, even channels the sines and odd ones the cosines of falling frequencies."""
    frequencies = torch.exp(torch.arange(0, channels, 2) * (-math.log(10_000.0) / channels))
    angles = torch.arange(frames)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :channels]


def add_positions() -> None:
    """From now on, temporal attention knows the number of each frame."""
    plain = TemporalAttention.forward

    def forward(self: TemporalAttention, x: Tensor, frames: int) -> Tensor:
        n, p, c = x.shape
        positions = sines(frames, c).to(x)[:, None]  # (f, 1, c)
        return plain(self, (x.view(-1, frames, p, c) + positions).view(n, p, c), frames)

    TemporalAttention.forward = forward  # type: ignore[method-assign]


if __name__ == "__main__":
    add_positions()
    main()
