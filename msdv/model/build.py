"""Modules from parts: made without memory, given every weight of theirs, named when something doesn't fit."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from msdv.errors import MsdvError
from msdv.model.parts import Part, Parts
from msdv.model.tensors import fill_module

_ARCHITECTURE_KEYS = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "cross_attention_dim",
    "norm_num_groups",
    "use_linear_projection",
    "act_fn",
)


def network_config(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration a diffusers class takes: what another version of diffusers wrote besides has no meaning
    for this one."""
    known = inspect.signature(kind).parameters
    return {key: value for key, value in config.items() if key in known and not key.startswith("_")}


def build_network(kind: type, part: Part) -> Any:
    """A diffusers model of class `kind` with its weights: frozen, in eval mode, on the CPU and in the file's dtype.

    Raises:
        MsdvError: when configuration and weights don't make one.
    """
    with _explain_config(part), init_empty_weights(include_buffers=False):
        module = kind(**network_config(kind, part.config))
    fill_module(module, part.read(), part.origin)
    return module


def build_text_encoder(part: Part, tokenizer: Any) -> nn.Module:
    """CLIP's text encoder with its weights, as `build_network`.

    Raises:
        MsdvError: when configuration and weights don't make one, or the tokenizer has more tokens than it knows.
    """
    # transformers' models take seconds to import: not for those who only need the UNet.
    from transformers import CLIPTextConfig, CLIPTextModel

    with _explain_config(part), init_empty_weights(include_buffers=False):
        module = CLIPTextModel(CLIPTextConfig.from_dict(part.config))
    prefix = "text_model." if any(key.startswith("text_model.") for key in module.state_dict()) else ""
    tensors = {
        prefix + key.removeprefix("text_model."): tensor
        for key, tensor in part.read().items()
        if not key.endswith("position_ids") and key != "text_projection.weight"
    }
    fill_module(module, tensors, part.origin)
    if len(tokenizer) > module.config.vocab_size:
        raise MsdvError(
            f"{part.origin}: knows {module.config.vocab_size} tokens, its tokenizer {len(tokenizer)}: "
            "they are of two models"
        )
    return module


def load_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer from a folder of vocab.json and merges.txt, or tokenizer.json.

    Raises:
        MsdvError: naming the folder.
    """
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # The reader of tokenizer files raises whatever its parsers do, down to bare Exception.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MsdvError(f"{folder} is damaged ({reason}): download or copy it again") from error


def check_width(name: str, found: Parts) -> None:
    """Raise MsdvError unless the UNet takes embeddings as wide as the text encoder's."""
    width = found.text_encoder.config.get("hidden_size", 512)
    wanted = found.unet.config.get("cross_attention_dim", 1280)
    if width != wanted:
        raise MsdvError(
            f"{name}: the text encoder gives embeddings {width} wide, the UNet takes {wanted}: they are of two models"
        )


@contextmanager
def _explain_config(part: Part) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Whatever a wrong value makes a constructor do, the cause is the configuration.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MsdvError(f"{part.origin}: its configuration can't be built ({reason}): take another copy") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' advice about configurations and token counts off the screen: what matters is checked."""
    libraries = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)


def hash_unet(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over what makes an image UNet: the keys of its configuration that shape it, and its weights as float16,
    by name. So float32 and float16 copies of one model agree, and so do a folder and a single file."""
    shape = {key: config.get(key) for key in _ARCHITECTURE_KEYS}
    heads = config.get("num_attention_heads") or config.get("attention_head_dim")
    blocks = len(config["block_out_channels"])
    shape["heads"] = list(heads) if isinstance(heads, list | tuple) else [heads] * blocks
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=list).encode())
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].detach().to("cpu", torch.float16).contiguous().numpy().data)
    return digest.hexdigest()
