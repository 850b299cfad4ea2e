"""Which run a training is, and where it goes on: the run folder opened anew or again, checkpoints read."""

from pathlib import Path
from typing import Any

import torch

from msdv.config import TrainConfig
from msdv.console import say
from msdv.errors import MsdvError, UsageError
from msdv.files import refuse_overwrite, write_file
from msdv.model.optimizer import MasterOptimizer
from msdv.model.temporal import check_match
from msdv.recipe import read_section, to_toml
from msdv.run import Run, new_run, run_to_resume
from msdv.training import Training
from msdv.weights import read_metadata

STATE_FILE = "training.pt"
"""In a checkpoint folder: masters, optimizer, loss scale."""
# What a checkpoint depends on: with another value a training would not go on but become another one.
_FIXED = ("data", "base", "init", "group_norm", "frames", "size", "flip", "holdout", "noise", "seed", "ema")


def open_run(config: TrainConfig) -> tuple[Run, TrainConfig]:
    """The run folder and the settings that hold: for a resumed run its own, but for what was given anew."""
    if config.resume is None:
        run = new_run(config.out, config.data)
        if run.folder.is_file():
            raise UsageError(f"--out {run.folder} is a file: give a folder")
        refuse_overwrite(run.folder, config.overwrite)
        return run, config
    if config.out is not None:
        raise UsageError(f"--out {config.out}: a resumed run stays where it is: leave one of --out and --resume out")
    run = run_to_resume(config.resume)
    settings = read_section(run.config, "train")
    given = config.model_dump(include=config.model_fields_set, mode="json")
    defaults = TrainConfig.model_fields
    for name in _FIXED:
        before = settings.get(name, defaults[name].default)
        if name in given and not _same(given[name], before):
            raise UsageError(
                f"--{name.replace('_', '-')} {given[name]}: {run.folder} was started with {before}: "
                "leave the option out, or start a new run"
            )
    for half, other in (("fp16", "bf16"), ("bf16", "fp16")):
        if given.get(half):
            settings.pop(other, None)
    settings.update(given)
    return run, TrainConfig.model_validate({**settings, "resume": str(run.folder), "out": None})


def _same(given: Any, before: Any) -> bool:
    """Whether two values of a setting mean the same: a path may be written in more than one way."""
    if isinstance(given, str) and isinstance(before, str):
        return given == before or Path(given).resolve() == Path(before).resolve()
    return bool(given == before)


def prepare_folder(run: Run, config: TrainConfig, first: int) -> None:
    """Write the settings into the run folder; drop from it what a run that goes on from step `first` makes again."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if first:
        run.forget_after(first)
    else:
        run.clear()
    with write_file(run.config) as temporary:
        settings = config.model_copy(update={"resume": None, "overwrite": False, "out": run.folder})
        temporary.write_text(to_toml("train", settings), encoding="utf-8")


def load_checkpoint(run: Run, optimizer: MasterOptimizer, training: Training) -> int:
    """Load the newest checkpoint that can be loaded; the step it was made after."""
    for step, folder in reversed(run.checkpoints()):
        try:
            metadata = read_metadata(folder / run.weights.name)
            state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever the broken bytes lead to
            fault = next(iter(str(error).splitlines()), type(error).__name__)
            say(f"{folder} is damaged ({fault}): going on from the one before it")
            continue
        check_match(training.base, metadata, folder)
        optimizer.load_state_dict(state)
        say(f"going on with {run.folder} from step {step}")
        return step
    raise MsdvError(f"{run.folder} has no checkpoint that can be loaded: start again with another --out")
