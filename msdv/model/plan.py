"""Chooses the settings that spend a card's memory: the fastest that fit, by rehearsal (memory.py)."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from msdv.model.ends import frames_seen
from msdv.model.inflate import most_frames_of
from msdv.model.job import Job
from msdv.model.ledger import Peak, Work
from msdv.model.memory import FIXED, Footprint, Rehearsal, margin
from msdv.model.savings import Savings, UnitCost
from msdv.model.settings import SAMPLING_NOTCHES, TRAINING_NOTCHES, Settings, as_savings, is_sound

MOST_FRAMES = 1024
MOST_IN_WINDOWS = 100_000
_MOST_CHUNKS = 16
"""More take minutes to rehearse."""
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
    """How many frames would fit at most, about: `with these settings`, `with all savings`."""

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
        sound = [notch for notch in notches if is_sound(notch)] or notches
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
        """Of a video of so many frames, how many the model sees together."""
        if not self.sampling:
            return frames
        job = replace(self.job, frames=frames)
        return frames_seen(job.arch, job.length, job.made) if job.ends else job.length.together(job.made)

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
                own = self.most_frames(chosen.settings)
                trials = 0 if self.job.length.window is None else 3
                saving = max(own, self.most_frames(self.notches[-1], trials=trials))  # it is rough without a trial
                plan.most_frames |= {"with these settings": own, "with all savings": saving}
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
        known = self.job.made
        peaks = {known: self.estimate(settings).peak_bytes}
        # Over the frames that are made nearly a straight line, of which at first one point is known and what does not
        # grow with them.
        fixed = sum(size for name, size in self.estimate(settings).parts.items() if name in FIXED)
        slope = max(1.0, (peaks[known] - fixed) / known)
        guess = self._frames_at(known, peaks[known], slope)
        if not trials:
            return guess
        for _ in range(trials):
            made = replace(self.job, frames=guess).made
            chunks = self._together(guess) / settings.chunk_frames if settings.chunk_frames else 1
            if not guess or made in peaks or any(0.98 * self.budget < peak <= self.budget for peak in peaks.values()):
                break
            if chunks > _MOST_CHUNKS:
                return guess
            peaks[made] = self.estimate(settings, guess).peak_bytes
            # The line through the two points that enclose the budget, or are nearest to it.
            near, far = sorted(peaks, key=lambda count: abs(peaks[count] - self.budget))[:2]  # type: ignore[operator]
            slope = max(1.0, (peaks[far] - peaks[near]) / (far - near))
            guess = self._frames_at(near, peaks[near], slope)
        return self.job.longest(max((count for count, peak in peaks.items() if peak <= self.budget), default=0))

    def _frames_at(self, made: int, peak: int, slope: float) -> int:
        assert self.budget is not None
        limit = most_frames_of(self.job.arch) or MOST_FRAMES if self.job.length.window is None else MOST_IN_WINDOWS
        most = min(limit, self.job.longest(int(made + (self.budget - peak) / slope)))
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
