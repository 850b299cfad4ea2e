"""Latents and text embeddings: computed once, kept beside the frames, reused by every later run that can.

A latents file is named after what it depends on: the clip's frames (names, sizes, times), the picture size and the VAE.
Each is written as soon as it is computed, so that a killed run loses one clip's work.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from msdv.data.clips import Clip, read_frames
from msdv.files import write_file

FOLDER = ".cache"
MOTION_FRAMES = 64
"""Motion is measured on this many frames from the middle of a clip: memory must not grow with its length."""

EncodeFrames = Callable[[Tensor], Tensor]
"""(n, 3, h, w) in -1..1 -> (n, 4, h/8, w/8)."""
EncodePrompts = Callable[[list[str]], Tensor]
"""n prompts -> (n, tokens, channels)."""
MeasureMotion = Callable[[Tensor], Tensor]
"""(f, h, w) grey 0..255 -> (rows,) pixels per frame."""


def mirror_caption(caption: str) -> str:
    """The caption of a mirrored clip: left for right and right for left."""
    swap = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda m: swap[m[0].lower()], caption, flags=re.IGNORECASE)


@dataclass(frozen=True)
class LatentCache:
    """Latents of clips on disk, for pictures of one size by one VAE."""

    folder: Path
    size: int
    vae_hash: str
    flip: bool
    _files: dict[str, Path] = field(default_factory=dict, compare=False, repr=False)

    def file(self, clip: Clip) -> Path:
        """Where the latents of a clip are, or will be; looked up once, so that a training keeps its data."""
        if clip.name not in self._files:
            self._files[clip.name] = self._file(clip)
        return self._files[clip.name]

    def _file(self, clip: Clip) -> Path:
        key = hashlib.sha256(f"1 {self.size} {self.vae_hash} {self.flip}".encode())
        for path in clip.files:
            stat = path.stat()
            key.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        # File systems count bytes: 255 at most.
        name = clip.name.encode()[:120].decode(errors="ignore")
        return self.folder / f"{name}-{key.hexdigest()[:20]}.safetensors"

    def is_cached(self, clip: Clip) -> bool:
        """Whether the clip's latents are there and readable."""
        file = self.file(clip)
        try:
            with safe_open(file, framework="pt") as opened:
                return opened.get_slice("latents").get_shape()[-3] == len(clip)
        except (SafetensorError, OSError):
            return False

    def encode(self, clip: Clip, encode_frames: EncodeFrames, measure_motion: MeasureMotion, chunk: int = 8) -> None:
        """Compute a clip's latents (mirrored too if asked for) and its row velocities, and write them."""
        latents: list[list[Tensor]] = [[], []]
        grey = []
        middle = range(max(0, (len(clip) - MOTION_FRAMES) // 2), len(clip))[:MOTION_FRAMES]
        for start in range(0, len(clip), chunk):
            pixels = torch.from_numpy(read_frames(clip.files[start : start + chunk], self.size))
            grey += [pixels[index - start].float().mean(-1) for index in middle if start <= index < start + chunk]
            frames = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
            latents[0].append(encode_frames(frames).cpu())
            if self.flip:
                latents[1].append(encode_frames(frames.flip(-1)).cpu())
        # (views, c, f, h, w): a window of frames is one slice of the file
        stacked = torch.stack([torch.cat(view).transpose(0, 1) for view in latents if view])
        tensors = {
            "latents": stacked.to(torch.float16).contiguous(),
            "row_velocity": measure_motion(torch.stack(grey)).float().contiguous(),
        }
        with write_file(self.file(clip)) as temporary:
            save_file(tensors, temporary)

    def row_velocity(self, clip: Clip) -> Tensor:
        """(rows,) pixels per frame, positive to the right, of the clip as it is, not mirrored."""
        with safe_open(self.file(clip), framework="pt") as file:
            return file.get_tensor("row_velocity").clone()

    def window(self, clip: Clip, start: int, frames: int, mirrored: bool, stride: int = 1) -> Tensor:
        """Latents (4, frames, h, w), float32, of every `stride`-th frame from `start` on, read from disk alone."""
        with safe_open(self.file(clip), framework="pt") as file:
            end = start + stride * (frames - 1) + 1
            view = file.get_slice("latents")[int(mirrored) : int(mirrored) + 1, :, start:end]
        return view[0, :, ::stride].float()


class TextCache:
    """Text embeddings by caption, of one text encoder; the empty caption is always among them."""

    def __init__(self, folder: Path, text_hash: str) -> None:
        self._folder = folder
        self._text_hash = text_hash
        self._embeddings: dict[str, Tensor] = {}

    def encode(self, captions: Sequence[str], encode_prompts: EncodePrompts | None, chunk: int = 64) -> bool:
        """Have these captions and the empty one: read from disk what is there, compute and write the rest.

        With `encode_prompts` None nothing is computed; the result says whether all are there now.
        """
        wanted = ["", *sorted(set(captions) - {""})]
        key = hashlib.sha256("\0".join([self._text_hash, *wanted]).encode()).hexdigest()[:20]
        file = self._folder / f"text-{key}.safetensors"
        try:
            stacked = load_file(file)["embeddings"]
        except (SafetensorError, OSError, KeyError):
            if encode_prompts is None:
                return False
            parts = [encode_prompts(wanted[i : i + chunk]).cpu() for i in range(0, len(wanted), chunk)]
            stacked = torch.cat(parts).float().contiguous()
            with write_file(file) as temporary:
                save_file({"embeddings": stacked}, temporary)
        self._embeddings.update(zip(wanted, stacked, strict=True))
        return True

    def __getitem__(self, caption: str) -> Tensor:
        """(tokens, channels), float32."""
        return self._embeddings[caption]
