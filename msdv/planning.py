"""--plan: what a training or a sample would take, told before anything runs."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from msdv.config import Arch, GroupNormMode, SampleConfig, TrainConfig
from msdv.errors import UsageError
from msdv.model.base import choose_base
from msdv.model.choosing import fitting_window, fixed_settings, planned_bytes
from msdv.model.devices import choose_device, plan_precision
from msdv.model.inflate import DEFAULT_GROUP_NORM, check_frames
from msdv.model.job import Job
from msdv.model.keyframes import Passes
from msdv.model.known import Architecture, find_architecture
from msdv.model.objective import check_options, what_is_given
from msdv.model.plan import Estimate, Plan, Planner
from msdv.model.settings import Settings, as_dict
from msdv.model.temporal import check_kind
from msdv.model.text_track import text_keys
from msdv.model.windows import length_of
from msdv.run import BUILTIN, is_pipeline, newest_run_with_weights, start_of, trained_base, weights_in
from msdv.sampling.noise import read_latents
from msdv.sampling.options import check_options as check_sampling
from msdv.sampling.repeat import repeated
from msdv.sampling.results import steady_of
from msdv.sampling.shots import seeds_of
from msdv.sampling.source import SourceVideo
from msdv.sampling.starting import passes_of, read_start
from msdv.sampling.steering import wants_frames_around
from msdv.weights import TemporalMetadata, read_metadata

GIB = 2**30
NOTE = "predicted, nothing was run; CUDA and fragmentation are allowances, time is reckoned for a middling card"


@dataclass(frozen=True)
class PlanReport:
    """What was found out."""

    what: str
    plan: Plan
    settings: dict[str, Any]
    sampling: bool = False
    window: int | None = None
    """A --window with which it would fit, where it does not."""

    def json(self) -> str:
        """One JSON object; sizes in bytes."""
        chosen = self.plan.chosen
        result = {
            "fits": self.plan.fits,
            "peak_bytes": chosen.peak_bytes,
            "budget_bytes": self.plan.budget,
            "parts": chosen.parts,
            "settings": {**self.settings, **self._as_dict(chosen.settings)},
            "stage": chosen.stage.stage,
            "stages": {stage.stage: stage.device.size for stage in chosen.stages},
            "host_peak_bytes": chosen.host.size if chosen.card else chosen.peak_bytes,
            "host_parts": chosen.host.parts if chosen.card else chosen.parts,
            "step": {**asdict(chosen.work), "seconds": chosen.work.seconds},
            "most_frames": self.plan.most_frames,
            "smaller": self._as_json(self.plan.smaller),
            "larger": self._as_json(self.plan.larger),
        }
        return json.dumps(result)

    def lines(self) -> list[str]:
        """A table for people."""
        plan, chosen = self.plan, self.plan.chosen
        where = "on the card" if chosen.card else "in the computer's memory"
        lines = [self.what, NOTE, ""]
        lines += [f"{where}, at the peak ({chosen.stage.stage})", *_rows(chosen.parts, chosen.peak_bytes)]
        if chosen.card:
            lines += ["", "in the computer's memory beside it", *_rows(chosen.host.parts, chosen.host.size)]
        lines += ["", f"{'':10}{'GiB':>6}  {'time':>5}  settings"]
        for name, estimate in (("larger", plan.larger), ("this", chosen), ("smaller", plan.smaller)):
            if estimate is not None:
                time = estimate.work.seconds / max(chosen.work.seconds, 1e-9)
                peak = estimate.peak_bytes / GIB
                lines.append(
                    f"  {name:8}{peak:6.2f}  {time:5.2f}  {estimate.settings.words(self.sampling) or '(none)'}"
                )
        lines += ["", *(f"frames at most, {how}: about {count}" for how, count in plan.most_frames.items())]
        if plan.budget is not None:
            room = f"{chosen.peak_bytes / GIB:.1f} of {plan.budget / GIB:.1f} GiB"
            lines.append(f"fits: {room}" if plan.fits else f"does not fit: {room}; {self._advice()}")
        return lines

    def _advice(self) -> str:
        most = max(self.plan.most_frames.values(), default=0)
        fewer = f"--frames {most}" if most else "a smaller --size"
        half = "" if self.settings["precision"] != "float32" else "--fp16 or "
        windows = f"--window {self.window}, " if self.window else ""
        return f"try {half}{windows}{'or ' if windows else ''}{fewer}"

    def _as_dict(self, settings: Settings) -> dict[str, Any]:
        values = as_dict(settings)
        names = ("chunk_frames", "stream_weights") if self.sampling else tuple(values)
        return {name: values[name] for name in names if name in values}

    def _as_json(self, estimate: Estimate | None) -> dict[str, Any] | None:
        if estimate is None:
            return None
        return {
            "peak_bytes": estimate.peak_bytes,
            "seconds": estimate.work.seconds,
            "settings": self._as_dict(estimate.settings),
        }


def _rows(parts: dict[str, int], total: int) -> list[str]:
    rows = sorted(parts.items(), key=lambda item: -item[1])
    small = sum(size for _, size in rows if size < GIB / 200)
    rows = [(name, size) for name, size in rows if size >= GIB / 200] + ([("the rest", small)] if small else [])
    return [f"  {size / GIB:6.2f} GiB  {name}" for name, size in [*rows, ("together", total)]]


def plan_training(config: TrainConfig) -> PlanReport:
    """Foresee `msdv train`; neither data nor weights are needed.

    Raises UsageError and MsdvError with the next step to take.
    """
    config = start_of(config)
    weights = None if config.init in ("auto", "none") else weights_in(config.init)
    metadata = read_metadata(weights) if weights else None
    if metadata is not None:
        check_kind(
            *(metadata.arch, metadata.mid_block, metadata.group_norm),
            arch=config.arch,
            mid_block=config.mid_block,
            group_norm=config.group_norm,
        )
    group_norm = config.group_norm or (metadata.group_norm if metadata else None)
    job = replace(
        _job(config, weights, metadata, config.frames, config.size, group_norm),
        batch_size=config.batch_size,
        ema=config.ema,
        min_snr=config.min_snr,
        temporal_loss=config.temporal_loss,
        flicker_loss=config.flicker_loss,
        lora_rank=config.lora_rank,
        given=what_is_given(config, metadata) != "none",
    )
    check_frames(job.frames, job.arch)
    check_options(config, job.arch)
    what = f"training {job.frames} frames of {job.width}x{job.height}, {job.batch_size} a batch"
    settings = {"batch_size": job.batch_size, "arch": job.arch, "group_norm": job.group_norm}
    if job.lora_rank:
        settings["lora_rank"] = job.lora_rank
    return _report(what, _planner(job, config), settings)


def plan_sample(config: SampleConfig) -> PlanReport:
    """Foresee `msdv sample`; no weights are needed.

    Raises UsageError and MsdvError with the next step to take.
    """
    config, _ = repeated(config)
    check_sampling(config)
    weights: Path | None = None
    if config.model is not None and is_pipeline(config.model):
        config = config.model_copy(update={"base": config.model})
    elif config.model is not None:
        weights = weights_in(config.model)
    elif config.base is None and (run := newest_run_with_weights()) is not None:
        weights = run.weights
    known = weights or (BUILTIN / "temporal.safetensors" if _base_name(config, weights) == "builtin" else None)
    metadata: TemporalMetadata | None = read_metadata(known) if known else None
    if config.video is not None:
        config = SourceVideo(config).choose(config, metadata)
    noise = read_latents(config) if config.latents else None
    if noise is not None:
        config = config.model_copy(update={"frames": noise.shape[2]})
    size, group_norm = (metadata.size, metadata.group_norm) if metadata else (None, None)
    frames = read_start(config).lead(metadata) + config.frames
    passes = _passes(config, metadata, frames)
    job = _job(config, weights, metadata, passes.most_together if passes else frames, config.size or size, group_norm)
    job = replace(
        job,
        height=job.height if noise is None else 8 * noise.shape[-2],
        width=job.width if noise is None else 8 * noise.shape[-1],
        guidance=7.5 if config.guidance is None else config.guidance,
        cache=config.cache,
        length=length_of(config),
        ends=config.latents is None,
        around=wants_frames_around(config, metadata, passes),
        videos=len(seeds_of(config)),
        steady=steady_of(config, job.architecture.steady),
    )
    text_keys(config)
    check_frames(job.length.together(job.made), job.arch)
    what = f"sampling {config.frames} frames of {job.width}x{job.height}"
    if around := job.made - job.frames:
        what += f" and {around} around them"
    if (together := job.length.together(job.made)) < job.made:
        what += f" in windows of {together}"
    settings = {"frames": config.frames, "arch": job.arch, "group_norm": job.group_norm, "guidance": job.guidance}
    return _report(what, _planner(job, config), settings)


def _job(
    config: TrainConfig | SampleConfig,
    weights: Path | None,
    metadata: TemporalMetadata | None,
    frames: int,
    size: int | None,
    group_norm: GroupNormMode | None,
) -> Job:
    """What training and sampling have in common; None for what the image model says."""
    card = _on_card(config)
    architecture = _architecture(config, weights)
    size = size or architecture.size
    own: Arch | None = "pseudo3d" if architecture.group_norm else None
    asked = config if isinstance(config, TrainConfig) else None
    arch: Arch = (asked.arch if asked else None) or (metadata.arch if metadata else own) or "pseudo3d"
    of_base = architecture.group_norm if arch == own else None
    return Job(
        architecture,
        frames=frames,
        height=size,
        width=size,
        dtype=plan_precision(config.fp16, config.bf16, card),
        card=card,
        arch=arch,
        mid_block=bool(metadata.mid_block if metadata else asked and asked.mid_block),
        group_norm=group_norm or of_base or DEFAULT_GROUP_NORM[arch],
    )


def _planner(job: Job, config: TrainConfig | SampleConfig) -> Planner:
    budget, fixed = planned_bytes(config, job.card), fixed_settings(config, job.card)
    return Planner(job, budget=budget, fixed=fixed, sampling=isinstance(config, SampleConfig))


def _passes(config: SampleConfig, metadata: TemporalMetadata | None, frames: int) -> Passes | None:
    """Of keyframes: without weights, --keyframe-passes is about those that it was made for."""
    if metadata is None and config.keyframe_passes:
        return Passes(frames, every=4, passes=config.keyframe_passes, window=25)
    return passes_of(config, metadata, frames)


def _report(what: str, planner: Planner, settings: dict[str, Any]) -> PlanReport:
    job, plan = planner.job, planner.plan()
    precision = str(job.dtype).removeprefix("torch.")
    place = "on a card" if job.card else "on the processor"
    budget = "" if plan.budget is None else f" of {plan.budget / GIB:.3g} GiB"
    settings = {
        "base": job.architecture.name,
        "frames": job.frames,
        "size": job.height,
        "precision": precision,
        "device": "cuda" if job.card else "cpu",
        **settings,
    }
    what = f"{what}, {job.architecture.name}, {precision}, {place}{budget}"
    most = max(plan.most_frames.values(), default=0)
    window = fitting_window(job, most) if planner.sampling and not plan.fits else None
    return PlanReport(what, plan, settings, planner.sampling, window)


def _on_card(config: TrainConfig | SampleConfig) -> bool:
    """Whether the plan is for a graphics card, which need not be in this machine: `--vram` says so too."""
    if config.device is not None:
        name = config.device.strip().lower()
        return name != "cpu" if name.startswith(("cuda", "mps")) else choose_device(name).type != "cpu"
    return config.vram is not None or choose_device(None).type != "cpu"


def _base_name(config: TrainConfig | SampleConfig, weights: Path | None) -> str:
    import torch

    name = config.base or (trained_base(weights) if weights else None)
    return choose_base(name, torch.device("cuda" if _on_card(config) else "cpu"))[0]


def _architecture(config: TrainConfig | SampleConfig, weights: Path | None) -> Architecture:
    name = _base_name(config, weights)
    try:
        return find_architecture(name)
    except OSError as error:
        raise UsageError(f"--base {name} can't be read: {error.strerror or error}") from error
