"""train: frames and an image model to temporal layers.

`train` reads from top to bottom: prepare the run, then the loop (draw, predict, step, log, evaluate, sample, save).
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch.nn.functional import mse_loss

from msdv.config import TrainConfig
from msdv.console import progress, say
from msdv.data.batches import generator_for
from msdv.errors import MsdvError, UsageError
from msdv.files import write_folder
from msdv.model.devices import choose_device
from msdv.model.diffusion import predict
from msdv.model.evaluation import HeldOutLoss
from msdv.model.optimizer import MasterOptimizer
from msdv.report import write_report
from msdv.resume import STATE_FILE, load_checkpoint, open_run, prepare_folder
from msdv.run import Run
from msdv.training import Training, learning_rate
from msdv.weights import save_temporal

# float16 overflows now and then, and the loss scale falls until it does not. This many in a row is no accident.
_MOST_OVERFLOWS = 20


@dataclass(frozen=True)
class TrainReport:
    """What a training made."""

    run: Run
    steps: int
    loss: float | None
    """Mean of the last steps; None where none were left to make."""
    held_out: list[HeldOutLoss]

    def lines(self) -> list[str]:
        """For the user, at the end."""
        held_out = [str(loss) for loss in self.held_out] or ["nothing, with fewer than five clips or --holdout 0"]
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        return [
            f"{self.steps} steps{loss}: weights in {self.run.weights}",
            *(f"held out: {line}" for line in held_out),
            f"report: {self.run.report}",
            f'next: msdv sample "a prompt" --model {self.run.folder} --frames 120 -o out.gif',
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
        training.model.temporal_parameters(),
        lr=config.lr,
        conv_lr=config.conv_lr,
        weight_decay=config.weight_decay,
        ema=config.ema,
        on_host=config.offload_optim,
        loss_scaling=next(training.model.parameters()).dtype == torch.float16,
    )
    first = load_checkpoint(run, optimizer, training) if resumed else 0
    if first > config.steps:
        raise UsageError(
            f"--steps {config.steps}: {run.folder} has {first} already: pass more, or leave the option out"
        )
    if main:
        prepare_folder(run, training.resolved(), first)
        run.write_held_out([clip.name for clip in training.held_out_clips])
    writer = _tensorboard(run, first) if main else None
    loop = _Loop(config, run, training, optimizer, accelerator, writer)
    try:
        return loop.run_from(first)
    finally:
        if writer is not None:
            writer.close()


def _tensorboard(run: Run, first: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.folder / "tensorboard"), purge_step=first + 1)


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


class _Loop:
    """The training loop and what it has to hand."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        training: Training,
        optimizer: MasterOptimizer,
        accelerator: Accelerator,
        writer: Any,
    ) -> None:
        self.config, self.run, self.training, self.optimizer = config, run, training, optimizer
        self.accelerator, self.writer = accelerator, writer
        self.overflows = 0
        self.held_out: list[HeldOutLoss] = []

    def run_from(self, first: int) -> TrainReport:
        """All steps from `first`, counted from 0."""
        config = self.config
        recent: deque[float] = deque(maxlen=50)
        with _stop_on_signal() as stop, progress("step") as bar:
            task = bar.add_task("training", total=config.steps, completed=first, note="")
            if first == config.steps:  # it was killed between its last checkpoint and its end, or is finished
                self._finish_checkpoint(first)
            for step in range(first, config.steps):
                started = time.perf_counter()
                loss, norm, stopping = self._step(step, stop)
                stopping = stopping and step + 1 < config.steps
                seconds = time.perf_counter() - started
                if math.isfinite(loss):
                    recent.append(loss)
                done = step + 1
                self._log(done, loss, norm, seconds)
                mean = sum(recent) / max(1, len(recent))
                bar.update(task, completed=done, note=f"loss {mean:.4f}  {_memory(self.device)}")
                if done == config.steps or done % config.checkpoint_every == 0 or stopping:
                    self._save(done, mean, evaluates=not stopping)
                if config.sample_every and (done % config.sample_every == 0 or done == config.steps) and not stopping:
                    self._sample(done)
                if stopping:
                    raise KeyboardInterrupt(
                        f"stopped after step {done}, which is saved: go on with msdv train --resume {self.run.folder}"
                    )
        for line in self.training.base.notes:
            say(line)
        return TrainReport(self.run, config.steps, sum(recent) / len(recent) if recent else None, self.held_out)

    @property
    def device(self) -> torch.device:
        return self.training.device

    def _step(self, step: int, stop: threading.Event) -> tuple[float, float, bool]:
        """One optimizer step: (loss, gradient norm, whether any process was asked to stop)."""
        config, training, accelerator = self.config, self.training, self.accelerator
        total = 0.0
        for micro in range(config.grad_accum):
            number = (step * config.grad_accum + micro) * accelerator.num_processes + accelerator.process_index
            batch = training.batches.batch(number)
            generator = generator_for("noise", config.seed, number)
            b = batch.latents.shape[0]
            noise = training.draw_noise(batch, generator)
            timesteps = training.schedule.draw_timesteps(b, config.timestep_shift, generator)
            latents, noise, timesteps, text = (t.to(self.device) for t in (batch.latents, noise, timesteps, batch.text))
            noisy = training.schedule.add_noise(latents, noise, timesteps)
            target = training.schedule.target(latents, noise, timesteps)
            loss = mse_loss(predict(training.model, noisy, timesteps, text, training.condition(b)), target)
            total += loss.item() / config.grad_accum
            self.optimizer.backward(loss / config.grad_accum)
        total, stopping = self._average_over_processes(total, stop.is_set())
        norm = self.optimizer.step(learning_rate(config, step), config.max_grad_norm)
        self._check_finite(step, total, norm)
        return total, norm, stopping

    def _average_over_processes(self, loss: float, stop: bool) -> tuple[float, bool]:
        if self.accelerator.num_processes == 1:
            return loss, stop
        gradients = self.optimizer.gradients
        extra = torch.tensor([loss, float(stop)], device=gradients.device)
        # Host memory can't be averaged by NCCL: the sum goes over the device.
        together = torch.cat([gradients, extra]).to(self.device)
        together = self.accelerator.reduce(together, reduction="mean").to(gradients.device)
        gradients.copy_(together[:-2])
        return float(together[-2]), bool(together[-1] > 0)

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            self.overflows = 0
            return
        self.overflows += 1
        if self.optimizer.scaler.is_enabled() and self.overflows < _MOST_OVERFLOWS:
            return
        saved = self.run.checkpoints()
        go_on = f"; the newest good weights are those of step {saved[-1][0]}" if saved else ""
        wish = "--bf16 instead of --fp16" if self.optimizer.scaler.is_enabled() else f"--lr {self.config.lr / 3:.1g}"
        what = f"gradient of step {step + 1} is {norm}" if math.isfinite(loss) else f"loss of step {step + 1} is {loss}"
        raise MsdvError(f"the {what}: try {wish}, or look for broken clips{go_on}")

    def _log(self, step: int, loss: float, norm: float, seconds: float) -> None:
        if not self.accelerator.is_main_process:
            return
        rate = learning_rate(self.config, step - 1)
        values: dict[str, float] = {"loss": loss, "gradient_norm": norm, "lr": rate, "seconds": seconds}
        if self.optimizer.scaler.is_enabled():
            values["loss_scale"] = self.optimizer.scaler.get_scale()
        self.run.log(step=step, **{k: v if math.isfinite(v) else None for k, v in values.items()})
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def _save(self, step: int, loss: float, evaluates: bool) -> None:
        """Checkpoint, newest weights, held-out loss, report; `loss` is the recent mean."""
        if self.accelerator.is_main_process:
            weights, metadata = self.optimizer.weights(), self.training.metadata(step)
            with write_folder(self.run.checkpoint(step)) as folder:
                torch.save(self.optimizer.state_dict(), folder / STATE_FILE)
                save_temporal(folder / self.run.weights.name, weights, metadata)
            save_temporal(self.run.weights, weights, metadata)
            del weights
            self.run.drop_old_checkpoints(self.config.keep_checkpoints)
            if evaluates:
                self._evaluate(step)
            if step < self.config.steps:  # the last one's are in the report
                say("; ".join([f"step {step}: loss {loss:.4f}", *map(str, self.held_out)]))
            write_report(self.run, self.config)
        self.accelerator.wait_for_everyone()

    def _evaluate(self, step: int) -> None:
        with self._averaged_weights():
            self.held_out = self.training.evaluate()
        for held in self.held_out:
            self.run.log(step=step, held_out=held.as_dict())
            self.writer.add_scalars(f"held_out/{held.noise}", {"on": held.on, "off": held.off}, step)

    def _finish_checkpoint(self, step: int) -> None:
        """Do what follows a checkpoint."""
        say(f"{self.run.folder} has all its {step} steps: pass --steps {2 * step} to train on")
        if self.accelerator.is_main_process:
            save_temporal(self.run.weights, self.optimizer.weights(), self.training.metadata(step))
            self._evaluate(step)
            write_report(self.run, self.config)
        if self.config.sample_every:
            self._sample(step)

    def _sample(self, step: int) -> None:
        if self.accelerator.is_main_process:
            try:
                with self._averaged_weights():
                    self.training.write_sample(self.run.sample(step))
            except (MsdvError, OSError, RuntimeError) as error:  # no sample is worth a night's training
                say(f"no sample at step {step}: {next(iter(str(error).splitlines()), type(error).__name__)}")
            write_report(self.run, self.config)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        self.optimizer.use_average(True)
        try:
            yield
        finally:
            self.optimizer.use_average(False)


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or a request to terminate) sets; the second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("stopping after this step; once more to stop at once, without saving")

    numbers = [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _memory(device: torch.device) -> str:
    """Peak memory of the device, or of the process, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak * (1 if sys.platform == 'darwin' else 1024) / 2**30:.1f} GiB"
