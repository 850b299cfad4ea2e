"""What a base model is made of, before any module exists: what the readers of folders and files hand to `base.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from msdv.config import GroupNormMode, SchedulerName
from msdv.errors import MsdvError

SUPPORTED = "msdv works with Stable Diffusion 1.x and 2.x"


@dataclass(frozen=True)
class SamplingDefaults:
    """How a base model is best sampled when nothing is asked: denoising method, steps, guidance scale, and how many
    neighbours on each side a frame is averaged with (data/steady.py)."""

    scheduler: SchedulerName = "dpmpp-2m"
    steps: int = 25
    guidance: float = 7.5
    steady: int = 0


@dataclass
class Part:
    """One network: the configuration of its class, and a function that reads its weights under that class's names.

    `origin` names the file in errors.
    """

    config: dict[str, Any]
    read: Callable[[], dict[str, Tensor]]
    origin: str


@dataclass
class Parts:
    """A Stable Diffusion, found but not built.

    `temporal` are the temporal layers that come with it, if any: a file, or a function that reads tensors from the file
    that has the UNet too.
    """

    unet: Part
    vae: Part
    text_encoder: Part
    tokenizer: Path
    scheduler: dict[str, Any]
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    temporal: Path | Callable[[], dict[str, Tensor]] | None = None
    group_norm: GroupNormMode | None = None
    notes: list[str] = field(default_factory=list)


_OTHER_INPUTS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an image-editing model (InstructPix2Pix)",
}


def check_unet(config: dict[str, Any], origin: str) -> None:
    """Refuse, by name, a UNet that is none of Stable Diffusion 1.x or 2.x.

    Raises:
        MsdvError: saying what it is.
    """
    what = None
    if config.get("addition_embed_type") in ("text_time", "text_image") or config.get("addition_time_embed_dim"):
        what = "SDXL"
    elif config.get("addition_embed_type") or config.get("encoder_hid_dim_type") or config.get("class_embed_type"):
        what = "a variant that takes more than a prompt (unCLIP, Kandinsky or similar)"
    elif config.get("in_channels", 4) not in (4, 9):
        channels = config["in_channels"]
        what = _OTHER_INPUTS.get(channels, f"a UNet of {channels} input channels (4 or 9 wanted)")
    elif config.get("out_channels", 4) != 4:
        what = f"a UNet of {config['out_channels']} output channels (4 wanted)"
    elif config.get("transformer_layers_per_block", 1) != 1:
        what = "a UNet with several transformer layers in a block, as SDXL has"
    if what:
        raise MsdvError(f"{origin}: this is {what}: {SUPPORTED}, their inpainting variants included")
