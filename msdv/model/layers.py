"""The layers that see time. Frames arrive folded into the batch, (b f) c h w; `FrameContext` says how many there are.

Architecture: the pseudo-3D layers of Make-A-Video (Singer et al. 2022, arXiv:2209.14792, section 3.2) as built in 2022
into Stable Diffusion, whose parameter names are kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msdv.config import GroupNormMode
from msdv.model.attention import attention
from msdv.model.checkpointing import Unit
from msdv.model.chunks import memory_format
from msdv.model.frames import FrameContext
from msdv.model.frozen import FrozenConv2d, convolve, norm_silu, upsample

# On a CPU, a convolution over so few positions spends its time on the layout of its weights; as a matrix product it
# takes half as long (docs/measurements.md).
MOST_ROWS_AS_PRODUCT = 128


class TemporalConv(nn.Conv1d):
    """Convolution over frames at each position, kernel 3, zero padding; the identity until trained."""

    def __init__(self, channels: int) -> None:
        # Not torch's own start, nor its `dirac_`: both take long for what is known beforehand.
        super().__init__(channels, channels, 3, padding=1, device="meta")
        dtype = torch.get_default_dtype()
        self.weight = nn.Parameter(torch.zeros(channels, channels, 3, dtype=dtype))
        self.weight.detach()[:, :, 1].fill_diagonal_(1)
        self.bias = nn.Parameter(torch.zeros(channels, dtype=dtype))

    def forward(self, x: Tensor, frames: int = 1, parts: int = 1) -> Tensor:
        """(b f) c h w -> (b f) c h w, worked off in about so many parts of the rows; then, without gradients, in the
        place of x."""
        if parts > 1:
            rows = -(-x.shape[2] // parts)
            if not torch.is_grad_enabled():
                return self._in_place(x, frames, rows)
            return _TemporalConvByRows.apply(x, self.weight, self.bias, frames, rows)
        # The layout it came in: other kernels take over otherwise, and an untrained model no longer equals the image
        # model bit for bit.
        y = self._as_product(_clips(x, frames)) if self._is_small(x) else self._as_picture(_clips(x, frames))
        return _pictures(y, x.shape).contiguous(memory_format=memory_format(x))

    def _in_place(self, x: Tensor, frames: int, rows: int) -> Tensor:
        for part in x.split(rows, dim=2):
            part.copy_(_pictures(self._as_picture(_clips(part, frames)), part.shape))
        return x

    def _as_picture(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.unsqueeze(-1), self.bias, padding=(1, 0))

    def _is_small(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and x.shape[0] * x.shape[2:].numel() <= MOST_ROWS_AS_PRODUCT

    def _as_product(self, x: Tensor) -> Tensor:
        rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 0, 1, 1)).unfold(1, 3, 1).flatten(3)  # b f (h w) (c 3)
        return F.linear(rows, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def _clips(x: Tensor, frames: int) -> Tensor:
    """(b f) c h w -> b c f (h w): a clip as one picture, under a (3, 1) kernel. In channels-last memory a view."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c).permute(0, 3, 1, 2)


def _pictures(x: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_clips`, a view where that was one."""
    n, c, h, w = shape
    return x.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


class _TemporalConvByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, frames: int, rows: int) -> Tensor:
        ctx.frames, ctx.rows = frames, rows
        ctx.save_for_backward(x, weight)
        out = torch.empty_like(x)
        for own, part in zip(out.split(rows, dim=2), x.split(rows, dim=2), strict=True):
            y = F.conv2d(_clips(part, frames), weight.unsqueeze(-1), bias, padding=(1, 0))
            own.copy_(_pictures(y, part.shape))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = torch.empty_like(x)
        # In float32, for the sum not to depend on the number of parts.
        d_weight = torch.zeros_like(weight, dtype=torch.float32)
        d_bias = torch.zeros_like(weight[:, 0, 0], dtype=torch.float32)
        kernel = weight.unsqueeze(-1)
        for own, part, of_part in zip(*(t.split(ctx.rows, dim=2) for t in (dx, x, gradient)), strict=True):
            clips = (_clips(t, ctx.frames) for t in (of_part, part))
            settings = ([1, 1], [1, 0], [1, 1], False, [0, 0], 1, (True, True, True))
            found = torch.ops.aten.convolution_backward(*clips, kernel, [weight.shape[0]], *settings)
            own.copy_(_pictures(found[0], part.shape))
            d_weight += found[1].squeeze(-1)
            d_bias += found[2]
        return dx, d_weight.to(weight.dtype), d_bias.to(weight.dtype), None, None


class SpatioTemporalConv(Unit):
    """A frozen spatial convolution and, once there is one, a temporal one after it. Takes the place of an
    `nn.Conv2d`."""

    temporal_conv: TemporalConv | None

    def __init__(self, spatial_conv: nn.Conv2d, context: FrameContext) -> None:
        super().__init__(context)
        self.spatial_conv = FrozenConv2d(spatial_conv)
        self.register_module("temporal_conv", None)

    def add_temporal(self) -> None:
        """Put an untrained temporal convolution in."""
        self.temporal_conv = TemporalConv(self.spatial_conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b f) c h w -> (b f) c' h' w'."""
        return self.run((x,))

    def compute(self, x: Tensor) -> Tensor:
        return self._over_frames(self.spatial_conv(x))

    def after_upsampling(self, x: Tensor, size: list[int]) -> Tensor:
        """The convolution of x (b f) c h w at a larger size, by nearest neighbours."""
        ranges = self.context.ranges(x.shape[0])
        return self._over_frames(upsample(x, size, self.spatial_conv, ranges))

    def add_to(self, h: Tensor, pictures: Sequence[Tensor]) -> Tensor:
        """h (b f) c' h w plus the convolution, with a kernel of 1, of the channels of all pictures (b f) c h w. Without
        gradients h is changed."""
        context = self.context
        if torch.is_grad_enabled():
            return h + self._over_frames(convolve(pictures, self.spatial_conv, context.ranges(h.shape[0])))
        # Each position for itself, in space and in time: so parts of the rows need no whole.
        rows = -(-h.shape[2] // context.parts)
        for own, *parts in zip(*(t.split(rows, dim=2) for t in (h, *pictures)), strict=True):
            y = convolve(parts, self.spatial_conv, [slice(0, len(own))])
            own += self._over_frames(y, parts=1)
        return h

    def after_norm(
        self, pictures: Sequence[Tensor], norm: nn.GroupNorm, mode: GroupNormMode, *, over: bool = False
    ) -> Tensor:
        """The convolution of `silu(norm(x))`, x the channels of all pictures; `norm` is frozen. `over`: without
        gradients the result, which is as large as x, may take its place."""
        return self._over_frames(normalized(pictures, norm, mode, self.context, self.spatial_conv, over=over))

    def _over_frames(self, x: Tensor, parts: int | None = None) -> Tensor:
        context = self.context
        if self.temporal_conv is None or not context.enabled:
            return x
        return self.temporal_conv(x, context.frames, parts or context.parts)


def normalized(
    pictures: Sequence[Tensor],
    norm: nn.GroupNorm,
    mode: GroupNormMode,
    context: FrameContext,
    conv: nn.Conv2d | None = None,
    *,
    over: bool = False,
) -> Tensor:
    """`silu(norm(x))` with a frozen group norm, and `conv` of it; x (b f) c h w, the channels of all pictures.
    Statistics of each frame (`frame`) or of all frames of a clip together (`joint`): the 2022 model normalised 5-D
    tensors."""
    joint = mode == "joint" and context.frames > 1 and context.enabled
    n = pictures[0].shape[0]
    clips = n // context.frames if joint else None
    return norm_silu(pictures, norm, conv, context.ranges(n), clips, over=over and not torch.is_grad_enabled())


class VideoNormSilu(nn.GroupNorm):
    """The group norm and SiLU before the last convolution. Takes over the parameters of an `nn.GroupNorm`."""

    def __init__(self, norm: nn.GroupNorm, mode: GroupNormMode, context: FrameContext) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, affine=False)
        self.weight, self.bias = norm.weight, norm.bias
        self.mode = mode
        self._context = context

    def forward(self, x: Tensor) -> Tensor:
        """(b f) c h w -> (b f) c h w."""
        return normalized((x,), self, self.mode, self._context)


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
        # Turned once, before the projections, and back in one view: whoever adds the result turns it while adding.
        x = x.view(b, frames, p, c).transpose(1, 2).reshape(b * p, frames, c)
        query, key, value = (to(x).view(b * p, frames, self.heads, -1) for to in (self.to_q, self.to_k, self.to_v))
        out = self.to_out[0](attention(query, key, value).reshape(b * p, frames, c))
        return out.view(b, p, frames, c).transpose(1, 2).reshape(n, p, c)
