"""A training step and a denoising step against other ways of writing them, in turn, in one process.

    python tests/bench/step.py [--rounds 5] [--width 320] [--frames 8] [--latents 16]

At the size of Stable Diffusion 1.5, on small latents, in bfloat16, with random weights:

- image model: diffusers' own on the same frames, with the gradient of its input. This is the floor.
- 2022: diffusers' blocks with a temporal convolution after every convolution (frames moved last, `conv1d`, moved back)
  and temporal attention in every transformer block (turned, diffusers' own attention, turned back)
- motion model: diffusers' `UNetMotionModel.from_unet2d` with `freeze_unet2d_params`
- ours, and ours with its temporal layers off, which is the image model as it is computed here

A training step is forward and backward to the gradients of the temporal layers, image layers frozen, with neither
optimizer nor checkpointing; a denoising step is a forward pass without gradients. Prints the median of the seconds
(wall clock), of our seconds over each other's in the same round, and tera floating-point operations by torch's counter.
"""

import argparse
import copy
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from msdv.model.inflate import VideoUNet, inflate
from msdv.model.known import KNOWN

TOKENS = 77
OURS = "ours"


@dataclass
class Contender:
    """A model, and how it is called on clips (b, 4, f, h, w) with one text (b, n, d) a clip."""

    name: str
    model: nn.Module
    call: Callable[..., Tensor]
    input_gradient: bool = False

    def step(self, train: bool, clips: Tensor, timesteps: Tensor, text: Tensor) -> None:
        """One training step or one denoising step."""
        clips = clips.detach().requires_grad_(train and self.input_gradient)
        with torch.set_grad_enabled(train):
            prediction = self.call(self.model, clips, timesteps, text)
            if train:
                prediction.float().square().mean().backward()
        self.model.zero_grad(set_to_none=True)


class Conv2022(nn.Module):
    """A convolution within frames and one over frames."""

    def __init__(self, spatial: nn.Conv2d, frames: int) -> None:
        super().__init__()
        channels = spatial.out_channels
        self.spatial, self.frames = spatial, frames
        self.temporal = nn.Conv1d(channels, channels, 3, padding=1)
        nn.init.dirac_(self.temporal.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(b f) c h w -> (b f) c' h' w'."""
        x = self.spatial(x)
        n, c, h, w = x.shape
        x = x.unflatten(0, (-1, self.frames)).permute(0, 3, 4, 2, 1).reshape(-1, c, self.frames)  # (b h w) c f
        x = self.temporal(x)
        return x.view(-1, h, w, c, self.frames).permute(0, 4, 3, 1, 2).reshape(n, c, h, w)


class Block2022(nn.Module):
    """A transformer block with attention over frames before its feed-forward."""

    def __init__(self, block: BasicTransformerBlock, frames: int) -> None:
        super().__init__()
        width, heads = block.attn1.to_q.in_features, block.attn1.heads
        self.block, self.frames = block, frames
        self.norm_temporal = nn.LayerNorm(width)
        self.attn_temporal = Attention(width, heads=heads, dim_head=width // heads)

    def forward(self, x: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        """(b f) p c -> (b f) p c."""
        block = self.block
        x = block.attn1(block.norm1(x)) + x
        x = block.attn2(block.norm2(x), encoder_hidden_states=encoder_hidden_states) + x
        n, p, c = x.shape
        turned = self.norm_temporal(x).view(-1, self.frames, p, c).transpose(1, 2).reshape(-1, self.frames, c)
        x = self.attn_temporal(turned).view(-1, p, self.frames, c).transpose(1, 2).reshape(n, p, c) + x
        return block.ff(block.norm3(x)) + x


def as_in_2022(unet: Any, frames: int) -> Any:
    """The pseudo-3D model of 2022 from an image model, whose layers are frozen."""
    unet.requires_grad_(False)
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Conv2d) and ".proj_" not in name:
            unet.set_submodule(name, Conv2022(module, frames).to(module.weight.dtype))
        elif isinstance(module, BasicTransformerBlock):
            unet.set_submodule(name, Block2022(module, frames).to(module.norm1.weight.dtype))
    return unet


def of_pictures(model: Any, clips: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """An image model on the frames of clips, (b, 4, f, h, w) -> (b f) 4 h w."""
    f = clips.shape[2]
    pictures = clips.transpose(1, 2).flatten(0, 1)
    return model(pictures, timesteps.repeat_interleave(f), text.repeat_interleave(f, 0), return_dict=False)[0]


def of_clips(model: Any, clips: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """Diffusers' motion model, which wants a text a frame."""
    return model(clips, timesteps, text.repeat_interleave(clips.shape[2], 0), return_dict=False)[0]


def without_temporal_layers(model: VideoUNet, *inputs: Tensor) -> Tensor:
    """Our image model on clips."""
    with model.temporal_layers_off():
        return model(*inputs)


def filled(model: Any, dtype: torch.dtype) -> Any:
    """A model made on torch's meta device: small random weights, and norms that let everything through."""
    model.to(dtype).to_empty(device="cpu").eval()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) or name == "bias":
                nn.init.constant_(parameter, float(name == "weight"))
            else:
                nn.init.uniform_(parameter, -0.02, 0.02)
        for buffer in module.buffers(recurse=False):
            buffer.zero_()
    return model


def contenders(config: dict[str, Any], frames: int, dtype: torch.dtype) -> list[Contender]:
    """All of them, with layers of the same sizes."""
    with torch.device("meta"):
        image = UNet2DConditionModel(**config)
        adapter = MotionAdapter(block_out_channels=config["block_out_channels"], motion_max_seq_length=max(32, frames))
        motion = UNetMotionModel.from_unet2d(image, adapter, load_weights=False)
    image, motion = filled(image, dtype), filled(motion, dtype)
    motion.freeze_unet2d_params()
    then, ours = as_in_2022(copy.deepcopy(image), frames), inflate(copy.deepcopy(image), channels_last=True)
    image.requires_grad_(False)
    return [
        Contender(OURS, ours, lambda model, *inputs: model(*inputs)),
        Contender("ours, layers off", ours, without_temporal_layers, input_gradient=True),
        Contender("image model", image, of_pictures, input_gradient=True),
        Contender("2022", then, of_pictures),
        Contender("motion model", motion, of_clips),
    ]


def measure(entries: Sequence[Contender], train: bool, rounds: int, *inputs: Tensor) -> None:
    """Print a table of one kind of step."""
    operations: dict[str, int] = {}
    seconds: dict[str, list[float]] = {entry.name: [] for entry in entries}
    for entry in entries:
        with FlopCounterMode(display=False) as counter:
            entry.step(train, *inputs)
        operations[entry.name] = counter.get_total_flops()
    for _ in range(rounds):
        for entry in entries:
            started = time.perf_counter()
            entry.step(train, *inputs)
            seconds[entry.name].append(time.perf_counter() - started)
    ours = seconds[OURS]
    print(f"{'training' if train else 'denoising'} step: seconds, TFLOP; ours / this: time, operations")
    for name, times in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(ours, times, strict=True))
        work = operations[OURS] / operations[name]
        row = f"{statistics.median(times):7.3f} {operations[name] / 1e12:7.3f}    {ratio:.3f} {work:.3f}"
        print(f"  {name:18}{row}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=320, help="channels of the first block, a multiple of 32")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--latents", type=int, default=16, help="height and width")
    given = parser.parse_args(arguments)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    config = KNOWN["sd-1.5"].unet | {"block_out_channels": tuple(given.width * factor for factor in (1, 2, 4, 4))}
    dtype = torch.bfloat16
    clips = torch.randn(1, 4, given.frames, given.latents, given.latents).to(dtype)
    text = torch.randn(1, TOKENS, config["cross_attention_dim"]).to(dtype)
    entries = contenders(config, given.frames, dtype)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    for train in (True, False):
        measure(entries, train, given.rounds, clips, torch.tensor([500]), text)


if __name__ == "__main__":
    main()
