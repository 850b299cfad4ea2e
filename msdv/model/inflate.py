"""A frozen image UNet becomes a video UNet: convolutions, group norms and transformer blocks are replaced in place.

Here, and only here, the number of frames reaches the temporal layers: `VideoUNet.forward` reads it off its input and
sets the `FrameContext` that all of them share.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from msdv.config import GroupNormMode
from msdv.errors import MsdvError
from msdv.model.attention import set_spatial_attention
from msdv.model.blocks import VideoResnet, VideoTransformer, VideoUpBlock, VideoUpsample
from msdv.model.checkpointing import Unit
from msdv.model.frames import FrameContext
from msdv.model.layers import SpatioTemporalConv, VideoNormSilu
from msdv.model.savings import Savings
from msdv.model.stores import OnDevice, OnHost, Store
from msdv.model.streaming import WeightStream

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
        self.savings = Savings()
        self._stream: WeightStream | None = None
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

    def units(self) -> dict[str, Unit]:
        """The parts that can be checkpointed, by name, in the order of execution."""
        found = {k: m for k, m in self.unet.named_modules() if isinstance(m, Unit)}
        # A convolution is one by itself where it starts from something smaller, and else a part of one.
        names = [k for k, m in found.items() if k == "conv_in" or not isinstance(m, SpatioTemporalConv)]
        return {k: found[k] for k in sorted(names, key=_execution_order)}

    def save_memory(self, savings: Savings) -> None:
        """From the next forward pass on, trade time for memory as `savings` says.

        Raises ValueError for names that are not units'.
        """
        units = self.units()
        everything = savings.checkpoint == "full" or savings.stream_weights
        names = set(units if everything else () if savings.checkpoint == "none" else savings.checkpoint)
        if unknown := names - set(units):
            raise ValueError(f"not units of this model: {', '.join(sorted(unknown))}")
        store: Store = OnHost() if savings.host_checkpoints else OnDevice()
        for name, unit in units.items():
            unit.store = store if name in names else None
        self._context.chunk = savings.chunk_frames
        if savings.stream_weights != self.savings.stream_weights:
            # But for the first one, small, by which others know where the model is.
            self._stream_weights(list(units.values())[1:], savings.stream_weights)
        self.savings = savings

    def _stream_weights(self, units: list[Unit], on: bool) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = WeightStream(units) if on else None
        for unit in units:
            unit.stream = self._stream

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
    if not isinstance(unet.conv_act, nn.SiLU):
        raise _not_stable_diffusion("the last activation")
    for block in unet.up_blocks:
        if not isinstance(block, (UpBlock2D, CrossAttnUpBlock2D)):
            raise _not_stable_diffusion(type(block).__name__)
    for name, module in list(unet.named_modules()):
        new = _counterpart(name, module, group_norm, context)
        if new is not None:
            unet.set_submodule(name, new)
    unet.conv_act = nn.Identity()
    unet.up_blocks = nn.ModuleList(VideoUpBlock(block) for block in unet.up_blocks)
    set_spatial_attention(unet)
    for key, parameter in unet.named_parameters():
        if is_temporal(key):
            parameter.data = parameter.data.to(reference.device, reference.dtype)
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    return VideoUNet(unet.eval(), context, group_norm, channels_last)


def _execution_order(name: str) -> tuple[int, ...]:
    """Where a unit comes in a forward pass."""
    whole, *rest = name.split(".")
    if not rest:
        return (0,)
    block = ("down_blocks", "mid_block", "up_blocks").index(whole) + 1
    number, (kind, index) = (int(rest.pop(0)) if whole != "mid_block" else 0), rest
    return block, number, int(kind == "upsamplers"), int(index), int(kind == "attentions")


def _counterpart(name: str, module: nn.Module, group_norm: GroupNormMode, context: FrameContext) -> nn.Module | None:
    """What takes the place of a module of the image UNet; None for nothing. Parts go with the whole."""
    if name == "conv_norm_out":
        assert isinstance(module, nn.GroupNorm)
        return VideoNormSilu(module, group_norm, context)
    if name in ("conv_in", "conv_out") or (isinstance(module, nn.Conv2d) and ".downsamplers." in name):
        assert isinstance(module, nn.Conv2d)
        return SpatioTemporalConv(module, context)
    if isinstance(module, ResnetBlock2D) and VideoResnet.takes(module):
        return VideoResnet(module, group_norm, context)
    if isinstance(module, Transformer2DModel) and VideoTransformer.takes(module):
        return VideoTransformer(module, context)
    if isinstance(module, Upsample2D) and VideoUpsample.takes(module):
        return VideoUpsample(module, context)
    if isinstance(module, (ResnetBlock2D, Transformer2DModel, Upsample2D)):
        raise _not_stable_diffusion(name)
    return None


def _not_stable_diffusion(name: str) -> MsdvError:
    return MsdvError(f"{name} of this UNet is not as in Stable Diffusion 1.x or 2.x: choose such a model with --base")
