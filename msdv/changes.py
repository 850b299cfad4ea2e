"""What may be changed when a training goes on: a rule for each setting of `msdv train`, with its reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdv.config import TrainConfig
from msdv.errors import UsageError


@dataclass(frozen=True)
class Rule:
    """Whether a setting may have another value in a resumed training."""

    allowed: bool
    why: str


def _no(why: str) -> Rule:
    return Rule(False, why)


def _yes(why: str) -> Rule:
    return Rule(True, why)


_TASK = "the weights, and what their file says of them, would no longer be of one training"
_MEMORY = "decides where things are kept and what is computed twice, not what is computed"
_PACE = "says how to go on from here; what was learned stays"
_AROUND = "what is written, and when, has no effect on the weights"

RULES: dict[str, Rule] = {
    "base": _no("the temporal layers belong to one image model"),
    "data": _no("which clips come when, and which are held out, follows from the clips"),
    "init": _no("a training begins once"),
    "arch": _no("the temporal layers are of one kind"),
    "lora_rank": _no("layers can't be added or taken out in the middle of a training"),
    "mid_block": _no("layers can't be added or taken out in the middle of a training"),
    "frames": _no(_TASK),
    "size": _no(_TASK),
    "group_norm": _no("the temporal layers have learned with one kind of statistics"),
    "noise": _no(_TASK),
    "shared_noise": _no(_TASK),
    "betas": _no("the schedule of noise is part of what was learned, and of what sampling must use"),
    "zero_terminal_snr": _no("the schedule of noise is part of what was learned, and of what sampling must use"),
    "condition": _no(_TASK),
    "flip": _no("it decides what is drawn for each step"),
    "holdout": _no("what was trained on can't be held out afterwards"),
    "seed": _no("it decides every draw, those already made too"),
    "ema": _no("an average of weights can't be begun in the middle, nor its memory be changed"),
    "fp16": _yes("masters are in float32 either way"),
    "bf16": _yes("masters are in float32 either way"),
    "device": _yes("a checkpoint fits every device"),
    "steps": _yes("a cosine schedule falls to zero at the new end"),
    "lr": _yes(_PACE),
    "conv_lr": _yes(_PACE),
    "schedule": _yes(_PACE),
    "warmup": _yes(_PACE),
    "weight_decay": _yes(_PACE),
    "max_grad_norm": _yes(_PACE),
    "caption_dropout": _yes(_PACE),
    "timestep_shift": _yes(_PACE),
    "noise_share": _yes(_PACE),
    "condition_share": _yes(_PACE),
    "min_snr": _yes(_PACE),
    "offset_noise": _yes(_PACE),
    "temporal_loss": _yes(_PACE),
    "flicker_loss": _yes(_PACE),
    "batch_size": _yes("from here on, a step sees other clips than it would have seen"),
    "grad_accum": _yes("from here on, a step sees other clips than it would have seen"),
    "offload_optim": _yes(_MEMORY),
    "checkpointing": _yes(_MEMORY),
    "checkpoint_units": _yes(_MEMORY),
    "host_checkpoints": _yes(_MEMORY),
    "chunk_frames": _yes(_MEMORY),
    "stream_weights": _yes(_MEMORY),
    "vram": _yes(_MEMORY),
    "checkpoint_every": _yes(_AROUND),
    "checkpoint_minutes": _yes(_AROUND),
    "keep_checkpoints": _yes(_AROUND),
    "sample_every": _yes(_AROUND),
    "sample_prompt": _yes(_AROUND),
}
NOT_OF_A_TRAINING = ("out", "resume", "overwrite", "evaluate", "plan", "json_output")
"""Settings that say what the command is to do, not how to train."""


def changes(before: dict[str, Any], given: dict[str, Any], folder: Path) -> list[str]:
    """What is `given` otherwise than the run in `folder` was started with, in words: `steps 6 -> 10`.

    Both are as in a recipe, without what is left at its default. Raises UsageError for what may not be changed.
    """
    changed, refused = [], []
    for name, rule in RULES.items():
        if name not in given or name not in TrainConfig.model_fields:
            continue
        old = before.get(name, TrainConfig.model_fields[name].default)
        if _same(given[name], old) or (name in ("base", "data") and _moved(old, given[name])):
            continue
        if rule.allowed:
            changed.append(f"{name} {_word(old)} -> {_word(given[name])}")
        else:
            refused.append((name, given[name], old, rule.why))
    if refused:
        names = ", ".join(f"{_flag(name)} {_word(new)}" for name, new, _, _ in refused)
        olds = ", ".join(_word(old) for _, _, old, _ in refused)
        options = "option" if len(refused) == 1 else "options"
        raise UsageError(
            f"{names}: {folder} was started with {olds}: leave the {options} out, or start a new run ({refused[0][3]})"
        )
    return changed


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _word(value: Any) -> str:
    if value is None or value == [] or value == ():
        return "(not given)"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _same(given: Any, before: Any) -> bool:
    """Whether two values of a setting mean the same: a path may be written in more than one way."""
    if isinstance(before, Path):
        before = str(before)
    if isinstance(given, str) and isinstance(before, str):
        return given == before or Path(given).resolve() == Path(before).resolve()
    if isinstance(given, list | tuple) and isinstance(before, list | tuple):
        return list(given) == list(before)
    return bool(given == before)


def _moved(before: Any, given: Any) -> bool:
    """Whether a folder or file may have been moved: the old one is gone, and the new one is there. Whether it holds
    the same is looked at when it is read."""
    old = Path(str(before))
    known_by_name = before is None or str(before) == "builtin"
    return not known_by_name and not old.exists() and Path(str(given)).exists()
