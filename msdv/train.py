"""train: frames and an image model to temporal layers.

`train` reads from top to bottom: prepare the run, then the loop (draw, predict, step, log, evaluate, sample, save).
"""

import functools
import gc
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from msdv.config import TrainConfig
from msdv.console import progress, say
from msdv.errors import MsdvError, UsageError, is_out_of_memory
from msdv.model.devices import choose_device, memory_used
from msdv.model.diagnosis import find_not_finite
from msdv.model.evaluation import HeldOutLoss
from msdv.model.inflate import most_frames_of
from msdv.model.optimizer import MasterOptimizer
from msdv.model.step import add_gradients
from msdv.records import Records
from msdv.resume import load_checkpoint, open_run, prepare_folder
from msdv.run import Run
from msdv.stopping import stop_on_signal
from msdv.training import Training, learning_rate

# float16 overflows now and then, and the loss scale falls until it does not. This many in a row is no accident; nor are
# so many where nothing is scaled.
_MOST_OVERFLOWS = 20
_MOST_FAILURES = 3


class _OutOfMemoryError(MsdvError):
    """Memory does not suffice, and nothing more can be saved."""


@dataclass(frozen=True)
class _Outcome:
    """Of one optimizer step, the same in all processes."""

    loss: float
    norm: float
    """Of the gradient, before it was scaled down."""
    stops: bool
    """Any process was asked to stop."""
    saves: bool
    """By the first process' clock it is time for a checkpoint."""


@dataclass(frozen=True)
class TrainReport:
    """What a training made."""

    run: Run
    steps: int
    loss: float | None
    """Mean of the last steps; None where none were left to make."""
    held_out: list[HeldOutLoss]
    skipped: int = 0
    """Steps, of the whole training, whose loss or gradient was not finite."""
    window: str = ""
    """The option that sampling of many frames needs."""

    def lines(self) -> list[str]:
        """For the user, at the end."""
        nothing = "nothing, with fewer than five clips, all of them from one video, or --holdout 0"
        held_out = [str(loss) for loss in self.held_out] or [nothing]
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        return [
            f"{self.steps} steps{loss}: weights in {self.run.weights}",
            *([f"steps skipped, as loss or gradient was not finite: {self.skipped}"] if self.skipped else []),
            *(f"held out: {line}" for line in held_out),
            *([f"LoRA, left out unless asked for: --lora {self.run.lora}"] if self.run.lora.is_file() else []),
            f"report: {self.run.report}",
            f'next: msdv sample "a prompt" --model {self.run.folder} --frames 120{self.window} -o out.gif',
        ]


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation measured."""

    losses: list[HeldOutLoss]

    def lines(self) -> list[str]:
        """For the user."""
        return [str(loss) for loss in self.losses]

    def json(self) -> str:
        """One JSON object: {"losses": [{"on": ..., "off": ..., "gain": ..., "noise": ..., ...}, ...]}."""
        return json.dumps({"losses": [loss.as_dict() for loss in self.losses]})


def evaluate(config: TrainConfig) -> EvaluationReport:
    """Measure the loss of the weights in `config.init` on all clips of `config.data`; nothing is trained or written
    but the cache."""
    if config.resume is not None:
        raise UsageError(f"--resume {config.resume}: --evaluate trains nothing: pass --init {config.resume}")
    if config.lora_rank:
        raise UsageError(f"--lora-rank {config.lora_rank}: --evaluate trains nothing: leave the option out")
    training = Training(config)
    return EvaluationReport(training.evaluate(most_clips=10_000))


def train(config: TrainConfig) -> TrainReport:
    """Train temporal layers, or go on with a training (`config.resume`).

    Raises UsageError and MsdvError with the next step to take; KeyboardInterrupt, with the command that goes on as its
    message, after saving.
    """
    run, config = open_run(config)
    accelerator = _accelerator(config)
    main = accelerator.is_main_process
    rank, processes = accelerator.process_index, accelerator.num_processes
    resumed = bool(config.resume is not None and run.checkpoints())
    barrier = accelerator.wait_for_everyone
    held_out = run.read_held_out() if resumed else None
    training = Training(config, held_out=held_out, rank=rank, processes=processes, barrier=barrier)
    optimizer = MasterOptimizer(
        training.model.trained_parameters(),
        lr=config.lr,
        conv_lr=config.conv_lr,
        weight_decay=config.weight_decay,
        ema=config.ema,
        on_host=training.settings.offload_optim,
        loss_scaling=next(training.model.parameters()).dtype == torch.float16,
    )
    first = load_checkpoint(run, optimizer, training, processes) if resumed else 0
    if first > config.steps:
        raise UsageError(
            f"--steps {config.steps}: {run.folder} has {first} already: pass more, or leave the option out"
        )
    if main:
        prepare_folder(run, training.resolved(), first)
        run.write_held_out([clip.name for clip in training.held_out_clips])
    records = Records(config, run, training, optimizer, processes)
    with records.open(first) if main else nullcontext():
        return _Loop(config, run, training, optimizer, accelerator, records).run_from(first)


def _accelerator(config: TrainConfig) -> Accelerator:
    """What several processes share. Precision is this package's own business (model/optimizer.py)."""
    on_cpu = choose_device(config.device).type == "cpu"
    # The first process alone measures and draws samples: that may take longer than the usual patience of the others.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=4))
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[patience])
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise MsdvError(f"{asked} processes were started, but they don't find each other: launch with torchrun")
    if not on_cpu:
        # Chosen by timing, kernels would differ from run to run, and a resumed run from one that was not stopped.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return accelerator


_Result = TypeVar("_Result")


class _Loop:
    """The training loop and what it has to hand."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        training: Training,
        optimizer: MasterOptimizer,
        accelerator: Accelerator,
        records: Records,
    ) -> None:
        self.config, self.run, self.training, self.optimizer = config, run, training, optimizer
        self.accelerator, self.records = accelerator, records
        self.failures = 0
        """Steps that were not finite, in a row."""
        self.skipped = run.skipped_steps()
        """The same, of the whole training."""
        self.held_out: list[HeldOutLoss] = []
        self.whole = True
        """Whether masters and moments are those of a finished step."""

    def run_from(self, first: int) -> TrainReport:
        """All steps from `first`, counted from 0."""
        config = self.config
        recent: deque[float] = deque(maxlen=50)
        with stop_on_signal() as stop, progress("step") as bar:
            task = bar.add_task("training", total=config.steps, completed=first, note="")
            if first:
                self._catch_up(first)
            for step in range(first, config.steps):
                started = time.perf_counter()
                try:
                    outcome = self._step(step, stop)
                except Exception as error:
                    self._rescue(step, error)
                    raise
                stopping = outcome.stops and step + 1 < config.steps
                seconds = time.perf_counter() - started
                if math.isfinite(outcome.loss):
                    recent.append(outcome.loss)
                done = step + 1
                self._log(done, outcome, seconds)
                mean = sum(recent) / max(1, len(recent))
                bar.update(task, completed=done, note=f"loss {mean:.4f}  {memory_used(self.device):.1f} GiB")
                if self._is_marked(done) or stopping or outcome.saves:
                    self._save(done, mean, must=done == config.steps or stopping, evaluates=self._is_marked(done))
                if self._is_sampled(done) and not stopping:
                    self._sample(done)
                if stopping:
                    raise KeyboardInterrupt(
                        f"stopped after step {done}, which is saved: go on with msdv train --resume {self.run.folder}"
                    )
        for line in self.training.base.notes:
            say(line)
        loss = sum(recent) / len(recent) if recent else None
        window = " --window 16" if most_frames_of(self.training.arch) else ""
        return TrainReport(self.run, config.steps, loss, self.held_out, self.skipped, window)

    @property
    def device(self) -> torch.device:
        return self.training.device

    def _is_marked(self, done: int) -> bool:
        """Whether after so many steps a checkpoint is made, and the loss on held-out clips measured."""
        return done == self.config.steps or done % self.config.checkpoint_every == 0

    def _is_sampled(self, done: int) -> bool:
        every = self.config.sample_every
        return bool(every) and (done == self.config.steps or done % every == 0)

    def _step(self, step: int, stop: threading.Event) -> _Outcome:
        """One optimizer step."""
        loss = self._within_memory(lambda: self._add_gradients(step))
        main = self.accelerator.is_main_process
        due = main and self.records.is_due()
        loss, stops, saves = self._average_over_processes(loss, stop.is_set(), due)
        self.whole = False
        try:
            norm = self.optimizer.step(learning_rate(self.config, step), self.config.max_grad_norm)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise _OutOfMemoryError(f"not enough memory for the optimizer: {self._less_memory()}") from error
        self.whole = True
        self._check_finite(step, loss, norm)
        return _Outcome(loss, norm, stops, saves)

    def _rescue(self, step: int, error: Exception) -> None:
        """Save the state that a failed step began with, if it is whole and trying again may help."""
        foreseen = isinstance(error, MsdvError) and not isinstance(error, _OutOfMemoryError)
        if self.whole and not foreseen and self.accelerator.is_main_process:
            self.records.rescue(step)

    def _add_gradients(self, step: int) -> float:
        """Forward and backward passes of this process; their mean loss. A function of the step and the weights alone,
        so that it can be done again."""
        return add_gradients(
            self.optimizer, lambda micro: self.training.loss(self._batch_number(step, micro)), self.config.grad_accum
        )

    def _within_memory(self, work: Callable[[], _Result]) -> _Result:
        """Do `work`; where memory does not suffice, from its beginning again with settings that take less."""
        while True:
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Only here, after the handler, has the traceback let go of what the failed attempt held.
            self._spend_less()

    def _spend_less(self) -> None:
        self.optimizer.drop_gradients()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        settings = self.training.spend_less()
        if settings is None:
            raise _OutOfMemoryError(f"not enough memory, with all savings on: {self._less_memory()}")
        say(f"not enough memory: going on with {settings.words()}, which takes less and gives the same")
        if self.accelerator.is_main_process:
            self.records.write_settings()

    def _less_memory(self) -> str:
        """What to change when nothing is left to be changed on the way."""
        config, settings = self.config, self.training.settings
        go_on = f"go on with msdv train --resume {self.run.folder}"
        if self.device.type != "cpu" and not settings.offload_optim:
            return f"{go_on} --offload-optim"
        if config.batch_size > 1:
            return f"{go_on} --batch-size 1 --grad-accum {config.batch_size * config.grad_accum}"
        if not (config.fp16 or config.bf16):
            return f"{go_on} --{'bf16' if self.device.type == 'cpu' else 'fp16'}"
        return f"close other programs and {go_on}, or start a new run with fewer --frames or a smaller --size"

    def _batch_number(self, step: int, micro: int) -> int:
        """Counted over the whole training, all processes and forward passes of a step."""
        accelerator = self.accelerator
        return (step * self.config.grad_accum + micro) * accelerator.num_processes + accelerator.process_index

    def _average_over_processes(self, loss: float, stop: bool, due: bool) -> tuple[float, bool, bool]:
        """Gradients and loss averaged; whether any process is to stop; whether any has a checkpoint due."""
        if self.accelerator.num_processes == 1:
            return loss, stop, due
        gradients = self.optimizer.gradients
        extra = torch.tensor([loss, float(stop), float(due)], device=gradients.device)
        # Host memory can't be averaged by NCCL: the sum goes over the device.
        together = torch.cat([gradients, extra]).to(self.device)
        together = self.accelerator.reduce(together, reduction="mean").to(gradients.device)
        gradients.copy_(together[:-3])
        return float(together[-3]), bool(together[-2] > 0), bool(together[-1] > 0)

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        """Count a step that was skipped, as the optimizer does where a gradient is not finite. Raises MsdvError with a
        diagnosis if too many in a row were."""
        if math.isfinite(loss) and math.isfinite(norm):
            self.failures = 0
            return
        self.failures += 1
        self.skipped += 1
        scaling = self.optimizer.scaler.is_enabled()
        what = f"gradient of step {step + 1} is {norm}" if math.isfinite(loss) else f"loss of step {step + 1} is {loss}"
        if self.failures < (_MOST_OVERFLOWS if scaling else _MOST_FAILURES):
            if not scaling:
                say(f"the {what}: the step is skipped")
            return
        diagnosis = self._diagnose(step)
        self.accelerator.wait_for_everyone()  # one that ends would end the others, which may know more
        saved = self.run.checkpoints()
        go_on = f"; the newest good weights are those of step {saved[-1][0]}" if saved else ""
        wish = "--bf16 instead of --fp16" if scaling else f"--lr {self.config.lr / 3:.1g}"
        raise MsdvError(
            f"the {what}, and the {self.failures - 1} steps before it were no better; {diagnosis}: try {wish}, "
            f"or look for broken clips{go_on}"
        )

    def _diagnose(self, step: int) -> str:
        """Go through a step once more, and say where numbers stop being finite, and with which clips."""
        for micro in range(self.config.grad_accum):
            number = self._batch_number(step, micro)
            forward = functools.partial(self.training.loss, number)
            found = find_not_finite(self.training.model.unet, forward, self.optimizer.backward)
            self.optimizer.drop_gradients()
            if found is not None:
                return f"{found} ({', '.join(self.training.batches.names(number))})"
        return "gone through once more, all numbers of this process are finite"

    def _log(self, step: int, outcome: _Outcome, seconds: float) -> None:
        if not self.accelerator.is_main_process:
            return
        rate = learning_rate(self.config, step - 1)
        values = {"loss": outcome.loss, "gradient_norm": outcome.norm, "lr": rate, "seconds": seconds}
        values["memory_gib"] = round(memory_used(self.device), 3)
        if self.optimizer.scaler.is_enabled():
            values["loss_scale"] = self.optimizer.scaler.get_scale()
        self.records.note_step(step, values, self.skipped)

    def _save(self, step: int, loss: float, *, must: bool, evaluates: bool) -> None:
        """Checkpoint, newest weights, held-out loss, report; `loss` is the recent mean. `must`: this is the end, and
        what can't be written now is lost."""
        if self.accelerator.is_main_process:
            self.records.save(step, must=must)
            if evaluates:
                self._evaluate(step)
                if step < self.config.steps:  # the last one's are in the report
                    skipped = [f"steps skipped so far: {self.skipped}"] if self.skipped else []
                    say("; ".join([f"step {step}: loss {loss:.4f}", *skipped, *map(str, self.held_out)]))
            self.records.write_report()
        self.accelerator.wait_for_everyone()

    def _evaluate(self, step: int, *, notes: bool = True) -> None:
        try:
            with self._averaged_weights():
                self.held_out = self._within_memory(self.training.evaluate)
        except MsdvError as error:
            if isinstance(error, _OutOfMemoryError):
                raise
            self.held_out = []
            say(f"step {step}: {error}")
        if notes:
            self.records.note_held_out(step, self.held_out)

    def _catch_up(self, step: int) -> None:
        """Do what follows the checkpoint of `step`, so far as the run was stopped before."""
        if step == self.config.steps:
            say(f"{self.run.folder} has all its {step} steps: pass --steps {2 * step} to train on")
        if self.accelerator.is_main_process:
            self.records.catch_up(step)
            measured = self.records.has_held_out(step)
            if step == self.config.steps or (self._is_marked(step) and not measured):
                self._evaluate(step, notes=not measured)
            self.records.write_report()
            if self._is_sampled(step) and not self.records.has_sample(step):
                self._write_sample(step)
        self.accelerator.wait_for_everyone()

    def _sample(self, step: int) -> None:
        if self.accelerator.is_main_process:
            self._write_sample(step)
        self.accelerator.wait_for_everyone()

    def _write_sample(self, step: int) -> None:
        with self._averaged_weights():
            self.records.write_sample(step)
        self.records.write_report()

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        self.optimizer.use_average(True)
        try:
            yield
        finally:
            self.optimizer.use_average(False)
