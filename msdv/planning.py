"""--plan: what a training or a sample would take, told before anything runs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msdv.config import SampleConfig, TrainConfig
from msdv.errors import UsageError
from msdv.model.base import choose_base
from msdv.model.devices import choose_device, plan_precision
from msdv.model.known import Architecture, find_architecture
from msdv.model.memory import Job
from msdv.model.plan import Estimate, Plan, Planner, Settings, as_dict, fixed_settings, planned_bytes
from msdv.run import newest_run_with_weights, trained_base, weights_in
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
        lines += ["", *(f"frames at most, {how}: {count}" for how, count in plan.most_frames.items())]
        if plan.budget is not None:
            room = f"{chosen.peak_bytes / GIB:.1f} of {plan.budget / GIB:.1f} GiB"
            lines.append(f"fits: {room}" if plan.fits else f"does not fit: {room}; {self._advice()}")
        return lines

    def _advice(self) -> str:
        most = max(self.plan.most_frames.values(), default=0)
        fewer = f"--frames {most}" if most else "a smaller --size"
        half = "" if self.settings["precision"] != "float32" else "--fp16 or "
        return f"try {half}{fewer}"

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
    weights = None if config.init in ("auto", "none") else weights_in(config.init)
    metadata = read_metadata(weights) if weights else None
    card = _on_card(config)
    architecture = _architecture(config, str(weights) if weights else None, card)
    size = config.size or architecture.size
    group_norm = config.group_norm or (metadata.group_norm if metadata else None) or architecture.group_norm or "frame"
    job = Job(
        architecture,
        frames=config.frames,
        height=size,
        width=size,
        dtype=plan_precision(config.fp16, config.bf16, card),
        card=card,
        batch_size=config.batch_size,
        group_norm=group_norm,
        ema=config.ema,
    )
    planner = Planner(job, budget=planned_bytes(config, card), fixed=fixed_settings(config, card))
    what = f"training {config.frames} frames of {size}x{size}, {config.batch_size} a batch"
    return _report(what, planner, {"batch_size": config.batch_size, "group_norm": group_norm})


def plan_sample(config: SampleConfig) -> PlanReport:
    """Foresee `msdv sample`; no weights are needed.

    Raises UsageError and MsdvError with the next step to take.
    """
    weights: Path | None = None
    if config.model is not None:
        weights = weights_in(config.model)
    elif config.base is None and (run := newest_run_with_weights()) is not None:
        weights = run.weights
    metadata: TemporalMetadata | None = read_metadata(weights) if weights else None
    card = _on_card(config)
    architecture = _architecture(config, str(weights) if weights else None, card)
    size = config.size or (metadata.size if metadata else architecture.size)
    group_norm = (metadata.group_norm if metadata else None) or architecture.group_norm or "frame"
    guidance = 7.5 if config.guidance is None else config.guidance
    job = Job(
        architecture,
        frames=config.frames,
        height=size,
        width=size,
        dtype=plan_precision(config.fp16, config.bf16, card),
        card=card,
        group_norm=group_norm,
        guidance=guidance,
    )
    planner = Planner(job, budget=planned_bytes(config, card), fixed=fixed_settings(config, card), sampling=True)
    what = f"sampling {config.frames} frames of {size}x{size}"
    return _report(what, planner, {"group_norm": group_norm, "guidance": guidance})


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
    return PlanReport(what, plan, settings, planner.sampling)


def _on_card(config: TrainConfig | SampleConfig) -> bool:
    """Whether the plan is for a graphics card, which need not be in this machine: `--vram` says so too."""
    if config.device is not None:
        name = config.device.strip().lower()
        return name != "cpu" if name.startswith(("cuda", "mps")) else choose_device(name).type != "cpu"
    return config.vram is not None or choose_device(None).type != "cpu"


def _architecture(config: TrainConfig | SampleConfig, weights: str | None, card: bool) -> Architecture:
    import torch

    name = config.base or (trained_base(Path(weights)) if weights else None)
    name, _ = choose_base(name, torch.device("cuda" if card else "cpu"))
    try:
        return find_architecture(name)
    except OSError as error:
        raise UsageError(f"--base {name} can't be read: {error.strerror or error}") from error
