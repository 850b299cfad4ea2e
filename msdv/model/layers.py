"""The layers that see time. Frames arrive folded into the batch, (b f) c h w; `FrameContext` says how many there are.

Architecture: the pseudo-3D layers of Make-A-Video (Singer et al. 2022, arXiv:2209.14792, section 3.2) as built in 2022
into Stable Diffusion, whose parameter names are kept.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msdv.config import GroupNormMode
from msdv.model.attention import attention


@dataclass
class FrameContext:
    """Shared by all temporal layers of one model and set before each forward pass (see inflate.py)."""

    frames: int = 1
    """Frames of each clip in the batch."""
    enabled: bool = True
    """Off: temporal layers let everything through unchanged, which is the image model."""


class TemporalConv(nn.Conv1d):
    """Convolution over frames at each position, kernel 3, zero padding; the identity until trained."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        nn.init.dirac_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """(b f) c h w -> (b f) c h w."""
        n, c, h, w = x.shape
        layout = memory_format(x)
        # A clip as one picture of f x (h w) pixels under a (3, 1) kernel: in channels-last memory both ways are views.
        x = x.permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c).permute(0, 3, 1, 2)  # (b, c, f, h w)
        x = F.conv2d(x, self.weight.unsqueeze(-1), self.bias, padding=(1, 0))
        # The layout it came in: other kernels take over otherwise, and an untrained model no longer equals the image
        # model bit for bit.
        return x.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2).contiguous(memory_format=layout)


class SpatioTemporalConv(nn.Module):
    """A frozen spatial convolution and a temporal one after it. Takes the place of an `nn.Conv2d`."""

    def __init__(self, spatial_conv: nn.Conv2d, context: FrameContext) -> None:
        super().__init__()
        self.spatial_conv = spatial_conv
        self.temporal_conv = TemporalConv(spatial_conv.out_channels)
        self._context = context

    def forward(self, x: Tensor) -> Tensor:
        """(b f) c h w -> (b f) c' h' w'."""
        x = self.spatial_conv(x)
        return self.temporal_conv(x, self._context.frames) if self._context.enabled else x


class TemporalAttention(nn.Module):
    """Attention over the frames of a clip at each spatial position; no positional encoding, so any number of frames.

    The output projection starts at zero: untrained, the layer adds nothing.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        out = nn.Linear(channels, channels)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        self.to_out = nn.ModuleList([out])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(b f) p c -> (b f) p c, p spatial positions."""
        n, p, c = x.shape
        b = n // frames

        def by_position(t: Tensor) -> Tensor:  # (b f) p c -> (b p) f heads d
            t = t.view(b, frames, p, self.heads, c // self.heads).transpose(1, 2)
            return t.reshape(b * p, frames, self.heads, c // self.heads)

        out = attention(by_position(self.to_q(x)), by_position(self.to_k(x)), by_position(self.to_v(x)))
        out = out.reshape(b, p, frames, c).transpose(1, 2).reshape(n, p, c)
        return self.to_out[0](out)


class VideoTransformerBlock(nn.Module):
    """diffusers' `BasicTransformerBlock` as Stable Diffusion 1.x/2.x uses it, with temporal attention before the
    feed-forward. Takes over the block's own layers, so that their names stay."""

    def __init__(self, block: Any, context: FrameContext) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        channels = block.attn1.to_q.in_features
        self.norm_temporal = nn.LayerNorm(channels)
        self.attn_temporal = TemporalAttention(channels, block.attn1.heads)
        self.norm3, self.ff = block.norm3, block.ff
        self._context = context

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        """(b f) p c -> (b f) p c. What diffusers passes besides has no meaning for these models."""
        x = self.attn1(self.norm1(hidden_states)) + hidden_states
        x = self.attn2(self.norm2(x), encoder_hidden_states=encoder_hidden_states) + x
        if self._context.enabled:
            x = self.attn_temporal(self.norm_temporal(x), self._context.frames) + x
        return self.ff(self.norm3(x)) + x


class VideoGroupNorm(nn.GroupNorm):
    """Group norm with statistics of each frame (`frame`) or of all frames of a clip together (`joint`).

    Takes over the parameters of an `nn.GroupNorm`. The 2022 model normalised 5-D tensors, which is `joint`.
    """

    def __init__(self, norm: nn.GroupNorm, mode: GroupNormMode, context: FrameContext) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, affine=False)
        self.weight, self.bias = norm.weight, norm.bias
        self.mode = mode
        self._context = context

    def forward(self, x: Tensor) -> Tensor:
        """(b f) c h w -> (b f) c h w."""
        frames = self._context.frames
        if self.mode == "frame" or frames == 1 or not self._context.enabled:
            return super().forward(x)
        n, c, h, w = x.shape
        clip = x.view(n // frames, frames, c, h, w).transpose(1, 2)  # (b, c, f, h, w)
        clip = F.group_norm(clip, self.num_groups, self.weight, self.bias, self.eps)
        return clip.transpose(1, 2).reshape(n, c, h, w).contiguous(memory_format=memory_format(x))


def memory_format(x: Tensor) -> torch.memory_format:
    """Whether a picture batch lies in memory channels last or contiguous."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
