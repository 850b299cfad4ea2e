"""export: temporal layers to a file or folder for elsewhere."""

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from msdv.card import SAMPLE, STABLE_DIFFUSION, Card
from msdv.config import ExportConfig, ExportFormat
from msdv.console import say
from msdv.errors import MsdvError, UsageError
from msdv.files import refuse_overwrite, refuse_unwritable, write_file, write_folder
from msdv.foreign import check_modules
from msdv.layouts import shape_of_blocks, write_2022, write_animatediff, write_motion_adapter, write_pipeline
from msdv.model.base import Base, load_base
from msdv.model.diffusion import SCHEDULE_KEYS, with_last_timestep
from msdv.model.inflate import inflate
from msdv.model.known import find_architecture
from msdv.model.temporal import build_video_unet, check_match, noise_schedule
from msdv.model.trained_lora import save_kohya
from msdv.push import push
from msdv.recipe import read_section, settings_beside, to_toml, write_beside
from msdv.run import LORA_NAME, is_pipeline, trained_base, weights_in
from msdv.tensors import TensorFile
from msdv.weights import FILE_NAME, TemporalMetadata, header_for_others, load_temporal, read_metadata, save_temporal

_FILES: tuple[ExportFormat, ...] = ("msdv", "animatediff", "lora")
_OF_MOTION: tuple[ExportFormat, ...] = ("animatediff", "motion-adapter")
_WITH_BASE: tuple[ExportFormat, ...] = ("pipeline", "2022")
_WHAT: dict[ExportFormat, str] = {
    "msdv": "temporal layers",
    "pipeline": "pipeline",
    "motion-adapter": "motion adapter for diffusers",
    "animatediff": "motion module for ComfyUI and A1111",
    "2022": "pipeline in the layout of 2022",
    "lora": "LoRA for ComfyUI, A1111 and diffusers",
}


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    out: Path
    what: str
    notes: list[str] = field(default_factory=list)
    sample_with: str = "--model"

    def lines(self) -> list[str]:
        """For the user."""
        files = [p for p in self.out.rglob("*") if p.is_file()] if self.out.is_dir() else [self.out]
        size = sum(path.stat().st_size for path in files)
        return [
            f"{self.what}: {self.out} ({size / 1e6:.1f} MB)",
            *self.notes,
            f'sample from it: msdv sample "a prompt" {self.sample_with} {self.out} -o out.gif',
        ]


def export(config: ExportConfig) -> ExportReport:
    """Write the temporal layers of `config.source` to `config.out`. Raises UsageError and MsdvError with the next
    step."""
    source = Path(config.source)
    if config.to == "lora" and source.name == LORA_NAME and source.is_file():
        config = config.model_copy(update={"source": str(source.parent)})
    is_whole = Path(config.source).is_dir() and is_pipeline(config.source)
    weights = Path(config.source) / "unet" if is_whole else weights_in(config.source)
    to = _choose_format(config)
    refuse_overwrite(config.out, config.overwrite)
    if to in _FILES:
        refuse_overwrite(settings_beside(config.out), config.overwrite)
    _refuse_to_lose(config, weights, is_file=to in _FILES)
    refuse_unwritable(config.out)
    whole = _load_whole(config.source) if is_whole else None
    state, metadata = _layers_of(whole) if whole else _read_layers(to, weights)
    _check_arch(to, metadata)
    base = whole if to in _WITH_BASE and config.base is None else None
    if base is None and to in _WITH_BASE:
        base = _load_base(config, weights, state, metadata)
    unet = base.unet_config if base else whole.unet_config if whole else _unet_of(metadata)
    channels = shape_of_blocks(state)[0] if metadata.arch == "motion-module" else unet.get("block_out_channels", ())
    card = Card(config, to, metadata, weights, unet, tuple(channels))
    notes = _write_file(card, state) if to in _FILES else _write_folder(card, state, base, is_whole)
    if config.push:
        notes.append(f"uploaded: {_push(card)}")
    with_it = {"2022": "--base", "lora": f"--model {config.source} --lora"}
    return ExportReport(config.out, _WHAT[to], notes, with_it.get(to, "--model"))


def _load_whole(source: str) -> Base:
    """A model with temporal layers inside its UNet, as those of 2022."""
    base = load_base(source, device=torch.device("cpu"), dtype=torch.float32)
    if not isinstance(base.temporal, dict):
        raise UsageError(
            f"{source} is an image model without temporal layers: give a run folder, or train on it with --base"
        )
    return base


def _layers_of(base: Base) -> tuple[dict[str, Tensor], TemporalMetadata]:
    """The temporal layers inside a model of 2022, and what is known of them, and otherwise how its author trained."""
    assert isinstance(base.temporal, dict)
    return base.temporal, TemporalMetadata(
        arch="pseudo3d",
        group_norm=base.group_norm or "joint",
        base=base.name,
        unet_hash=base.unet_hash or "",
        frames=25,
        size=base.sample_size,
        fps=5.0,
        prediction_type=base.prediction_type,
        scheduler={key: base.scheduler_config[key] for key in SCHEDULE_KEYS if key in base.scheduler_config},
        noise="independent",
        steps=0,
        tool="the code of 2022",
    )


def _read_layers(to: ExportFormat, weights: Path) -> tuple[dict[str, Tensor], TemporalMetadata]:
    _check_arch(to, read_metadata(weights))
    state, metadata = load_temporal(weights)
    if metadata.arch == "motion-module":
        check_modules({key: tuple(tensor.shape) for key, tensor in state.items()}, weights, ours=True)
    return state, metadata


def _refuse_to_lose(config: ExportConfig, weights: Path, *, is_file: bool) -> None:
    """Raise UsageError where the result would take the place of something that no export wrote, --overwrite or not."""
    out = config.out.resolve()
    for what in (config.source, config.base, str(weights)):
        if what and Path(what).exists() and out in (Path(what).resolve(), *Path(what).resolve().parents):
            raise UsageError(f"{config.out} is or holds {what}, from which it would be made: choose another name")
    if is_file and out.is_dir():
        raise UsageError(f"{config.out} is a folder: choose another name")
    if is_file and out.is_file() and out.name == FILE_NAME and _is_run(out.parent):
        raise UsageError(f"{config.out} is the weights of a run of msdv train: choose another name")
    if is_file or not out.exists():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if not (out / "export.toml").is_file():
        raise UsageError(f"{config.out} is not a folder that msdv export wrote: choose another name")
    if any(map(_is_run, (out, *(path for path in out.rglob("*") if path.is_dir())))):
        raise UsageError(f"{config.out} is or holds a run of msdv train: choose another name")


def _is_run(folder: Path) -> bool:
    recipe = folder / "config.toml"
    try:
        return (folder / "checkpoints").is_dir() or (recipe.is_file() and bool(read_section(recipe, "train")))
    except (MsdvError, UsageError):
        return True


def _write_file(card: Card, state: Mapping[str, Tensor]) -> list[str]:
    config, metadata = card.config, card.metadata
    if card.to == "lora":
        save_kohya(config.out, _read_lora(card), metadata, card.header())
        write_beside(config.out, "export", config)
        return []
    notes = []
    if card.to == "msdv":
        save_temporal(config.out, state, metadata, card.header())
    else:
        _check_finite(state, config.out)
        with write_file(config.out) as temporary:
            write_animatediff(temporary, state, card.header() | header_for_others(metadata))
        notes = _notes_for_readers(card)
    write_beside(config.out, "export", config)
    return notes


def _read_lora(card: Card) -> dict[str, Tensor]:
    path = card.weights.parent / LORA_NAME
    if not path.is_file():
        raise UsageError(
            f"--to lora: there is no {LORA_NAME} in {card.weights.parent}: give the folder of a run with --lora-rank"
        )
    return TensorFile(path).read()


def _write_folder(card: Card, state: Mapping[str, Tensor], base: Base | None, is_whole: bool) -> list[str]:
    config, weights, to, metadata = card.config, card.weights, card.to, card.metadata
    _check_finite(state, config.out)
    header = card.header() | header_for_others(metadata)
    with write_folder(config.out) as folder:
        if base is None:
            write_motion_adapter(folder, state, card.unet.get("norm_num_groups", 32), header)
        else:
            scheduler = with_last_timestep(noise_schedule(base, metadata))
            if to == "2022":
                model, _ = build_video_unet(base, dict(state) if is_whole else weights, group_norm=metadata.group_norm)
                write_2022(folder, base, model, scheduler)
            else:
                if card.animated:
                    write_motion_adapter(folder / "motion_adapter", state, base.unet_config["norm_num_groups"], header)
                save_temporal(folder / "temporal.safetensors", state, metadata, card.header())
                write_pipeline(folder, base, scheduler, animated=card.animated)
        _describe(folder, card)
        (folder / "export.toml").write_text(to_toml("export", config), encoding="utf-8")
    return _notes_for_readers(card) if to in _OF_MOTION else []


def _load_base(config: ExportConfig, weights: Path, state: Mapping[str, Tensor], metadata: TemporalMetadata) -> Base:
    """The image model, into which the temporal layers are seen to fit."""
    base = load_base(config.base or trained_base(weights), device=torch.device("cpu"), dtype=torch.float32)
    check_match(base, metadata, weights)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(base.unet_config)
        inflate(unet, metadata.group_norm, arch=metadata.arch, mid_block=metadata.mid_block).load_temporal(state)
    return base


def _describe(folder: Path, card: Card) -> None:
    """The model card, and the picture in it."""
    (folder / "README.md").write_text(card.text(), encoding="utf-8")
    if sample := card.sample():
        shutil.copyfile(sample, folder / SAMPLE)


def _push(card: Card) -> str:
    config = card.config
    assert config.push is not None
    say(f"uploading to {config.push}")
    if config.out.is_dir():
        return push(config.push, config.out, private=config.private)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(config.out, folder / config.out.name)
        _describe(folder, card)
        return push(config.push, folder, private=config.private)


def _choose_format(config: ExportConfig) -> ExportFormat:
    """As asked, else by whether --out has the suffix of a file.

    Raises UsageError where --to and the suffix, or other options, don't go together.
    """
    suffix = config.out.suffix.lower()
    is_file, is_pickle = suffix == ".safetensors", suffix in (".pt", ".pth", ".bin", ".ckpt")
    to: ExportFormat = config.to or ("msdv" if is_file else "pipeline")
    if to not in _FILES and (is_file or (is_pickle and config.to)):
        raise UsageError(f"{config.out}: --to {to} writes a folder: choose a name without a suffix")
    if is_pickle:
        raise UsageError(f"{config.out}: msdv writes no pickles: choose a name that ends in .safetensors")
    if suffix and not is_file and config.to is None and not suffix[1:].isdigit():
        raise UsageError(
            f"{config.out}: don't know how to write {suffix}: choose a name that ends in .safetensors, or --to "
            "pipeline for a folder"
        )
    if to in _FILES and not is_file:
        raise UsageError(f"{config.out}: --to {to} writes one file: choose a name that ends in .safetensors")
    if config.base and to not in _WITH_BASE:
        raise UsageError(f"--base {config.base}: the temporal layers alone hold no image model: leave it out")
    if config.push is not None and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", config.push, re.ASCII):
        raise UsageError(f"--push {config.push}: is no name on the model hub: give owner/name")
    if config.private and not config.push:
        raise UsageError("--private: is for the repository of --push: give both, or neither")
    return to


def _check_arch(to: ExportFormat, metadata: TemporalMetadata) -> None:
    """Raise UsageError for a format that has no place for these layers."""
    if to in _OF_MOTION and metadata.arch != "motion-module":
        raise UsageError(
            f"--to {to}: these temporal layers are pseudo3d, for whose convolutions it has no place: --to msdv, "
            "pipeline or 2022 work; for other programs, train with --arch motion-module"
        )
    if to == "2022" and metadata.arch != "pseudo3d":
        raise UsageError(
            "--to 2022: these temporal layers are motion modules, which the code of 2022 does not know: --to "
            "animatediff, motion-adapter, pipeline or msdv work"
        )
    if to == "2022" and metadata.group_norm != "joint":
        raise UsageError(
            "--to 2022: its code takes group norms jointly over all frames, these layers were trained with those of "
            "each frame: --to msdv or pipeline work; for it, train with --group-norm joint"
        )


def _unet_of(metadata: TemporalMetadata) -> Mapping[str, Any]:
    """The configuration of the image model's UNet, as far as it is on this disk."""
    try:
        return find_architecture(metadata.base).unet
    except (MsdvError, UsageError, OSError):
        return {}


def _check_finite(state: Mapping[str, Tensor], out: Path) -> None:
    broken = [key for key, tensor in state.items() if not torch.isfinite(tensor.half()).all()]
    if broken:
        raise MsdvError(f"{out} was not written: {broken[0]} is not finite in half precision: train with a lower --lr")


def _notes_for_readers(card: Card) -> list[str]:
    """What to know before other programs open motion modules."""
    if card.channels != STABLE_DIFFUSION:
        return ["it fits image models of its own size alone: ComfyUI and A1111 load those of Stable Diffusion 1.x"]
    notes = [f"ComfyUI: in the AnimateDiff loader, beta_schedule {card.comfy_schedule}"]
    if card.betas != "linear":
        notes.append("A1111 samples it on linear betas, and it was not trained on those: train with --betas linear")
    if card.metadata.group_norm == "frame":
        notes.append("its norms are those of each frame, as in A1111: ComfyUI and diffusers compute others")
    return notes
