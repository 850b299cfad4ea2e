"""What `msdv sample` spends its time on, and what --cache saves and costs, with the built-in model on a processor.

    python tests/bench/sample.py [--frames 24] [--rounds 3] [--seeds 2] [--threads 1]

Prints CPU times, of which the ratios count:

- a denoising step against the floor: the image model, as diffusers computes it, on as many frames with the same
  guidance, in turn with ours, and with ours as it is without temporal layers
- the shares of the stages of a whole command, imports included
- --cache: time by that without, and the frames against those without: PSNR, mean and largest difference, over seeds

At the size of Stable Diffusion 1.5 see step.py.
"""

import argparse
import copy
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdv.model.allocator import keep_freed_memory
from msdv.model.base import Base, load_base
from msdv.model.diffusion import denoise, make_scheduler
from msdv.model.guidance import Guided, OneText
from msdv.model.inflate import VideoUNet
from msdv.model.temporal import build_video_unet, noise_schedule

PROMPT = "clouds timelapse"
CACHES = (1, 2, 3, 5)
IMPORTS = "import time; t = time.process_time(); import msdv.sample; print(time.process_time() - t)"


def cpu_seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of it, of all threads, and what it gives."""
    started = time.process_time()
    result = action()
    return time.process_time() - started, result


@torch.no_grad()
def step_ratios(floor: Any, model: VideoUNet, texts: Tensor, frames: int, guidance: float, rounds: int) -> None:
    """A step of guided denoising: ours by the floor's."""
    latents = torch.randn(1, 4, frames, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures = latents[0].transpose(0, 1).contiguous(memory_format=torch.channels_last)
    timestep, numbers = torch.tensor(500), torch.arange(frames)
    guided = Guided(model, OneText(texts[:1]), OneText(texts[1:]), guidance=guidance)

    def of_images() -> None:
        for text in texts:
            floor(pictures, timestep, text.expand(frames, -1, -1))

    def without() -> None:
        with model.temporal_layers_off():
            guided(latents, timestep, numbers)

    contenders = {"ours": lambda: guided(latents, timestep, numbers), "without temporal layers": without}
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        lowest, _ = cpu_seconds(of_images)
        for name, action in contenders.items():
            ratios[name].append(cpu_seconds(action)[0] / lowest)
    for name, values in ratios.items():
        print(f"  {name:24} {statistics.median(values[1:]):.2f} of the image model's on as many frames")


def stages(frames: int) -> None:
    """The shares of a whole command."""
    from msdv.config import SampleConfig
    from msdv.sample import _Sampler, sample

    spent: dict[str, float] = {}
    imports = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    spent["imports"] = float(imports.stdout)

    def timed(name: str, owner: Any, method: str) -> None:
        whole = getattr(owner, method)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            seconds, result = cpu_seconds(lambda: whole(*arguments, **named))
            spent[name] = spent.get(name, 0) + seconds
            return result

        setattr(owner, method, wrapped)

    timed("loading", _Sampler, "__init__")
    timed("texts", _Sampler, "encode_texts")
    timed("denoising", _Sampler, "denoise")
    timed("decoding", Base, "decode")
    with tempfile.TemporaryDirectory() as folder:
        config = SampleConfig(prompt=PROMPT, frames=frames, out=Path(folder) / "out.gif", base="builtin", device="cpu")
        seconds, _ = cpu_seconds(lambda: sample(config))
    spent["encoding the gif and the rest"] = seconds - sum(v for k, v in spent.items() if k != "imports")
    whole = seconds + spent["imports"]
    for name, value in spent.items():
        print(f"  {name:30} {value / whole:5.1%}   {value:.1f} s")


def cache_errors(base: Base, model: VideoUNet, texts: Tensor, schedule: Any, frames: int, seeds: int) -> None:
    """A row for each --cache."""
    found: dict[int, list[tuple[float, np.ndarray]]] = {cache: [] for cache in CACHES}
    defaults = base.sampling
    for seed in range(seeds):
        noise = torch.randn(1, 4, frames, 16, 16, generator=torch.Generator().manual_seed(seed))
        for cache in CACHES:
            guided = Guided(model, OneText(texts[:1]), OneText(texts[1:]), guidance=defaults.guidance, cache=cache)
            scheduler = make_scheduler(defaults.scheduler, schedule)
            action = functools.partial(denoise, guided, noise, scheduler=scheduler, steps=defaults.steps)
            seconds, latents = cpu_seconds(action)
            found[cache].append((seconds, base.decode_latents(latents[0].transpose(0, 1)).astype(float)))
    for cache in CACHES[1:]:
        pairs = list(zip(found[cache], found[1], strict=True))
        ratio = statistics.median(own[0] / exact[0] for own, exact in pairs)
        differences = np.stack([own[1] - exact[1] for own, exact in pairs])
        psnr = 10 * np.log10(255**2 / (differences**2).mean(axis=tuple(range(1, differences.ndim))))
        print(
            f"  --cache {cache}: {ratio:.2f} of the time; PSNR {psnr.min():.1f} to {psnr.max():.1f} dB, "
            f"mean difference {np.abs(differences).mean():.1f}, largest {np.abs(differences).max():.0f} of 255"
        )


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser()
    for name, default in (("frames", 24), ("rounds", 3), ("seeds", 2), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    base = load_base("builtin", device=torch.device("cpu"), dtype=torch.float32)
    floor = copy.deepcopy(base.unet).to(memory_format=torch.channels_last)  # type: ignore[union-attr]
    texts = base.encode_prompts([PROMPT, ""])
    model, metadata = build_video_unet(base, base.temporal, channels_last=True)
    print(f"a denoising step, {arguments.frames} frames, guidance {base.sampling.guidance:g}:")
    step_ratios(floor, model, texts, arguments.frames, base.sampling.guidance, arguments.rounds)
    print(f"--cache, {arguments.frames} frames, {base.sampling.steps} steps, {arguments.seeds} seeds:")
    cache_errors(base, model, texts, noise_schedule(base, metadata), arguments.frames, arguments.seeds)
    print(f"msdv sample, {arguments.frames} frames, CPU time:")
    stages(arguments.frames)


if __name__ == "__main__":
    main()
