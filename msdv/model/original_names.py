"""Tensor names of the original latent-diffusion code -> diffusers' names, and the configuration that shapes imply.

Nothing is looked up by model: depth, widths and the kind of attention are read off the tensors, so that a file of any
size loads. What tensors can't tell (heads, normalisation groups) follows the original's constants.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from torch import Tensor

from msdv.errors import MsdvError

Shapes = Mapping[str, tuple[int, ...]]

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OPEN_CLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
# Stable Diffusion 2 reads OpenCLIP ViT-H, 24 layers, after the last but one.
_VIT_H_USED_LAYERS = 23


@dataclass(frozen=True)
class Layout:
    """What a state dict turned out to be: the configuration of the diffusers or transformers class, old name -> new
    name for all tensors that belong to it, and what had to be assumed."""

    config: dict[str, Any]
    names: dict[str, str]
    assumed: tuple[str, ...] = ()


class _MissingTensorError(MsdvError):
    pass


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise _MissingTensorError(f"lacks the tensor {key}: take a complete copy of the model")
    return shapes[key]


def read_unet(shapes: Shapes, *, heads: int | None = None, head_channels: int | None = None) -> Layout:
    """The UNet from its tensors' shapes (names without `model.diffusion_model.`).

    `heads` or `head_channels` overrule what is assumed: 8 heads with 1x1 convolutions around the attention (1.x), heads
    of 64 channels with linear layers there (2.x).

    Raises:
        MsdvError: when a tensor is missing or the layout is another one.
    """
    modules = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    channels: list[int] = [0]
    layers: list[int] = [0]
    attention: list[bool] = [False]
    for number in range(1, _count(shapes, "input_blocks")):
        old = f"input_blocks.{number}"
        block = len(channels) - 1
        if f"{old}.0.op.weight" in shapes:
            modules[f"{old}.0.op"] = f"down_blocks.{block}.downsamplers.0.conv"
            channels.append(0)
            layers.append(0)
            attention.append(False)
            continue
        modules[f"{old}.0"] = f"down_blocks.{block}.resnets.{layers[block]}"
        if f"{old}.1.norm.weight" in shapes:
            modules[f"{old}.1"] = f"down_blocks.{block}.attentions.{layers[block]}"
            attention[block] = True
        channels[block] = _shape(shapes, f"{old}.0.in_layers.2.weight")[0]
        layers[block] += 1
    if len(set(layers)) != 1 or not layers[0]:
        raise MsdvError(f"has blocks of {layers} layers: no Stable Diffusion 1.x or 2.x")
    per_block = layers[0] + 1
    up_attention = [False] * len(channels)
    for number in range(_count(shapes, "output_blocks")):
        old = f"output_blocks.{number}"
        block, layer = divmod(number, per_block)
        if block >= len(channels):
            raise MsdvError(f"has {old}, more than its downward half: no Stable Diffusion 1.x or 2.x")
        modules[f"{old}.0"] = f"up_blocks.{block}.resnets.{layer}"
        if f"{old}.1.norm.weight" in shapes:
            modules[f"{old}.1"] = f"up_blocks.{block}.attentions.{layer}"
            up_attention[block] = True
        for position in (1, 2):
            if f"{old}.{position}.conv.weight" in shapes:
                modules[f"{old}.{position}"] = f"up_blocks.{block}.upsamplers.0"
    if any(".transformer_blocks.1." in key for key in shapes):
        raise MsdvError("has several transformer layers in a block, as SDXL does: no Stable Diffusion 1.x or 2.x")
    linear = len(_shape(shapes, "middle_block.1.proj_in.weight")) == 2
    head_config, assumed = _heads(channels, linear, heads, head_channels)
    groups = _groups(channels, 32)
    if groups != 32:
        assumed += (f"{groups} groups in its norms",)
    config = {
        "sample_size": 64,
        "in_channels": _shape(shapes, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(shapes, "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": layers[0],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in up_attention],
        "cross_attention_dim": _shape(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
        "attention_head_dim": head_config,
        "use_linear_projection": linear,
        "norm_num_groups": groups,
    }
    return Layout(config, {key: _rename_unet(key, modules) for key in shapes}, assumed)


def _count(shapes: Shapes, name: str) -> int:
    numbers = [int(match[1]) for key in shapes if (match := re.match(rf"{name}\.(\d+)\.", key))]
    return 1 + max(numbers, default=-1)


def _groups(channels: list[int], most: int) -> int:
    """The original's 32 groups, or for narrower networks as many as divide every width."""
    return gcd(most, *channels)


def _heads(
    channels: list[int], linear: bool, heads: int | None, head_channels: int | None
) -> tuple[int | list[int], tuple[str, ...]]:
    if head_channels and head_channels > 0 and all(c % head_channels == 0 for c in channels):
        return [c // head_channels for c in channels], ()
    if heads and heads > 0 and all(c % heads == 0 for c in channels):
        return heads, ()
    if linear and all(c % 64 == 0 for c in channels):
        return [c // 64 for c in channels], ()
    usual = gcd(8, *channels)
    return usual, () if usual == 8 and not linear else (f"{usual} attention heads",)


def _rename_unet(key: str, modules: Mapping[str, str]) -> str:
    words = key.split(".")
    for length in (4, 3, 2):
        old, rest = ".".join(words[:length]), ".".join(words[length:])
        if old in modules:
            new = modules[old]
            if ".resnets." in new:
                module, _, kind = rest.rpartition(".")
                return f"{new}.{_RESNET.get(module, module)}.{kind}"
            return f"{new}.{rest}"
    return key


def read_vae(shapes: Shapes) -> Layout:
    """The autoencoder from its tensors' shapes (names without `first_stage_model.`).

    Raises:
        MsdvError: when a tensor is missing.
    """
    count = 1 + max((int(m[1]) for key in shapes if (m := re.match(r"encoder\.down\.(\d+)\.", key))), default=-1)
    channels = [_shape(shapes, f"encoder.down.{n}.block.0.conv1.weight")[0] for n in range(count)]
    layers = sum(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", key) is not None for key in shapes)
    if not channels:
        raise _MissingTensorError("lacks encoder.down of the autoencoder: take a complete copy of the model")
    groups = _groups(channels, 32)
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": _shape(shapes, "decoder.conv_in.weight")[1],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "norm_num_groups": groups,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }
    assumed = () if groups == 32 else (f"{groups} groups in the autoencoder's norms",)
    return Layout(config, {key: _rename_vae(key, count) for key in shapes}, assumed)


def _rename_vae(key: str, count: int) -> str:
    half, _, rest = key.partition(".")
    if half not in ("encoder", "decoder"):
        return key
    if match := re.fullmatch(r"(down|up)\.(\d+)\.(block|downsample|upsample)\.(.+)", rest):
        way, number, kind, rest = match[1], int(match[2]), match[3], match[4]
        block = number if way == "down" else count - 1 - number
        new = {"block": "resnets.", "downsample": "downsamplers.0.", "upsample": "upsamplers.0."}[kind]
        return f"{half}.{way}_blocks.{block}.{new}{rest.replace('nin_shortcut', 'conv_shortcut')}"
    if match := re.fullmatch(r"mid\.block_(\d)\.(.+)", rest):
        return f"{half}.mid_block.resnets.{int(match[1]) - 1}.{match[2].replace('nin_shortcut', 'conv_shortcut')}"
    if match := re.fullmatch(r"mid\.attn_1\.(\w+)\.(\w+)", rest):
        return f"{half}.mid_block.attentions.0.{_VAE_ATTENTION.get(match[1], match[1])}.{match[2]}"
    return f"{half}.{rest.replace('norm_out.', 'conv_norm_out.')}"


def read_clip(shapes: Shapes) -> Layout:
    """CLIP's text encoder (Stable Diffusion 1.x; names without `cond_stage_model.transformer.`, with or without
    `text_model.`).

    Raises:
        MsdvError: when a tensor is missing.
    """
    wanted = ("embeddings.token_embedding.", "embeddings.position_embedding.", "encoder.layers.", "final_layer_norm.")
    names = {key: key.removeprefix("text_model.") for key in shapes}
    names = {old: new for old, new in names.items() if new.startswith(wanted)}
    plain = {new: shapes[old] for old, new in names.items()}
    layers = 1 + max((int(key.split(".")[2]) for key in plain if key.startswith("encoder.layers.")), default=-1)
    return Layout(_clip_config(plain, layers, "quick_gelu"), names)


def read_open_clip(shapes: Shapes) -> Layout:
    """OpenCLIP's text encoder (Stable Diffusion 2.x; names without `cond_stage_model.model.`). The joint projection of
    queries, keys and values maps to one name: `split_projections` cuts it.

    Raises:
        MsdvError: when a tensor is missing.
    """
    names = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    for old in names:
        _shape(shapes, old)
    count = 1 + max(
        (int(m[1]) for key in shapes if (m := re.match(r"transformer\.resblocks\.(\d+)\.", key))), default=-1
    )
    # A file that has the rest of OpenCLIP too has all of its layers, one more than are used.
    whole = "text_projection" in shapes or "logit_scale" in shapes
    layers = min(count, _VIT_H_USED_LAYERS) if shapes["token_embedding.weight"][1] == 1024 else count - whole
    for key in shapes:
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)([._])(weight|bias)", key)
        if match and int(match[1]) < layers:
            rest = "self_attn.in_proj" if match[2] == "attn.in_proj" else _OPEN_CLIP.get(match[2], match[2])
            names[key] = f"encoder.layers.{match[1]}.{rest}.{match[4]}"
    plain = {new: shapes[old] for old, new in names.items()}
    return Layout(_clip_config(plain, layers, "gelu"), names)


def split_projections(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut `self_attn.in_proj` (3c, ...) into the projections of queries, keys and values."""
    split = {}
    for key, tensor in tensors.items():
        if ".self_attn.in_proj." in key:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                split[key.replace("in_proj", f"{name}_proj")] = part.contiguous()
        else:
            split[key] = tensor
    return split


def _clip_config(shapes: Shapes, layers: int, activation: str) -> dict[str, Any]:
    tokens, width = _shape(shapes, "embeddings.token_embedding.weight")
    if layers < 1:
        raise _MissingTensorError("lacks the text encoder's layers: take a complete copy of the model")
    return {
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": _shape(shapes, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": layers,
        # All of CLIP's text encoders have heads of 64 channels; narrower ones are test models, by custom with 4 heads.
        "num_attention_heads": width // 64 if width % 64 == 0 else gcd(4, width),
        "max_position_embeddings": _shape(shapes, "embeddings.position_embedding.weight")[0],
        "hidden_act": activation,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": tokens - 1,
    }
