"""Clips to judge: real ones, rendered and never trained on, and sampled ones, made by several processes at once."""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from msdv.config import PrepConfig, SampleConfig
from msdv.data.clips import find_clips, read_frames
from msdv.data.prepare import prepare
from msdv.data.synthetic import Sky, render, sample_sky
from msdv.data.video import write_video
from msdv.model.base import Base, load_base
from msdv.model.preview import Preview
from msdv.sampling.results import decoded_frames
from msdv.sampling.sampler import Sampler

FPS = 5.0  # of the clips that the temporal layers are trained on
SIZE = 128


@dataclass(frozen=True)
class Wish:
    """What a clip is asked to be."""

    prompt: str
    seed: int
    frames: int
    motion: str = "auto"


@dataclass(frozen=True)
class Model:
    """What is judged: as in `msdv sample`."""

    base: str
    model: str | None
    steps: int | None
    guidance: float | None
    window: int | None = None


@dataclass(frozen=True)
class Made:
    """A sampled clip and what it took."""

    frames: np.ndarray
    """(f, h, w, 3) uint8"""
    seconds: float
    """Of one processor core."""
    peak: int
    """Bytes: the most memory that its process has had so far; 0 where the system does not count it."""


def real_skies(count: int, seed: int, time: str) -> list[Sky]:
    """Random skies of one time of day. Winds and speeds are as often as in the training clips, but dealt out in turn:
    means of few clips then say more."""
    rng, skies = random.Random(seed), list[Sky]()
    turns = itertools.cycle(zip(("mid", "fast", "slow", "mid"), ("left", "right", "right", "left"), strict=True))
    while len(skies) < count:
        sky = sample_sky(rng)
        if sky.time == time:
            speed, wind = next(turns)
            skies.append(replace(sky, speed=speed, wind=wind))
    return skies


def render_clip(sky: Sky, frames: int) -> np.ndarray:
    """Frames (f, h, w, 3), uint8, as fast as the training clips."""
    return render(sky, frames, SIZE, fps=FPS)


def load_autoencoder(base: str) -> Base:
    """The image model, of which only the autoencoder."""
    return load_base(base, device=torch.device("cpu"), dtype=torch.float32, parts=("vae",))


def through_autoencoder(base: Base, frames: np.ndarray) -> np.ndarray:
    """What is left of frames (f, h, w, 3): the best that a model on these latents can do."""
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    return base.decode_latents(base.encode_frames(pictures))


def as_prepared(several: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same clips as a training gets them: out of a video file, through `msdv prep`."""
    with tempfile.TemporaryDirectory() as temporary:
        videos, frames = Path(temporary, "videos"), Path(temporary, "frames")
        videos.mkdir()
        for index, clip in enumerate(several):
            write_video(videos / f"{index:03d}.mp4", clip, fps=FPS)
        values = {"videos": videos, "frames": frames, "size": SIZE, "trim_start": 0, "trim_end": 0, "workers": 1}
        prepare(PrepConfig.model_validate(values))
        clips, _ = find_clips(frames, 2)
        return [read_frames(clip.files, SIZE) for clip in clips]


def sample_clips(model: Model, wishes: Sequence[Wish], processes: int) -> Iterator[Made]:
    """A clip of each wish, in order; the models are loaded once a process and length."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    prompts = tuple(dict.fromkeys(wish.prompt for wish in wishes))
    if processes == 1:
        _start(model, prompts)
        yield from map(_make, wishes)
        return
    # Processes of one thread each: on two cores faster than one of two threads.
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_start, initargs=(model, prompts)
    ) as pool:
        yield from pool.map(_make, wishes)


_MODEL: Model
_PROMPTS: tuple[str, ...]
_SAMPLERS: dict[int, Sampler] = {}


def _start(model: Model, prompts: tuple[str, ...]) -> None:
    global _MODEL, _PROMPTS
    torch.set_num_threads(1)
    _MODEL, _PROMPTS = model, prompts
    _SAMPLERS.clear()


@torch.no_grad()
def _make(wish: Wish) -> Made:
    if wish.frames not in _SAMPLERS:
        config = _config(wish)
        sampler = _SAMPLERS[wish.frames] = Sampler(config)
        sampler.encode_texts([config.model_copy(update={"prompt": prompt}) for prompt in _PROMPTS])
    sampler = _SAMPLERS[wish.frames]
    started = time.process_time()
    config = _config(wish)
    latents = sampler.denoise(config, Preview(None))[0]
    frames = np.stack(list(decoded_frames(sampler.base, latents, sampler.steadying(config))))
    return Made(frames, time.process_time() - started, _peak())


def _peak() -> int:
    if sys.platform == "win32":
        return 0
    import resource  # only where there is one

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _config(wish: Wish) -> SampleConfig:
    window = _MODEL.window if _MODEL.window and _MODEL.window < wish.frames else None
    return SampleConfig.model_validate(
        {
            "prompt": wish.prompt,
            "out": Path("unwritten"),
            "seed": wish.seed,
            "frames": wish.frames,
            "motion": wish.motion,
            "base": _MODEL.base,
            "model": _MODEL.model,
            "steps": _MODEL.steps,
            "guidance": _MODEL.guidance,
            "window": window,
            "device": "cpu",
        }
    )
