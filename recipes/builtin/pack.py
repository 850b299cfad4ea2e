"""Stage 7: put the base together as a diffusers pipeline in half precision.

In: WORK/vae-steady/, WORK/unet.ckpt, WORK/tokenizer/. Out: `--to FOLDER`, by default msdv/builtin/, in
diffusers' pipeline layout. Each file is written aside and renamed; other files of the folder stay.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from stage import read_settings
from transformers import CLIPTokenizer
from unet import build_models, build_scheduler

BUILTIN = Path(__file__).resolve().parents[2] / "msdv" / "builtin"


def build_pipeline(work: Path, settings_file: Path) -> StableDiffusionPipeline:
    """The pipeline with the averaged weights of the last checkpoint, fp16."""
    settings = read_settings(settings_file, "unet")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer", model_max_length=settings["tokens"])
    vae = AutoencoderKL.from_pretrained(work / "vae-steady")
    vae.register_to_config(_name_or_path="")  # not where it was made
    models = build_models(
        settings, tokenizer, latent_size=vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    )
    saved = torch.load(work / "unet.ckpt", weights_only=True)
    for parameter, mean in zip(models.parameters(), saved["mean"], strict=True):
        parameter.data.copy_(mean)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=models["text_encoder"],
        tokenizer=tokenizer,
        unet=models["unet"],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline.to(torch.float16)


def use_classic_names(file: Path) -> None:
    """Name the text encoder's tensors `text_model.*` as in every Stable Diffusion; transformers 5 omits the prefix."""
    tensors = {
        name if name.startswith("text_model.") else f"text_model.{name}": t for name, t in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def main() -> None:
    """Save into a temporary folder beside the target, then rename file by file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("builtin-work"))
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_name("base.toml"))
    parser.add_argument("--to", type=Path, default=BUILTIN)
    options = parser.parse_args()
    pipeline = build_pipeline(options.work, options.settings)
    options.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.to.parent, prefix=".builtin-") as temporary:
        folder = Path(temporary)
        pipeline.save_pretrained(folder, safe_serialization=True)
        sampling = json.dumps(read_settings(options.settings, "sampling"), indent=2, sort_keys=True)
        (folder / "sampling.json").write_text(sampling + "\n", encoding="utf-8")
        for name in ("vocab.json", "merges.txt"):  # not written by newer versions of transformers
            shutil.copy(options.work / "tokenizer" / name, folder / "tokenizer" / name)
        use_classic_names(folder / "text_encoder" / "model.safetensors")
        total = 0
        for source in sorted(path for path in folder.rglob("*") if path.is_file()):
            target = options.to / source.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            total += source.stat().st_size
            print(f"{source.stat().st_size / 1e6:8.3f} MB  {target}")
            source.replace(target)
    print(f"{total / 1e6:8.3f} MB in all")


if __name__ == "__main__":
    main()
