"""msdv train with the image layers trained too, at a fifth of the temporal attention's learning rate.

    python recipes/experiments/unfrozen.py train --config recipes/experiments/experiments.toml --out run

Takes the options of `msdv train` for `--base builtin`; a training made so can't be resumed. `run/pipeline` is then a
whole model, image layers and temporal ones, which msdv's own commands take: `msdv train --evaluate --init
run/pipeline`, `msdv sample --model run/pipeline`.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import msdv
import msdv.model.layers
import msdv.resume
from msdv.cli import main
from msdv.model.base import hash_unet
from msdv.model.inflate import VideoUNet, is_temporal, spatial_key
from msdv.model.optimizer import MasterOptimizer
from msdv.tensors import read_json
from msdv.weights import TemporalMetadata, save_temporal

RATE = 0.2
"""Learning rate of the image layers, as a multiple of the temporal attention's."""
BUILTIN = Path(msdv.__file__).parent / "builtin"


def norm_silu(
    pictures: Sequence[Tensor],
    norm: nn.GroupNorm,
    conv: nn.Conv2d | None,
    ranges: Any,
    clips: int | None,
    *,
    over: bool = False,
) -> Tensor:
    """What `msdv.model.frozen.norm_silu` computes with statistics of each frame, with gradients of its layers' weights
    as well."""
    if clips is not None:
        raise ValueError("only for group norms with statistics of each frame")
    x = torch.cat(list(pictures), dim=1) if len(pictures) > 1 else pictures[0]
    y = F.silu(F.group_norm(x.contiguous(), norm.num_groups, norm.weight, norm.bias, norm.eps))
    return y if conv is None else conv(y.contiguous(memory_format=torch.channels_last))


def convolve(pictures: Sequence[Tensor], conv: nn.Conv2d, ranges: Any) -> Tensor:
    """Likewise."""
    return conv(torch.cat(list(pictures), dim=1) if len(pictures) > 1 else pictures[0])


def upsample(x: Tensor, size: list[int], conv: nn.Conv2d, ranges: Any) -> Tensor:
    """Likewise."""
    return conv(F.interpolate(x, size=size, mode="nearest"))


def unfreeze() -> None:
    """From now on, whatever is trained is trained with the image layers."""
    for replacement in (norm_silu, convolve, upsample):
        setattr(msdv.model.layers, replacement.__name__, replacement)
    groups = MasterOptimizer._groups

    def all_parameters(self: VideoUNet) -> dict[str, nn.Parameter]:
        # The temporal ones first: the first is the one by which others know where the model is.
        image = {k: p.requires_grad_() for k, p in self.unet.named_parameters() if not is_temporal(k)}
        return {**self.temporal_parameters(), **image}

    def with_image_layers(self: MasterOptimizer, lr: float, conv_lr: float, weight_decay: float) -> list[Any]:
        every = self.masters
        self.masters = {key: master for key, master in every.items() if is_temporal(key)}
        temporal = groups(self, lr, conv_lr, weight_decay)
        self.masters = every
        image = [master for key, master in every.items() if not is_temporal(key)]
        return [*temporal, {"params": image, "weight_decay": 0.0, "lr_scale": RATE, "lr": lr * RATE}]

    VideoUNet.trained_parameters = all_parameters  # type: ignore[method-assign]
    MasterOptimizer._groups = with_image_layers  # type: ignore[method-assign]
    msdv.resume.save_temporal = save_pipeline


def save_pipeline(path: Path, state: Mapping[str, Tensor], metadata: TemporalMetadata) -> None:
    """In the place of `save_temporal`: `pipeline/` beside `path` gets the builtin with the image layers in `state`, and
    the temporal ones; `path` these too."""
    folder = path.parent / "pipeline"
    temporal = {key: tensor for key, tensor in state.items() if is_temporal(key)}
    image = {spatial_key(key): tensor.half().contiguous() for key, tensor in state.items() if key not in temporal}
    metadata = metadata.model_copy(
        update={"base": str(folder), "unet_hash": hash_unet(read_json(BUILTIN / "unet" / "config.json"), image)}
    )
    if not folder.exists():
        shutil.copytree(BUILTIN, folder)
    save_file(image, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    save_temporal(folder / path.name, temporal, metadata)
    save_temporal(path, temporal, metadata)


if __name__ == "__main__":
    unfreeze()
    main()
