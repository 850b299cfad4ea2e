"""What hardly changes from one denoising step to the next is computed in some steps only (DeepCache, Ma et al. 2023,
2312.00858, section 3): the deep layers' output; the layers near the picture see each step's latents.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from msdv.errors import UsageError
from msdv.model.inflate import VideoUNet


@dataclass
class _Kept:
    calls: int = 0
    deep: Tensor | None = None
    """What the last of the deep layers gave."""


class Reuse:
    """Of one video: every how many-th call computes everything. Calls are told apart by a key, such as the text."""

    def __init__(self, model: VideoUNet, every: int) -> None:
        """every >= 1; at 1 each call computes everything, and nothing is kept.

        Raises UsageError for a model that has no deep layers.
        """
        unet = model.unet
        self._down, self._middle, self._up = list(unet.down_blocks[1:]), unet.mid_block, list(unet.up_blocks[:-1])
        self._every = every
        self._kept: dict[str, _Kept] = {}
        if every > 1 and not self._up:
            raise UsageError(f"--cache {every}: this image model has no deep layers to leave out: leave the option out")

    @contextmanager
    def call(self, key: str) -> Iterator[None]:
        """Inside the block the model is called once."""
        if self._every == 1:
            yield
            return
        kept = self._kept.setdefault(key, _Kept())
        everything = kept.calls % self._every == 0
        kept.calls += 1
        with ExitStack() as stack:
            if everything:
                kept.deep = None  # not to be there beside the new one

                def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
                    kept.deep = output.detach()  # which stays when the next block lets go of its input

                stack.callback(self._up[-1].register_forward_hook(keep).remove)
            else:
                assert kept.deep is not None
                for block in self._down:
                    _instead(stack, block, _passed_down(block))
                if self._middle is not None:
                    _instead(stack, self._middle, _passed)
                for block in self._up[:-1]:
                    _instead(stack, block, _passed)
                deep = kept.deep
                _instead(stack, self._up[-1], lambda *_, **__: deep.detach())
            yield


def _instead(stack: ExitStack, block: nn.Module, compute: Callable[..., Any]) -> None:
    """Until the stack ends, a block computes this."""
    block.__dict__["forward"] = compute
    stack.callback(block.__dict__.pop, "forward")


def _passed(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _passed_down(block: Any) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
    """As many as the block leaves for the way up, where nothing looks at them."""
    count = len(block.resnets) + len(block.downsamplers or ())

    def compute(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        return hidden_states, (hidden_states,) * count

    return compute
