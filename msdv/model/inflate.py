"""A frozen image UNet becomes a video UNet: convolutions, group norms and transformer blocks are replaced in place.

Here, and only here, the number of frames reaches the temporal layers: `VideoUNet.forward` reads it off its input and
sets the `FrameContext` that all of them share.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from msdv.config import GroupNormMode
from msdv.errors import MsdvError
from msdv.model.attention import set_spatial_attention
from msdv.model.layers import FrameContext, SpatioTemporalConv, VideoGroupNorm, VideoTransformerBlock

TEMPORAL_PARTS = (".temporal_conv.", ".attn_temporal.", ".norm_temporal.")


def is_temporal(key: str) -> bool:
    """Whether a parameter name of a video UNet belongs to a temporal layer."""
    return any(part in f".{key}" for part in TEMPORAL_PARTS)


def spatial_key(key: str) -> str:
    """The name that a spatial parameter of a video UNet has in diffusers' `UNet2DConditionModel`."""
    return key.replace(".spatial_conv.", ".")


class VideoUNet(nn.Module):
    """An image UNet with temporal layers. Spatial parameters are frozen, temporal ones trainable.

    `unet.state_dict()` has the names of the 2022 model: those of `UNet2DConditionModel` with `.spatial_conv` where a
    temporal convolution follows, and the temporal ones.
    """

    def __init__(self, unet: Any, context: FrameContext, group_norm: GroupNormMode, channels_last: bool) -> None:
        super().__init__()
        self.unet = unet
        self.group_norm = group_norm
        self._context = context
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def config(self) -> Any:
        """The configuration of the image UNet."""
        return self.unet.config

    def forward(self, sample: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """One prediction for whole clips.

        sample (b, c, f, h, w); timesteps () or (b,); encoder_hidden_states (b, n, d), one text a clip, or
        (b, f, n, d), one a frame -> (b, 4, f, h, w).
        """
        b, c, f, h, w = sample.shape
        self._context.frames = f
        frames = sample.transpose(1, 2).reshape(b * f, c, h, w).contiguous(memory_format=self._format)
        timesteps = timesteps.expand(b).repeat_interleave(f)
        if encoder_hidden_states.ndim == 4:
            encoder_hidden_states = encoder_hidden_states.flatten(0, 1)
        out = self.unet(frames, timesteps, encoder_hidden_states, return_dict=False)[0]
        return out.reshape(b, f, -1, h, w).transpose(1, 2)

    @contextmanager
    def temporal_layers_off(self) -> Iterator[None]:
        """Inside the block the model is the image model, frame by frame."""
        self._context.enabled = False
        try:
            yield
        finally:
            self._context.enabled = True

    def temporal_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the temporal layers by name, in the model's order."""
        return {k: p for k, p in self.unet.named_parameters() if is_temporal(k)}

    def load_temporal(self, state: Mapping[str, Tensor]) -> None:
        """Copy temporal weights into the model, in its precision and on its device.

        Raises MsdvError naming keys that are missing, unknown or of another shape.
        """
        own = self.temporal_parameters()
        problems = [f"{k} is missing" for k in own if k not in state]
        problems += [f"{k} is unknown" for k in state if k not in own]
        problems += [
            f"{k} is {tuple(state[k].shape)}, not {tuple(p.shape)}"
            for k, p in own.items()
            if k in state and state[k].shape != p.shape
        ]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise MsdvError(
                f"these temporal weights are of another image model: {'; '.join(problems[:3])}{more}: "
                "use the --base that they were trained on"
            )
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(state[key])


def inflate(unet: Any, group_norm: GroupNormMode = "frame", *, channels_last: bool = False) -> VideoUNet:
    """Put untrained temporal layers into a diffusers `UNet2DConditionModel` of Stable Diffusion 1.x/2.x shape.

    The UNet given is changed in place and frozen. Until trained, the result equals the image model frame by frame.
    Raises MsdvError if the UNet is of a shape that Stable Diffusion 1.x and 2.x don't have.
    """
    context = FrameContext()
    reference = next(unet.parameters())
    unet.requires_grad_(False)
    for name, parent, attribute, module in _replaceable(unet):
        new: nn.Module
        if isinstance(module, BasicTransformerBlock):
            _check_block(name, module)
            new = VideoTransformerBlock(module, context)
        elif isinstance(module, nn.GroupNorm):
            new = VideoGroupNorm(module, group_norm, context)
        else:
            assert isinstance(module, nn.Conv2d)
            new = SpatioTemporalConv(module, context)
        if isinstance(parent, nn.ModuleList):
            parent[int(attribute)] = new
        else:
            setattr(parent, attribute, new)
    set_spatial_attention(unet)
    for key, parameter in unet.named_parameters():
        if is_temporal(key):
            parameter.data = parameter.data.to(reference.device, reference.dtype)
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    return VideoUNet(unet.eval(), context, group_norm, channels_last)


def _replaceable(unet: Any) -> list[tuple[str, nn.Module, str, nn.Module]]:
    """Every module that gets a temporal counterpart: (name, parent, attribute, module).

    Convolutions: all but the 1x1 `proj_in`/`proj_out` around transformer blocks. Group norms: those of the resnets and
    the last one; in front of the transformers they are per frame in every mode.
    """
    found = []
    for name, module in unet.named_modules():
        parent_name, _, attribute = name.rpartition(".")
        parent = unet.get_submodule(parent_name)
        convolution = isinstance(module, nn.Conv2d) and attribute not in ("proj_in", "proj_out")
        norm = isinstance(module, nn.GroupNorm) and (isinstance(parent, ResnetBlock2D) or parent is unet)
        if convolution or norm or isinstance(module, BasicTransformerBlock):
            found.append((name, parent, attribute, module))
    return found


def _check_block(name: str, block: Any) -> None:
    plain = block.norm_type == "layer_norm" and block.attn2 is not None and block.pos_embed is None
    if not plain or block.only_cross_attention:
        raise MsdvError(
            f"{name} of this UNet is not a transformer block of Stable Diffusion 1.x or 2.x: "
            "choose such a model with --base"
        )
