"""What export writes: the folders and files of other programs, each with all that they look for."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor

from msdv.errors import MsdvError
from msdv.foreign import HEADS, MOST_FRAMES, encode_positions, to_animatediff
from msdv.model.base import Base
from msdv.model.inflate import VideoUNet
from msdv.weights import _sort_metadata

_KEYS_2022 = (
    "act_fn",
    "attention_head_dim",
    "block_out_channels",
    "center_input_sample",
    "cross_attention_dim",
    "down_block_types",
    "downsample_padding",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "norm_eps",
    "norm_num_groups",
    "out_channels",
    "sample_size",
    "up_block_types",
)
_OLD_ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
_OLD_VERSION = "0.12.0.dev0"


def write_animatediff(path: Path, state: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Motion modules as one AnimateDiff file in float16."""
    save_file(to_animatediff(state), path, metadata={"format": "pt", **header})
    _sort_metadata(path)


def write_motion_adapter(folder: Path, state: Mapping[str, Tensor], groups: int, header: Mapping[str, str]) -> None:
    """Motion modules as diffusers' `MotionAdapter.save_pretrained` writes them; `groups` of their group norms."""
    tensors = {key: tensor.detach().to("cpu", torch.float16).contiguous() for key, tensor in state.items()}
    for key, tensor in state.items():
        if key.endswith("attn1.to_q.weight"):
            name = key.replace("attn1.to_q.weight", "pos_embed.pe")
            tensors[name] = encode_positions(tensor.shape[1]).half()
    channels, layers = shape_of_blocks(state)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(tensors, file, metadata={"format": "pt", **header})
    _sort_metadata(file)
    _write_json(
        folder / "config.json",
        {
            "_class_name": "MotionAdapter",
            "_diffusers_version": diffusers.__version__,
            "block_out_channels": channels,
            "conv_in_channels": None,
            "motion_layers_per_block": layers,
            "motion_max_seq_length": MOST_FRAMES,
            "motion_mid_block_layers_per_block": 1,
            "motion_norm_num_groups": groups,
            "motion_num_attention_heads": HEADS,
            "motion_transformer_layers_per_block": 1,
            "motion_transformer_layers_per_mid_block": 1,
            "use_motion_mid_block": any(key.startswith("mid_block.") for key in state),
        },
    )


def shape_of_blocks(state: Mapping[str, Tensor]) -> tuple[list[int], int]:
    """Channels of the blocks on the way down, and how many modules each has."""
    norms = {
        (int(parts[1]), int(parts[3])): tensor.shape[0]
        for parts, tensor in ((key.split("."), tensor) for key, tensor in state.items())
        if parts[0] == "down_blocks" and parts[4:] == ["norm", "weight"]
    }
    blocks = 1 + max(block for block, _ in norms)
    return [norms[block, 0] for block in range(blocks)], 1 + max(layer for _, layer in norms)


def write_pipeline(folder: Path, base: Base, scheduler: Mapping[str, Any], *, animated: bool) -> None:
    """The image model in diffusers' layout, which diffusers itself can load too, with the noise schedule that the
    temporal layers beside it were trained on. `animated`: for diffusers it is an `AnimateDiffPipeline`."""
    assert base.unet is not None and base.vae is not None and base.text_encoder is not None
    files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for name, file in files.items():
        module = getattr(base, name)
        if _fits_half(module):
            module.half()
        config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
        if name == "text_encoder":
            # transformers 5 computes in the precision of the file, diffusers its networks in float32, unless told.
            config["dtype"] = "float32"
        _write_json(folder / name / "config.json", config)
        tensors = {k: v.contiguous() for k, v in module.state_dict().items()}
        if name == "text_encoder":
            tensors = _with_prefix(tensors)
        save_file(tensors, folder / name / f"{file}.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder / "tokenizer", base)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    kind = "AnimateDiff" if animated else "StableDiffusionInpaint" if base.in_channels == 9 else "StableDiffusion"
    _write_json(
        folder / "model_index.json",
        {
            "_class_name": f"{kind}Pipeline",
            "_diffusers_version": diffusers.__version__,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            **({"motion_adapter": ["diffusers", "MotionAdapter"]} if animated else {}),
            **({} if animated else {"requires_safety_checker": False, "safety_checker": [None, None]}),
            "scheduler": ["diffusers", base.scheduler_config.get("_class_name", "DDIMScheduler")],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    _write_json(folder / "sampling.json", asdict(base.sampling))


def write_2022(folder: Path, base: Base, model: VideoUNet, scheduler: Mapping[str, Any]) -> None:
    """The layout of the 2022 video model, temporal layers inside its UNet; `model` is the base's UNet with these.

    Weights go into .bin files of plain tensors, which is what its code looks for. Raises MsdvError for an image model
    that its code can't build.
    """
    assert base.vae is not None and base.text_encoder is not None
    unet = base.unet_config
    if unet.get("use_linear_projection") or not isinstance(unet.get("attention_head_dim"), int):
        raise MsdvError(
            f"{base.name} is of Stable Diffusion 2.x's shape, which the 2022 code can't build: --to pipeline"
        )
    config = {"_class_name": "UNetPseudo3DConditionModel", "_diffusers_version": _OLD_VERSION}
    _write_json(folder / "unet" / "config.json", config | {key: unet[key] for key in _KEYS_2022 if key in unet})
    _write_bin(folder / "unet" / "diffusion_pytorch_model.bin", model.unet.state_dict())
    vae = {key: value for key, value in dict(base.vae.config).items() if not key.startswith("_")}
    _write_json(
        folder / "vae" / "config.json", {"_class_name": "AutoencoderKL", "_diffusers_version": _OLD_VERSION, **vae}
    )
    _write_bin(folder / "vae" / "diffusion_pytorch_model.bin", _old_attention(base.vae.state_dict()))
    text: Any = base.text_encoder.config
    _write_json(folder / "text_encoder" / "config.json", text.to_dict() | {"architectures": ["CLIPTextModel"]})
    words = _with_prefix(base.text_encoder.state_dict())
    words["text_model.embeddings.position_ids"] = torch.arange(text.max_position_embeddings)[None]
    _write_bin(folder / "text_encoder" / "pytorch_model.bin", words)
    _write_tokenizer(folder / "tokenizer", base)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(
        folder / "model_index.json",
        {
            "_class_name": f"StableDiffusionVideo{'Inpaint' if base.in_channels == 9 else ''}Pipeline",
            "_diffusers_version": _OLD_VERSION,
            "feature_extractor": [None, None],
            "safety_checker": [None, None],
            "scheduler": ["diffusers", base.scheduler_config.get("_class_name", "DDIMScheduler")],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNetPseudo3DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def _write_bin(path: Path, state: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: tensor.detach().contiguous().clone() for key, tensor in state.items()}, path)


def _old_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's tensors under the names of 2022."""
    renamed = {}
    for key, tensor in state.items():
        if ".attentions." in key:
            for new, old in _OLD_ATTENTION.items():
                key = key.replace(new, old)
        renamed[key] = tensor
    return renamed


def _with_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's tensors: transformers 5 leaves the prefix out, published models and other readers have it."""
    return {key if key.startswith("text_model.") else f"text_model.{key}": t for key, t in state.items()}


def _write_tokenizer(folder: Path, base: Base) -> None:
    base.tokenizer.save_pretrained(folder)
    # The pair of files that readers other than transformers 5 look for.
    words = json.loads(base.tokenizer.backend_tokenizer.to_str())["model"]
    _write_json(folder / "vocab.json", words["vocab"])
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in words["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")


def _fits_half(module: Any) -> bool:
    """Whether float16 holds every weight exactly, as it does for models that were published in it."""
    return all(torch.equal(p.half().float(), p) for p in module.state_dict().values() if p.is_floating_point())


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True, default=list) + "\n", encoding="utf-8")
