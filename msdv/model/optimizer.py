"""AdamW on float32 masters of the temporal weights: what lets the model itself be in half precision, and the optimizer
be in the computer's memory instead of the graphics card's."""

import math
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from msdv.model.host_memory import Copy, SideStream, empty_on_host, host_memory


class MasterOptimizer:
    """Holds a float32 master of each trainable weight, and steps it.

    A master of a temporal convolution is its difference from the identity: so weight decay pulls towards the image
    model, not towards a layer that lets nothing through. Gradients are summed into one flat float32 buffer, which is
    what several processes average. With `on_host` masters, moments and that buffer are in host memory.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        conv_lr: float,
        weight_decay: float,
        ema: float = 0.0,
        on_host: bool = False,
        loss_scaling: bool = False,
    ) -> None:
        """lr of the temporal attention; conv_lr, of the convolutions, as a multiple of it. ema: decay of the averaged
        weights, 0 for none. loss_scaling: for float16."""
        self._parameters = dict(parameters)
        first = next(iter(self._parameters.values()))
        home = torch.device("cpu") if on_host else first.device
        self._on_host = on_host
        with self._at_home():
            self._start(home, ema)
        groups = self._groups(lr, conv_lr, weight_decay)
        # Fused: one kernel for all weights; there is none for MPS.
        self._adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=home.type in ("cpu", "cuda"))
        self.scaler = torch.amp.GradScaler(home.type, enabled=loss_scaling)
        # Its first call decides where the scale lives: beside the masters. Elsewhere, the step would read it from a
        # copy that may not have arrived yet.
        self.scaler.scale(torch.zeros((), device=home))
        self._side = SideStream()
        self._staging: dict[str, Tensor] = {}
        self._arriving: deque[tuple[str, Copy]] = deque()
        self._in_backward = False
        for key, parameter in self._parameters.items():
            _call_when_made(parameter, key, self)

    def _at_home(self) -> AbstractContextManager[None]:
        """Around everything that allocates for the optimizer."""
        return host_memory() if self._on_host else nullcontext()

    def _start(self, home: torch.device, ema: float) -> None:
        self.masters: dict[str, nn.Parameter] = {}
        for key, parameter in self._parameters.items():
            value = parameter.detach().to(home, torch.float32, copy=True)
            self.masters[key] = nn.Parameter(_add_identity(key, value, -1))
        self.gradients = torch.zeros(sum(p.numel() for p in self.masters.values()), device=home)
        start = 0
        for master in self.masters.values():
            master.grad = self.gradients[start : start + master.numel()].view_as(master)
            start += master.numel()
        self._decay = ema
        self._average = {k: m.detach().clone() for k, m in self.masters.items()} if ema else {}
        self._updates = 0

    def _groups(self, lr: float, conv_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for key, master in self.masters.items():
            scale = conv_lr if ".temporal_conv." in f".{key}" else 1.0
            decay = weight_decay if master.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(master)
        return [
            {"params": params, "weight_decay": decay, "lr_scale": scale, "lr": lr * scale}
            for (scale, decay), params in groups.items()
        ]

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`, added to those since the last step. Each leaves the model as soon as it is made."""
        self._in_backward = True
        try:
            self.scaler.scale(loss).backward()
        finally:
            self._in_backward = False
        self._side.wait()
        self._add_arrived(wait=True)

    @torch.no_grad()
    def _take_gradient(self, key: str) -> None:
        parameter = self._parameters[key]
        gradient = parameter.grad
        if gradient is None or not self._in_backward:
            return
        parameter.grad = None
        if self._is_home(gradient):
            self.masters[key].grad += gradient  # type: ignore[operator]
            return
        if key not in self._staging:
            self._staging[key] = empty_on_host(gradient)
        self._arriving.append((key, self._side.send(gradient, self._staging[key])))
        self._add_arrived()

    def _is_home(self, gradient: Tensor) -> bool:
        return gradient.device == self.gradients.device

    def drop_gradients(self) -> None:
        """Forget the gradients since the last step, those of a backward pass that failed included."""
        self._side.wait()
        self._add_arrived(wait=True)
        for parameter in self._parameters.values():
            parameter.grad = None
        self.gradients.zero_()

    def _add_arrived(self, wait: bool = False) -> None:
        while self._arriving:
            key, copy = self._arriving[0]
            if wait:
                copy.finish()
            elif not copy.is_done():
                return
            self._arriving.popleft()
            self.masters[key].grad += self._staging[key]  # type: ignore[operator]

    def step(self, lr: float, max_grad_norm: float) -> float:
        """One AdamW step at learning rate `lr` with the gradients so far, whose norm is returned. Where it is not
        finite nothing changes, but that the loss scale of float16 is lowered."""
        with self._at_home():
            return self._step(lr, max_grad_norm)

    def _step(self, lr: float, max_grad_norm: float) -> float:
        for group in self._adamw.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.scaler.unscale_(self._adamw)
        norm = torch.nn.utils.clip_grad_norm_(list(self.masters.values()), max_grad_norm).item()
        finite = math.isfinite(norm)
        if finite or self.scaler.is_enabled():
            self.scaler.step(self._adamw)
            self.scaler.update()
        self.gradients.zero_()
        if finite:
            self._updates += 1
            if self._average:
                # A young average follows fast, so that it does not remember the untrained weights.
                decay = min(self._decay, self._updates / (self._updates + 10))
                masters = [m.detach() for m in self.masters.values()]
                torch._foreach_lerp_(list(self._average.values()), masters, 1 - decay)
        self._publish(self.masters)
        return norm

    @torch.no_grad()
    def _publish(self, masters: Mapping[str, Tensor]) -> None:
        """Copy masters into the model, in its precision."""
        for key, parameter in self._parameters.items():
            with self._at_home():
                weight = _add_identity(key, masters[key].to(torch.float32, copy=True), 1)
            parameter.copy_(weight)

    def use_average(self, on: bool) -> None:
        """Put the averaged weights into the model, or the current ones back. Without averaging nothing changes."""
        if self._average:
            self._publish(self._average if on else self.masters)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """What is to be saved and sampled from: the averaged weights, else the current ones; float32."""
        source: Mapping[str, Tensor] = self._average or self.masters
        return {k: _add_identity(k, v.detach().clone(), 1) for k, v in source.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs to go on as if it had not stopped."""
        return {
            "masters": {k: m.detach() for k, m in self.masters.items()},
            "average": self._average,
            "updates": self._updates,
            "adamw": self._adamw.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; the model gets the weights too."""
        for key, master in self.masters.items():
            master.copy_(state["masters"][key])
        for key, value in self._average.items():
            value.copy_(state["average"][key])
        self._updates = state["updates"]
        self._adamw.load_state_dict(state["adamw"])
        self.scaler.load_state_dict(state["scaler"])
        self._publish(self.masters)


def _call_when_made(parameter: nn.Parameter, key: str, optimizer: MasterOptimizer) -> None:
    """Hand over each gradient of `parameter` as soon as it is made."""
    # The hook outlives the optimizer, which another one may replace.
    owner = weakref.ref(optimizer)

    def on_gradient(_: Tensor) -> None:
        if (alive := owner()) is not None:
            alive._take_gradient(key)

    parameter.register_post_accumulate_grad_hook(on_gradient)


def _add_identity(key: str, weight: Tensor, factor: int) -> Tensor:
    """`weight` itself, changed in place: for a temporal convolution (c, c, 3), with `factor` identities added."""
    if key.endswith("temporal_conv.weight"):
        weight[:, :, 1].diagonal().add_(factor)
    return weight
