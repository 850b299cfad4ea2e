"""Tiny Stable Diffusions with random weights, in every form that a base model comes in: objects, a diffusers folder
with .safetensors or .bin weights, and one file in the layout of the original latent-diffusion code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import msdv

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.36.0",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
CLASSES = {
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@dataclass
class TinyPipeline:
    """The parts of a tiny Stable Diffusion. All modules are in eval mode and on the CPU, in float32."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    scheduler: dict[str, Any]
    clip_vocabulary: bool


def tiny_unet(
    *, in_channels: int = 4, blocks: int = 2, sd2: bool = False, sample_size: int = 8, seed: int = 0
) -> UNet2DConditionModel:
    """A UNet of Stable Diffusion's shape: 2 blocks of 32 and 64 channels, or 4 as the real one has. `sd2` takes linear
    projections and a number of heads per block, as Stable Diffusion 2 does."""
    channels = {2: (32, 64), 4: (32, 32, 64, 64)}[blocks]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=in_channels,
            block_out_channels=channels,
            layers_per_block=2 if blocks == 4 else 1,
            down_block_types=("CrossAttnDownBlock2D",) * (blocks - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (blocks - 1),
            cross_attention_dim=32,
            attention_head_dim=tuple(c // 16 for c in channels) if sd2 else 8,
            use_linear_projection=sd2,
            norm_num_groups=8,
        )
    return unet.eval()


def tiny_vae(*, seed: int = 1) -> AutoencoderKL:
    """An autoencoder with Stable Diffusion's factor of 8 between pixels and latents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=64,
        )
    return vae.eval()


def tiny_text_encoder(*, sd2: bool = False, clip_vocabulary: bool = False, seed: int = 2) -> CLIPTextModel:
    """A text encoder of width 32. `clip_vocabulary` has CLIP's 49,408 tokens instead of 520 (a single file needs it,
    since it brings no tokenizer); `sd2` has GELU, as Stable Diffusion 2 does."""
    size = 49408 if clip_vocabulary else 520
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CLIPTextConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_act="gelu" if sd2 else "quick_gelu",
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
        return CLIPTextModel(config).eval()


def tiny_pipeline(
    *,
    in_channels: int = 4,
    blocks: int = 2,
    sd2: bool = False,
    prediction_type: str | None = None,
    clip_vocabulary: bool = False,
    seed: int = 0,
) -> TinyPipeline:
    """All parts. `sd2` predicts v unless told otherwise; 9 `in_channels` make it an inpainting model."""
    prediction_type = prediction_type or ("v_prediction" if sd2 else "epsilon")
    return TinyPipeline(
        unet=tiny_unet(in_channels=in_channels, blocks=blocks, sd2=sd2, seed=seed),
        vae=tiny_vae(seed=seed + 1),
        text_encoder=tiny_text_encoder(sd2=sd2, clip_vocabulary=clip_vocabulary, seed=seed + 2),
        scheduler=SCHEDULER | {"prediction_type": prediction_type},
        clip_vocabulary=clip_vocabulary,
    )


def tiny_tokenizer_files(folder: Path, *, clip_vocabulary: bool = False) -> Path:
    """Write a tokenizer to `folder`: CLIP's, or one of 520 tokens that knows bytes and a few pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    if clip_vocabulary:
        source = Path(msdv.__file__).parent / "configs" / "tokenizer"
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    merges = ["s k", "sk y</w>", "c l", "cl o", "clo u", "clou d</w>"]
    tokens = letters + [c + "</w>" for c in letters] + [pair.replace(" ", "") for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def tiny_tokenizer(folder: Path, *, clip_vocabulary: bool = False) -> CLIPTokenizer:
    """The tokenizer of `tiny_tokenizer_files`, loaded; `folder` is where its files go."""
    return CLIPTokenizer.from_pretrained(tiny_tokenizer_files(folder, clip_vocabulary=clip_vocabulary))


def save_folder(
    folder: Path, pipeline: TinyPipeline | None = None, *, weights: str = "safetensors", variant: str | None = None
) -> Path:
    """Write a diffusers folder, and return it; `weights` is `safetensors` or `bin`, `variant` the `fp16` in names."""
    pipeline = pipeline or tiny_pipeline()
    dot_variant = f".{variant}" if variant else ""
    names = {
        "unet": (pipeline.unet, "diffusion_pytorch_model"),
        "vae": (pipeline.vae, "diffusion_pytorch_model"),
        "text_encoder": (pipeline.text_encoder, "model" if weights == "safetensors" else "pytorch_model"),
    }
    for part, (module, stem) in names.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        if part == "text_encoder":
            config = {"architectures": ["CLIPTextModel"]} | module.config.to_diff_dict()
        else:
            config = {"_class_name": type(module).__name__} | dict(module.config)
        (folder / part / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
        state = {key: tensor.contiguous().clone() for key, tensor in module.state_dict().items()}
        if variant == "fp16":
            state = {key: tensor.half() for key, tensor in state.items()}
        if part == "text_encoder":
            # Published files have the prefix, whatever the installed transformers calls it inside.
            state = {_with_text_model(key): tensor for key, tensor in state.items()}
        file = folder / part / f"{stem}{dot_variant}.{weights}"
        if weights == "safetensors":
            save_file(state, file, metadata={"format": "pt"})
        else:
            torch.save(state, file)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(pipeline.scheduler), encoding="utf-8")
    tiny_tokenizer_files(folder / "tokenizer", clip_vocabulary=pipeline.clip_vocabulary)
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.36.0"} | CLASSES
    if pipeline.unet.config.in_channels == 9:
        index["_class_name"] = "StableDiffusionInpaintPipeline"
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def save_single_file(
    path: Path, pipeline: TinyPipeline | None = None, *, metadata: dict[str, str] | None = None
) -> Path:
    """Write one file in the original layout; the suffix chooses .safetensors or .ckpt (a pickle). Returns it.

    Give a pipeline made with `clip_vocabulary=True`: the file holds no tokenizer, so whoever loads it takes CLIP's.
    """
    pipeline = pipeline or tiny_pipeline(clip_vocabulary=True)
    state = original_state_dict(pipeline)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path, metadata=metadata)
    else:
        torch.save({"state_dict": state, "global_step": 470000, "epoch": 4}, path)
    return path


def original_state_dict(pipeline: TinyPipeline) -> dict[str, Tensor]:
    """Tensors under the names of the original latent-diffusion code, with the extras that published files carry."""
    state: dict[str, Tensor] = {}
    for key, tensor in pipeline.unet.state_dict().items():
        state[f"model.diffusion_model.{_original_unet_key(key, pipeline.unet.config)}"] = tensor
    for key, tensor in pipeline.vae.state_dict().items():
        new = _original_vae_key(key, len(pipeline.vae.config.block_out_channels))
        attention = ".attn_1." in new and new.endswith("weight") and tensor.ndim == 2
        state[f"first_stage_model.{new}"] = tensor[:, :, None, None] if attention else tensor
    text = {_with_text_model(key): tensor for key, tensor in pipeline.text_encoder.state_dict().items()}
    if pipeline.unet.config.use_linear_projection:
        state |= _original_open_clip(text)
    else:
        state |= {f"cond_stage_model.transformer.{key}": tensor for key, tensor in text.items()}
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["alphas_cumprod"] = torch.linspace(0.99, 0.01, 1000)
    state["model_ema.decay"] = torch.tensor(0.9999)
    return {key: tensor.detach().contiguous().clone() for key, tensor in state.items()}


def _with_text_model(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"


def _rename(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text


_RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("time_emb_proj.", "emb_layers.1."),
    ("conv_shortcut.", "skip_connection."),
)


def _original_unet_key(key: str, config: Any) -> str:
    layers, count = config.layers_per_block, len(config.block_out_channels)
    parts = key.split(".")
    if parts[0] == "mid_block":
        kind, number = parts[1], int(parts[2])
        rest = ".".join(parts[3:])
        position = 1 if kind == "attentions" else 2 * number
        return f"middle_block.{position}.{_rename(rest, *_RESNET) if kind == 'resnets' else rest}"
    if parts[0] not in ("down_blocks", "up_blocks"):
        return _rename(
            key,
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
            ("conv_in", "input_blocks.0.0"),
        )
    block, kind, layer, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
    if kind == "resnets":
        rest = _rename(rest, *_RESNET)
    if parts[0] == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
        return f"input_blocks.{1 + block * (layers + 1) + layer}.{0 if kind == 'resnets' else 1}.{rest}"
    if kind == "upsamplers":
        position = 2 if config.up_block_types[block].startswith("CrossAttn") else 1
        return f"output_blocks.{block * (layers + 1) + layers}.{position}.{rest}"
    assert block < count
    return f"output_blocks.{block * (layers + 1) + layer}.{0 if kind == 'resnets' else 1}.{rest}"


def _original_vae_key(key: str, count: int) -> str:
    if ".up_blocks." in key:
        before, after = key.split(".up_blocks.")
        number, rest = after.split(".", 1)
        key = f"{before}.up.{count - 1 - int(number)}.{rest}"
    return _rename(
        key,
        ("down_blocks.", "down."),
        ("mid_block.resnets.0.", "mid.block_1."),
        ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.", "mid.attn_1."),
        ("resnets.", "block."),
        ("downsamplers.0.", "downsample."),
        ("upsamplers.0.", "upsample."),
        ("conv_shortcut.", "nin_shortcut."),
        ("conv_norm_out.", "norm_out."),
        ("group_norm.", "norm."),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("to_out.0.", "proj_out."),
    )


def _original_open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names. Its file has one layer more than Stable Diffusion 2 uses: zeros here."""
    state: dict[str, Tensor] = {}
    layers = 1 + max(int(key.split(".")[3]) for key in text if ".layers." in key)
    for key, tensor in text.items():
        new = _rename(
            key.removeprefix("text_model."),
            ("embeddings.token_embedding.weight", "token_embedding.weight"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("final_layer_norm", "ln_final"),
            ("encoder.layers.", "transformer.resblocks."),
            ("self_attn.out_proj", "attn.out_proj"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        )
        if "self_attn.q_proj" in new:
            joined = torch.cat([text[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")])
            new, tensor = _rename(new, ("self_attn.q_proj.", "attn.in_proj_")), joined
        elif "self_attn." in new:
            continue
        state[new] = tensor
        if f"resblocks.{layers - 1}." in new:
            state[new.replace(f"resblocks.{layers - 1}.", f"resblocks.{layers}.")] = torch.zeros_like(tensor)
    state["text_projection"], state["logit_scale"] = torch.eye(32), torch.tensor(4.6)
    return {f"cond_stage_model.model.{key}": tensor for key, tensor in state.items()}
