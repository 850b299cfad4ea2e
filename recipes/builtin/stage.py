"""What the stages share: settings, the work folder, averaging over processes, checkpoints to go on from."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_arguments(description: str | None) -> argparse.Namespace:
    """`--work FOLDER`, where the stages meet, and `--settings FILE`."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("builtin-work"), help="folder that the stages share")
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_name("base.toml"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def read_settings(path: Path, section: str) -> dict[str, Any]:
    """One section of the settings file."""
    with path.open("rb") as file:
        settings: dict[str, Any] = tomllib.load(file)[section]
    return settings


def start_processes(seed: int) -> PartialState:
    """One thread a process: two such processes train faster on two cores than one of two threads. Seeds differ."""
    state = PartialState(cpu=True)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"process {state.process_index + 1} of {state.num_processes}", flush=True)
    torch.manual_seed(seed + 1000 * state.process_index)
    return state


class Loop:
    """Trains parameters by the clock: warm-up and cosine, gradient clipping, moving average, checkpoints.

    Iterate to get the share of the time that is gone; call `step(loss)` once a turn. All processes stop together.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        lr: float,
        minutes: float,
        path: Path,
        average: float = 0.998,
        checkpoint_minutes: float = 3.0,
    ) -> None:
        self.module, self.lr, self.seconds, self.path, self.average = module, lr, minutes * 60, path, average
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
        self.mean = [p.detach().clone() for p in self.parameters]
        self.state, self.steps, self.spent, self.checkpoint_seconds = PartialState(), 0, 0.0, checkpoint_minutes * 60
        if path.exists():
            saved = torch.load(path, weights_only=True)
            for target, values in ((self.parameters, saved["parameters"]), (self.mean, saved["mean"])):
                for p, value in zip(target, values, strict=True):
                    p.data.copy_(value)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.steps, self.spent = saved["steps"], saved["spent"]

    def __iter__(self) -> Iterator[float]:
        last, saved = time.monotonic(), self.spent
        while self.spent < self.seconds:
            share = self.spent / self.seconds
            for group in self.optimizer.param_groups:
                group["lr"] = (
                    self.lr * min(1.0, (self.steps + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * share)) + 1e-6
                )
            yield share
            now = time.monotonic()
            self.spent, last = self._agree(self.spent + now - last), now
            if self.spent - saved > self.checkpoint_seconds and self.state.is_main_process:
                saved = self.spent
                self.save()

    def step(self, loss: torch.Tensor) -> None:
        """Backward, gradients averaged over processes, one optimizer step, moving average."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if self.state.num_processes > 1:
            flat = reduce(torch.cat([g.flatten() for g in gradients]), "mean")
            for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                g.copy_(part.view_as(g))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.steps += 1
        torch._foreach_lerp_(
            self.mean, [p.detach() for p in self.parameters], 1 - min(self.average, self.steps / (self.steps + 15))
        )

    def use_average(self) -> None:
        """Put the moving average into the module."""
        for p, mean in zip(self.parameters, self.mean, strict=True):
            p.data.copy_(mean)

    def save(self) -> None:
        """Write a checkpoint aside and rename it: a killed run leaves the last whole one."""
        temporary = self.path.with_suffix(".tmp")
        torch.save(
            {
                "parameters": [p.detach() for p in self.parameters],
                "mean": self.mean,
                "optimizer": self.optimizer.state_dict(),
                "steps": self.steps,
                "spent": self.spent,
            },
            temporary,
        )
        temporary.replace(self.path)

    def _agree(self, seconds: float) -> float:
        if self.state.num_processes == 1:
            return seconds
        return float(reduce(torch.tensor([seconds]), "mean")[0])
