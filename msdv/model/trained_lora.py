"""A LoRA that is trained beside the temporal layers: the look of the clips goes into it, and can be left out at
sampling (the domain adapter of AnimateDiff, Guo et al. 2023, 2307.04725, section 4.1).

Reading and merging LoRA files is the business of lora.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msdv.errors import UsageError
from msdv.model.blocks import VideoTransformerBlock
from msdv.model.frames import FrameContext
from msdv.model.inflate import VideoUNet
from msdv.weights import TemporalMetadata, header_for_others, save_half

_PLACES = ("to_q", "to_k", "to_v", "to_out.0")
_VERSIONS = {768: "sd_v1", 1024: "sd_v2"}
"""By how wide the text embeddings are, the image model in the words of kohya's tools."""


class LoraLinear(nn.Linear):
    """A frozen linear layer with a low-rank pair beside it. Takes over the parameters of an `nn.Linear`. With the
    temporal layers off it computes what that computes."""

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator, context: FrameContext) -> None:
        """The pair starts as no change: one half drawn from `generator`, the other zero."""
        channels, out = linear.in_features, linear.out_features
        super().__init__(channels, out, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.context = context
        own: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_A = nn.Linear(channels, rank, bias=False, **own)
        self.lora_B = nn.Linear(rank, out, bias=False, **own)
        drawn = torch.rand(rank, channels, generator=generator, device="cpu")
        with torch.no_grad():
            self.lora_A.weight.copy_((2 * drawn - 1) * channels**-0.5)
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., c) -> (..., c')."""
        y = F.linear(x, self.weight, self.bias)
        return y + self.lora_B(self.lora_A(x)) if self.context.enabled else y


def add_lora(model: VideoUNet, rank: int, seed: int = 0) -> None:
    """Put an untrained LoRA on the attention layers of the image model in `model`, which changes nothing yet.

    Raises UsageError for a rank that is no smaller than the layers.
    """
    context = model.frame_context
    generator = torch.Generator().manual_seed(seed)
    blocks = [module for module in model.unet.modules() if isinstance(module, VideoTransformerBlock)]
    for block in blocks:
        for attention in (block.attn1, block.attn2):
            for name in _PLACES:
                linear = attention.get_submodule(name)
                most = min(linear.in_features, linear.out_features)
                if rank >= most:
                    raise UsageError(
                        f"--lora-rank {rank}: this image model has attention layers {most} wide, of which that is no "
                        f"small part: try {max(1, min(8, most // 4))}"
                    )
                attention.set_submodule(name, LoraLinear(linear, rank, generator, context))


def save_lora(path: Path, state: Mapping[str, Tensor], metadata: TemporalMetadata) -> None:
    """Write a trained LoRA as diffusers and peft name things, whole or not at all, in half precision. `state`: as
    `VideoUNet.lora_parameters` names it; `metadata`: of the temporal layers that it was trained beside.

    Raises MsdvError if a weight is not finite or too large for half precision.
    """
    save_half(path, {f"unet.{key}": tensor for key, tensor in state.items()}, _header(state, metadata))


def save_kohya(
    path: Path, state: Mapping[str, Tensor], metadata: TemporalMetadata, more: Mapping[str, str] | None = None
) -> None:
    """The same from a file's tensors, as kohya's tools name them, which ComfyUI and A1111 load. `more`: further lines
    of the header."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name, _, half = key.removesuffix(".weight").rpartition(".")
        name = "lora_" + name.replace(".", "_")
        renamed[f"{name}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = tensor
        renamed[f"{name}.alpha"] = torch.tensor(float(_rank(state)))
    save_half(path, renamed, {**_header(state, metadata), **(more or {})})


def _header(state: Mapping[str, Tensor], metadata: TemporalMetadata) -> dict[str, str]:
    width = next(tensor.shape[1] for key, tensor in state.items() if re.search(r"attn2\.to_k\.lora_A", key))
    rank = str(_rank(state))
    return {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        **({"ss_base_model_version": _VERSIONS[width]} if width in _VERSIONS else {}),
        **header_for_others(metadata),
    }


def _rank(state: Mapping[str, Tensor]) -> int:
    return next(len(tensor) for key, tensor in state.items() if ".lora_A." in key)
