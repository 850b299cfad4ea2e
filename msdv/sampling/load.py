"""Which image model and which temporal layers settings mean."""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from msdv.config import SampleConfig
from msdv.console import say
from msdv.errors import UsageError
from msdv.model.base import Base, load_base
from msdv.model.lora import Lora
from msdv.run import is_pipeline, newest_run_with_weights, trained_base, weights_in
from msdv.weights import read_metadata


def load_models(
    config: SampleConfig, device: torch.device, dtype: torch.dtype, loras: Sequence[Lora]
) -> tuple[Base, Path | dict[str, Tensor]]:
    """The image model, with LoRAs in it, and the temporal layers that --model and --base mean.

    Without --model: the newest run's, else those that come with the image model. A --base that the newest run was not
    trained on, but that has temporal layers of its own, is sampled with those.
    """
    load = functools.partial(load_base, device=device, dtype=dtype, loras=loras)
    if config.model is not None and is_pipeline(config.model):
        if config.base not in (None, config.model):
            raise UsageError(f"--base {config.base}: --model {config.model} has its own image model: leave --base out")
        base = load(config.model)
        if base.temporal is None:
            raise UsageError(f"--model {config.model} is an image model without temporal layers: pass it as --base")
        return base, base.temporal
    if config.model is not None:
        weights = weights_in(config.model)
        return load(config.base or trained_base(weights)), weights
    run = newest_run_with_weights()
    if config.base is None and run is None:
        say("no run under runs/: image model and temporal layers are builtin (--model takes others)")
    name = config.base or (trained_base(run.weights) if run else "builtin")
    base = load(name)
    own = base.temporal
    if run is not None and (own is None or read_metadata(run.weights).unet_hash == base.unet_hash):
        say(f"temporal layers of {run.folder}, the newest run")
        return base, run.weights
    if own is None:
        raise UsageError(
            f"{base.name} has no temporal layers and there is no run under runs/: train some with msdv train, "
            "or pass --model"
        )
    if run is not None:
        say(f"temporal layers that come with {base.name}: the newest run was trained on another image model")
    return base, own
