"""Motion modules as other programs have them: AnimateDiff's files and diffusers' `MotionAdapter` folders.

Under diffusers' names, which are msdv's, a module is `down_blocks.0.motion_modules.1.transformer_blocks.0.attn1...`;
AnimateDiff calls the same thing `....temporal_transformer.transformer_blocks.0.attention_blocks.0...`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from msdv.errors import MsdvError
from msdv.tensors import TensorFile, read_json

_T = TypeVar("_T")
# In what they are called for, after the name of the module.
_TO_ANIMATEDIFF = (
    (".attn1.", ".attention_blocks.0."),
    (".attn2.", ".attention_blocks.1."),
    (".norm1.", ".norms.0."),
    (".norm2.", ".norms.1."),
    (".norm3.", ".ff_norm."),
)
_MODULE = re.compile(r"(.*?\.?motion_modules\.\d+)\.(.*)")
_ENCODING = re.compile(r"\.(pos_encoder|pos_embed)\.pe$")
HEADS = 8
"""Of the attention, in every published motion module."""
MOST_FRAMES = 32
"""Positions in the encoding of published modules, by which readers tell v2 and v3: v1 has 24."""
_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.motion_modules\.(\d+)\.|mid_block\.motion_modules\.0\.")
# The tensors of a module, with what their shapes are in channels of the module.
_PARTS: dict[str, tuple[int, ...]] = {
    "norm.weight": (1,),
    "norm.bias": (1,),
    "proj_in.weight": (1, 1),
    "proj_in.bias": (1,),
    **{f"transformer_blocks.0.norm{n}.{part}": (1,) for n in (1, 2, 3) for part in ("weight", "bias")},
    **{f"transformer_blocks.0.attn{n}.to_{part}.weight": (1, 1) for n in (1, 2) for part in ("q", "k", "v", "out.0")},
    **{f"transformer_blocks.0.attn{n}.to_out.0.bias": (1,) for n in (1, 2)},
    "transformer_blocks.0.ff.net.0.proj.weight": (8, 1),
    "transformer_blocks.0.ff.net.0.proj.bias": (8,),
    "transformer_blocks.0.ff.net.2.weight": (1, 4),
    "transformer_blocks.0.ff.net.2.bias": (1,),
    "proj_out.weight": (1, 1),
    "proj_out.bias": (1,),
}
_SDXL = [320, 640, 1280]
_ADAPTER_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
)


@dataclass
class MotionFile:
    """Motion modules from elsewhere."""

    file: TensorFile
    keys: list[str]
    """Theirs in the file."""
    kind: str
    """What they are, in words."""

    @property
    def header(self) -> dict[str, str]:
        """What the file says besides."""
        return self.file.metadata

    @property
    def mid_block(self) -> bool:
        """Whether there is one in the middle of the network."""
        return any("mid_block." in key for key in self.keys)

    def read(self) -> dict[str, Tensor]:
        """The weights under diffusers' names, without encodings of positions, which are computed."""
        return from_animatediff(self.file.read(self.keys))


def to_animatediff(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Motion modules under diffusers' names -> under AnimateDiff's, in float16, with the encodings of positions that
    readers ask for."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        new = _theirs(key)
        renamed[new] = tensor.detach().to("cpu", torch.float16).contiguous()
        if new.endswith(".to_q.weight"):
            renamed[new.replace("to_q.weight", "pos_encoder.pe")] = encode_positions(tensor.shape[1]).half()
    return renamed


def from_animatediff(state: Mapping[str, _T]) -> dict[str, _T]:
    """The inverse; names that are diffusers' already stay. What is no motion module, and what trainers put before the
    names, is left out."""
    renamed: dict[str, _T] = {}
    for key, tensor in state.items():
        if "motion_modules." not in key or _ENCODING.search(key):
            continue
        new = re.sub(r"^(module\.|unet\.)+", "", key).replace(".temporal_transformer.", ".")
        for ours, theirs in _TO_ANIMATEDIFF:
            new = new.replace(theirs, ours)
        renamed[new] = tensor
    return renamed


def encode_positions(channels: int) -> Tensor:
    """(1, 32, channels): sines and cosines (Vaswani et al. 2017, 1706.03762, section 3.5)."""
    position = torch.arange(MOST_FRAMES).unsqueeze(1)
    rate = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    encoding = torch.zeros(1, MOST_FRAMES, channels)
    encoding[0, :, 0::2] = torch.sin(position * rate)
    encoding[0, :, 1::2] = torch.cos(position * rate)
    return encoding


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder is one that diffusers' `MotionAdapter.save_pretrained` wrote."""
    config = path / "config.json"
    return config.is_file() and str(read_json(config).get("_class_name")) == "MotionAdapter"


def read_motion_file(path: Path) -> MotionFile | None:
    """Motion modules from an AnimateDiff file, v1, v2 or v3, or a `MotionAdapter` folder; None for something else.

    Raises UsageError if there is no such file, MsdvError if it can't be read or its modules are of another kind.
    """
    folder = path.is_dir()
    if folder and not is_adapter_folder(path):
        return None
    if folder:
        path = _weights_of_adapter(path)
    file = TensorFile(path)
    keys = [key for key in file.shapes if "motion_modules." in key]
    if not keys:
        return None
    if any("lora" in key for key in keys):
        raise MsdvError(f"{path} is a motion LoRA, which changes motion modules: give the motion modules themselves")
    check_modules({key: file.shapes[key] for key in keys}, path, ours=any(k.startswith("msdv.") for k in file.metadata))
    kind = "a diffusers motion adapter" if folder else f"AnimateDiff {version_of(file.shapes)}"
    return MotionFile(file, keys, kind)


def check_modules(shapes: Mapping[str, tuple[int, ...]], path: Path, *, ours: bool) -> None:
    """Raise MsdvError unless these are motion modules of all blocks of a UNet, each complete; `ours`: written by msdv,
    so for an image model that it can use. Names are diffusers' or AnimateDiff's."""
    own = from_animatediff(shapes)
    named = from_animatediff({key: key for key in shapes})
    blocks: dict[str, set[tuple[int, int]]] = {"down_blocks": set(), "up_blocks": set()}
    modules: dict[str, tuple[int, ...]] = {}
    for key in own:
        match = _BLOCK.match(key)
        if match is None:
            raise MsdvError(
                f"{path} has {named[key]}, which is none of AnimateDiff's motion modules: take another file"
            )
        if match[1]:
            blocks[match[1]].add((int(match[2]), int(match[3])))
        else:
            modules["mid_block.motion_modules.0"] = ()
    count = 1 + max((block for found in blocks.values() for block, _ in found), default=0)
    layers = 1 + max(
        max((layer for _, layer in blocks["down_blocks"]), default=0),
        max((layer for _, layer in blocks["up_blocks"]), default=1) - 1,
    )
    for kind, more in (("down_blocks", 0), ("up_blocks", 1)):
        modules |= {f"{kind}.{n}.motion_modules.{m}": () for n in range(count) for m in range(layers + more)}
    wanted = {f"{module}.{part}": shape for module in modules for part, shape in _PARTS.items()}
    theirs = any(".temporal_transformer." in key for key in shapes) or not any(".attn1." in key for key in shapes)
    for key in wanted:
        if key not in own:
            name = _theirs(key) if theirs else key
            raise MsdvError(
                f"{path} has no {name}: the motion modules are incomplete or of another kind: take another file"
            )
    for key in own:
        if key not in wanted:
            raise MsdvError(f"{path} has {named[key]}, which msdv's motion modules don't have: take another file")
    down = [own[f"down_blocks.{n}.motion_modules.0.norm.weight"][0] for n in range(count)]
    for key, factors in wanted.items():
        kind, number = key.split(".")[:2]
        channels = (
            down[-1] if kind == "mid_block" else down[int(number)] if kind == "down_blocks" else down[-1 - int(number)]
        )
        shape = tuple(factor * channels for factor in factors)
        if tuple(own[key]) != shape:
            raise MsdvError(f"{path}: {named[key]} is {tuple(own[key])}, not {shape}: take another file")
    if down == _SDXL and not ours:
        raise MsdvError(f"{path} holds motion modules for Stable Diffusion XL: take those for Stable Diffusion 1.5")


def version_of(shapes: Mapping[str, Iterable[int]]) -> str:
    """`v1`, `v2` or `v3`, as readers tell them apart: by a module in the middle, and the number of positions."""
    if any("mid_block." in key for key in shapes):
        return "v2"
    positions = next((tuple(shape)[1] for key, shape in shapes.items() if _ENCODING.search(key)), MOST_FRAMES)
    return "v3" if positions == MOST_FRAMES else "v1"


def _weights_of_adapter(folder: Path) -> Path:
    heads = read_json(folder / "config.json").get("motion_num_attention_heads", HEADS)
    if heads != HEADS:
        raise MsdvError(f"{folder} has {heads} attention heads ({HEADS} wanted): take another motion adapter")
    for name in _ADAPTER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise MsdvError(f"{folder} has no {_ADAPTER_FILES[0]}: take a complete copy of the motion adapter")


def _theirs(key: str) -> str:
    """AnimateDiff's name."""
    match = _MODULE.fullmatch(key)
    assert match is not None, key
    new = f"{match[1]}.temporal_transformer.{match[2]}"
    for ours, theirs in _TO_ANIMATEDIFF:
        new = new.replace(ours, theirs)
    return new
