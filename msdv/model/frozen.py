"""Frozen layers that keep no more for the backward pass than the gradient of their input needs.

torch's own layers also keep what only the gradient of their weights would need. Everything here computes what the plain
layers compute; where asked, some frames at a time, so that what lies between input and output is small.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msdv.model import products
from msdv.model.chunks import Ranges, memory_format, put_together


class FrozenConv2d(nn.Conv2d):
    """A convolution that does not keep its input: the input's gradient needs the weight alone. Takes over the
    parameters of an `nn.Conv2d`."""

    def __init__(self, conv: nn.Conv2d) -> None:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        settings: dict[str, Any] = {name: getattr(conv, name) for name in names}
        super().__init__(**settings, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c', h', w')."""
        trained = any(p.requires_grad for p in self.parameters())
        if trained and torch.is_grad_enabled():
            return super().forward(x)
        return _Conv.apply(x, self) if torch.is_grad_enabled() and x.requires_grad else _conv(x, self)


def norm_silu(
    pictures: Sequence[Tensor],
    norm: nn.GroupNorm,
    conv: nn.Conv2d | None,
    ranges: Ranges,
    clips: int | None,
    *,
    over: bool = False,
) -> Tensor:
    """`conv(silu(norm(x)))`, or `silu(norm(x))` without `conv`; x (b f) c h w are the channels of all `pictures`, which
    alone are kept.

    `clips`: group statistics are joint over the frames of each of so many clips; None takes them of each frame. Joint,
    frames are passed through twice: for the statistics and for the result. `over`: the result takes the place of the
    one picture, which is as large.
    """
    return _NormSiluConv.apply(norm, conv, ranges, clips, over, *pictures)


def convolve(pictures: Sequence[Tensor], conv: nn.Conv2d, ranges: Ranges) -> Tensor:
    """`conv` of the channels of all `pictures`, (b f) c h w. Nothing is kept."""
    return _NormSiluConv.apply(None, conv, ranges, None, False, *pictures)


def upsample(x: Tensor, size: list[int], conv: nn.Conv2d, ranges: Ranges) -> Tensor:
    """`conv` of x (b f) c h w at another size, by nearest neighbours. Nothing is kept."""
    return _Upsample.apply(x, size, conv, ranges)


def geglu(x: Tensor) -> Tensor:
    """(..., 2c) -> (..., c): the first half times the GELU of the second (Shazeer 2020, arXiv:2002.05202). Only x is
    kept."""
    return _GEGLU.apply(x)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv2d) -> Tensor:
        ctx.conv, ctx.shape = conv, x.shape
        return _conv(x, conv)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _conv_input_gradient(gradient, ctx.shape, ctx.conv), None


def _conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    if products.is_product(conv, x.shape, memory_format(x)):
        return products.convolve(x, conv)
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _conv_input_gradient(gradient: Tensor, shape: torch.Size, conv: nn.Conv2d) -> Tensor:
    if products.is_product(conv, shape, memory_format(gradient)):
        return products.input_gradient(gradient, shape, conv)
    # The operator wants an input, of which it looks at nothing but the shape: one element stands for all. On a CPU it
    # would be written out; memory that is not looked at costs nothing there.
    on_cpu = gradient.device.type == "cpu"
    unused = torch.empty_like(gradient).new_empty(shape) if on_cpu else gradient.new_empty(1).expand(shape)
    settings = (conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups)
    mask = (True, False, False)
    return torch.ops.aten.convolution_backward(gradient, unused, conv.weight, None, *settings, mask)[0]


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: list[int], conv: nn.Conv2d, ranges: Ranges) -> Tensor:
        ctx.shape, ctx.size, ctx.conv, ctx.ranges = x.shape, size, conv, ranges

        def compute(part: slice) -> Tensor:
            return _conv(F.interpolate(x[part], size=size, mode="nearest"), conv)

        return put_together(compute, x.shape[0], ranges)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        n, c, h, w = ctx.shape

        def compute(part: slice) -> Tensor:
            frames = part.stop - part.start
            large = _conv_input_gradient(gradient[part], torch.Size([frames, c, *ctx.size]), ctx.conv)
            return torch.ops.aten.upsample_nearest2d_backward(large, ctx.size, [frames, c, h, w])

        return put_together(compute, n, ctx.ranges), None, None, None


class _Channels:
    """Pictures side by side in their channels, but in memory only as far as they are looked at."""

    def __init__(self, pictures: Sequence[Tensor]) -> None:
        self.pictures = pictures
        self._channels = [picture.shape[1] for picture in pictures]
        self.shape = torch.Size([pictures[0].shape[0], sum(self._channels), *pictures[0].shape[2:]])

    def __getitem__(self, part: slice) -> Tensor:
        return torch.cat([p[part] for p in self.pictures], dim=1) if len(self.pictures) > 1 else self.pictures[0][part]

    def __setitem__(self, part: slice, value: Tensor) -> None:
        for own, new in zip(self.pictures, value.split(self._channels, dim=1), strict=True):
            own[part] = new


class _NormSiluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        norm: nn.GroupNorm | None,
        conv: nn.Conv2d | None,
        ranges: Ranges,
        clips: int | None,
        over: bool,
        *pictures: Tensor,
    ) -> Tensor:
        x = _Channels(pictures)
        statistics: _FrameStatistics | _ClipStatistics | None = None
        if norm is not None:
            # torch's own has no gradient on other devices.
            own = clips is None and pictures[0].device.type in ("cpu", "cuda", "meta")
            statistics = _FrameStatistics(norm) if own else _ClipStatistics(norm, x, ranges, clips or x.shape[0])
            ctx.save_for_backward(*pictures)
        ctx.conv, ctx.ranges, ctx.statistics = conv, ranges, statistics
        ctx.shapes, ctx.layout = [picture.shape for picture in pictures], memory_format(pictures[0])

        def compute(part: slice) -> Tensor:
            y = x[part]
            if statistics is not None:
                y = F.silu(statistics.normalize(y, part), inplace=True)
            return y if conv is None else _conv(y, conv)

        return put_together(compute, x.shape[0], ranges, over=pictures[0] if over else None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        conv, ranges, statistics = ctx.conv, ctx.ranges, ctx.statistics
        x = _Channels(ctx.saved_tensors) if statistics is not None else None
        channels = sum(shape[1] for shape in ctx.shapes)

        def compute(part: slice) -> Tensor:
            dy = gradient[part]
            if conv is not None:
                shape = torch.Size([part.stop - part.start, channels, *ctx.shapes[0][2:]])
                dy = _conv_input_gradient(dy, shape, conv)
            if x is None:
                return dy
            frames = x[part]
            dy = torch.ops.aten.silu_backward(dy, statistics.normalize(frames, part))
            return statistics.backward(dy, frames, part)

        if len(ctx.shapes) == len(ranges) == 1:
            dx = _Channels([compute(ranges[0])])
        else:
            dx = _Channels(
                [
                    torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=ctx.layout)
                    for shape in ctx.shapes
                ]
            )
            for part in ranges:
                dx[part] = compute(part)
        if x is not None:
            statistics.finish_backward(dx, x, ranges)
        return None, None, None, None, None, *dx.pictures


class _FrameStatistics:
    """Group norm with statistics of each frame: torch's own."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.norm = norm
        self.moments: dict[int, list[Tensor]] = {}  # of each range, by its first frame

    def normalize(self, x: Tensor, part: slice) -> Tensor:
        norm, layout, x = self.norm, memory_format(x), _dense(x)
        settings = (*self._sizes(x), norm.eps)
        y, *self.moments[part.start] = torch.ops.aten.native_group_norm(x, norm.weight, norm.bias, *settings)
        return y.contiguous(memory_format=layout)

    def backward(self, dy: Tensor, x: Tensor, part: slice) -> Tensor:
        layout, x = memory_format(x), _dense(x)
        dy = dy.contiguous(memory_format=memory_format(x))
        mask = (True, False, False)
        more = (*self.moments.pop(part.start), self.norm.weight, *self._sizes(x), mask)
        dx = torch.ops.aten.native_group_norm_backward(dy, x, *more)[0]
        return dx.contiguous(memory_format=layout)

    def _sizes(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[:2], x.shape[2:].numel(), self.norm.num_groups)

    def finish_backward(self, dx: _Channels, x: _Channels, ranges: Ranges) -> None:
        """Nothing is left to do."""


class _ClipStatistics:
    """Group norm with statistics of all frames of a clip together, in float32, found range by range."""

    def __init__(self, norm: nn.GroupNorm, x: _Channels, ranges: Ranges, clips: int) -> None:
        self.frames = x.shape[0] // clips
        self.in_group = x.shape[1] // norm.num_groups  # channels
        parts = [torch.var_mean(self._by_group(x[r].float()), dim=(2, 3, 4), correction=0) for r in ranges]
        var, mean = (torch.cat(of_parts).unflatten(0, (clips, self.frames)) for of_parts in zip(*parts, strict=True))
        # All frames are of one size: a clip's variance is the mean of theirs and the variance of their means.
        rstd = (var.mean(1) + mean.var(1, correction=0) + norm.eps).rsqrt()  # (b, groups)
        self.mean, self.rstd = self._by_channel(mean.mean(1)), self._by_channel(rstd)  # (b, c)
        self.weight, self.bias = norm.weight.float(), norm.bias.float()
        self.sums: list[Tensor] = []

    def _by_group(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.in_group))  # (n, groups, c, h, w)

    def _by_channel(self, of_groups: Tensor) -> Tensor:
        return of_groups.repeat_interleave(self.in_group, 1)

    def _of_frames(self, of_clips: Tensor, part: slice) -> Tensor:
        clips = torch.arange(part.start, part.stop, device=of_clips.device) // self.frames
        return of_clips[clips, :, None, None]  # (n, c, 1, 1)

    def normalize(self, x: Tensor, part: slice) -> Tensor:
        scale = self.rstd * self.weight
        y = x * self._of_frames(scale, part)
        y += self._of_frames(self.bias - self.mean * scale, part)
        return y.to(x.dtype)

    def backward(self, dy: Tensor, x: Tensor, part: slice) -> Tensor:
        """The gradient of the norm's output as it is, for `finish_backward`: it takes the sums over all frames."""
        centred = x - self._of_frames(self.mean, part)
        centred *= dy
        self.sums.append(torch.stack([dy.sum((2, 3), dtype=torch.float32), centred.sum((2, 3))]))
        return dy

    def finish_backward(self, dx: _Channels, x: _Channels, ranges: Ranges) -> None:
        mean, rstd = self.mean, self.rstd
        of_frames = torch.cat(self.sums, dim=1).unflatten(1, (-1, self.frames))
        self.sums = []
        sums = of_frames.sum(2) * self.weight  # (2, b, c): of gradients, and of gradients times the centred input
        count = self.frames * self.in_group * x.shape[2:].numel()
        dy, dy_x = (self._by_channel(of_c.unflatten(1, (-1, self.in_group)).sum(2)) / count for of_c in sums)
        of_x = -(rstd**3) * dy_x
        constant = -rstd * dy - of_x * mean
        for part in ranges:
            y = dx[part] * self._of_frames(rstd * self.weight, part)
            y += x[part] * self._of_frames(of_x, part)
            y += self._of_frames(constant, part)
            dx[part] = y


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        value, gate = ctx.saved_tensors[0].chunk(2, dim=-1)
        dx = torch.empty_like(ctx.saved_tensors[0])
        d_value, d_gate = dx.chunk(2, dim=-1)
        torch.mul(gradient, F.gelu(gate), out=d_value)
        torch.ops.aten.gelu_backward.grad_input(gradient * value, gate, grad_input=d_gate)
        return dx


def _dense(x: Tensor) -> Tensor:
    # As torch's own group norm: on graphics cards it knows no channels-last memory. On a CPU, in half precision, it
    # takes several times as long there for pictures of some sizes (docs/measurements.md).
    on_cpu = x.device.type == "cpu"
    slow = x.dtype != torch.float32 and 64 <= x.shape[2:].numel() < 1024
    return x.contiguous(memory_format=memory_format(x) if on_cpu and not slow else torch.contiguous_format)
