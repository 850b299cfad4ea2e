"""An image model with temporal layers in it, ready to make videos: from settings to latents to a file."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msdv import __version__
from msdv.config import SampleConfig
from msdv.console import progress, say
from msdv.model.allocator import keep_freed_memory
from msdv.model.base import Base
from msdv.model.choosing import choose_savings
from msdv.model.devices import choose_device, choose_precision
from msdv.model.diffusion import Followed, TrainingSchedule, denoise, make_scheduler
from msdv.model.ends import with_ends
from msdv.model.given import Given
from msdv.model.guidance import Guided, OneText
from msdv.model.inflate import check_frames
from msdv.model.job import Job
from msdv.model.keyframes import make_by_keyframes
from msdv.model.known import Architecture
from msdv.model.lora import Lora, parse_lora
from msdv.model.preview import Preview, preview_of
from msdv.model.resting import off_card
from msdv.model.temporal import build_video_unet, noise_schedule
from msdv.model.text_track import text_keys, text_of
from msdv.model.windows import length_of, windowed
from msdv.recipe import settings_beside, write_beside
from msdv.sampling.load import load_models
from msdv.sampling.moving import MotionReport, Watch, borders_of
from msdv.sampling.noise import draw_noise, read_latents
from msdv.sampling.repeat import hash_inputs
from msdv.sampling.results import Steadying, steady_of, write_result
from msdv.sampling.shots import is_finished, seeds_of
from msdv.sampling.source import SourceVideo
from msdv.sampling.starting import TextAt, passes_of, read_start
from msdv.sampling.steering import Steering, around_video, flow_around, wants_frames_around
from msdv.weights import load_temporal

_NOT_OF_THE_VIDEO = {"out", "overwrite", "plan", "json_output", "report"}


class Sampler:
    """An image model with temporal layers in it, ready to make videos."""

    def __init__(self, config: SampleConfig) -> None:
        """Load the models that `config` means, choose how memory is spent.

        Raises UsageError and MsdvError as the parts do.
        """
        self._noise = read_latents(config) if config.latents else None
        if self._noise is not None:
            config = config.model_copy(update={"frames": self._noise.shape[2]})
        self.config = config
        self._start = read_start(config)
        video = None if config.video is None else SourceVideo(config)
        loras = [Lora(parse_lora(text)) for text in config.lora]
        self.device = choose_device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        precision = choose_precision(config.fp16, config.bf16, self.device)
        say(precision.note)
        self.base, self.weights = load_models(config, self.device, precision.dtype, loras)
        self.model, self.metadata = build_video_unet(self.base, self.weights, channels_last=self.device.type == "cpu")
        self.model_hash = _hash(self.weights)
        if video is not None:
            config = self.config = video.choose(config, self.metadata)
        size = config.size or (self.metadata.size if self.metadata else self.base.sample_size)
        self.height, self.width = (size // 8,) * 2 if self._noise is None else self._noise.shape[-2:]
        lead = self._start.lead(self.metadata)
        self.frames = lead + config.frames
        """Frames to denoise: those of --continue too that the model is shown."""
        self.passes = passes_of(config, self.metadata, self.frames)
        self.around = around_video(config, self.metadata, self.model.arch, self.passes)  # and cut off again
        defaults = self.base.sampling
        self.scheduler = config.scheduler or defaults.scheduler
        self.steps = config.steps or defaults.steps
        self.guidance = defaults.guidance if config.guidance is None else config.guidance
        self.steady = steady_of(config, defaults.steady)
        job = Job(
            Architecture(self.base.name, self.base.unet_config, self.base.vae_config),
            frames=self.passes.most_together if self.passes else self.frames,
            height=self.height * 8,
            width=self.width * 8,
            dtype=precision.dtype,
            card=self.device.type != "cpu",
            arch=self.model.arch,
            mid_block=self.model.mid_block,
            group_norm=self.model.group_norm,
            guidance=self.guidance,
            cache=config.cache,
            length=length_of(config),
            ends=self._noise is None,
            around=wants_frames_around(config, self.metadata, self.passes),
            videos=len(seeds_of(config)),
            steady=self.steady,
        )
        check_frames(job.length.together(job.made), job.arch)
        self.memory, savings, line = choose_savings(job, config)
        say(line)
        self.model.save_memory(savings)
        self._video = None if video is None else video.encode(self.base, self.height * 8, self.width * 8)
        self._known = self._start.encode(self.base, self.metadata, self.frames, self.height * 8, self.width * 8)
        self._steering = Steering(config, self.metadata, self.height, self.width, self.frames)
        self._embeddings: dict[str, Tensor] = {}
        self._notes_said = 0
        self.report = MotionReport(self.metadata.reference if self.metadata else None)
        """How what was made moves, with --report."""
        self._inputs = hash_inputs(config)

    def with_frames(self, config: SampleConfig) -> SampleConfig:
        """With as many frames as --video or --latents has, where they say that."""
        return config.model_copy(update={"frames": self.config.frames})

    @property
    def before(self) -> int:
        """Frames of another video that are written before the new ones."""
        footage = self._start.footage
        return 0 if footage is None or self.config.seeds is not None else footage.count

    def encode_texts(self, configs: Iterable[SampleConfig]) -> None:
        """Encode all texts of the videos that are to be made, and free the text encoder."""
        for text in dict.fromkeys(text for config in configs for text in _texts(config)):
            # In the computer's memory: there may be thousands.
            self._embeddings[text] = self.base.encode_prompts([text]).cpu()
        self.base.unload("text_encoder")
        self.say_notes()

    def embedding(self, text: str) -> Tensor:
        """(1, tokens, d), of a text that `encode_texts` has seen."""
        return self._embeddings[text].to(self.device)

    def say_notes(self) -> None:
        """What there is to say of the image model, and has not been said."""
        for line in self.base.notes[self._notes_said :]:
            say(line)
        self._notes_said = len(self.base.notes)

    def has_made(self, config: SampleConfig) -> bool:
        """Whether the result is there already, with the same settings.

        Raises UsageError if another one is there that may not be overwritten.
        """
        resolved = self._resolved(config)
        finished = is_finished(config.out, self._settings(resolved, ""), config.overwrite)
        if finished and config.out.suffix and not settings_beside(config.out).exists():
            write_beside(config.out, "sample", resolved)  # it was killed between the two
        return finished

    def make(self, config: SampleConfig, last: bool) -> None:
        """Write the video that `config` says, or the videos of its seeds side by side; after the `last` one the UNet is
        gone."""
        seeds = seeds_of(config)
        with preview_of(config.out if config.preview else None) as preview:
            latents, motions = [], []
            for seed in seeds:
                video, motion = self.denoise(config.model_copy(update={"seed": seed}), preview)
                latents.append(video.cpu())
                motions.append(motion)
            resolved = self._resolved(config)
            settings = self._settings(resolved, motions[0] if config.seeds is None else motions)
            labels = [] if config.seeds is None else [str(seed) for seed in seeds]
            watch = Watch(len(seeds), self._borders(config)) if config.report else None
            with contextlib.nullcontext(self.close()) if last else off_card(self.model):
                write_result(
                    config.out,
                    self.base,
                    torch.cat(latents),
                    fps=resolved.fps,
                    metadata=settings,
                    dither=config.dither,
                    labels=labels,
                    before=self._start.footage,
                    watch=watch,
                    steadying=self.steadying(config),
                )
        if watch is not None:
            self.report.add(watch, [f"seed {label}" for label in labels] or [config.out.name])
        if config.out.suffix:  # a folder has them inside
            write_beside(config.out, "sample", resolved)
        self.say_notes()

    def steadying(self, config: SampleConfig) -> Steadying:
        """How the frames of a video are averaged with their neighbours: not those that were given."""
        given = self._known.given
        keep = () if given is None else torch.nonzero(given.which[self._known.lead :]).flatten().tolist()
        return Steadying(self.steady, frozenset(keep), config.loop)

    def _borders(self, config: SampleConfig) -> set[int]:
        return borders_of(length_of(config), self.passes, self.frames + 2 * self.around, self._before_result)

    @property
    def _before_result(self) -> int:
        """Frames that are denoised before the first one of the result."""
        return self._known.lead + self.around

    def denoise(self, config: SampleConfig, preview: Preview) -> tuple[Tensor, str]:
        """Latents (1, 4, f, h, w) of one video, and how its noise moves, in words."""
        generator = torch.Generator().manual_seed(config.seed)
        known, passes, motion = self._known, self.passes, "from --latents"
        if self._noise is None:
            steered = self._steering.draw(config, generator)  # once: all passes move alike
            motion = steered.used
            if steered.flow is not None:
                steered = replace(steered, flow=flow_around(steered.flow, self.frames, self.around))
        windows = len(passes.windows) if passes else 1
        with progress("step") as bar:
            follow = self._followed(config)
            steps = self.steps if follow is None else follow.steps(self.steps)
            task = bar.add_task("denoising", total=steps * windows, note=preview.note)

            def make(positions: Tensor, spacing: int, given: Given | None) -> Tensor:
                noise = self._noise
                if noise is None:
                    shape = (1, 4, len(positions), self.height, self.width)
                    noise = draw_noise(config, steered, shape, generator, spacing, int(positions[0]))
                return self._denoise(
                    config, preview, noise, positions, given, generator, on_step=lambda *_: bar.advance(task)
                )

            if passes is None:
                latents = make(torch.arange(self.frames + 2 * self.around), 1, known.given)
            else:
                latents = make_by_keyframes(make, passes, known.given, self.height, self.width)
        return latents[:, :, self._before_result :][:, :, : self.frames - known.lead], motion

    def _denoise(
        self,
        config: SampleConfig,
        preview: Preview,
        noise: Tensor,
        positions: Tensor,
        given: Given | None,
        generator: torch.Generator,
        on_step: Callable[[int, Tensor], None],
    ) -> Tensor:
        """From noise (1, 4, n, h, w) to latents, of the frames at `positions` (n,), of which some may be given."""
        length = length_of(config)
        text = text_of(config, self.embedding)
        if self.passes or self._before_result:
            text = TextAt(text, (positions - self._before_result).clamp(0, config.frames - 1))
        given = None if given is None else given.to(self.device)
        condition, shown = self._known.shown(given, len(positions))
        guided = Guided(
            self.model,
            text,
            OneText(self.embedding(config.negative)),
            guidance=self.guidance,
            condition=condition,
            given=shown,
            cache=config.cache,
        )
        follow = self._followed(config)
        schedule = noise_schedule(self.base, self.metadata)
        # Noise that was given gets what the model says of it, and nothing else.
        shown_twice = with_ends(guided, self.model.arch, length, len(positions)) if self._noise is None else guided
        prediction = windowed(shown_twice, length, len(positions))
        latents = denoise(
            preview.watch(prediction, self.base, TrainingSchedule(schedule), self.steps, self.around),
            noise.to(self.device),
            scheduler=make_scheduler(self.scheduler, schedule),
            steps=self.steps,
            generator=generator,
            follow=follow,
            on_step=on_step,
        )
        return latents if given is None else given.keep(latents)

    def _followed(self, config: SampleConfig) -> Followed | None:
        return None if self._video is None else Followed(self._video, config.strength)

    def close(self) -> Base:
        """Free the UNet's memory; what is left decodes."""
        del self.model
        self.base.unload("unet")
        return self.base

    def _resolved(self, config: SampleConfig) -> SampleConfig:
        named = isinstance(self.weights, Path) and self.weights != self.base.temporal
        return config.model_copy(
            update={
                "base": self.base.name,
                "model": str(self.weights) if named else self.base.name,
                "size": self.width * 8 if self.width == self.height else None,
                "scheduler": self.scheduler,
                "steps": self.steps,
                "guidance": self.guidance,
                "steady": self.steady,
                "overlap": length_of(config).overlap if config.window or config.loop else None,
                "chunk_frames": self.memory.chunk_frames,
                "stream_weights": self.memory.stream_weights,
                "vram": None,
                "from_file": None,
                "fps": self._start.fps(config),
                "keyframe_passes": self.passes.passes if self.passes else 0 if config.keyframe_passes == 0 else None,
            }
        )

    def _settings(self, resolved: SampleConfig, motion: str | list[str]) -> dict[str, Any]:
        """What is written into the file; `motion`: how the noise moves, of each seed where there are several."""
        return {
            "tool": f"msdv {__version__}",
            "model_hash": self.model_hash,
            "base_hash": self.base.unet_hash,
            **({"trained_steps": self.metadata.steps} if self.metadata else {}),
            "motion_used": motion,
            **({"inputs": self._inputs} if self._inputs else {}),
            **resolved.model_dump(mode="json", exclude=_NOT_OF_THE_VIDEO, exclude_none=True),
        }


def _texts(config: SampleConfig) -> list[str]:
    """All texts that a video needs embeddings of."""
    return [config.negative, *(text for _, text in text_keys(config))]


def _hash(weights: Path | dict[str, Tensor]) -> str:
    """Of temporal weights as they are stored, whatever they are computed with: tells trainings on one image model
    apart."""
    state = load_temporal(weights)[0] if isinstance(weights, Path) else weights
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().data)
    return digest.hexdigest()
