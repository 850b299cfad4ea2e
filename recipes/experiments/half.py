"""msdv train in float32 with every number rounded to float16: what --fp16 does on a card, on a processor, which has no
fast float16.

    python recipes/experiments/half.py train --config recipes/experiments/experiments.toml --no-bf16 --out run

Each result of each operation of the network, forward and backward, is rounded to float16, with its range: what is
larger than 65,504 becomes infinite, what is smaller than about 6e-8 zero. So are the weights after each step; their
masters stay in float32. The loss is scaled as with --fp16, and steps whose gradient is not finite are left out. Sums
within one operation are in float32, as in a card's tensor cores; attention scores are rounded too, which fused kernels
on a card don't do. Takes the options of `msdv train`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msdv.cli import main
from msdv.model.inflate import VideoUNet
from msdv.model.optimizer import MasterOptimizer

# Of norms, the moments stay in float32, as on a card.
_NORMS = (torch.ops.aten.native_group_norm.default, torch.ops.aten.native_layer_norm.default)


class InHalf(TorchDispatchMode):
    """Inside the block, results are rounded to float16, but for numbers that stand alone: the loss and its scale."""

    paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.paused and not func.is_view:
            for result in tree_leaves(out)[: 1 if func in _NORMS else None]:
                if isinstance(result, Tensor) and result.dtype == torch.float32 and result.ndim:
                    result.copy_(result.half())
        return out


def compute_in_half() -> None:
    """From now on, networks are computed so, and trained with scaled losses."""
    forward, backward = VideoUNet.forward, MasterOptimizer.backward
    start, publish = MasterOptimizer.__init__, MasterOptimizer._publish

    def rounded_forward(self: VideoUNet, sample: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        with InHalf() as mode:
            # diffusers encodes timesteps in float32, whatever the model is in.
            time_proj = self.unet.time_proj
            hooks = [
                time_proj.register_forward_pre_hook(lambda *_: setattr(mode, "paused", True)),
                time_proj.register_forward_hook(lambda *_: setattr(mode, "paused", False)),
            ]
            try:
                return forward(self, sample.half().float(), timesteps, text.half().float())
            finally:
                for hook in hooks:
                    hook.remove()

    def rounded_backward(self: MasterOptimizer, loss: Tensor) -> None:
        with InHalf():
            backward(self, loss)

    def start_scaled(self: MasterOptimizer, *args: Any, **settings: Any) -> None:
        start(self, *args, **{**settings, "loss_scaling": True})

    def publish_rounded(self: MasterOptimizer, masters: Any) -> None:
        publish(self, masters)
        with torch.no_grad():
            for parameter in self._parameters.values():
                parameter.copy_(parameter.half())

    VideoUNet.forward = rounded_forward  # type: ignore[method-assign]
    MasterOptimizer.backward = rounded_backward  # type: ignore[method-assign]
    MasterOptimizer.__init__ = start_scaled  # type: ignore[method-assign]
    MasterOptimizer._publish = publish_rounded  # type: ignore[method-assign]


if __name__ == "__main__":
    compute_in_half()
    main()
