"""Resnets, transformers and upsamplers of Stable Diffusion 1.x/2.x for frames folded into the batch, (b f) c h w, and
the blocks that they are in.

Each takes over the layers of its counterpart in diffusers, whose names stay, and computes what that computes, with
places for temporal layers in between. What sees each frame for itself is worked off as `FrameContext` says.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from msdv.config import GroupNormMode
from msdv.model.checkpointing import Unit
from msdv.model.chunks import Again, by_frames, by_positions, memory_format
from msdv.model.frames import FrameContext
from msdv.model.frozen import FrozenConv2d, geglu
from msdv.model.layers import SpatioTemporalConv, TemporalAttention
from msdv.model.motion_module import MotionModule
from msdv.model.stores import OnHost

_CACHED = 2**20  # numbers
_MOST_PARTS = 64


class VideoResnet(Unit):
    """diffusers' `ResnetBlock2D` with spatio-temporal convolutions."""

    def __init__(self, resnet: Any, mode: GroupNormMode, context: FrameContext) -> None:
        super().__init__(context)
        self.mode = mode
        self.norm1, self.conv1 = resnet.norm1, SpatioTemporalConv(resnet.conv1, context)
        self.time_emb_proj = resnet.time_emb_proj
        self.norm2, self.conv2 = resnet.norm2, SpatioTemporalConv(resnet.conv2, context)
        shortcut = resnet.conv_shortcut
        self.conv_shortcut = None if shortcut is None else SpatioTemporalConv(shortcut, context)

    @staticmethod
    def takes(resnet: Any) -> bool:
        """Whether it can take the place of `resnet`."""
        plain = resnet.time_embedding_norm == "default" and not (resnet.up or resnet.down or resnet.skip_time_act)
        activation = isinstance(resnet.nonlinearity, nn.SiLU)
        return plain and activation and resnet.output_scale_factor == 1 and resnet.time_emb_proj is not None

    def forward(self, x: Tensor, temb: Tensor, skip: Tensor | None = None) -> Tensor:
        """(b f) c h w, temb (b f) t -> (b f) c' h w. `skip`: more channels, after those of x."""
        return self.run((x,) if skip is None else (x, skip), temb)

    def compute(self, *inputs: Any) -> Tensor:
        *pictures, temb = inputs
        h = self.conv1.after_norm(pictures, self.norm1, self.mode)
        h = _add(h, self.time_emb_proj(F.silu(temb))[:, :, None, None])
        h = self.conv2.after_norm((h,), self.norm2, self.mode, over=True)
        if self.conv_shortcut is not None:
            return self.conv_shortcut.add_to(h, pictures)
        (x,) = pictures
        return _add(h, x)


class VideoTransformer(Unit):
    """diffusers' `Transformer2DModel` on pictures, with temporal attention before the feed-forward of its block."""

    def __init__(self, transformer: Any, context: FrameContext) -> None:
        super().__init__(context)
        self.norm, self.linear = transformer.norm, transformer.use_linear_projection
        projections = transformer.proj_in, transformer.proj_out
        self.proj_in, self.proj_out = (p if self.linear else FrozenConv2d(p) for p in projections)
        (block,) = transformer.transformer_blocks
        self.transformer_blocks = nn.ModuleList([VideoTransformerBlock(block)])

    @staticmethod
    def takes(transformer: Any) -> bool:
        """Whether it can take the place of `transformer`."""
        blocks = transformer.transformer_blocks
        return transformer.is_input_continuous and len(blocks) == 1 and VideoTransformerBlock.takes(blocks[0])

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        """(b f) c h w, text (b, n, d) or (b f) n d -> (b f) c h w. What else diffusers passes has no meaning here."""
        return (self.run((hidden_states,), encoder_hidden_states),)

    def run(self, inputs: tuple[Tensor, ...], *rest: Any) -> Tensor:
        """As of any unit. In parts, with host memory to wait in, its three steps are checkpoints by themselves: one
        around them would compute them twice again, for the steps that follow and for their own parts."""
        if not self._steps_wait_on_host(inputs[0].shape[0]):
            return super().run(inputs, *rest)
        with self.weights():
            return self.compute(*inputs, *rest)

    def _steps_wait_on_host(self, n: int) -> bool:
        checkpointed = isinstance(self.store, OnHost) and torch.is_grad_enabled() and self.context.enabled
        return checkpointed and len(self.context.ranges(n)) > 1

    def compute(self, x: Tensor, text: Tensor) -> Tensor:
        (block,) = self.transformer_blocks
        assert isinstance(block, VideoTransformerBlock)
        n, c, h, w = x.shape
        frames, ranges, layout = self.context.frames, self.context.ranges(n), memory_format(x)
        text_of = self.context.of_range(text, n)
        weights = functools.partial(self.weights, backward=True)
        again = Again(self.store, weights) if self._steps_wait_on_host(n) else Again()

        def enter(pictures: Tensor, part: slice) -> Tensor:
            tokens = self.norm(pictures)
            if not self.linear:
                tokens = self.proj_in(tokens)
            tokens = tokens.permute(0, 2, 3, 1).reshape(-1, h * w, c)
            return block.within_frames(self.proj_in(tokens) if self.linear else tokens, text_of(part))

        def leave(tokens: Tensor, part: slice) -> Tensor:
            tokens = block.feed_forward(tokens)
            if self.linear:
                tokens = self.proj_out(tokens)
            out = tokens.reshape(-1, h, w, c).permute(0, 3, 1, 2).contiguous(memory_format=layout)
            del tokens
            return out if self.linear else self.proj_out(out)

        lora = [p for m in (block.attn1, block.attn2) for p in m.parameters() if p.requires_grad]
        tokens = by_frames(enter, x, ranges, again, trained=lora)
        if self.context.enabled and block.attn_temporal is not None:
            assert block.norm_temporal is not None
            trained = [*block.norm_temporal.parameters(), *block.attn_temporal.parameters()]
            across = functools.partial(block.across_frames, frames=frames)
            tokens = by_positions(across, tokens, self.context.parts, trained, again)
        return _add(by_frames(leave, tokens, ranges, again, over=True), x)


class VideoTransformerBlock(nn.Module):
    """diffusers' `BasicTransformerBlock` in three steps, the second of which is temporal attention, once there is
    one."""

    norm_temporal: nn.LayerNorm | None
    attn_temporal: TemporalAttention | None

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.register_module("norm_temporal", None)
        self.register_module("attn_temporal", None)
        self.norm3, self.ff = block.norm3, block.ff

    def add_temporal(self) -> None:
        """Put untrained temporal attention in."""
        channels: int = self.attn1.to_q.in_features
        self.norm_temporal = nn.LayerNorm(channels)
        self.attn_temporal = TemporalAttention(channels, self.attn1.heads)

    @staticmethod
    def takes(block: Any) -> bool:
        """Whether it can take the place of `block`."""
        plain = block.norm_type == "layer_norm" and block.attn2 is not None and block.pos_embed is None
        return plain and not block.only_cross_attention and isinstance(block.ff.net[0], GEGLU)

    def within_frames(self, x: Tensor, text: Tensor) -> Tensor:
        """(b f) p c, text (b, n, d) or (b f) n d -> (b f) p c."""
        x = _add(self.attn1(self.norm1(x)), x)
        return _add(self.attn2(self.norm2(x), encoder_hidden_states=text), x)

    def across_frames(self, x: Tensor, frames: int) -> Tensor:
        """(b f) p c -> (b f) p c."""
        assert self.norm_temporal is not None and self.attn_temporal is not None
        return _add(self.attn_temporal(self.norm_temporal(x), frames), x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """(b f) p c -> (b f) p c."""
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return self._feed_forward(x)
        # What lies between is eight times as large. In parts it stays in the processor's cache.
        rows = x.reshape(-1, x.shape[-1])
        some = max(_CACHED // (8 * x.shape[-1]), -(-len(rows) // _MOST_PARTS))
        if some >= len(rows):
            return self._feed_forward(x)
        return torch.cat([self._feed_forward(part) for part in rows.split(some)]).reshape(x.shape)

    def _feed_forward(self, x: Tensor) -> Tensor:
        project, _, out = self.ff.net
        return _add(out(geglu(project.proj(self.norm3(x)))), x)


class VideoUpsample(Unit):
    """diffusers' `Upsample2D`: nearest neighbours, then a convolution."""

    def __init__(self, upsample: Any, context: FrameContext) -> None:
        super().__init__(context)
        self.conv = SpatioTemporalConv(upsample.conv, context)

    @staticmethod
    def takes(upsample: Any) -> bool:
        """Whether it can take the place of `upsample`."""
        plain = upsample.use_conv and not upsample.use_conv_transpose and upsample.norm is None
        return plain and upsample.interpolate and upsample.name == "conv"

    def forward(self, x: Tensor, size: Any = None) -> Tensor:
        """(b f) c h w -> (b f) c h' w', twice as large, or as `size` (h', w') says."""
        return self.run((x,), size)

    def compute(self, x: Tensor, size: Any) -> Tensor:
        size = [2 * s for s in x.shape[-2:]] if size is None else size
        return self.conv.after_upsampling(x, list(size))


class VideoBlock(nn.Module):
    """Resnets, each followed by a transformer or none, and once there are such, by a motion module."""

    motion_modules: nn.ModuleList | None

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.has_cross_attention = hasattr(block, "attentions")
        if self.has_cross_attention:
            self.attentions = block.attentions
        self.resnets = block.resnets
        self.register_module("motion_modules", None)

    def add_temporal(self, groups: int, mode: GroupNormMode, context: FrameContext) -> None:
        """Put untrained motion modules in."""
        modules = (MotionModule(channels, groups, mode, context) for channels in self._channels())
        self.motion_modules = nn.ModuleList(modules)

    def _channels(self) -> list[int]:
        """Of the pictures at each place where there may be a motion module."""
        return [resnet.conv2.spatial_conv.out_channels for resnet in self.resnets]

    def after_resnet(self, index: int, x: Tensor, text: Tensor | None) -> Tensor:
        """(b f) c h w -> (b f) c h w."""
        if self.has_cross_attention:
            (x,) = self.attentions[index](x, text)
        return x if self.motion_modules is None else self.motion_modules[index](x)


class VideoDownBlock(VideoBlock):
    """diffusers' `CrossAttnDownBlock2D` and `DownBlock2D`."""

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        self.downsamplers = block.downsamplers

    def forward(
        self, hidden_states: Tensor, temb: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(b f) c h w -> (b f) c' h' w', and what is left for the way up."""
        x, left = hidden_states, []
        for index, resnet in enumerate(self.resnets):
            x = self.after_resnet(index, resnet(x, temb), encoder_hidden_states)
            left.append(x)
        for downsample in self.downsamplers or ():
            x = downsample(x)
            left.append(x)
        return x, tuple(left)


class VideoMidBlock(VideoBlock):
    """diffusers' `UNetMidBlock2DCrossAttn`, which begins with one resnet more."""

    def _channels(self) -> list[int]:
        return super()._channels()[1:]

    def forward(
        self, hidden_states: Tensor, temb: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """(b f) c h w -> (b f) c h w."""
        first, *others = self.resnets
        x = first(hidden_states, temb)
        for index, resnet in enumerate(others):
            x = resnet(self.after_resnet(index, x, encoder_hidden_states), temb)
        return x


class VideoUpBlock(VideoBlock):
    """diffusers' `CrossAttnUpBlock2D` and `UpBlock2D`, which concatenate outside of their resnets."""

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        self.upsamplers = block.upsamplers

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor,
        encoder_hidden_states: Tensor | None = None,
        upsample_size: Any = None,
        **_: Any,
    ) -> Tensor:
        """(b f) c h w and what the way down left, the last first -> (b f) c' h' w'."""
        x = hidden_states
        for index, (resnet, skip) in enumerate(zip(self.resnets, reversed(res_hidden_states_tuple), strict=True)):
            x = resnet(x, temb, skip)
            _let_go(skip)
            if not index:
                _let_go(hidden_states)
            x = self.after_resnet(index, x, encoder_hidden_states)
        for upsample in self.upsamplers or ():
            x = upsample(x, upsample_size)
        return x


def _let_go(x: Tensor) -> None:
    """Free the memory of a tensor that diffusers' forward, in sampling, holds on to and does not look at again."""
    if not torch.is_grad_enabled():
        x.data = x.new_empty(0)


def _add(new: Tensor, x: Tensor) -> Tensor:
    """new + x; in sampling, where nothing looks at `new` again, in its place."""
    return new + x if torch.is_grad_enabled() else new.add_(x)
