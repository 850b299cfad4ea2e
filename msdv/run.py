"""The run folder: where a training writes, and how other commands and a resumed training find it again."""

import contextlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdv.config import TrainConfig
from msdv.errors import MsdvError, UsageError
from msdv.files import is_unfinished, remove_folder, write_file
from msdv.foreign import is_adapter_folder
from msdv.weights import FILE_NAME, read_metadata

RUNS = Path("runs")
BUILTIN = Path(__file__).parent / "builtin"
"""The image model that comes with the package, and its temporal layers."""
LORA_NAME = "lora.safetensors"
_CHECKPOINT = "step-"


@dataclass(frozen=True)
class Run:
    """Paths in a run folder. Nothing is made by naming them."""

    folder: Path

    @property
    def config(self) -> Path:
        """Settings of the run, complete."""
        return self.folder / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: step, loss and what else was measured."""
        return self.folder / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        """The newest good temporal weights."""
        return self.folder / FILE_NAME

    @property
    def lora(self) -> Path:
        """The newest good LoRA, where one is trained beside the temporal weights."""
        return self.folder / LORA_NAME

    @property
    def report(self) -> Path:
        """A page with the loss curve and the samples."""
        return self.folder / "report.html"

    def write_held_out(self, names: list[str]) -> None:
        """Keep the names of the clips that are never to be trained on."""
        with write_file(self.folder / "held_out.json") as temporary:
            temporary.write_text(json.dumps(names, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")

    def read_held_out(self) -> frozenset[str]:
        """The names of the clips that were never trained on. Raises MsdvError if they are not known any more."""
        try:
            return frozenset(json.loads((self.folder / "held_out.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise MsdvError(f"{self.folder}/held_out.json can't be read ({error}): start a new run") from error

    def sample(self, step: int) -> Path:
        """Sample gif of a step."""
        return self.folder / "samples" / f"step-{step:06d}.gif"

    def checkpoint(self, step: int) -> Path:
        """Checkpoint folder of a step."""
        return self.folder / "checkpoints" / f"{_CHECKPOINT}{step:06d}"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of the checkpoints that are whole, oldest first."""
        found = []
        for path in (self.folder / "checkpoints").glob(f"{_CHECKPOINT}*"):
            number = path.name.removeprefix(_CHECKPOINT)
            if number.isdigit() and path.is_dir():
                found.append((int(number), path))
        return sorted(found)

    def drop_old_checkpoints(self, keep: int, step: int | None = None) -> None:
        """Remove all checkpoints but the newest `keep` up to `step` (not given: of all), and what killed processes left
        unfinished. One after `step` could not be loaded when the training went on from an earlier one."""
        found = self.checkpoints()
        good = [path for number, path in found if step is None or number <= step][-keep:]
        for _, path in found:
            if path not in good:
                with contextlib.suppress(OSError):  # open elsewhere, on Windows: next time
                    remove_folder(path)
        self.drop_unfinished()

    def drop_unfinished(self) -> None:
        """Remove what killed processes left unfinished."""
        checkpoints = [path for _, path in self.checkpoints()]
        for folder in (self.folder, self.folder / "checkpoints", self.folder / "samples", *checkpoints):
            for path in folder.glob("*"):
                if not is_unfinished(path):
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        path.unlink()

    def clear(self) -> None:
        """Remove what an earlier run left here, but nothing that is not a run's."""
        if not self.config.is_file():
            return
        if "[train]" not in self.config.read_text(encoding="utf-8", errors="replace"):
            raise UsageError(f"{self.config} is not that of a run: choose another --out")
        for path in (self.folder / "checkpoints").glob(f"{_CHECKPOINT}*"):
            remove_folder(path)
        files = [self.metrics, self.weights, self.lora, self.report, self.config, self.folder / "held_out.json"]
        files += [*(self.folder / "samples").glob(f"{_CHECKPOINT}*.gif")]
        files += [*(self.folder / "tensorboard").rglob("events.out.tfevents.*")]
        for path in files:
            path.unlink(missing_ok=True)

    def log(self, **values: Any) -> None:
        """Append a row to the metrics: all of it, or with an OSError nothing."""
        before = self.metrics.stat().st_size if self.metrics.exists() else 0
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.metrics, before)
            raise

    def read_log(self) -> list[dict[str, Any]]:
        """All rows of the metrics; a row that a killed process left half-written is passed over."""
        rows = []
        if self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return rows

    def skipped_steps(self) -> int:
        """Steps so far whose loss or gradient was not finite."""
        return int(next((row["skipped"] for row in reversed(self.read_log()) if "skipped" in row), 0))

    def forget_after(self, step: int) -> None:
        """Drop rows of the metrics after `step`: a resumed run makes them again."""
        rows = [row for row in self.read_log() if row.get("step", 0) <= step]
        with write_file(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def new_run(out: Path | None, data: Path) -> Run:
    """The folder for a new run: `out`, or runs/<time>-<data>, numbered if that is taken."""
    if out is not None:
        return Run(out)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{data.resolve().name}"
    folder, number = RUNS / name, 1
    while folder.exists():
        number += 1
        folder = RUNS / f"{name}-{number}"
    return Run(folder)


def _by_age(runs: Path) -> list[Run]:
    """Runs from the newest to the oldest by when their settings were written."""
    found = [path for path in runs.glob("*") if (path / "config.toml").is_file()] if runs.is_dir() else []
    return [Run(path) for path in sorted(found, key=lambda p: (p / "config.toml").stat().st_mtime_ns, reverse=True)]


def newest_run_with_weights(runs: Path = RUNS) -> Run | None:
    """The newest run whose weights can be sampled from, if there is one."""
    return next((run for run in _by_age(runs) if run.weights.is_file()), None)


def run_to_resume(name: str) -> Run:
    """The run that --resume means: a run folder, or `newest` for the newest one under runs/. It need not have a
    checkpoint yet: then it begins again from its settings, which gives the same weights.

    Raises UsageError if there is no such run.
    """
    if name == "newest":
        newest = next(iter(_by_age(RUNS)), None)
        if newest is None:
            raise UsageError("no run under runs/: start one with msdv train")
        return newest
    run = Run(Path(name))
    if not run.config.is_file():
        raise UsageError(f"{name} is not a run folder: give one that msdv train made, or --resume alone for the newest")
    return run


def weights_in(name: str) -> Path:
    """The temporal weights that a run folder, a pipeline folder, a file name or `builtin` means; a folder of diffusers'
    `MotionAdapter` is such itself.

    Raises UsageError if there is nothing there, MsdvError if a folder holds no weights.
    """
    if name == "builtin":
        return BUILTIN / FILE_NAME
    path = Path(name)
    if path.is_dir():
        weights = path / FILE_NAME
        if not weights.is_file() and is_adapter_folder(path):
            return path
        if not weights.is_file():
            raise MsdvError(f"{name} has no temporal.safetensors yet: train on, or give another run")
        return weights
    if not path.is_file():
        raise UsageError(f"{name} does not exist: give a run folder or a temporal .safetensors")
    return path


def is_pipeline(name: str) -> bool:
    """Whether `name` means a whole model with temporal layers inside its UNet, as those of 2022: a diffusers folder
    without a file of temporal weights, or a hub id (owner/name, where there is no folder owner)."""
    path = Path(name)
    if path.is_dir():
        return (path / "model_index.json").is_file() and not (path / FILE_NAME).is_file()
    is_file = path.suffix[1:].isalpha()
    return bool(re.fullmatch(r"(?!runs/)[\w-][\w.-]*/[\w.-]+", name)) and not path.parent.exists() and not is_file


def start_of(config: TrainConfig) -> TrainConfig:
    """The settings, where --init means a whole model with temporal layers inside: its image model goes with them.

    Raises UsageError if another one was asked for.
    """
    init = config.init
    if init in ("auto", "none", "builtin") or not is_pipeline(init):
        return config
    if config.base not in (None, init):
        raise UsageError(f"--base {config.base}: --init {init} has its own image model: leave --base out")
    return config.model_copy(update={"base": init, "init": "auto"})


def trained_base(weights: Path) -> str:
    """The image model that weights belong to: the pipeline folder that they are in, or what their metadata names."""
    if weights.parent == BUILTIN:
        return "builtin"
    if (weights.parent / "model_index.json").is_file():
        return str(weights.parent)
    return read_metadata(weights).base
