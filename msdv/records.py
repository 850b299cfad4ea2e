"""What a training writes into its run folder: checkpoints, the newest weights, metrics, the report."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from msdv.config import TrainConfig
from msdv.console import say
from msdv.errors import MsdvError, first_line
from msdv.files import is_disk_full
from msdv.model.evaluation import HeldOutLoss
from msdv.model.optimizer import MasterOptimizer
from msdv.model.steering import Slippage
from msdv.report import write_report
from msdv.resume import write_checkpoint, write_settings, write_weights
from msdv.run import Run
from msdv.training import Training
from msdv.verdict import MotionNumbers, verdict
from msdv.weights import read_metadata

# A checkpoint that could not be written is tried again after so many seconds.
_TRY_AGAIN = 300.0


class Records:
    """Used by the first process alone. What only tells of the training does not end it: on a full disk it is left out,
    which is said once."""

    def __init__(
        self, config: TrainConfig, run: Run, training: Training, optimizer: MasterOptimizer, processes: int
    ) -> None:
        self.config, self.run, self.training, self.optimizer = config, run, training, optimizer
        self._processes = processes
        self._unwritten: set[str] = set()
        self._writer: Any = None
        self._due = self._next_checkpoint()

    @contextmanager
    def open(self, first: int) -> Iterator[None]:
        """Inside the block TensorBoard is written too; what it has of steps after `first` goes."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=first + 1)
        heard = threading.excepthook
        threading.excepthook = _on_thread_error
        try:
            yield
        finally:
            threading.excepthook = heard
            with contextlib.suppress(OSError):
                self._writer.close()

    def _next_checkpoint(self) -> float:
        minutes = self.config.checkpoint_minutes
        return time.monotonic() + 60 * minutes if minutes else math.inf

    def is_due(self) -> bool:
        """Whether by the clock it is time for a checkpoint."""
        return time.monotonic() >= self._due

    def note_step(self, step: int, values: Mapping[str, float], skipped: int) -> None:
        """A row of metrics; numbers that are not finite become null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._note(step, **finite, skipped=skipped)
        with self._or_say("tensorboard"):
            for name, value in (*values.items(), ("skipped", skipped)):
                self._writer.add_scalar(f"train/{name}", value, step)

    def note_held_out(self, step: int, losses: Sequence[HeldOutLoss]) -> None:
        """Rows of metrics for the losses on held-out clips."""
        for held in losses:
            self._note(step, held_out=held.as_dict())
            with self._or_say("tensorboard"):
                self._writer.add_scalars(f"held_out/{held.tag}", {"on": held.on, "off": held.off}, step)

    def has_held_out(self, step: int) -> bool:
        """Whether `note_held_out` was done after this step."""
        return any(row.get("step") == step and "held_out" in row for row in self.run.read_log())

    def _note(self, step: int, **values: Any) -> None:
        with self._or_say(self.run.metrics.name):
            self.run.log(step=step, **values)

    @contextmanager
    def _or_say(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if what not in self._unwritten:
                say(f"{what} can't be written ({error.strerror or error}): training goes on without")
            self._unwritten.add(what)

    def write_settings(self) -> None:
        """The configuration, whose settings have changed."""
        with self._or_say("config.toml"):
            write_settings(self.run, self.training.resolved())

    def write_report(self) -> None:
        """The page that shows all of it."""
        with self._or_say(self.run.report.name):
            write_report(self.run, self.training.resolved())

    def write_sample(self, step: int) -> None:
        """A sample gif, and how it moves. After the last step also how the picture keeps up with its noise, which the
        weights are told."""
        path = self.run.sample(step)
        try:
            clips = self.training.write_sample(path)
            _add_gif(self._writer, path, step)
        except (MsdvError, OSError, RuntimeError) as error:  # no sample is worth a night's training
            say(f"no sample at step {step}: {first_line(error)}")
        else:
            self._measure_sample(step, clips)

    def _measure_sample(self, step: int, clips: Sequence[np.ndarray]) -> None:
        last = step == self.config.steps
        try:
            numbers = self.training.measure_motion(clips, seeds=last)
            slippage = self.training.measure_slippage(numbers) if last else None
            self.note_motion(step, numbers, slippage)
        except Exception as error:  # nor is a report
            say(f"the motion of the sample at step {step} can't be measured: {first_line(error)}")
            return
        if slippage is not None:
            say(str(slippage))
            self._write_gain(step, slippage.gain)

    def has_sample(self, step: int) -> bool:
        """Whether `write_sample` was done after this step."""
        return self.run.sample(step).exists() and bool(self._motion_at(step))

    def _motion_at(self, step: int) -> list[dict[str, Any]]:
        rows = (row.get("motion") for row in self.run.read_log() if row.get("step") == step)
        return [row for row in rows if isinstance(row, dict)]

    def _write_gain(self, step: int, gain: float) -> None:
        """Write the weights of `step` once more, with another gain. Those in the checkpoint, which a resumed training
        begins with, come last: by them it is told whether all has been written."""
        self.training.use_gain(gain)
        try:
            for folder in (self.run.folder, self.run.checkpoint(step)):
                write_weights(folder, step, self.optimizer, self.training)
        except (MsdvError, OSError) as error:
            say(f"the weights can't be told how fast the picture goes ({first_line(error)}): all else is saved")

    def note_motion(self, step: int, numbers: MotionNumbers, slippage: Slippage | None = None) -> None:
        """A row of metrics for how the samples move, beside the same numbers of the clips, and a line for the user."""
        reference = self.training.reference
        words = verdict(numbers, reference)
        clips = {} if reference is None else {"clips": reference.numbers.as_dict()}
        gain = {} if slippage is None else {"gain": slippage.gain}
        self._note(step, motion={"verdict": words, "numbers": numbers.as_dict(), **clips, **gain})
        with self._or_say("tensorboard"):
            for name, value in numbers.as_dict().items():
                self._writer.add_scalar(f"motion/{name}", value, step)
        say(f"motion at step {step}: {words}")

    def save(self, step: int, *, must: bool) -> None:
        """Checkpoint and newest weights; then, and only then, older checkpoints go. What can't be written is tried
        again later.

        Raises MsdvError where it `must` be now.
        """
        try:
            self._write_checkpoint(step)
            self.run.drop_old_checkpoints(self.config.keep_checkpoints, step)
            self.write_weights(step)
            self._due = self._next_checkpoint()
        except OSError as error:
            why = "the disk is full" if is_disk_full(error) else error.strerror or str(error)
            saved = self.run.checkpoints()
            newest = f"the newest checkpoint is that of step {saved[-1][0]}" if saved else "there is no checkpoint yet"
            if must:
                go_on = f"free some space, then msdv train --resume {self.run.folder}"
                alone = self._weights_alone(step)
                raise MsdvError(f"step {step} can't be saved, {why}; {newest}{alone}: {go_on}") from error
            say(f"step {step} can't be saved, {why}; {newest}. Training goes on and tries again: free some space")
            self._due = time.monotonic() + _TRY_AGAIN

    def _weights_alone(self, step: int) -> str:
        """Words about the weights, which take a fifth of a checkpoint's room and may fit where it does not."""
        try:
            self.write_weights(step)
        except (MsdvError, OSError):
            return ""
        return f", but the weights are in {self.run.weights}"

    def _write_checkpoint(self, step: int) -> None:
        keep = self.config.keep_checkpoints
        try:
            write_checkpoint(self.run, step, self.optimizer, self.training, self._processes)
        except OSError as error:
            if keep == 1 or not is_disk_full(error):
                raise
            # Room for the new one: without what it would push out, but not without the newest.
            self.run.drop_old_checkpoints(keep - 1, step)
            write_checkpoint(self.run, step, self.optimizer, self.training, self._processes)

    def rescue(self, step: int) -> None:
        """After a failure: save the state after `step`, where there is none newer."""
        saved = self.run.checkpoints()
        if step <= (saved[-1][0] if saved else 0):
            return
        try:
            self.save(step, must=True)
            say(f"step {step} is saved: msdv train --resume {self.run.folder} goes on from there")
        except Exception as error:  # what failed may have taken the device with it; its own error comes next
            say(f"step {step} could not be saved: {first_line(error)}")

    def write_weights(self, step: int) -> None:
        """The newest weights, by themselves."""
        write_weights(self.run.folder, step, self.optimizer, self.training)

    def catch_up(self, step: int) -> None:
        """What `save` does after the checkpoint of `step`, so far as the run was stopped before."""
        if self._steps_of_weights() != step:
            self.write_weights(step)
        if self.run.checkpoints()[-1][0] == step:  # else a newer one is damaged, and stays until there is another
            self.run.drop_old_checkpoints(self.config.keep_checkpoints)
        gain = next((row["gain"] for row in reversed(self._motion_at(step)) if "gain" in row), None)
        if gain is not None and self.training.motion is not None and gain != self.training.motion.gain:
            self._write_gain(step, gain)

    def _steps_of_weights(self) -> int | None:
        try:
            return read_metadata(self.run.weights).steps
        except MsdvError:
            return None


def _on_thread_error(args: Any) -> None:
    """TensorBoard writes in a thread of its own. A full disk there gets a line, no traceback."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def _add_gif(writer: Any, path: Path, step: int) -> None:
    """A sample for TensorBoard, which shows gifs as they are."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    content = path.read_bytes()
    width, height = (int.from_bytes(content[i : i + 2], "little") for i in (6, 8))
    image = Summary.Image(encoded_image_string=content, width=width, height=height, colorspace=3)
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag="samples", image=image)]), step)
