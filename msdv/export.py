"""export: temporal layers to a file or folder for elsewhere."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from msdv.config import ExportConfig
from msdv.errors import UsageError
from msdv.files import refuse_overwrite, write_folder
from msdv.model.base import Base, load_base
from msdv.model.diffusion import with_last_timestep
from msdv.model.temporal import check_match, noise_schedule
from msdv.recipe import settings_beside, to_toml, write_beside
from msdv.run import trained_base, weights_in
from msdv.weights import FILE_NAME, load_temporal, read_metadata, save_temporal


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    out: Path
    what: str

    def lines(self) -> list[str]:
        """For the user."""
        files = [p for p in self.out.rglob("*") if p.is_file()] if self.out.is_dir() else [self.out]
        size = sum(path.stat().st_size for path in files)
        return [
            f"{self.what}: {self.out} ({size / 1e6:.1f} MB)",
            f'sample from it: msdv sample "a prompt" --model {self.out} -o out.gif',
        ]


def export(config: ExportConfig) -> ExportReport:
    """Write the temporal layers of `config.source` to `config.out`. Raises UsageError and MsdvError with the next
    step."""
    weights = weights_in(config.source)
    to = _choose_format(config)
    refuse_overwrite(config.out, config.overwrite)
    if to == "msdv":
        refuse_overwrite(settings_beside(config.out), config.overwrite)
        state, metadata = load_temporal(weights)
        save_temporal(config.out, state, metadata)
        write_beside(config.out, "export", config)
        return ExportReport(config.out, "temporal layers")
    metadata = read_metadata(weights)
    base = load_base(config.base or trained_base(weights), device=torch.device("cpu"), dtype=torch.float32)
    check_match(base, metadata, weights)
    with write_folder(config.out) as folder:
        _write_pipeline(folder, base, weights, with_last_timestep(noise_schedule(base, metadata)))
        (folder / "export.toml").write_text(to_toml("export", config), encoding="utf-8")
    return ExportReport(config.out, "pipeline")


def _choose_format(config: ExportConfig) -> str:
    """`msdv` or `pipeline`: as asked, else by whether --out has the suffix of a file.

    Raises UsageError where --to and the suffix don't go together.
    """
    suffix = config.out.suffix.lower()
    is_file = suffix == ".safetensors"
    if suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise UsageError(f"{config.out}: msdv writes no pickles: choose a name that ends in .safetensors")
    if suffix and not is_file and config.to is None and not suffix[1:].isdigit():
        raise UsageError(
            f"{config.out}: don't know how to write {suffix}: choose a name that ends in .safetensors, or --to "
            "pipeline for a folder"
        )
    if config.to == "msdv" and not is_file:
        raise UsageError(f"{config.out}: --to msdv writes one file: choose a name that ends in .safetensors")
    if config.base and (config.to == "msdv" or (config.to is None and is_file)):
        raise UsageError(f"--base {config.base}: the temporal layers alone hold no image model: leave it out")
    if config.to == "pipeline" and is_file:
        raise UsageError(f"{config.out}: --to pipeline writes a folder: choose a name without a suffix")
    return config.to or ("msdv" if is_file else "pipeline")


def _write_pipeline(folder: Path, base: Base, weights: Path, scheduler: Mapping[str, Any]) -> None:
    """The image model in diffusers' layout, which diffusers itself can load too, the temporal layers beside it, and the
    noise schedule that these were trained on."""
    assert base.unet is not None and base.vae is not None and base.text_encoder is not None
    files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for name, file in files.items():
        module = getattr(base, name)
        if _fits_half(module):
            module.half()
        config = module.config
        _write_json(folder / name / "config.json", config.to_dict() if hasattr(config, "to_dict") else dict(config))
        tensors = {k: v.contiguous() for k, v in module.state_dict().items()}
        if name == "text_encoder":  # transformers 5 leaves the prefix out, published models and other readers have it
            tensors = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in tensors.items()}
        save_file(tensors, folder / name / f"{file}.safetensors", metadata={"format": "pt"})
    base.tokenizer.save_pretrained(folder / "tokenizer")
    # The pair of files that readers other than transformers 5 look for.
    words = json.loads(base.tokenizer.backend_tokenizer.to_str())["model"]
    _write_json(folder / "tokenizer" / "vocab.json", words["vocab"])
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in words["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    inpainting = base.in_channels == 9
    _write_json(
        folder / "model_index.json",
        {
            "_class_name": f"StableDiffusion{'Inpaint' if inpainting else ''}Pipeline",
            "_diffusers_version": diffusers.__version__,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", base.scheduler_config.get("_class_name", "DDIMScheduler")],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    _write_json(folder / "sampling.json", asdict(base.sampling))
    shutil.copyfile(weights, folder / FILE_NAME)


def _fits_half(module: Any) -> bool:
    """Whether float16 holds every weight exactly, as it does for models that were published in it."""
    return all(torch.equal(p.half().float(), p) for p in module.state_dict().values() if p.is_floating_point())


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True, default=list) + "\n", encoding="utf-8")
