"""From latents to the file that people see: decoded a few frames at a time, and written as they come."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdv.config import Dither, SampleConfig
from msdv.console import progress
from msdv.data.start import Footage
from msdv.data.steady import steadied
from msdv.data.tensors import write_tensors
from msdv.data.video import output_format, write_video
from msdv.model.base import Base
from msdv.sampling.grid import grid_size, side_by_side
from msdv.sampling.moving import Watch


@dataclass(frozen=True)
class Steadying:
    """How frames are averaged with their neighbours."""

    reach: int = 0
    """Neighbours on each side."""
    keep: frozenset[int] = frozenset()
    """Frames that stay as they are."""
    loop: bool = False
    """Whether the last frame's neighbour is the first."""


_AS_THEY_COME = Steadying()


def steady_of(config: SampleConfig, usual: int) -> int:
    """Neighbours on each side: what --steady says, else what is `usual` with the image model, but none with noise that
    was given, whose result is somebody else's business."""
    if config.steady is not None:
        return config.steady
    return 0 if config.latents else usual


def write_result(
    out: Path,
    base: Base,
    latents: Tensor,
    *,
    fps: float,
    metadata: Mapping[str, Any],
    dither: Dither = "diffusion",
    labels: Sequence[str] = (),
    before: Footage | None = None,
    watch: Watch | None = None,
    steadying: Steadying = _AS_THEY_COME,
) -> None:
    """Decode latents (n, 4, f, h, w), n videos that are to stand side by side, and write them as what the suffix of
    `out` says, whole or not at all. `labels`, one a video, stand above them where the result is for eyes.
    `before` is a video whose frames come first, if it is one that is written. `watch` sees the frames that are new.
    Frames that are written as numbers are not steadied.

    Raises:
        MsdvError: when the pictures are not finite.
    """
    height, width = (side * base.vae_scale_factor for side in latents.shape[3:])
    before = None if labels or len(latents) > 1 else before
    earlier = () if before is None else before.frames(height, width)
    count = latents.shape[2] + (0 if before is None else before.count)
    with progress("frame") as bar:
        task = bar.add_task(f"writing {out.name}", total=count, note="")

        def shown(frames: Iterable[Any], each: int = 1) -> Iterator[Any]:
            for frame in frames:
                yield frame
                bar.advance(task, len(frame) if each == 0 else each)

        if output_format(out) == ".safetensors":
            factor = base.vae_scale_factor
            size = grid_size(len(latents), latents.shape[3] * factor, latents.shape[4] * factor, labels=False)
            if len(latents) == 1:
                floats = (np.float32(frame[None]) / 255 for frame in earlier)
                new = base.picture_passes(latents[0].transpose(0, 1))
                parts = shown(chain(floats, watch.parts(0, new) if watch else new), each=0)
            else:
                pictures = side_by_side(
                    _watched([_each(base.picture_passes(video.transpose(0, 1))) for video in latents], watch)
                )
                parts = shown(frame[None] for frame in pictures)
            shape = count, *size
            write_tensors(out, parts, shape, latents.float().cpu().numpy(), metadata)
        else:
            videos = _watched([decoded_frames(base, video[None], steadying) for video in latents], watch)
            frames = side_by_side(videos, labels) if labels else chain(earlier, videos[0])
            write_video(out, shown(frames), fps=fps, metadata=metadata, dither=dither)


def _watched(videos: Sequence[Iterator[np.ndarray]], watch: Watch | None) -> Sequence[Iterator[np.ndarray]]:
    return videos if watch is None else [watch.frames(index, video) for index, video in enumerate(videos)]


def _each(passes: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for part in passes:
        yield from part


def decoded_frames(base: Base, latents: Tensor, steadying: Steadying = _AS_THEY_COME) -> Iterator[np.ndarray]:
    """Frames (8h, 8w, 3), uint8, of latents (1, 4, f, h, w), few of them in memory at a time."""
    video = latents[0].transpose(0, 1)
    count, keep, turned = len(video), steadying.keep, 0
    if steadying.loop and steadying.reach:  # around the ends once more, for the neighbours there
        turned = min(steadying.reach, count - 1)
        video = torch.cat([video[-turned:], video, video[:turned]])
        keep = frozenset(index + turned for index in keep)
    frames = steadied(_each(part.numpy() for part in base.decode_passes(video)), steadying.reach, keep)
    yield from islice(frames, turned, turned + count) if turned else frames
