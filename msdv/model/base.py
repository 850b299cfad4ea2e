"""Base models in: hub, folder, single file, the built-in one, the 2022 layout. The one place for dtype and device."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from msdv.config import GroupNormMode
from msdv.errors import MsdvError, UsageError
from msdv.model import hub
from msdv.model.build import build_network, build_text_encoder, check_width, hash_unet, load_tokenizer, quiet
from msdv.model.devices import Precision, choose_device, choose_precision
from msdv.model.folder import read_folder
from msdv.model.lora import Lora, merge
from msdv.model.parts import Parts, SamplingDefaults
from msdv.model.single_file import read_single_file
from msdv.run import BUILTIN

__all__ = [
    "Base",
    "Precision",
    "SamplingDefaults",
    "choose_base",
    "choose_device",
    "choose_precision",
    "hash_unet",
    "load_base",
]

PartName = Literal["unet", "vae", "text_encoder"]
STABLE_DIFFUSION_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"

# Pixels in a pass of the autoencoder: 8 frames of 256x256, 2 of 512x512. Its widest layers hold 512 bytes a pixel.
PASS_PIXELS = 8 * 256 * 256
MOST_FRAMES_A_PASS = 8


@dataclass
class Base:
    """A Stable Diffusion: its networks (None where not asked for or unloaded), and what is known about it.

    `name` is how it was asked for, made canonical: `builtin`, a hub id, or an absolute path. `temporal` are the
    temporal layers that come with it: a file, or the tensors of a 2022 state dict under their 2022 names, for which
    `group_norm` is `joint`. `unet_hash` identifies the image UNet whatever the precision (see `hash_unet`). `notes`
    are lines for the user; they grow while it works.
    """

    name: str
    unet: UNet2DConditionModel | None
    vae: AutoencoderKL | None
    text_encoder: nn.Module | None
    tokenizer: Any
    scheduler_config: dict[str, Any]
    sampling: SamplingDefaults
    temporal: Path | dict[str, Tensor] | None
    group_norm: GroupNormMode | None
    device: torch.device
    dtype: torch.dtype
    unet_config: dict[str, Any]
    vae_config: dict[str, Any]
    unet_hash: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along each side: 8."""
        blocks = self.vae_config.get("block_out_channels", (128, 256, 512, 512))
        return int(2 ** (len(blocks) - 1))

    @property
    def sample_size(self) -> int:
        """Side in pixels of the pictures that the model was made for."""
        size = self.unet_config.get("sample_size") or 64
        return int(max(size) if isinstance(size, list | tuple) else size) * self.vae_scale_factor

    @property
    def in_channels(self) -> int:
        """4 for text to image, 9 for inpainting."""
        return int(self.unet_config.get("in_channels", 4))

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: `epsilon` or `v_prediction` (or `sample`)."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings (n, tokens, d) in the model's dtype, on its device. What is beyond the text encoder's length
        (77 tokens) is cut, and a note says so.

        Raises:
            MsdvError: when they are not finite.
        """
        if self.text_encoder is None:
            raise RuntimeError("the text encoder isn't loaded")
        # One at a time: an embedding must not depend on what else is encoded.
        return torch.cat([self._encode_prompt(prompt) for prompt in prompts])

    def _encode_prompt(self, prompt: str) -> Tensor:
        assert self.text_encoder is not None
        config: Any = self.text_encoder.config
        length = min(self.tokenizer.model_max_length, config.max_position_embeddings)
        with quiet():
            whole = self.tokenizer(prompt, truncation=False).input_ids
            tokens = self.tokenizer(
                prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
        if len(whole) > length:
            number, word = self._first_unseen_word(prompt, length)
            start = f"{prompt.strip()[:30].rstrip()} ..."
            self._note(
                f'"{start}" has {len(whole) - 2} tokens, and the model sees {length - 2}: from word {number} on, '
                f'"{word[:30]}", nothing is seen'
            )
        mask = tokens.attention_mask.to(self.device) if getattr(config, "use_attention_mask", None) else None
        embeddings: Tensor = self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        if not embeddings.isfinite().all():
            raise MsdvError(f"{self.name}: the text encoder gives numbers that are none: try --bf16, or no --fp16")
        return embeddings

    def _first_unseen_word(self, prompt: str, length: int) -> tuple[int, str]:
        """The first word, and which one it is from 1, that is not whole among `length` tokens."""

        def is_cut(count: int) -> bool:
            return len(self.tokenizer(" ".join(words[:count]), truncation=False).input_ids) > length

        words = prompt.split()
        with quiet():
            number = bisect_left(range(1, len(words)), True, key=is_cut) + 1
        return number, words[number - 1]

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) from -1 to 1 -> latents (n, 4, h/8, w/8) in the model's dtype, on its device: the mode
        of the posterior, times the scaling factor.

        Raises:
            MsdvError: when they are not finite.
        """
        if self.vae is None:
            raise RuntimeError("the autoencoder isn't loaded")
        parts = []
        for part in frames.split(_frames_a_pass(frames.shape[-2], frames.shape[-1])):
            latents = self.vae.encode(part.to(self.device, self.vae.dtype)).latent_dist.mode()
            if not latents.isfinite().all():
                self._widen_vae("encodes")
                latents = self.vae.encode(part.to(self.device, self.vae.dtype)).latent_dist.mode()
            if not latents.isfinite().all():
                raise MsdvError(
                    f"{self.name}: the autoencoder gives latents that are not a number; take another --base"
                )
            parts.append((latents * self.vae.config.scaling_factor).to(self.dtype))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, 4, h, w) -> pictures (n, 3, 8h, 8w), float32, about -1 to 1, in one pass.

        In float16 some autoencoders overflow: then this one goes on in float32.

        Raises:
            MsdvError: when the latents or the pictures are not finite.
        """
        if self.vae is None:
            raise RuntimeError("the autoencoder isn't loaded")
        if not latents.isfinite().all():
            raise MsdvError("the latents are not a number: try --bf16 or no --fp16, or a smaller --guidance")
        latents = latents.to(self.device) / self.vae.config.scaling_factor
        pictures: Tensor = self.vae.decode(latents.to(self.vae.dtype)).sample
        if not pictures.isfinite().all() and self.vae.dtype != torch.float32:
            self._widen_vae("decodes")
            pictures = self.vae.decode(latents.float()).sample
        if not pictures.isfinite().all():
            raise MsdvError(f"the picture is not a number: the autoencoder of {self.name} fails, take another --base")
        return pictures.float()

    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """Latents (n, 4, h, w) -> frames (n, 8h, 8w, 3), uint8, on the CPU.

        Raises:
            MsdvError: when the latents or the pictures are not finite.
        """
        return np.concatenate([part.numpy() for part in self.decode_passes(latents)])

    def decode_passes(self, latents: Tensor) -> Iterator[Tensor]:
        """What `decode_latents` puts together: few frames at a time, which bounds memory."""
        return map(_as_bytes, self._decode_parts(latents))

    def picture_passes(self, latents: Tensor) -> Iterator[np.ndarray]:
        """Like `decode_passes`, but not rounded to bytes: float32 from 0 to 1, (n, 8h, 8w, 3)."""
        return map(_as_floats, self._decode_parts(latents))

    def _decode_parts(self, latents: Tensor) -> Iterator[Tensor]:
        # Nothing here or above holds a pass until the next one: the videos of a grid are decoded in turn, and each
        # would keep one on the card.
        factor = self.vae_scale_factor
        frames = _frames_a_pass(latents.shape[-2] * factor, latents.shape[-1] * factor)
        yield from map(self.decode, latents.split(frames))

    def unload(self, part: PartName) -> None:
        """Free the memory of a network that is not needed any more."""
        setattr(self, part, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _widen_vae(self, does: str) -> None:
        assert self.vae is not None
        with quiet():
            self.vae.float()
        self._note(f"the autoencoder overflows in half precision: it {does} in float32")


def _as_bytes(pictures: Tensor) -> Tensor:
    """As `decode` gives them -> (n, h, w, 3), uint8, on the CPU. They are changed."""
    pictures.add_(1).mul_(127.5).round_().clamp_(0, 255)
    return pictures.to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous()


def _as_floats(pictures: Tensor) -> np.ndarray:
    """As `decode` gives them -> (n, h, w, 3), float32 from 0 to 1. They are changed."""
    pictures.div_(2).add_(0.5).clamp_(0, 1)
    return pictures.cpu().permute(0, 2, 3, 1).contiguous().numpy()


def _frames_a_pass(height: int, width: int) -> int:
    return max(1, min(MOST_FRAMES_A_PASS, PASS_PIXELS // (height * width)))


def choose_base(name: str | None, device: torch.device) -> tuple[str, str | None]:
    """The base model to load, and a line that says why where none was named: Stable Diffusion 1.5 wants CUDA."""
    if name is not None:
        return name, None
    if device.type == "cuda":
        return STABLE_DIFFUSION_15, f"image model: {STABLE_DIFFUSION_15} (there is a CUDA device; --base takes another)"
    return "builtin", "image model: builtin, small enough to compute without a CUDA device (--base takes another)"


def load_base(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    parts: Sequence[PartName] = ("unet", "vae", "text_encoder"),
    loras: Sequence[Lora] = (),
) -> Base:
    """Load an image model: `builtin`, a folder, a single file, or a hub id. Its networks are frozen, in eval mode, and
    stored in `dtype`. `loras` are merged into them; `unet_hash` is that of the model without.

    Raises:
        UsageError: for a path that does not exist, or a kind of file that can't be one.
        MsdvError: when the content can't be used, or the hub gives nothing.
    """
    try:
        canonical, found = _find(name, prefer_half=dtype in (torch.float16, torch.bfloat16))
    except OSError as error:
        raise MsdvError(f"--base {name} can't be read: {error.strerror or error}") from error
    base = Base(
        name=canonical,
        unet=None,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        scheduler_config=found.scheduler,
        sampling=found.sampling,
        temporal=None,
        group_norm=found.group_norm,
        device=device,
        dtype=dtype,
        unet_config=found.unet.config,
        vae_config=found.vae.config,
        notes=list(found.notes),
    )
    with quiet():
        if "unet" in parts:
            base.unet = build_network(UNet2DConditionModel, found.unet)
            base.unet_hash = hash_unet(base.unet.config, base.unet.state_dict())
        if "vae" in parts:
            base.vae = build_network(AutoencoderKL, found.vae).to(device, dtype)
            if device.type == "cpu":  # convolutions there are faster so (docs/measurements.md)
                base.vae.to(memory_format=torch.channels_last)
        if "text_encoder" in parts:
            base.tokenizer = load_tokenizer(found.tokenizer)
            base.text_encoder = build_text_encoder(found.text_encoder, base.tokenizer)
            check_width(canonical, found)
        base.notes += merge(loras, canonical, base.unet, base.text_encoder, dtype)
        for network in (base.unet, base.text_encoder):
            if network is not None:
                network.to(device, dtype)
    base.temporal = found.temporal() if callable(found.temporal) else found.temporal
    return base


def _find(name: str, *, prefer_half: bool) -> tuple[str, Parts]:
    """The canonical name of a base model and its parts."""
    if name == "builtin":
        if not (BUILTIN / "model_index.json").is_file():
            raise MsdvError(
                "the builtin image model isn't part of this installation: install msdv again, or give --base"
            )
        parts = read_folder(BUILTIN)
        if not (BUILTIN / "sampling.json").is_file():
            parts.sampling = SamplingDefaults("ddim", 15, 4.0)
        return name, parts
    if not name.strip():
        raise UsageError("--base is empty: give builtin, a hub id (owner/name), a folder or a .safetensors file")
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve()), read_folder(path.resolve(), prefer_half=prefer_half)
    if path.is_file():
        if path.suffix.lower() not in (".safetensors", ".ckpt"):
            hint = (
                "give the folder that it is in"
                if path.name == "model_index.json"
                else "give a .safetensors or .ckpt file"
            )
            raise UsageError(f"--base {name}: {path.suffix or 'this'} is no image model; {hint}")
        return str(path.resolve()), read_single_file(path.resolve())
    if (
        not re.fullmatch(r"[\w.-]+/[\w.-]+", name)
        or name.startswith((".", "~"))
        or path.suffix.lower() in (".safetensors", ".ckpt")
    ):
        raise UsageError(
            f"--base {name}: no such file or folder (a hub id would be owner/name, and `builtin` needs none)"
        )
    return name, read_folder(hub.download(name, prefer_half=prefer_half), prefer_half=prefer_half)
