"""A model that gives its card to others for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from msdv.model.inflate import VideoUNet


@contextmanager
def off_card(model: VideoUNet) -> Iterator[None]:
    """Inside the block the weights of `model` are in the computer's memory; afterwards they are where they were. On a
    CPU nothing happens."""
    model.rest()
    there = [t for t in (*model.parameters(), *model.buffers()) if t.device.type != "cpu"]
    devices = [t.device for t in there]
    for tensor in there:
        tensor.data = tensor.data.to("cpu")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for tensor, device in zip(there, devices, strict=True):
            tensor.data = tensor.data.to(device)
