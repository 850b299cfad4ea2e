"""LoRA (Hu et al. 2021, 2106.09685) for the image model: small additions to its weights, merged into them.

Files as kohya's tools and diffusers write them: low-rank pairs for linear layers and for convolutions (LoCon). Merged
weights need no more memory and no more time than others.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msdv.errors import MsdvError, UsageError
from msdv.model.tensors import TensorFile

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_LARGEST_WEIGHT = 100.0

# How the parts of a low-rank pair are called, by kohya's tools, by peft, and by diffusers before it used peft.
_ROLES: tuple[tuple[re.Pattern[str], dict[str, str]], ...] = (
    (re.compile(r"\.lora_(down|up|mid)\.weight$"), {}),
    (re.compile(r"\.lora_(A|B)(?:\.default)?\.weight$"), {"A": "down", "B": "up"}),
    (re.compile(r"\.(?:lora|lora_linear_layer)\.(down|up)\.weight$"), {}),
    (re.compile(r"_lora\.(down|up)\.weight$"), {}),
    (re.compile(r"\.(alpha)$"), {}),
)
_OTHER_KINDS = {
    r"\.hada_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.dora_scale$|\.lora_magnitude_vector": "DoRA",
    r"\.(oft|boft)_": "OFT",
    r"\.on_input$": "(IA)^3",
    r"\.diff(_b)?$": "whole differences of weights",
    r"\.[wb]_norm$": "norms",
    r"\.lora_B(\.default)?\.bias$": "biases",
}
_IMAGE_MODELS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
"""By how wide the text embeddings are."""
_METADATA_NAMES = {"sdxl": _IMAGE_MODELS[2048], "sd_v1": _IMAGE_MODELS[768], "sd_v2": _IMAGE_MODELS[1024]}
_METADATA_NAMES |= {"stable-diffusion-xl": _IMAGE_MODELS[2048], "stable-diffusion-v1": _IMAGE_MODELS[768]}
_METADATA_NAMES |= {"stable-diffusion-v2": _IMAGE_MODELS[1024], "flux": "FLUX", "sd3": "Stable Diffusion 3"}


@dataclass(frozen=True)
class Choice:
    """A LoRA that was asked for."""

    path: Path
    weight: float


def parse_lora(text: str) -> Choice:
    """`FILE` or `FILE:WEIGHT` as --lora takes it; a drive (`C:`) is part of the file's name.

    Raises UsageError for a weight that is no number, or a file that does not exist.
    """
    head, colon, tail = text.rpartition(":")
    if not (head if colon else text).strip():
        raise UsageError(f"--lora {text}: no file is named: give FILE, or FILE:WEIGHT")
    whole = Path(text).expanduser()
    weight: float | None = None
    if not whole.exists() and colon and "/" not in tail and "\\" not in tail:
        try:
            weight = float(tail)
        except ValueError:
            if Path(head).expanduser().is_file():
                raise UsageError(f"--lora {text}: the weight behind the colon must be a number: 0.8") from None
    path = whole if weight is None else Path(head).expanduser()
    if weight is not None and not abs(weight) <= _LARGEST_WEIGHT:
        raise UsageError(f"--lora {text}: the weight must be -{_LARGEST_WEIGHT:g} to {_LARGEST_WEIGHT:g}: try 1")
    if path.is_dir():
        found = sorted(p.name for p in path.iterdir() if p.suffix == ".safetensors")
        name = f" {path / found[0]}" if found else ": a .safetensors"
        raise UsageError(f"--lora {path} is a folder: give the file in it,{name}")
    if not path.is_file():
        raise UsageError(f"--lora {path} does not exist: give a file, with a weight behind a colon if it is not 1")
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--lora {path}: {path.suffix or 'this'} is no LoRA: give a .safetensors file")
    return Choice(path, 1.0 if weight is None else weight)


@dataclass
class _Pair:
    """What is added to one layer: up @ down, times alpha / rank."""

    down: Tensor
    up: Tensor
    mid: Tensor | None
    scale: float

    def fits(self, weight: Tensor) -> bool:
        """Whether it is for a weight of this shape, (out, in) or (out, in, kh, kw)."""
        rank, channels, *kernel = self.down.shape
        if self.mid is not None:
            if self.mid.shape[:2] != (rank, rank) or any(k != 1 for k in kernel):
                return False
            kernel = list(self.mid.shape[2:])
        if self._widened(weight):
            channels = 9
        up_fits = self.up.flatten(1).shape == (weight.shape[0], rank)
        return up_fits and _without_ones((channels, *kernel)) == _without_ones(weight.shape[1:])

    def _widened(self, weight: Tensor) -> bool:
        """Whether it is for the first convolution of a model that does not inpaint, and `weight` that of one that does:
        the noisy latents are the first four of its nine channels."""
        return weight.ndim == 4 and weight.shape[1] == 9 and self.down.shape[1] == 4

    def delta(self, weight: Tensor) -> Tensor:
        """What it adds to `weight`, which it fits, in float32."""
        down, up = self.down.float(), self.up.float()
        if self.mid is not None:  # (rank, rank, kh, kw) between two 1x1 convolutions
            down = torch.einsum("rs...,si->ri...", self.mid.float(), down.flatten(1))
        if self._widened(weight):
            down = torch.cat([down, down.new_zeros(len(down), 5, *down.shape[2:])], dim=1)
        return self.scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


def _without_ones(shape: Iterable[int]) -> list[int]:
    """1x1 convolutions are linear layers: which of them a model has is a matter of its version."""
    first, *kernel = shape
    return [first, *(k for k in kernel if k != 1)]


class Lora:
    """A LoRA file.

    Raises UsageError and MsdvError if it can't be read, holds none, or one of a kind that is not known.
    """

    def __init__(self, choice: Choice) -> None:
        self.path, self.weight = choice.path, choice.weight
        self.file = TensorFile(choice.path)
        self._parts: dict[str, dict[str, str]] = {}  # layer -> role -> key
        for key in self.file.shapes:
            if kind := next((kind for part, kind in _OTHER_KINDS.items() if re.search(part, key)), None):
                raise MsdvError(
                    f"--lora {self.path} holds {kind} ({key}): what can be added are low-rank pairs (LoRA, LoCon), "
                    "convert it to one or take another"
                )
            layer, role = _read_key(key)
            if role:
                self._parts.setdefault(layer, {})[role] = key
        self._parts = {layer: parts for layer, parts in self._parts.items() if parts.keys() != {"alpha"}}
        if not self._parts:
            raise MsdvError(f"--lora {self.path} holds no LoRA but {self._content()}")
        for layer, parts in self._parts.items():
            if not {"down", "up"} <= parts.keys():
                raise MsdvError(f"--lora {self.path} has only half of {layer}: download or copy it again")
        self.others = [key for key in self.file.shapes if not _read_key(key)[1]]

    def _content(self) -> str:
        names = list(self.file.shapes)
        if any("temporal" in key for key in names):
            return "temporal layers: pass it as --model"
        if any(key.startswith(("model.diffusion_model.", "cond_stage_model.")) for key in names):
            return "an image model: pass it as --base"
        return f"{len(names)} other tensors ({', '.join(names[:2])}): give another file" if names else "nothing"

    @property
    def layers(self) -> list[str]:
        """Names as in the file, dots written as underscores."""
        return list(self._parts)

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        with self.path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    def made_for(self) -> str:
        """The image model that it is for, as far as it tells; "" if it doesn't."""
        said = " ".join(self.file.metadata.get(k, "") for k in ("ss_base_model_version", "modelspec.architecture"))
        for word, name in _METADATA_NAMES.items():
            if word in said.lower():
                return name
        if any(layer.startswith(("lora_te2_", "text_encoder_2_")) for layer in self._parts):
            return _IMAGE_MODELS[2048]
        for layer, parts in self._parts.items():
            if layer.endswith("attn2_to_k"):
                width = self.file.shapes[parts["down"]][1]
                return _IMAGE_MODELS.get(width, f"a model with text embeddings {width} wide")
        return ""

    def pairs(self) -> dict[str, _Pair]:
        """By layer. Raises MsdvError for numbers that are none."""
        tensors, settings = self.file.read(), _peft_settings(self.file)
        pairs = {}
        for layer, parts in self._parts.items():
            found = {role: tensors[key] for role, key in parts.items()}
            for role, tensor in found.items():
                wrong = tensor.ndim < 2 or not tensor.numel() if role != "alpha" else tensor.numel() != 1
                if wrong or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                    if role == "alpha" and not wrong and not tensor.is_floating_point():
                        continue
                    raise MsdvError(f"--lora {self.path}: {parts[role]} is damaged: download or copy it again")
            rank = len(found["down"])
            scale = float(found["alpha"]) / rank if "alpha" in found else _peft_scale(settings, layer, parts, rank)
            pairs[layer] = _Pair(found["down"], found["up"], found.get("mid"), self.weight * scale)
        return pairs


def _read_key(key: str) -> tuple[str, str]:
    """The layer, dots as underscores, and the role of a tensor in a LoRA file; "" for one that has none."""
    for pattern, names in _ROLES:
        if match := pattern.search(key):
            layer = key[: match.start()].removeprefix("base_model.model.").replace(".processor.", ".")
            layer = layer.replace(".", "_")
            if pattern.pattern.startswith("_lora"):  # attention processors of the first diffusers versions
                layer = re.sub(r"_to_out$", "_out_proj" if "self_attn" in layer else "_to_out_0", layer)
                layer = re.sub(r"(self_attn)_to_([qkv])$", r"\1_\2_proj", layer)
            role = str(match[1])
            return layer, names.get(role, role)
    return key, ""


def _peft_settings(file: TensorFile) -> dict[str, Any]:
    """What peft knows of a LoRA besides its tensors: in the header of the file, or in one beside it."""
    beside = file.path.with_name("adapter_config.json")
    text = file.metadata.get("lora_adapter_metadata")
    try:
        if text is None and file.path.name.startswith("adapter_model") and beside.is_file():
            text = beside.read_text(encoding="utf-8")
        settings = json.loads(text) if text else {}
    except (OSError, ValueError) as error:
        raise MsdvError(f"{beside if beside.is_file() else file.path} can't be read: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _peft_scale(settings: Mapping[str, Any], layer: str, parts: Mapping[str, str], rank: int) -> float:
    """alpha / rank; 1 where nothing says otherwise."""
    key = parts["down"].removeprefix("base_model.model.")
    prefix = next((p for p in ("unet.", "text_encoder.") if key.startswith(p) and f"{p}lora_alpha" in settings), "")
    own = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
    name = key.removeprefix(prefix).partition(".lora_")[0]
    alpha = own.get("lora_alpha", rank)
    for pattern, value in (own.get("alpha_pattern") or {}).items():
        if name == pattern or name.endswith(f".{pattern}"):
            alpha = value
    if not isinstance(alpha, int | float):
        raise MsdvError(f"the LoRA's alpha of {layer} is {alpha}, no number: download or copy it again")
    return alpha / (math.sqrt(rank) if own.get("use_rslora") else rank)


def merge(
    loras: Iterable[Lora], base: str, unet: nn.Module | None, text_encoder: nn.Module | None, dtype: torch.dtype
) -> list[str]:
    """Add LoRAs to the weights of an image model, in float32, and store those in `dtype`; a line for the user each.

    `base` is the image model's name, for messages; a network that is None is not there. Modules get new tensors: those
    they had may be a file's.

    Raises MsdvError, naming the file and what it is for, if a LoRA is for another image model.
    """
    loras = list(loras)
    places = _places(unet, text_encoder)
    wanted: dict[str, list[_Pair]] = {}
    lines = []
    for lora in loras:
        pairs = lora.pairs()
        fitting = {layer: _place(layer, places) for layer in pairs}
        missing = [layer for layer, place in fitting.items() if place is None]
        if len(missing) == len(pairs):
            raise _for_another(lora, base, unet, f"there is no layer {missing[0]}")
        for layer, place in fitting.items():
            if place is None:
                continue
            weight: Any = places[place].weight
            if not pairs[layer].fits(weight):
                shapes = "x".join(map(str, pairs[layer].down.shape)), "x".join(map(str, weight.shape))
                raise _for_another(lora, base, unet, f"{layer} is {shapes[1]} there, the LoRA's side {shapes[0]}")
            if lora.weight:
                wanted.setdefault(place, []).append(pairs[layer])
        lines.append(_line(lora, len(pairs) - len(missing), missing))
    with torch.no_grad():
        for place, found in wanted.items():
            module: Any = places[place]
            delta = sum(pair.delta(module.weight) for pair in found)
            module.weight = nn.Parameter((module.weight.float() + delta).to(dtype), requires_grad=False)
    return lines


def _line(lora: Lora, used: int, missing: list[str]) -> str:
    left_out = [*missing, *lora.others]
    line = f"LoRA {lora.path.name}, weight {lora.weight:g}: {used} layers"
    if left_out:
        more = " ..." if len(left_out) > 3 else ""
        line += f"; left out, since this image model has no place for it: {', '.join(left_out[:3])}{more}"
        line += f" ({len(left_out)})" if more else ""
    return line


def _places(unet: nn.Module | None, text_encoder: nn.Module | None) -> dict[str, nn.Module]:
    """What a LoRA can change, by names as LoRA files have them."""
    places: dict[str, nn.Module] = {}
    for prefix, network in (("unet_", unet), ("te_", text_encoder)):
        for name, module in network.named_modules() if network is not None else ():
            if isinstance(module, nn.Linear | nn.Conv2d):
                places[prefix + name.removeprefix("text_model.").replace(".", "_")] = module
    return places


def _place(layer: str, places: Mapping[str, nn.Module]) -> str | None:
    for prefix, own in (("lora_unet_", "unet_"), ("unet_", "unet_"), ("lora_te_", "te_"), ("text_encoder_", "te_")):
        if layer.startswith(prefix):
            name = own + layer.removeprefix(prefix).removeprefix("text_model_")
            return name if name in places else None
    name = f"unet_{layer}"  # the first files of diffusers, and peft's own
    return name if name in places else None


def _for_another(lora: Lora, base: str, unet: nn.Module | None, difference: str) -> MsdvError:
    config: Any = unet.config if unet is not None else {}
    width = config.get("cross_attention_dim")
    kind = _IMAGE_MODELS.get(width, f"a model with text embeddings {width} wide") if width else "another model"
    made_for = lora.made_for()
    if made_for and made_for != kind:
        return MsdvError(f"--lora {lora.path} is for {made_for}, --base {base} is {kind}: take one for that")
    return MsdvError(f"--lora {lora.path} is not for --base {base} ({difference}): take one for {kind}")
