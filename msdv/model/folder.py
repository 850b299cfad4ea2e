"""Base models from folders: the diffusers layout, and the 2022 video model in the same layout."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from msdv.config import SchedulerName
from msdv.config.sample import MOST_STEADY
from msdv.errors import MsdvError
from msdv.model.parts import SUPPORTED, Part, Parts, SamplingDefaults, check_unet
from msdv.model.tensors import TensorFile, read_json

PARTS = ("unet", "vae", "text_encoder")
# Its author sampled with DDIM, 100 steps and guidance 12; half the steps look alike.
SAMPLING_2022 = SamplingDefaults("ddim", 50, 12.0)
TEMPORAL_MARKS_2022 = (".temporal_conv.", ".attn_temporal.", ".norm_temporal.")

_STEMS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
}
_OTHER_PIPELINES = {
    "StableDiffusionXL": "SDXL",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableCascade": "Stable Cascade",
    "StableVideoDiffusion": "Stable Video Diffusion",
    "AnimateDiff": "an AnimateDiff pipeline (give its image model)",
    "Flux": "Flux",
}


def read_folder(folder: Path, *, prefer_half: bool = False) -> Parts:
    """Find the parts of a folder in diffusers layout; weights are read later, when asked for.

    `prefer_half` takes `*.fp16.safetensors` where there is a choice. A `temporal.safetensors` at the top is the
    temporal layers that come with the image model, a `sampling.json` how it is best sampled.

    Raises:
        MsdvError: naming the file that is missing or damaged, or the kind of model that it is instead.
    """
    _check_index(folder)
    configs = {part: read_json(folder / part / "config.json") for part in PARTS}
    readers = {part: _reader(folder / part, part, prefer_half) for part in PARTS}
    is_2022 = str(configs["unet"].get("_class_name", "")).startswith("UNetPseudo3D")
    _check_classes(folder, configs)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    tokenizer = folder / "tokenizer"
    has_pairs = (tokenizer / "vocab.json").is_file() and (tokenizer / "merges.txt").is_file()
    if not has_pairs and not (tokenizer / "tokenizer.json").is_file():
        raise MsdvError(f"{tokenizer} lacks vocab.json and merges.txt: take a complete copy of the model")

    def read_vae() -> dict[str, Tensor]:
        return rename_old_attention(readers["vae"]())

    def read_spatial() -> dict[str, Tensor]:
        return split_2022(readers["unet"]())[0]

    def read_temporal() -> dict[str, Tensor]:
        return split_2022(readers["unet"]())[1]

    unet = Part(configs["unet"], readers["unet"], str(folder / "unet"))
    if is_2022:
        unet = Part(plain_blocks(configs["unet"]), read_spatial, str(folder / "unet"))
    check_unet(unet.config, str(folder / "unet" / "config.json"))
    parts = Parts(
        unet=unet,
        vae=Part(configs["vae"], read_vae, str(folder / "vae")),
        text_encoder=Part(configs["text_encoder"], readers["text_encoder"], str(folder / "text_encoder")),
        tokenizer=tokenizer,
        scheduler=scheduler,
    )
    if is_2022:
        parts.sampling, parts.group_norm, parts.temporal = SAMPLING_2022, "joint", read_temporal
    if (folder / "temporal.safetensors").is_file():
        parts.temporal = folder / "temporal.safetensors"
    if (folder / "sampling.json").is_file():
        parts.sampling = read_sampling(folder / "sampling.json")
    return parts


def split_2022(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A 2022 state dict -> the image UNet's tensors under diffusers' names, and the temporal ones under their own."""
    temporal = {key: tensor for key, tensor in tensors.items() if any(mark in key for mark in TEMPORAL_MARKS_2022)}
    spatial = {key.replace(".spatial_conv.", "."): t for key, t in tensors.items() if key not in temporal}
    return spatial, temporal


def rename_old_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention of an autoencoder saved before 2023 (query, key, value, proj_attn) under today's names."""
    names = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    renamed = {}
    for key, tensor in tensors.items():
        new = key
        if ".attentions." in key:
            for old_name, new_name in names.items():
                new = new.replace(old_name, new_name)
            if ".to_" in new and tensor.ndim == 4:
                tensor = tensor[:, :, 0, 0]
        renamed[new] = tensor
    return renamed


def choose_weights(names: Iterable[str], part: str, *, prefer_half: bool) -> str | None:
    """Of the file names in a part's folder, the one to read: safetensors before .bin, the wanted precision before the
    other. A name that ends in .index.json stands for the files that it lists. None when there is nothing to read."""
    stem, bin_stem = _STEMS[part]
    here = set(names)
    for suffix, kind in (("safetensors", stem), ("bin", bin_stem)):
        full = (f"{kind}.{suffix}", f"{kind}.{suffix}.index.json")
        half = (f"{kind}.fp16.{suffix}",)
        for name in half + full if prefer_half else full + half:
            if name in here:
                return name
    return None


def _reader(folder: Path, part: str, prefer_half: bool) -> Callable[[], dict[str, Tensor]]:
    name = choose_weights((file.name for file in folder.iterdir()), part, prefer_half=prefer_half)
    if name is None:
        stem, bin_stem = _STEMS[part]
        raise MsdvError(
            f"{folder} has no weights ({stem}.safetensors or {bin_stem}.bin): take a complete copy of the model"
        )

    def read() -> dict[str, Tensor]:
        if not name.endswith(".index.json"):
            return TensorFile(folder / name).read()
        shards = read_json(folder / name).get("weight_map")
        if not isinstance(shards, dict):
            raise MsdvError(f"{folder / name} lists no files: take a complete copy of the model")
        tensors: dict[str, Tensor] = {}
        for shard in sorted(set(map(str, shards.values()))):
            if not (folder / shard).is_file():
                raise MsdvError(f"{folder / shard} is missing: take a complete copy of the model")
            tensors |= TensorFile(folder / shard).read()
        return tensors

    return read


def _check_index(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        if (folder / "config.toml").is_file() or (folder / "metrics.jsonl").is_file():
            raise MsdvError(f"{folder} is a run of msdv, not an image model: give it with --model")
        files = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".ckpt")]
        hint = f"; give the file itself: {files[0]}" if len(files) == 1 else ""
        raise MsdvError(f"{folder} has no model_index.json, so it is no image model in diffusers layout{hint}")
    content = read_json(index)
    name = str(content.get("_class_name", ""))
    complete = (folder / "temporal.safetensors").is_file()  # with an image model, by `msdv export`
    for start, what in _OTHER_PIPELINES.items():
        if name.startswith(start) and not complete:
            raise MsdvError(f"{folder}: this is {what}: {SUPPORTED}")
    if "text_encoder_2" in content or "transformer" in content:
        raise MsdvError(f"{folder}: this is a {name or 'model of another kind'}: {SUPPORTED}")
    for part in PARTS:
        if not (folder / part).is_dir():
            raise MsdvError(f"{folder / part} is missing: the image model is incomplete, download or copy it again")


def _check_classes(folder: Path, configs: Mapping[str, dict[str, Any]]) -> None:
    unet = str(configs["unet"].get("_class_name", "UNet2DConditionModel"))
    if unet not in ("UNet2DConditionModel", "UNetPseudo3DConditionModel"):
        raise MsdvError(f"{folder / 'unet'}: this is a {unet}: {SUPPORTED}")
    vae = str(configs["vae"].get("_class_name", "AutoencoderKL"))
    if vae != "AutoencoderKL":
        raise MsdvError(f"{folder / 'vae'}: this is a {vae}, not the AutoencoderKL of Stable Diffusion 1.x and 2.x")
    if configs["vae"].get("latent_channels", 4) != 4:
        raise MsdvError(
            f"{folder / 'vae'}: {configs['vae']['latent_channels']} latent channels (4 wanted): {SUPPORTED}"
        )
    text = configs["text_encoder"]
    if "clip" not in str(text.get("model_type", text.get("architectures", "clip"))).lower():
        raise MsdvError(f"{folder / 'text_encoder'}: this is a {text.get('model_type')}, not CLIP: {SUPPORTED}")


def plain_blocks(config: Mapping[str, Any]) -> dict[str, Any]:
    """The 2022 UNet's configuration as the image UNet's: the same keys, block names without Pseudo3D."""
    plain = dict(config)
    for key in ("down_block_types", "up_block_types"):
        if key in plain:
            plain[key] = [str(name).replace("Pseudo3D", "2D").replace("3D", "2D") for name in plain[key]]
    plain["mid_block_type"] = "UNetMidBlock2DCrossAttn"
    plain["_class_name"] = "UNet2DConditionModel"
    return plain


def read_sampling(path: Path) -> SamplingDefaults:
    """What a `sampling.json` says. Raises MsdvError where it is damaged."""
    values = read_json(path)
    try:
        steady = int(values.get("steady", 0))  # folders of before it could be said have none
        sampling = SamplingDefaults(values["scheduler"], int(values["steps"]), float(values["guidance"]), steady)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MsdvError(f"{path} is damaged (no scheduler, steps and guidance): take another copy") from error
    if not 0 <= steady <= MOST_STEADY:
        raise MsdvError(f"{path} says steady {steady}: take another copy, or a number from 0 to {MOST_STEADY}")
    if sampling.scheduler not in get_args(SchedulerName):
        raise MsdvError(
            f"{path} names an unknown scheduler, {sampling.scheduler}: take one of {get_args(SchedulerName)}"
        )
    return sampling
