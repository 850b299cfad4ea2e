"""A frozen image UNet becomes a video UNet: its parts get counterparts that know of frames, and then an architecture
puts its temporal layers into them: the pseudo-3D layers of Make-A-Video, or AnimateDiff's motion modules.

Here, and only here, the number of frames reaches the temporal layers: `VideoUNet.forward` reads it off its input and
sets the `FrameContext` that all of them share.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from msdv.config import Arch, GroupNormMode
from msdv.errors import MsdvError, UsageError
from msdv.foreign import HEADS, MOST_FRAMES
from msdv.model.attention import set_spatial_attention
from msdv.model.blocks import (
    VideoBlock,
    VideoDownBlock,
    VideoMidBlock,
    VideoResnet,
    VideoTransformer,
    VideoTransformerBlock,
    VideoUpBlock,
    VideoUpsample,
)
from msdv.model.checkpointing import Unit
from msdv.model.frames import FrameContext
from msdv.model.layers import SpatioTemporalConv, VideoNormSilu
from msdv.model.savings import Savings
from msdv.model.stores import OnDevice, OnHost, Store
from msdv.model.streaming import WeightStream

TEMPORAL_PARTS = (".temporal_conv.", ".attn_temporal.", ".norm_temporal.", ".motion_modules.")
DEFAULT_GROUP_NORM: dict[Arch, GroupNormMode] = {"pseudo3d": "frame", "motion-module": "joint"}
"""Of the image model's group norms with pseudo-3D layers, of their own with motion modules."""
_BLOCKS = {
    CrossAttnDownBlock2D: VideoDownBlock,
    DownBlock2D: VideoDownBlock,
    UNetMidBlock2DCrossAttn: VideoMidBlock,
    CrossAttnUpBlock2D: VideoUpBlock,
    UpBlock2D: VideoUpBlock,
}


def is_temporal(key: str) -> bool:
    """Whether a parameter name of a video UNet belongs to a temporal layer."""
    return any(part in f".{key}" for part in TEMPORAL_PARTS)


def is_lora(key: str) -> bool:
    """Whether a parameter name of a video UNet belongs to a LoRA trained beside the temporal layers."""
    return ".lora_A." in key or ".lora_B." in key


def spatial_key(key: str) -> str:
    """The name that a spatial parameter of a video UNet has in diffusers' `UNet2DConditionModel`."""
    return key.replace(".spatial_conv.", ".")


class VideoUNet(nn.Module):
    """An image UNet with temporal layers. Spatial parameters are frozen, temporal ones trainable.

    With pseudo-3D layers `unet.state_dict()` has the names of the 2022 model: those of `UNet2DConditionModel` with
    `.spatial_conv` where a temporal convolution follows, and the temporal ones. Motion modules have the names that they
    have in diffusers' `MotionAdapter`.
    """

    def __init__(
        self, unet: Any, context: FrameContext, arch: Arch, group_norm: GroupNormMode, channels_last: bool
    ) -> None:
        super().__init__()
        self.unet = unet
        self.arch = arch
        self.group_norm = group_norm
        self.savings = Savings()
        self._stream: WeightStream | None = None
        self._context = context
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def config(self) -> Any:
        """The configuration of the image UNet."""
        return self.unet.config

    @property
    def frame_context(self) -> FrameContext:
        """What all parts share that know of frames."""
        return self._context

    @property
    def mid_block(self) -> bool:
        """Whether there is a motion module in the middle of the network too."""
        return self.unet.mid_block.motion_modules is not None

    def forward(self, sample: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """One prediction for whole clips.

        sample (b, c, f, h, w); timesteps (), (b,) or, one a frame, (b, f); encoder_hidden_states (b, n, d), one text a
        clip, or (b, f, n, d), one a frame -> (b, 4, f, h, w). Raises UsageError for more frames than it can see at
        once.
        """
        b, c, f, h, w = sample.shape
        check_frames(f, self.arch)
        self._context.frames = f
        frames = sample.transpose(1, 2).reshape(b * f, c, h, w).contiguous(memory_format=self._format)
        timesteps = timesteps.flatten() if timesteps.ndim == 2 else timesteps.expand(b).repeat_interleave(f)
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
            # But for the first one, small, by which others know where the model is, and those that are all trained.
            frozen = [u for u in units.values() if not all(p.requires_grad for p in u.parameters())]
            self._stream_weights(frozen[1:], savings.stream_weights)
        self.savings = savings

    def rest(self) -> None:
        """Leave nothing on the device of what comes there only to compute."""
        if self._stream is not None:
            self._stream.rest()

    def _stream_weights(self, units: list[Unit], on: bool) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = WeightStream(units) if on else None
        for unit in units:
            unit.stream = self._stream

    @contextmanager
    def temporal_layers_off(self) -> Iterator[None]:
        """Inside the block the model is the image model, frame by frame, without a LoRA trained beside the layers."""
        self._context.enabled = False
        try:
            yield
        finally:
            self._context.enabled = True

    def temporal_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the temporal layers by name, in the model's order."""
        return {k: p for k, p in self.unet.named_parameters() if is_temporal(k)}

    def lora_parameters(self) -> dict[str, nn.Parameter]:
        """Those of a LoRA that is trained beside them, likewise; none without one (see trained_lora.py)."""
        return {k: p for k, p in self.unet.named_parameters() if is_lora(k)}

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All that is trained: the temporal layers' first."""
        return {**self.temporal_parameters(), **self.lora_parameters()}

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


def most_frames_of(arch: Arch) -> int | None:
    """How many frames an architecture can see at once; None for any number."""
    return MOST_FRAMES if arch == "motion-module" else None


def check_frames(frames: int, arch: Arch) -> None:
    """Raise UsageError for more frames than an architecture can see at once."""
    most = most_frames_of(arch)
    if most and frames > most:
        raise UsageError(
            f"{frames} frames at once: motion modules see no more than {most}: train with fewer --frames; sample "
            "longer videos with --window 16"
        )


def inflate(
    unet: Any,
    group_norm: GroupNormMode | None = None,
    *,
    arch: Arch = "pseudo3d",
    mid_block: bool = False,
    channels_last: bool = False,
) -> VideoUNet:
    """Put untrained temporal layers into a diffusers `UNet2DConditionModel` of Stable Diffusion 1.x/2.x shape.

    `mid_block`, for motion modules: one in the middle too, as AnimateDiff v2 has it and v1 and v3 don't. `group_norm`
    not given: `DEFAULT_GROUP_NORM`. The UNet given is changed in place and frozen. Until trained, the result equals the
    image model frame by frame. Raises MsdvError if the UNet is of a shape that Stable Diffusion 1.x and 2.x don't have.
    """
    context, group_norm = FrameContext(), group_norm or DEFAULT_GROUP_NORM[arch]
    reference = next(unet.parameters())
    unet.requires_grad_(False)
    if not isinstance(unet.conv_act, nn.SiLU):
        raise _not_stable_diffusion("the last activation")
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        if type(block) not in _BLOCKS:
            raise _not_stable_diffusion(type(block).__name__)
    # Motion modules leave the image model's own norms as they are.
    of_pictures: GroupNormMode = group_norm if arch == "pseudo3d" else "frame"
    for name, module in list(unet.named_modules()):
        new = _counterpart(name, module, of_pictures, context)
        if new is not None:
            unet.set_submodule(name, new)
    unet.conv_act = nn.Identity()
    for name, block in list(unet.named_modules()):
        if type(block) in _BLOCKS:
            unet.set_submodule(name, _BLOCKS[type(block)](block))
    _ADD_TEMPORAL[arch](unet, group_norm, mid_block, context)
    set_spatial_attention(unet)
    for key, tensor in (*unet.named_parameters(), *unet.named_buffers()):
        if is_temporal(key):
            tensor.data = tensor.data.to(reference.device, reference.dtype)
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    return VideoUNet(unet.eval(), context, arch, group_norm, channels_last)


def _add_pseudo3d(unet: Any, group_norm: GroupNormMode, mid_block: bool, context: FrameContext) -> None:
    """A convolution over frames after each convolution, and attention over frames in each transformer."""
    for module in unet.modules():
        if isinstance(module, (SpatioTemporalConv, VideoTransformerBlock)):
            module.add_temporal()


def _add_motion_modules(unet: Any, group_norm: GroupNormMode, mid_block: bool, context: FrameContext) -> None:
    """A motion module after each resnet on the way down and up, and its transformer if it has one."""
    if any(channels % HEADS for channels in unet.config.block_out_channels):
        raise _not_stable_diffusion("the number of channels")
    for block in unet.modules():
        if isinstance(block, VideoBlock) and (mid_block or not isinstance(block, VideoMidBlock)):
            block.add_temporal(unet.config.norm_num_groups, group_norm, context)


_ADD_TEMPORAL: dict[Arch, Callable[[Any, GroupNormMode, bool, FrameContext], None]] = {
    "pseudo3d": _add_pseudo3d,
    "motion-module": _add_motion_modules,
}


def _execution_order(name: str) -> tuple[int, ...]:
    """Where a unit comes in a forward pass."""
    whole, *rest = name.split(".")
    if not rest:
        return (0,)
    block = ("down_blocks", "mid_block", "up_blocks").index(whole) + 1
    number, (kind, index) = (int(rest.pop(0)) if whole != "mid_block" else 0), rest
    layers = ("resnets", "attentions", "motion_modules")
    return block, number, int(kind not in layers), int(index), layers.index(kind) if kind in layers else 0


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
