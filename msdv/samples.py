"""Samples that a training makes of itself: a few prompts side by side, and how they move."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from msdv.data.batches import generator_for
from msdv.data.moving import Meter, likeness
from msdv.data.video import write_video
from msdv.model.base import Base
from msdv.model.diffusion import blank_condition, denoise, make_scheduler
from msdv.model.ends import frames_around, with_ends
from msdv.model.guidance import Guided, OneText
from msdv.model.inflate import VideoUNet
from msdv.model.noise import mixed_noise, partly_shared_noise
from msdv.model.steering import flow_for
from msdv.model.windows import ALL_TOGETHER
from msdv.verdict import MotionNumbers, Reference, mean_numbers
from msdv.weights import Motion


class Samples:
    """Clips of always the same prompts and seeds, each in a random stream of its own: what differs between them is what
    was learned."""

    def __init__(
        self,
        base: Base,
        model: VideoUNet,
        scheduler_config: Mapping[str, Any],
        prompts: Sequence[str],
        *,
        frames: int,
        size: int,
        shared_noise: float,
        blank: Tensor | None,
    ) -> None:
        """Of `frames` frames, `size` pixels a side. blank (1, 4, h, w): for inpainting models, the latents of a grey
        picture. The texts are encoded here, the autoencoder is on the model's device while it decodes."""
        self._base, self._model, self._scheduler_config = base, model, dict(scheduler_config)
        self._prompts, self._frames, self._size = prompts, frames, size
        self._shared_noise, self._blank = shared_noise, blank
        self._text = base.encode_prompts([*prompts, ""])

    def write(self, path: Path, motion: Motion | None) -> list[np.ndarray]:
        """A gif with one clip a prompt, side by side, their noise moving by `motion`. The clips are returned, each
        (f, h, w, 3), uint8."""
        clips = [self._clip(index, motion, generator_for("sample", index)) for index in range(len(self._prompts))]
        frames = np.concatenate(clips, axis=2)
        write_video(path, list(frames), fps=12, metadata={"prompts": " | ".join(self._prompts)})
        return clips

    def measure(
        self, clips: Sequence[np.ndarray], reference: Reference | None, *, another_seed: Callable[[], np.ndarray] | None
    ) -> MotionNumbers:
        """How clips move, as `write` returns them: means over the prompts. `another_seed` makes the first once more, to
        see how alike two seeds are."""
        meters = []
        for clip in [*clips, *([another_seed()] if another_seed else [])]:
            meters.append(Meter())
            for frame in clip:
                meters[-1].add(frame)
        regions = reference.regions if reference else ()
        numbers = mean_numbers(meter.numbers(regions) for meter in meters[: len(clips)])
        if not another_seed:
            return numbers
        alike = likeness([meters[0].thumbs, meters[-1].thumbs], reference.shared if reference else ())
        return numbers.model_copy(update={"likeness": alike})

    def with_another_seed(self, motion: Motion | None) -> np.ndarray:
        """The clip (f, h, w, 3), uint8, of the first prompt, from other noise."""
        return self._clip(0, motion, generator_for("another seed"))

    def _clip(self, index: int, motion: Motion | None, generator: Generator) -> np.ndarray:
        defaults = self._base.sampling
        latent = self._size // 8
        arch = self._model.arch
        around = frames_around(arch, ALL_TOGETHER, self._frames) if motion else 0
        frames = self._frames + 2 * around
        shape = (1, 4, frames, latent, latent)
        noise = partly_shared_noise(shape, self._shared_noise, generator)
        if motion:
            flow, _ = flow_for(motion, "auto", self._prompts[index], latent, latent, generator)
            noise = mixed_noise(shape, flow, torch.tensor([motion.share]), generator)
        guided = Guided(
            self._model,
            OneText(self._text[index : index + 1]),
            OneText(self._text[-1:]),
            guidance=defaults.guidance,
            condition=None if self._blank is None else blank_condition(self._blank, frames),
        )
        device = next(self._model.parameters()).device
        latents = denoise(
            with_ends(guided, arch, ALL_TOGETHER, frames),
            noise.to(device),
            scheduler=make_scheduler(defaults.scheduler, self._scheduler_config),
            steps=defaults.steps,
            generator=generator,
        )
        with self._autoencoder_on(device):
            return np.asarray(self._base.decode_latents(latents[0].transpose(0, 1)[around : around + self._frames]))

    @contextmanager
    def _autoencoder_on(self, device: torch.device) -> Iterator[None]:
        """Beside the training step it has no place in the device's memory."""
        assert self._base.vae is not None
        self._base.vae.to(device)
        try:
            yield
        finally:
            self._base.vae.to("cpu")
