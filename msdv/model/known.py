"""What image models are made of, by name, folder or file: configurations alone, for planning before a download."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msdv.config import GroupNormMode
from msdv.errors import MsdvError, UsageError
from msdv.model import hub
from msdv.model.folder import PARTS, plain_blocks, read_sampling
from msdv.model.parts import check_unet
from msdv.model.single_file import read_single_file
from msdv.model.tensors import read_json
from msdv.run import BUILTIN

_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "act_fn": "silu",
}
_UNET_1: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
_UNET_2 = _UNET_1 | {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_TEXT: dict[str, Any] = {"vocab_size": 49408, "max_position_embeddings": 77}
_TEXT_1 = _TEXT | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
_TEXT_2 = _TEXT | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
_INPAINTING = {"in_channels": 9}


@dataclass(frozen=True)
class Architecture:
    """The configurations of an image model's networks; `group_norm` where it comes with temporal layers of 2022."""

    name: str
    unet: dict[str, Any]
    vae: dict[str, Any] = field(default_factory=lambda: _VAE)
    text_encoder: dict[str, Any] = field(default_factory=lambda: _TEXT_1)
    group_norm: GroupNormMode | None = None
    steady: int = 0
    """With how many frames on each side each is averaged, unless something else is asked for."""

    @property
    def size(self) -> int:
        """Side in pixels of the pictures that it was made for."""
        size = self.unet.get("sample_size") or 64
        return int(max(size) if isinstance(size, list | tuple) else size) * self.cell

    @property
    def cell(self) -> int:
        """Pixels to a latent, along each side."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))


KNOWN: dict[str, Architecture] = {
    "sd-1.5": Architecture("sd-1.5", _UNET_1),
    "sd-1.5-inpainting": Architecture("sd-1.5-inpainting", _UNET_1 | _INPAINTING),
    "sd-2.1": Architecture("sd-2.1", _UNET_2 | {"sample_size": 96}, text_encoder=_TEXT_2),
    "sd-2.1-base": Architecture("sd-2.1-base", _UNET_2, text_encoder=_TEXT_2),
    "sd-2-inpainting": Architecture("sd-2-inpainting", _UNET_2 | _INPAINTING, text_encoder=_TEXT_2),
    "2022": Architecture("2022", _UNET_1 | _INPAINTING, group_norm="joint"),
}
"""Short names, for planning."""

_HUB = {
    "make-a-stable-diffusion-video-timelapse": "2022",
    "stable-diffusion-v1-1": "sd-1.5",
    "stable-diffusion-v1-2": "sd-1.5",
    "stable-diffusion-v1-3": "sd-1.5",
    "stable-diffusion-v1-4": "sd-1.5",
    "stable-diffusion-v1-5": "sd-1.5",
    "stable-diffusion-inpainting": "sd-1.5-inpainting",
    "stable-diffusion-v1-5-inpainting": "sd-1.5-inpainting",
    "stable-diffusion-2": "sd-2.1",
    "stable-diffusion-2-1": "sd-2.1",
    "stable-diffusion-2-base": "sd-2.1-base",
    "stable-diffusion-2-1-base": "sd-2.1-base",
    "stable-diffusion-2-inpainting": "sd-2-inpainting",
}
"""Hub ids, whoever publishes them."""


def find_architecture(name: str) -> Architecture:
    """The configurations of an image model: a short name, a known hub id or one that was downloaded, a folder, a file,
    `builtin`. No weights are read, nothing is downloaded.

    Raises:
        UsageError: for a name that is nothing of these.
        MsdvError: when the content can't be used.
    """
    path = Path(name).expanduser()
    if name == "builtin":
        return _read_folder(BUILTIN, name)
    if path.is_dir():
        return _read_folder(path, str(path.resolve()))
    if path.is_file():
        parts = read_single_file(path)
        return Architecture(str(path), parts.unet.config, parts.vae.config, parts.text_encoder.config)
    if name.lower() in KNOWN:
        return KNOWN[name.lower()]
    owner, _, model = name.partition("/")
    if model.lower() in _HUB and owner not in (".", "..", "~"):
        known = KNOWN[_HUB[model.lower()]]
        return Architecture(name, known.unet, known.vae, known.text_encoder, known.group_norm)
    downloaded = hub.find_downloaded(name) if model and "/" not in model else None
    if downloaded is not None:
        return _read_folder(downloaded.parent, name)
    raise UsageError(
        f"--base {name}: not on this disk, and planning downloads nothing: plan with one of its size "
        f"({', '.join(KNOWN)}), a folder or a file"
    )


def _read_folder(folder: Path, name: str) -> Architecture:
    if not (folder / "unet" / "config.json").is_file():
        raise MsdvError(f"{folder} has no unet/config.json, so it is no image model in diffusers layout")
    unet, vae, text = (read_json(folder / part / "config.json") for part in PARTS)
    is_2022 = str(unet.get("_class_name", "")).startswith("UNetPseudo3D")
    unet = plain_blocks(unet) if is_2022 else unet
    check_unet(unet, str(folder / "unet" / "config.json"))
    said = folder / "sampling.json"
    steady = read_sampling(said).steady if said.is_file() else 0
    return Architecture(name, unet, vae, text, "joint" if is_2022 else None, steady)
