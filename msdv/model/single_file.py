"""Base models from one .safetensors or .ckpt file in the layout of the original latent-diffusion code, offline."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from msdv.errors import MsdvError
from msdv.model.original_names import Layout, read_clip, read_open_clip, read_unet, read_vae, split_projections
from msdv.model.parts import SUPPORTED, Part, Parts, check_unet
from msdv.model.tensors import TensorFile

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
TOKENIZER = Path(__file__).parent.parent / "configs" / "tokenizer"
VOCABULARY_SIZE = 49408

_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def read_single_file(path: Path) -> Parts:
    """Find the parts of a single-file Stable Diffusion; weights are read later, when asked for.

    A .yaml of the same name beside the file is believed about prediction type, size and attention heads; else the
    file's own metadata; else, for 2.x, the file's name.

    Raises:
        UsageError: when there is no such file.
        MsdvError: when it is damaged, incomplete, or another kind of file, which the message names.
    """
    file = TensorFile(path)
    what = identify(file)
    if what:
        raise MsdvError(f"{path}: {what}")
    settings = _read_yaml(path)
    try:
        unet = read_unet(
            _below(file, UNET), heads=settings.get("num_heads"), head_channels=settings.get("num_head_channels")
        )
        vae = read_vae({k: s for k, s in _below(file, VAE).items() if not k.startswith(("loss.", "model_ema."))})
        open_clip = f"{OPEN_CLIP}token_embedding.weight" in file.shapes
        text_prefix = OPEN_CLIP if open_clip else CLIP
        text = (read_open_clip if open_clip else read_clip)(_below(file, text_prefix))
    except MsdvError as error:
        raise MsdvError(f"{path} {error}") from error
    check_unet(unet.config, str(path))
    if text.config["vocab_size"] != VOCABULARY_SIZE:
        raise MsdvError(
            f"{path}: its text encoder knows {text.config['vocab_size']} tokens, CLIP's tokenizer {VOCABULARY_SIZE}, "
            "and a single file brings none of its own: use the model as a diffusers folder"
        )
    notes = []
    assumed = unet.assumed + vae.assumed
    if assumed:
        notes.append(f"{path.name} doesn't say everything about itself: assuming {', '.join(assumed)}")
    second = unet.config["use_linear_projection"]
    prediction_type, note = _prediction_type(file, settings, second)
    if note:
        notes.append(note)
    unet.config["sample_size"] = _size(file, settings) or (96 if second and prediction_type == "v_prediction" else 64)

    def read_vae_weights() -> dict[str, Tensor]:
        tensors = _read(file, VAE, vae)
        # The original's attention projections are 1x1 convolutions.
        return {key: t[:, :, 0, 0] if ".attentions." in key and t.ndim == 4 else t for key, t in tensors.items()}

    return Parts(
        unet=Part(unet.config, lambda: _read(file, UNET, unet), str(path)),
        vae=Part(vae.config, read_vae_weights, f"{path} (autoencoder)"),
        text_encoder=Part(
            text.config, lambda: split_projections(_read(file, text_prefix, text)), f"{path} (text encoder)"
        ),
        tokenizer=TOKENIZER,
        scheduler=_SCHEDULER | {"prediction_type": prediction_type},
        notes=notes,
    )


def identify(file: TensorFile) -> str | None:
    """What a file is that isn't a whole Stable Diffusion 1.x or 2.x, and what to do; None if it is one."""
    keys = file.shapes

    def has(*starts: str) -> bool:
        return any(key.startswith(starts) for key in keys)

    def holds(*pieces: str) -> bool:
        return any(piece in key for key in keys for piece in pieces)

    if not keys:
        return "holds no tensors: take a complete copy of the model"
    if file.metadata.get("format") == "msdv.temporal" or holds(".temporal_conv.", ".attn_temporal."):
        return "these are temporal layers, not an image model: give them with --model (train: --init)"
    if holds("motion_modules."):
        return "this is an AnimateDiff motion module, not an image model: give --base a Stable Diffusion"
    if holds("lora_", ".lora.", "hada_w1", "lokr_w1"):
        return "this is a LoRA, not a whole model: merge it into a Stable Diffusion, and give that as --base"
    if has("control_model.", "controlnet_", "input_hint_block.") or holds("controlnet_cond_embedding"):
        return "this is a ControlNet, not an image model: give --base a Stable Diffusion"
    if has("conditioner.embedders.") or (has(f"{UNET}label_emb.") and not has("cond_stage_model.")):
        return f"this is SDXL: {SUPPORTED}"
    if holds("joint_blocks.") or has("text_encoders.clip_g."):
        return f"this is Stable Diffusion 3: {SUPPORTED}"
    if holds("double_blocks.0."):
        return f"this is Flux: {SUPPORTED}"
    if has(f"{UNET}label_emb.", "embedder.model."):
        return f"this is a Stable Diffusion unCLIP: {SUPPORTED}"
    if has(UNET):
        if not has(VAE):
            return "holds no autoencoder (first_stage_model), only part of a model: take the complete file"
        if not has(CLIP, OPEN_CLIP):
            return "holds no text encoder (cond_stage_model), only part of a model: take the complete file"
        return None
    if has("encoder.down.", "encoder.down_blocks.", f"{VAE}encoder."):
        return "this is an autoencoder (VAE) alone: give --base a whole Stable Diffusion"
    if has("down_blocks.", "conv_in.") or has("input_blocks."):
        return (
            "this is a UNet alone: give --base the whole model, for diffusers weights the folder with model_index.json"
        )
    if has("text_model.", "transformer.text_model."):
        return "this is a text encoder alone: give --base a whole Stable Diffusion"
    if has("emb_params", "string_to_param", "clip_l", "<"):
        return "this is a textual inversion, not an image model: give --base a Stable Diffusion"
    return f"holds no Stable Diffusion (its tensors start with {min(keys)}): {SUPPORTED}"


def _below(file: TensorFile, prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in file.shapes.items() if key.startswith(prefix)}


def _read(file: TensorFile, prefix: str, layout: Layout) -> dict[str, Tensor]:
    tensors = file.read(prefix + old for old in layout.names)
    return {new: tensors[prefix + old] for old, new in layout.names.items()}


def _read_yaml(path: Path) -> dict[str, Any]:
    """The few settings that matter from a .yaml beside the file, as the original code and its interfaces have it."""
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return {}
    settings: dict[str, Any] = {}
    for line in beside.read_text(encoding="utf-8", errors="replace").splitlines():
        match = re.match(r"\s*(parameterization|num_heads|num_head_channels|image_size)\s*:\s*[\"']?(\w+)", line)
        # The outermost image_size, which comes first, is the one that counts.
        if match and match[1] not in settings:
            settings[match[1]] = int(match[2]) if match[2].isdecimal() else match[2]
    return settings


def _prediction_type(file: TensorFile, settings: dict[str, Any], second: bool) -> tuple[str, str | None]:
    names = {"v": "v_prediction", "v_prediction": "v_prediction", "eps": "epsilon", "epsilon": "epsilon"}
    said = str(settings.get("parameterization") or file.metadata.get("modelspec.prediction_type") or "").lower()
    if said in names:
        return names[said], None
    if any(key in ("v_pred", "v-pred") for key in file.shapes):
        return "v_prediction", None
    if not second:
        return "epsilon", None
    stem = file.path.stem.lower()
    yaml = file.path.with_suffix(".yaml").name
    other = f"if colours come out wrong, put `parameterization: {{}}` into {yaml} beside it"
    if re.search(r"512|base|eps|inpaint", stem) and not re.search(r"768|v-?_?pred", stem):
        return "epsilon", f"{file.path.name} looks like a 2.x that predicts noise (by its name); " + other.format('"v"')
    why = "by its name" if re.search(r"768|v-?_?pred", stem) else "as most 2.x do"
    return "v_prediction", f"{file.path.name}: taken to predict v ({why}); " + other.format('"eps"')


def _size(file: TensorFile, settings: dict[str, Any]) -> int | None:
    """Side of the latents that the model was made for, if the file or its .yaml tells."""
    match = re.match(r"(\d+)x(\d+)", file.metadata.get("modelspec.resolution", ""))
    pixels = min(int(match[1]), int(match[2])) if match else 0
    if 64 <= pixels <= 4096:
        return pixels // 8
    size = settings.get("image_size")
    return size if isinstance(size, int) and 8 <= size <= 512 else None
