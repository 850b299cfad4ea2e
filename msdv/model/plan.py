"""Chooses the settings that spend a card's memory: the fastest that fit, by rehearsal (memory.py)."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from typing import Any, Literal

import psutil
import torch

from msdv.config import SampleConfig, TrainConfig
from msdv.errors import UsageError
from msdv.model.devices import choose_device
from msdv.model.ends import frames_seen
from msdv.model.inflate import most_frames_of
from msdv.model.ledger import Peak, Work
from msdv.model.memory import CARD_CONTEXT, FIXED, Footprint, Job, Rehearsal, margin
from msdv.model.savings import Savings, UnitCost


@dataclass(frozen=True)
class Settings:
    """What decides how memory is spent and time with it; the names are those of the options."""

    checkpointing: Literal["none", "partial", "full"] = "none"
    checkpoint_units: int | None = None
    """With `partial`: how many units of the network."""
    chunk_frames: int = 0
    offload_optim: bool = False
    host_checkpoints: bool = False
    stream_weights: bool = False

    def words(self, sampling: bool = False) -> str:
        """As options on the command line."""
        words = [] if sampling else [f"--checkpointing {self.checkpointing}"]
        words += [f"--checkpoint-units {self.checkpoint_units}"] if self.checkpoint_units else []
        words += [f"--chunk-frames {self.chunk_frames}"] if self.chunk_frames else []
        flags = ("offload_optim", "host_checkpoints", "stream_weights")
        words += [f"--{flag.replace('_', '-')}" for flag in flags if getattr(self, flag)]
        return " ".join(words)


MOST_FRAMES = 1024
MOST_IN_WINDOWS = 100_000
_FULL = {"checkpointing": "full"}
_OFFLOAD = _FULL | {"offload_optim": True}
_HOST = _OFFLOAD | {"host_checkpoints": True}

TRAINING_NOTCHES: tuple[dict[str, Any], ...] = (
    {},
    _FULL,
    _OFFLOAD,
    _HOST,
    _HOST | {"chunks": 4},
    _HOST | {"chunks": 8, "stream_weights": True},
)
"""From the fastest to the smallest: each takes less memory than the one before, and as a rule more time. `chunks`: in
how many the frames are worked off, but no fewer than `at_least` at a time. Between none and all, as few units are
checkpointed as fit."""
SAMPLING_NOTCHES: tuple[dict[str, Any], ...] = (
    {},
    {"chunks": 12, "at_least": 10},
    {"chunks": 12},
    {"chunks": 12, "stream_weights": True},
)
_MOST_CHUNKS = 16
"""More take minutes to rehearse."""
_USUAL_WINDOW, _LEAST_WINDOW = 25, 8
"""Frames: what temporal layers are trained on as a rule, and with how many there is still motion to be seen."""
_MOST_TRIALS = 3
"""Rehearsals spent on finding the fewest units to checkpoint."""


@dataclass(frozen=True)
class Estimate:
    """What a job takes with some settings."""

    settings: Settings
    frames: int
    stages: tuple[Footprint, ...]
    card: bool

    @property
    def stage(self) -> Footprint:
        """The stage that takes most."""
        return max(self.stages, key=lambda stage: stage.device.size)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes on the device at the peak, by what holds them, allowances included."""
        peak = self.stage.device
        return {**peak.parts, **margin(peak.size, card=self.card)}

    @property
    def peak_bytes(self) -> int:
        """On the device."""
        return sum(self.parts.values())

    @property
    def host(self) -> Peak:
        """In the computer's memory beside a card, allowance included."""
        peak = max((stage.host for stage in self.stages), key=lambda host: host.size)
        parts = {**peak.parts, **margin(peak.size, card=False)}
        return Peak(sum(parts.values()), parts)

    @property
    def work(self) -> Work:
        """Of one step."""
        return next(s.work for s in self.stages if s.stage in ("training step", "denoising"))


@dataclass
class Plan:
    """The settings to use, and what is around them."""

    chosen: Estimate
    budget: int | None
    """Bytes that may be used; None where nobody said."""
    smaller: Estimate | None = None
    """The next settings that take less memory and more time."""
    larger: Estimate | None = None
    most_frames: dict[str, int] = field(default_factory=dict)
    """How many frames would fit at most: `with these settings`, `with all savings`."""

    @property
    def fits(self) -> bool:
        """Whether what was chosen fits."""
        return self.budget is None or self.chosen.peak_bytes <= self.budget


class Planner:
    """Rehearses a job with one notch or another."""

    def __init__(
        self, job: Job, *, budget: int | None, fixed: dict[str, Any] | None = None, sampling: bool = False
    ) -> None:
        """fixed: settings that are not to be chosen."""
        self.job, self.budget, self.sampling = job, budget, sampling
        given = {name: value for name, value in (fixed or {}).items() if value is not None}
        if given.get("checkpoint_units"):
            given["checkpointing"] = "partial"
        # Of which units there are to be as few as fit.
        self.counts_units = not sampling and not given.get("checkpoint_units")
        self.counts_units &= given.get("checkpointing", "partial") == "partial"
        if self.counts_units and "checkpointing" in given:
            given["checkpointing"] = "full"
        self._rehearsal: Rehearsal | None = None
        self._estimates: dict[tuple[Settings, int, bool], Estimate] = {}
        self._order: list[UnitCost] | None = None
        notches = [self._settings(notch, given) for notch in (SAMPLING_NOTCHES if sampling else TRAINING_NOTCHES)]
        sound = [notch for notch in notches if _is_sound(notch)] or notches
        self.notches = list(dict.fromkeys(sound))

    def _settings(self, notch: dict[str, Any], given: dict[str, Any]) -> Settings:
        values = dict(notch)
        least = values.pop("at_least", 1)
        if chunks := values.pop("chunks", 0):
            together = self._together(self.job.frames)
            values["chunk_frames"] = max(least, -(-together // chunks))
            if values["chunk_frames"] >= together:
                del values["chunk_frames"]
        return Settings(**values | given)

    def _together(self, frames: int) -> int:
        """Of so many frames, how many the model sees together."""
        job = self.job
        if not self.sampling:
            return frames
        return frames_seen(job.arch, job.length, frames) if job.ends else job.length.together(frames)

    @property
    def is_open(self) -> bool:
        """Whether there is anything to choose."""
        partial = self.counts_units and self.notches[0].checkpointing == "full"
        return len(self.notches) > 1 or partial

    def choose(self) -> Settings:
        """The fastest settings that fit, or where none do, those that take least."""
        if self.budget is None:  # on a card of which nothing is known, the careful choice
            careful = [notch for notch in self.notches if notch.checkpointing == "full" or notch.chunk_frames]
            return careful[0] if self.job.card and careful else self.notches[0]
        low, high = 0, len(self.notches) - 1  # the first that fits is in low..high, if any does
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(self.notches[middle]) else (middle + 1, high)
        found = self.notches[low]
        if self.counts_units and found.checkpointing == "full" and self._fits(found):
            return self._with_fewest_units(found)
        return found

    def plan(self, *, around: bool = True) -> Plan:
        """Choose. `around`: also tell what the next settings would take, and how many frames would fit."""
        chosen = self.estimate(self.choose(), whole=True)
        plan = Plan(chosen, self.budget)
        if around:
            plan.smaller = self._neighbour(chosen.settings, +1)
            plan.larger = self._neighbour(chosen.settings, -1)
            if self.budget is not None:
                plan.most_frames["with these settings"] = self.most_frames(chosen.settings)
                plan.most_frames["with all savings, about"] = self.most_frames(
                    self.notches[-1], trials=0 if self.job.length.window is None else 3
                )
        return plan

    def _with_fewest_units(self, full: Settings) -> Settings:
        """The same with partial checkpointing of as few units as fit, nearly."""
        assert self.budget is not None
        none = replace(full, checkpointing="none", host_checkpoints=False)
        if self._fits(none):
            return none
        freed = list(accumulate((cost.saved_bytes for cost in self.units()), initial=0))
        low, high = 0, len(self.units())  # units: too few, and enough
        peaks = {low: self.estimate(none).peak_bytes, high: self.estimate(full).peak_bytes}
        for _ in range(_MOST_TRIALS):
            if high - low < 2:
                break
            # Between two that were rehearsed the peak falls about as the bytes that are freed grow.
            share = (peaks[low] - self.budget) / max(1, peaks[low] - peaks[high])
            wanted = freed[low] + share * (freed[high] - freed[low])
            count = min(max(bisect_left(freed, wanted), low + 1), high - 1)
            settings = replace(full, checkpointing="partial", checkpoint_units=count)
            peaks[count] = self.estimate(settings).peak_bytes
            low, high = (low, count) if peaks[count] <= self.budget else (count, high)
        return full if high == len(self.units()) else replace(full, checkpointing="partial", checkpoint_units=high)

    def _fits(self, settings: Settings, frames: int | None = None) -> bool:
        return self.budget is None or self.estimate(settings, frames).peak_bytes <= self.budget

    def _neighbour(self, settings: Settings, step: int) -> Estimate | None:
        """The next notch below (+1) or above (-1) that takes really less or more."""
        own = self.estimate(settings)
        base = replace(settings, checkpointing="full", checkpoint_units=None)
        if settings in self.notches:
            index = self.notches.index(settings) + step
        elif base in self.notches:
            index = self.notches.index(base) + (0 if step > 0 else -1)
        else:
            return None
        while 0 <= index < len(self.notches):
            other = self.estimate(self.notches[index])
            if (other.peak_bytes - own.peak_bytes) * step < 0:
                return other
            index += step
        return None

    def most_frames(self, settings: Settings, *, trials: int = 3) -> int:
        """How many frames fit with these settings: at most, nearly; 0 if not even the fewest do. With 0 trials it is
        reckoned from the job's own number of frames, else rehearsed."""
        assert self.budget is not None
        peaks = {self.job.frames: self.estimate(settings).peak_bytes}
        # Nearly a straight line, of which at first one point is known and what does not grow with the frames.
        fixed = sum(size for name, size in self.estimate(settings).parts.items() if name in FIXED)
        slope = max(1.0, (peaks[self.job.frames] - fixed) / self.job.frames)
        guess = self._frames_at(self.job.frames, peaks[self.job.frames], slope)
        if not trials:
            return guess
        for _ in range(trials):
            chunks = self._together(guess) / settings.chunk_frames if settings.chunk_frames else 1
            if not guess or guess in peaks or any(0.98 * self.budget < peak <= self.budget for peak in peaks.values()):
                break
            if chunks > _MOST_CHUNKS:
                return guess
            peaks[guess] = self.estimate(settings, guess).peak_bytes
            # The line through the two points that enclose the budget, or are nearest to it.
            near, far = sorted(peaks, key=lambda frames: abs(peaks[frames] - self.budget))[:2]  # type: ignore[operator]
            slope = max(1.0, (peaks[far] - peaks[near]) / (far - near))
            guess = self._frames_at(near, peaks[near], slope)
        return max((frames for frames, peak in peaks.items() if peak <= self.budget), default=0)

    def _frames_at(self, frames: int, peak: int, slope: float) -> int:
        assert self.budget is not None
        limit = most_frames_of(self.job.arch) or MOST_FRAMES if self.job.length.window is None else MOST_IN_WINDOWS
        most = min(limit, int(frames + (self.budget - peak) / slope))
        return most if most >= (1 if self.sampling else 2) else 0

    def units(self) -> list[UnitCost]:
        """Units of the network in the order in which partial checkpointing takes them."""
        if self._order is None:
            rehearsal = self._rehearse()
            rehearsal.job = self.job
            self._order = rehearsal.unit_costs()
        return self._order

    def savings(self, settings: Settings) -> Savings:
        """As the model takes them."""
        partial = settings.checkpointing == "partial"
        return as_savings(
            settings, [cost.name for cost in self.units()[: settings.checkpoint_units]] if partial else ()
        )

    def estimate(self, settings: Settings, frames: int | None = None, *, whole: bool = False) -> Estimate:
        """What the job takes; `whole`: in all stages of the command, not only in the one that takes most as a rule."""
        frames = frames or self.job.frames
        key = (settings, frames, whole and not self.sampling)
        if key not in self._estimates:
            stages = tuple(self._stages(settings, frames, whole))
            self._estimates[key] = Estimate(settings, frames, stages, self.job.card)
        return self._estimates[key]

    def _stages(self, settings: Settings, frames: int, whole: bool) -> Iterator[Footprint]:
        savings, rehearsal = self.savings(settings), self._rehearse()
        rehearsal.job = replace(self.job, frames=frames)
        if self.sampling:
            yield from rehearsal.sample(savings)
        elif whole:
            yield from self.estimate(settings, frames).stages
            yield from rehearsal.training_sample(savings, offload_optim=settings.offload_optim)
            yield rehearsal.encode()
        else:
            yield rehearsal.train(savings, offload_optim=settings.offload_optim)

    def _rehearse(self) -> Rehearsal:
        if self._rehearsal is None:
            self._rehearsal = Rehearsal(self.job)
        return self._rehearsal


def _is_sound(settings: Settings) -> bool:
    """Whether the settings go together."""
    return settings.checkpointing != "none" or not settings.host_checkpoints


def as_dict(settings: Settings) -> dict[str, Any]:
    """For JSON and configurations."""
    return {key: value for key, value in asdict(settings).items() if value is not None}


def fixed_settings(config: TrainConfig | SampleConfig, card: bool) -> dict[str, Any]:
    """The settings that are not to be chosen: those that were given, and without a card all others too, if there is no
    --vram."""
    names = [field.name for field in fields(Settings) if field.name in type(config).model_fields]
    given = {name: getattr(config, name) for name in names if name in config.model_fields_set}
    as_is = {} if card or config.vram is not None else {k: v for k, v in as_dict(Settings()).items() if k in names}
    return as_is | {name: value for name, value in given.items() if value is not None}


def choose_savings(job: Job, config: TrainConfig | SampleConfig) -> tuple[Settings, Savings, str | None]:
    """What a command is to run with, for the model too, and a line about it where something was chosen.

    Raises UsageError where --vram can't be kept.
    """
    sampling = isinstance(config, SampleConfig)
    fixed = fixed_settings(config, job.card)
    planner = Planner(job, budget=planned_bytes(config, job.card), fixed=fixed, sampling=sampling)
    if not planner.is_open:
        return planner.notches[0], planner.savings(planner.notches[0]), None
    try:
        return _choose_savings(planner, config)
    except UsageError:
        raise
    except Exception as error:
        # The rehearsal leans on inner parts of torch. A run that was not asked for --vram can do without.
        if config.vram is not None:
            raise
        settings = planner.notches[min(1, len(planner.notches) - 1)]
        line = f"memory can't be predicted here ({type(error).__name__}): going on with {settings.words(sampling)}"
        return settings, planner.savings(settings), line


def _choose_savings(planner: Planner, config: TrainConfig | SampleConfig) -> tuple[Settings, Savings, str | None]:
    settings = planner.choose()
    savings, peak, budget = planner.savings(settings), planner.estimate(settings).peak_bytes, planner.budget
    room = f"{peak / 2**30:.1f} GiB" + (f" of {budget / 2**30:.1f}" if budget else "")
    if budget is None or peak <= budget:
        return (
            settings,
            savings,
            f"memory: {room} by prediction, with {settings.words(planner.sampling) or 'no savings'}",
        )
    fewer = planner.most_frames(settings, trials=0)
    step = f"--frames {fewer} or a smaller --size" if fewer else "a smaller --size"
    if planner.sampling and (window := fitting_window(job := planner.job, fewer)):
        step = f"--window {window}, with which {job.frames} frames fit, or {step}"
    if config.vram is not None:
        raise UsageError(f"--vram {config.vram:g}: this takes {room} with all savings: try {step}")
    return settings, savings, f"this may not fit: by prediction it takes {room} with all savings; try {step}"


def fitting_window(job: Job, most_frames: int) -> int | None:
    """A --window with which a job would fit of which not all frames do; None if there is none worth while."""
    window = min(_USUAL_WINDOW, most_frames - 1)  # one fewer, for the latents of the others
    return window if job.length.window is None and _LEAST_WINDOW <= window < job.frames else None


def as_savings(settings: Settings, units: Sequence[str] = ()) -> Savings:
    """Settings as the model takes them; `units`: which are checkpointed, with partial checkpointing."""
    checkpoint = tuple(units) if settings.checkpointing == "partial" else settings.checkpointing
    return Savings(
        checkpoint=checkpoint,
        host_checkpoints=settings.host_checkpoints,
        chunk_frames=settings.chunk_frames,
        stream_weights=settings.stream_weights,
    )


def step_down(settings: Settings) -> Settings | None:
    """The next settings that take less memory, for a training that ran out of it all the same; None if there are none.
    Where the optimizer is stays as it is."""
    if settings.checkpointing != "full":
        return replace(settings, checkpointing="full", checkpoint_units=None)
    if not settings.host_checkpoints:
        return replace(settings, host_checkpoints=True)
    if not settings.chunk_frames or settings.chunk_frames > 8:
        return replace(settings, chunk_frames=8)
    if settings.chunk_frames > 4:
        return replace(settings, chunk_frames=4)
    return None if settings.stream_weights else replace(settings, stream_weights=True)


def planned_bytes(config: TrainConfig | SampleConfig, card: bool) -> int | None:
    """What may be used: --vram, or what this machine has."""
    return free_bytes(config.device, card) if config.vram is None else int(config.vram * 2**30)


def free_bytes(device: str | None, card: bool) -> int | None:
    """What this machine's card has free, this process's own context included, or all of the processor's memory, from
    which others can be moved out; None if the plan is for a card that isn't here."""
    if not card:
        return int(psutil.virtual_memory().total)
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(choose_device(device))
    return min(total, free + CARD_CONTEXT)
