"""Which run a training is, and where it goes on: the run folder opened anew or again, checkpoints read."""

import hashlib
import json
from pathlib import Path

import torch

from msdv.changes import changes
from msdv.config import TrainConfig
from msdv.console import say
from msdv.errors import MsdvError, UsageError, first_line, is_out_of_memory
from msdv.files import refuse_overwrite, write_file, write_folder
from msdv.model.inflate import is_lora
from msdv.model.optimizer import MasterOptimizer
from msdv.model.temporal import check_match
from msdv.model.trained_lora import save_lora
from msdv.recipe import read_section, to_toml
from msdv.run import Run, new_run, run_to_resume
from msdv.training import Training
from msdv.weights import read_metadata, save_temporal

STATE_FILE = "training.pt"
"""In a checkpoint folder: masters, optimizer, loss scale, and what the steps were made from."""
_MEMORY = (
    "checkpointing",
    "checkpoint_units",
    "chunk_frames",
    "host_checkpoints",
    "offload_optim",
    "stream_weights",
)


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
    changed = changes(settings, given, run.folder)
    if changed:
        say(f"going on with other settings: {', '.join(changed)}")
    for half, other in (("fp16", "bf16"), ("bf16", "fp16")):
        if given.get(half):
            settings.pop(other, None)
    if given.get("vram"):  # then how memory is spent is chosen anew
        settings = {k: v for k, v in settings.items() if k not in _MEMORY}
    settings.update(given)
    return run, TrainConfig.model_validate({**settings, "resume": str(run.folder), "out": None})


def prepare_folder(run: Run, config: TrainConfig, first: int) -> None:
    """Write the settings into the run folder; drop from it what a run that goes on from step `first` makes again."""
    run.folder.mkdir(parents=True, exist_ok=True)
    run.drop_unfinished()
    if first:
        run.forget_after(first)
    else:
        run.clear()
    write_settings(run, config)


def write_settings(run: Run, config: TrainConfig) -> None:
    """Write the settings that a resumed run goes on with."""
    settings = config.model_copy(update={"resume": None, "overwrite": False, "out": run.folder})
    with write_file(run.config) as temporary:
        temporary.write_text(to_toml("train", settings), encoding="utf-8")


def write_checkpoint(run: Run, step: int, optimizer: MasterOptimizer, training: Training, processes: int) -> None:
    """Write the checkpoint of `step`, whole or not at all.

    Raises OSError where it can't be written, MsdvError where the weights are of no use.
    """
    state = optimizer.state_dict() | {"made_from": _made_from(training, processes)}
    with write_folder(run.checkpoint(step)) as folder:
        torch.save(state, folder / STATE_FILE)
        write_weights(folder, step, optimizer, training)


def write_weights(folder: Path, step: int, optimizer: MasterOptimizer, training: Training) -> None:
    """Write what was trained, as of `step`, each file whole or not at all. Errors as in `write_checkpoint`."""
    run, metadata, weights = Run(folder), training.metadata(step), optimizer.weights()
    # The temporal layers last: by their file it is told whether all has been written.
    if lora := {key: tensor for key, tensor in weights.items() if is_lora(key)}:
        save_lora(run.lora, lora, metadata)
    save_temporal(run.weights, {key: weights[key] for key in weights if key not in lora}, metadata)


def load_checkpoint(run: Run, optimizer: MasterOptimizer, training: Training, processes: int = 1) -> int:
    """Load the newest checkpoint that can be loaded; the step it was made after."""
    for step, folder in reversed(run.checkpoints()):
        try:
            metadata = read_metadata(folder / run.weights.name)
            state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever the broken bytes lead to
            if is_out_of_memory(error):
                raise
            fault = first_line(error)
            say(f"{folder} is damaged ({fault}): going on from the one before it")
            continue
        check_match(training.base, metadata, folder)
        before, now = state.get("made_from", {}), _made_from(training, processes)
        if before.get("clips", now["clips"]) != now["clips"]:
            say(f"the clips in {training.config.data} have changed: from here on others are seen than would have been")
        if before.get("passes", now["passes"]) != now["passes"]:
            say(f"a step now takes {now['passes']} passes, not {before['passes']}: from here on it sees other clips")
        optimizer.load_state_dict(state)
        if metadata.motion is not None:
            training.use_gain(metadata.motion.gain)
        say(f"going on with {run.folder} from step {step}")
        return step
    raise MsdvError(f"{run.folder} has no checkpoint that can be loaded: start again with another --out")


def _made_from(training: Training, processes: int) -> dict[str, str | int]:
    """What, beside the settings, decides which clips a step sees."""
    clips = [[clip.name, len(clip)] for clip in training.training_clips]
    digest = hashlib.sha256(json.dumps(clips).encode()).hexdigest()
    return {"clips": digest, "passes": processes * training.config.grad_accum}
