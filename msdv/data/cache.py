"""Latents, optical flow and text embeddings: computed once, kept beside the frames, reused by every later run that can.

A file is named after what it depends on: the clip's frames (names, sizes, times), the picture size and, of latents, the
VAE. Each is written as soon as it is computed, so that a killed run loses one clip's work.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from msdv.data.clips import Clip, read_frames
from msdv.data.flow import coarse_flows, followed, shrunk, size_for_flow
from msdv.files import write_file

FOLDER = ".cache"
MEAN = 8
"""Cells a side of a clip's mean flow."""

EncodeFrames = Callable[[Tensor], Tensor]
"""(n, 3, h, w) in -1..1 -> (n, 4, h/8, w/8)."""
EncodePrompts = Callable[[list[str]], Tensor]
"""n prompts -> (n, tokens, channels)."""


def mirror_caption(caption: str) -> str:
    """The caption of a mirrored clip: left for right and right for left."""
    swap = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda m: swap[m[0].lower()], caption, flags=re.IGNORECASE)


def cache_file(folder: Path, clip: Clip, settings: str, kind: str = "") -> Path:
    """The file in which is kept what depends on a clip's frames and on these settings."""
    key = hashlib.sha256(settings.encode())
    for path in clip.files:
        stat = path.stat()
        key.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    # File systems count bytes: 255 at most.
    name = clip.name.encode()[:120].decode(errors="ignore")
    return folder / f"{name}-{key.hexdigest()[:20]}{kind}.safetensors"


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
            settings = f"1 {self.size} {self.vae_hash} {self.flip}"
            self._files[clip.name] = cache_file(self.folder, clip, settings)
        return self._files[clip.name]

    def is_cached(self, clip: Clip) -> bool:
        """Whether the clip's latents are there and readable."""
        file = self.file(clip)
        try:
            with safe_open(file, framework="pt") as opened:
                return opened.get_slice("latents").get_shape()[-3] == len(clip)
        except (SafetensorError, OSError):
            return False

    def encode(self, clip: Clip, encode_frames: EncodeFrames, chunk: int = 8) -> None:
        """Compute a clip's latents (mirrored too if asked for), and write them."""
        latents: list[list[Tensor]] = [[], []]
        for start in range(0, len(clip), chunk):
            pixels = torch.from_numpy(read_frames(clip.files[start : start + chunk], self.size))
            frames = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
            latents[0].append(encode_frames(frames).cpu())
            if self.flip:
                latents[1].append(encode_frames(frames.flip(-1)).cpu())
        # (views, c, f, h, w): a window of frames is one slice of the file
        stacked = torch.stack([torch.cat(view).transpose(0, 1) for view in latents if view])
        with write_file(self.file(clip)) as temporary:
            save_file({"latents": stacked.to(torch.float16).contiguous()}, temporary)

    def window(self, clip: Clip, start: int, frames: int, mirrored: bool, stride: int = 1) -> Tensor:
        """Latents (4, frames, h, w), float32, of every `stride`-th frame from `start` on, read from disk alone."""
        with safe_open(self.file(clip), framework="pt") as file:
            end = start + stride * (frames - 1) + 1
            view = file.get_slice("latents")[int(mirrored) : int(mirrored) + 1, :, start:end]
        return view[0, :, ::stride].float()


@dataclass(frozen=True)
class FlowCache:
    """Optical flow of clips on disk, for pictures of one size."""

    folder: Path
    size: int
    _files: dict[str, Path] = field(default_factory=dict, compare=False, repr=False)

    def file(self, clip: Clip) -> Path:
        """Where the flow of a clip is, or will be; looked up once."""
        if clip.name not in self._files:
            self._files[clip.name] = cache_file(self.folder, clip, f"flow 1 {self.size}", ".flow")
        return self._files[clip.name]

    def is_cached(self, clip: Clip) -> bool:
        """Whether the clip's flow is there and readable."""
        try:
            with safe_open(self.file(clip), framework="pt") as opened:
                return opened.get_slice("flow").get_shape()[0] == len(clip) - 1 and "mean" in opened.keys()  # noqa: SIM118
        except (SafetensorError, OSError):
            return False

    def measure(self, clip: Clip) -> None:
        """Find a clip's flow, and write it."""
        side, _ = size_for_flow(self.size, self.size)
        frames = (read_frames([file], side)[0] for file in clip.files)
        fields = np.stack([field.astype(np.float16) for field in coarse_flows(frames, self.size, self.size)])
        mean = shrunk(fields.mean(0, dtype=np.float32), MEAN, MEAN)
        tensors = {
            "flow": torch.from_numpy(fields).permute(0, 3, 1, 2).contiguous(),
            "mean": torch.from_numpy(mean).permute(2, 0, 1).contiguous(),
        }
        with write_file(self.file(clip)) as temporary:
            save_file(tensors, temporary)

    def window(self, clip: Clip, start: int, frames: int, mirrored: bool, stride: int = 1) -> Tensor:
        """The flow (frames - 1, 2, size / 4, size / 4), float32, between every `stride`-th frame from `start` on: in
        pixels, to the right and down."""
        with safe_open(self.file(clip), framework="pt") as file:
            flow = file.get_slice("flow")[start : start + stride * (frames - 1)].float()
        if stride > 1:
            fields = flow.permute(0, 2, 3, 1).numpy()
            ways = [followed(fields[first : first + stride]) for first in range(0, len(fields), stride)]
            flow = torch.from_numpy(np.stack(ways)).permute(0, 3, 1, 2)
        return flow.flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1) if mirrored else flow

    def mean(self, clip: Clip) -> Tensor:
        """(2, 8, 8) pixels per frame, to the right and down: the clip's flow on average."""
        with safe_open(self.file(clip), framework="pt") as file:
            return file.get_tensor("mean").clone()


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
