"""Motion modules: the temporal layers of AnimateDiff (Guo et al. 2023, arXiv:2307.04725), diffusers' own, as units of a
video UNet."""

import functools

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from msdv.config import GroupNormMode
from msdv.foreign import HEADS, MOST_FRAMES
from msdv.model.checkpointing import Unit
from msdv.model.chunks import by_positions, memory_format
from msdv.model.frames import FrameContext


class MotionModule(Unit):
    """A transformer over the frames at each position, whose result is added to the pictures; nothing until trained.

    Takes over the layers of diffusers' `AnimateDiffTransformer3D`, whose names stay, and computes what that computes.
    The positions of frames are encoded by sines, which are not trained.
    """

    def __init__(self, channels: int, groups: int, mode: GroupNormMode, context: FrameContext) -> None:
        """mode: statistics of the norm at the beginning, `joint` over all frames of a clip as diffusers and ComfyUI
        compute them, or of each `frame` as the original code does."""
        super().__init__(context)
        module = AnimateDiffTransformer3D(
            num_attention_heads=HEADS,
            attention_head_dim=channels // HEADS,
            in_channels=channels,
            norm_num_groups=groups,
            positional_embeddings="sinusoidal",
            num_positional_embeddings=MOST_FRAMES,
        )
        nn.init.zeros_(module.proj_out.weight)
        nn.init.zeros_(module.proj_out.bias)
        self.mode = mode
        self.norm, self.proj_in = module.norm, module.proj_in
        self.transformer_blocks, self.proj_out = module.transformer_blocks, module.proj_out

    def forward(self, x: Tensor) -> Tensor:
        """(b f) c h w -> (b f) c h w."""
        return self.run((x,)) if self.context.enabled else x

    def compute(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        trained = [p for name, p in self.named_parameters() if not name.startswith("norm.")]
        across = functools.partial(self._across_frames, frames=self.context.frames)
        tokens = by_positions(across, self._normalized(x).flatten(1, 2), self.context.parts, trained)
        out = tokens.view(n, h, w, c).permute(0, 3, 1, 2).contiguous(memory_format=memory_format(x))
        return out + x if torch.is_grad_enabled() else out.add_(x)

    def _normalized(self, x: Tensor) -> Tensor:
        """(b f) c h w -> (b f) h w c."""
        # In channels-last memory and on a CPU, torch's norm dies where its weights have a gradient, its input none.
        if self.mode == "frame":
            return self.norm(x.contiguous()).permute(0, 2, 3, 1).contiguous()
        clips = x.unflatten(0, (-1, self.context.frames)).transpose(1, 2)  # b c f h w
        return self.norm(clips.contiguous()).permute(0, 2, 3, 4, 1).flatten(0, 1).contiguous()

    def _across_frames(self, x: Tensor, frames: int) -> Tensor:
        """(b f) p c -> (b f) p c."""
        n, p, c = x.shape
        x = x.reshape(-1, frames, p, c).transpose(1, 2).reshape(-1, frames, c)
        x = self.proj_in(x)
        for block in self.transformer_blocks:
            x = block(x)
        return self.proj_out(x).view(-1, p, frames, c).transpose(1, 2).reshape(n, p, c)
