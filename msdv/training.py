"""What a training works with: the model with its temporal layers, the cached data, noise, evaluation and samples.

`train.py` has the loop and the run folder.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from msdv.caching import cached_flow, cached_latents, cached_text, clips_reference, mean_motion
from msdv.config import Arch, TrainConfig
from msdv.console import say
from msdv.data.batches import Batch, ClipBatches, generator_for, hold_out, with_videos_of
from msdv.data.clips import Clip, find_clips
from msdv.errors import UsageError
from msdv.model.base import choose_base, load_base
from msdv.model.choosing import choose_savings
from msdv.model.devices import choose_device, choose_precision
from msdv.model.diffusion import SCHEDULE_KEYS, TrainingSchedule
from msdv.model.evaluation import HeldOutLoss, held_out_loss
from msdv.model.inflate import VideoUNet, check_frames
from msdv.model.job import Job
from msdv.model.known import Architecture
from msdv.model.noise import clip_offset, independent_noise, mixed_noise, partly_shared_noise
from msdv.model.objective import betas_of, check_options, kind_of_noise, schedule_to_train_on, what_is_given
from msdv.model.settings import Settings, as_savings, step_down
from msdv.model.steering import Slippage, moves, slippage_of
from msdv.model.step import Objective
from msdv.model.temporal import ZERO_SNR, arch_of, build_video_unet
from msdv.model.trained_lora import add_lora
from msdv.run import start_of, trained_base, weights_in
from msdv.samples import Samples
from msdv.verdict import MotionNumbers
from msdv.weights import TemporalMetadata, read_metadata

SAMPLES = 3
"""Prompts in a sample gif, where none are given."""
FLOW_SHARE = (0.3, 1.0)
"""Least and greatest share of a flowing noise's variance that flows, in training."""
SAMPLING_SHARE = 1.0
"""The same in sampling: what is at rest then stays so best (docs/measurements.md)."""
EVALUATION_LEVELS = 4
"""Noise levels a held-out clip."""
EVALUATION_CLIPS = 8
"""Held-out clips looked at while training."""


class Training:
    """Everything but the optimizer. Several processes may each have one; the cache is shared."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        held_out: frozenset[str] | None = None,
        rank: int = 0,
        processes: int = 1,
        barrier: Callable[[], None] = lambda: None,
    ) -> None:
        """Load the image model, fill the cache, put temporal layers in.

        `held_out` names the held-out clips of a resumed training, whose weights are left to its checkpoint.

        Raises UsageError and MsdvError as the parts do, with the next step to take.
        """
        named, config = config, start_of(config)
        self.config, is_whole = config, config is not named
        self.device = choose_device(config.device)
        precision = choose_precision(config.fp16, config.bf16, self.device)
        resumed = held_out is not None
        self._init = None if resumed or config.init in ("auto", "none") else weights_in(config.init)
        name, note = choose_base(config.base or (trained_base(self._init) if self._init else None), self.device)
        clips = self._find_clips([precision.note, note])
        self.base = load_base(name, device=self.device, dtype=precision.dtype)
        for line in self.base.notes:
            say(line)
        self.size = config.size or self.base.sample_size
        self.fps = float(np.median([clip.fps for clip in clips]))
        if is_whole and self.base.temporal is None:
            raise UsageError(f"--init {name} is an image model without temporal layers: pass it as --base")
        source, start = self._find_layers(resumed, is_whole)
        check_frames(config.frames, self.arch)
        check_options(config, self.arch)
        self.noise, self.shared_noise = kind_of_noise(config, start)
        self.condition = what_is_given(config, start)
        self.scheduler_config = schedule_to_train_on(config, self.base, start)
        self.schedule = TrainingSchedule(self.scheduler_config)
        if config.betas is None and not resumed and self._betas == "linear":
            say("noise schedule: linear, as those in --init were trained on, not the image model's (--betas base)")
        self.training_clips, self.held_out_clips = self._split(clips, held_out)
        share = clips[rank::processes]
        self._latents = cached_latents(config, self.base, self.size, share)
        self._text = cached_text(config, self.base, clips)
        self._flow = cached_flow(config, self.size, share) if self.noise == "flow" else None
        barrier()
        self.model = self._build_model(source)
        self.settings = self._save_memory()
        self.batches = self._batches(self.training_clips)
        self.held_out = self._batches(self.held_out_clips) if self.held_out_clips else None
        self._blank = self._blank_latents()
        examples = self.training_clips or self.held_out_clips
        self.motion = None if self._flow is None else mean_motion(config, self._flow, examples, SAMPLING_SHARE)
        if start is not None and start.motion is not None:
            self.use_gain(start.motion.gain)
        # What only tells of the training, and only the first process writes.
        self.reference = None if rank or config.evaluate else clips_reference(config, self.size, examples)
        self._known: dict[tuple[str, str], HeldOutLoss] = {}
        self._samples = Samples(
            self.base,
            self.model,
            self.scheduler_config,
            list(config.sample_prompt) or _prompts_of(examples),
            frames=config.frames,
            size=self.size,
            shared_noise=self.shared_noise,
            blank=self._blank,
        )
        self.base.unload("text_encoder")
        assert self.base.vae is not None
        self.base.vae.to("cpu")  # beside the training step it has no place in the device's memory

    def _find_clips(self, notes: Sequence[str | None]) -> list[Clip]:
        """Those that are long enough; then the notes are said, and what is left out."""
        clips, left_out = find_clips(self.config.data, self.config.frames)
        for line in [*notes, *(f"left out {line}" for line in left_out[:5])]:
            say(line)
        if len(left_out) > 5:
            say(f"left out {len(left_out) - 5} more, too short for --frames {self.config.frames}")
        return clips

    def _find_layers(
        self, resumed: bool, is_whole: bool
    ) -> tuple[Path | dict[str, Tensor] | None, TemporalMetadata | None]:
        """Temporal layers to start from, and what they say of themselves; sets `arch`."""
        config = self.config
        source = self.base.temporal if config.init == "auto" and not resumed else self._init
        start = read_metadata(source) if isinstance(source, Path) else None
        found = arch_of(source, start)
        self.arch: Arch = config.arch or found or "pseudo3d"
        if found in (None, self.arch):
            return source, start
        if is_whole:
            raise UsageError(
                f"--arch {self.arch}: the temporal layers of --init {config.base} are {found}: leave one of them out"
            )
        if config.init == "auto":
            say(f"{self.base.name}'s own temporal layers are {found}: these {self.arch} layers start untrained")
            return None, None
        return source, start

    @property
    def _betas(self) -> Literal["base", "linear"]:
        return betas_of(self.scheduler_config, self.base)

    def _split(self, clips: list[Clip], held_out: frozenset[str] | None) -> tuple[list[Clip], list[Clip]]:
        if held_out is not None:
            return with_videos_of(clips, held_out)
        return ([], clips) if self.config.evaluate else hold_out(clips, self.config.holdout)

    def _batches(self, clips: list[Clip]) -> ClipBatches:
        config = self.config
        return ClipBatches(
            clips,
            self._latents,
            self._text,
            frames=config.frames,
            batch_size=config.batch_size,
            caption_dropout=config.caption_dropout,
            seed=config.seed,
            condition=self.condition,
            condition_share=config.condition_share,
            flow=self._flow,
        )

    def _build_model(self, source: Path | dict[str, Tensor] | None) -> VideoUNet:
        config = self.config
        model, _ = build_video_unet(
            self.base,
            source,
            arch=self.arch,
            mid_block=config.mid_block,
            group_norm=config.group_norm,
            channels_last=self.device.type == "cpu",
            seed=config.seed,
        )
        if source is not None:
            named = f"{self.base.name}'s own" if config.init == "auto" else f"those in {config.init}"
            say(f"temporal layers start as {named}")
        if rank := config.lora_rank:
            add_lora(model, rank, config.seed)
            count = len(model.lora_parameters()) // 2
            say(f"LoRA of rank {rank} on {count} layers of the image model; samples of this training are with it")
        return model

    def _save_memory(self) -> Settings:
        """Choose how memory is spent, and set the model so."""
        config, base = self.config, self.base
        job = Job(
            Architecture(base.name, base.unet_config, base.vae_config),
            frames=config.frames,
            height=self.size,
            width=self.size,
            dtype=base.dtype,
            card=self.device.type != "cpu",
            batch_size=config.batch_size,
            arch=self.model.arch,
            mid_block=self.model.mid_block,
            group_norm=self.model.group_norm,
            ema=config.ema,
            min_snr=config.min_snr,
            temporal_loss=config.temporal_loss,
            flicker_loss=config.flicker_loss,
            lora_rank=config.lora_rank,
            given=self.condition != "none",
        )
        settings, savings, line = choose_savings(job, config)
        say(line)
        self.model.save_memory(savings)
        return settings

    def spend_less(self) -> Settings | None:
        """Take the next settings that need less memory, with which the model computes the same; they are returned.
        None if there are none left."""
        settings = step_down(self.settings)
        if settings is not None:
            self.settings = settings
            self.model.save_memory(as_savings(settings))
        return settings

    def resolved(self) -> TrainConfig:
        """The settings with what was left open filled in: what this training is, wherever it goes on."""
        filled = {"base": self.base.name, "size": self.size, "noise": self.noise, "group_norm": self.model.group_norm}
        filled |= {"condition": self.condition}
        filled |= {"shared_noise": self.shared_noise, "zero_terminal_snr": bool(self.scheduler_config.get(ZERO_SNR))}
        filled |= {"arch": self.model.arch, "mid_block": self.model.mid_block, "betas": self._betas}
        return self.config.model_copy(update=filled | asdict(self.settings) | {"vram": None})

    def _blank_latents(self) -> Tensor | None:
        """For inpainting models: what a frame of which nothing is given shows them."""
        if self.base.in_channels == 4:
            return None
        return self.base.encode_frames(torch.zeros(1, 3, self.size, self.size)).float().to(self.device)

    def use_gain(self, gain: float) -> None:
        """Let the noise of samples go so many times as fast as the picture is to; weights say so from now on."""
        if self.motion is not None:
            self.motion = self.motion.model_copy(update={"gain": gain})

    def measure_slippage(self, samples: MotionNumbers) -> Slippage | None:
        """Of samples that `write_sample` made: see `slippage_of`. None without noise that flows."""
        return None if self.motion is None else slippage_of(self.motion, samples, self.reference)

    def draw_noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Training noise like the batch's latents; with --noise flow it flows for a share of the clips, among those in
        which something moves."""
        if batch.flow is None:
            return partly_shared_noise(batch.latents.shape, self.shared_noise, generator)
        b = batch.latents.shape[0]
        low, high = FLOW_SHARE
        flows = torch.rand(b, generator=generator) < self.config.noise_share
        flows &= moves(batch.flow)
        share = torch.where(flows, low + (high - low) * torch.rand(b, generator=generator), 0.0)
        return mixed_noise(batch.latents.shape, batch.flow, share, generator)

    def loss(self, number: int) -> Tensor:
        """The loss () of batch `number` of the whole training, to go backward from: a function of seed and number."""
        config, schedule = self.config, self.schedule
        batch = self.batches.batch(number)
        generator = generator_for("noise", config.seed, number)
        b, _, f = batch.latents.shape[:3]
        noise = self.draw_noise(batch, generator)
        timesteps = schedule.draw_timesteps(b, config.timestep_shift, generator)
        # What an option adds is drawn last: so it changes nothing else.
        if config.offset_noise:
            noise = noise + clip_offset(noise.shape, config.offset_noise, generator)
        anchor = torch.randint(f, (b,), generator=generator).to(self.device) if config.temporal_loss else None
        latents, noise, timesteps, text = (t.to(self.device) for t in (batch.latents, noise, timesteps, batch.text))
        given = batch.given if batch.given.any() else None
        objective = Objective(schedule, config.min_snr, config.temporal_loss, config.flicker_loss)
        return objective.loss(
            self.model, latents, noise, timesteps, text, given=given, blank=self._blank, anchor=anchor
        )

    def evaluate(self, most_clips: int = EVALUATION_CLIPS) -> list[HeldOutLoss]:
        """The loss on held-out clips with the temporal layers on and off; for each kind of noise trained on, and with
        --condition once more with the frames given that it is about."""
        if self.held_out is None:
            return []
        held_out = self.held_out
        kinds = ["independent", "flow"] if self.noise == "flow" else ["shared" if self.shared_noise else "independent"]

        def items(kind: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for index in range(min(len(held_out), most_clips)):
                batch = held_out.middle(index)
                generator = generator_for("evaluation", index)
                if kind == "shared":
                    noise = partly_shared_noise(batch.latents.shape, self.shared_noise, generator)
                elif kind == "flow" and batch.flow is not None:
                    share = torch.tensor([SAMPLING_SHARE])
                    noise = mixed_noise(batch.latents.shape, batch.flow, share, generator)
                else:
                    noise = independent_noise(batch.latents.shape, generator)
                yield batch.latents, batch.text, noise

        losses = []
        conditions = ["none", *([self.condition] if self.condition != "none" else [])]
        for kind, condition in itertools.product(kinds, conditions):
            loss = held_out_loss(
                self.model,
                self.schedule,
                items(kind),
                levels=EVALUATION_LEVELS,
                noise_kind=kind,
                blank=self._blank,
                condition=condition,
                known=self._known.get((kind, condition)),
            )
            self._known[kind, condition] = loss
            losses.append(loss)
        return losses

    def write_sample(self, path: Path) -> list[np.ndarray]:
        """See `Samples.write`."""
        return self._samples.write(path, self.motion)

    def measure_motion(self, clips: Sequence[np.ndarray], *, seeds: bool) -> MotionNumbers:
        """How samples move, as `write_sample` returns them. With `seeds` the first prompt is sampled once more, to see
        how alike two seeds are."""
        another = (lambda: self._samples.with_another_seed(self.motion)) if seeds else None
        return self._samples.measure(clips, self.reference, another_seed=another)

    def metadata(self, steps: int) -> TemporalMetadata:
        """What the weights file says after `steps` steps."""
        return TemporalMetadata(
            arch=self.model.arch,
            mid_block=self.model.mid_block,
            group_norm=self.model.group_norm,
            base=self.base.name,
            unet_hash=self.base.unet_hash,
            frames=self.config.frames,
            size=self.size,
            fps=self.fps,
            prediction_type=self.schedule.prediction_type,
            scheduler={k: self.scheduler_config[k] for k in SCHEDULE_KEYS if k in self.scheduler_config},
            noise=self.noise,
            shared_noise=self.shared_noise,
            condition=self.condition,
            motion=self.motion,
            reference=self.reference,
            steps=steps,
        )


def _prompts_of(clips: Sequence[Clip]) -> list[str]:
    captions = sorted({clip.caption for clip in clips})
    return [captions[i * len(captions) // SAMPLES] for i in range(min(SAMPLES, len(captions)))]


def learning_rate(config: TrainConfig, step: int) -> float:
    """At step 0, 1, ...: rises over the warm-up, then falls like half a cosine or stays."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "constant":
        return config.lr * rise
    return config.lr * rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))
