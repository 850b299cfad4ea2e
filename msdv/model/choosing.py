"""What a command is to run with: how much memory there is, and the settings that fit it, with a line about them."""

from dataclasses import fields, replace
from typing import Any

import psutil
import torch

from msdv.config import SampleConfig, TrainConfig
from msdv.errors import UsageError
from msdv.model.devices import choose_device
from msdv.model.job import Job
from msdv.model.memory import CARD_CONTEXT
from msdv.model.plan import Planner
from msdv.model.savings import Savings
from msdv.model.settings import Settings, as_dict

_USUAL_WINDOW, _LEAST_WINDOW = 25, 8
"""Frames: what temporal layers are trained on as a rule, and with how many there is still motion to be seen."""


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
    most = replace(job, frames=most_frames).made
    window = min(_USUAL_WINDOW, most - 1)  # one fewer, for the latents of the others
    return window if job.length.window is None and _LEAST_WINDOW <= window < job.frames else None


def fixed_settings(config: TrainConfig | SampleConfig, card: bool) -> dict[str, Any]:
    """The settings that are not to be chosen: those that were given, and without a card all others too, if there is no
    --vram."""
    names = [field.name for field in fields(Settings) if field.name in type(config).model_fields]
    given = {name: getattr(config, name) for name in names if name in config.model_fields_set}
    as_is = {} if card or config.vram is not None else {k: v for k, v in as_dict(Settings()).items() if k in names}
    return as_is | {name: value for name, value in given.items() if value is not None}


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
