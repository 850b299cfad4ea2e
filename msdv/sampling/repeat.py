"""--from: the settings that made a file, taken out of it, with those that are given besides."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from msdv.config import SampleConfig
from msdv.config.motion import motion_file
from msdv.console import say
from msdv.data.start import place_of
from msdv.data.video import read_metadata
from msdv.errors import MsdvError, UsageError
from msdv.model.lora import parse_lora
from msdv.recipe import read_section, settings_beside
from msdv.run import is_pipeline

NOT_REPEATED = frozenset(
    ("out", "overwrite", "plan", "json_output", "report", "preview", "prompts", "from_file", "vram")
)
"""Settings that say nothing of the video."""
_KNOWN = frozenset(("tool", "model_hash", "base_hash", "trained_steps", "motion_used", "inputs"))

# What a file says of the one has no meaning where the other is given.
_INSTEAD = {
    "seed": ("seeds",),
    "seeds": ("seed", "latents"),
    "fp16": ("bf16",),
    "bf16": ("fp16",),
    "model": ("base",),
    "window": ("overlap", "keyframe_passes", "cache"),
    "loop": ("overlap", "keyframe_passes", "cache", "video", "strength"),
    "cache": ("window", "loop", "overlap"),
    "keyframe_passes": ("window", "loop", "overlap", "latents", "video", "strength"),
    "latents": ("keyframe_passes", "motion", "still", "seeds", "frames", "size", "video", "strength", "continue_from"),
    "motion": ("latents",),
    "still": ("latents",),
    "image": ("mask", "video", "strength", "continue_from"),
    "video": ("image", "mask", "continue_from", "latents", "loop", "keyframe_passes", "frames"),
    "continue_from": ("image", "mask", "video", "strength", "latents"),
    "guidance": ("negative",),
    "prompts": ("prompt",),
    "vram": ("chunk_frames", "stream_weights"),
    "device": ("chunk_frames", "stream_weights"),
}


# Values of them that go with everything.
_HARMLESS: dict[str, Callable[[Any], bool]] = {
    "cache": lambda value: value == 1,
    "keyframe_passes": lambda value: value == 0,
    "motion": lambda value: value == "auto",
    "guidance": lambda value: value != 1,
    "loop": lambda value: not value,
    "image": lambda value: not value,
}


@dataclass(frozen=True)
class Origin:
    """The file that is repeated."""

    path: Path
    hashes: Mapping[str, str]
    """Of what has to be the same: `model_hash`, `base_hash`."""

    def check(self, **hashes: str | None) -> None:
        """Raise MsdvError if a model is another one than that which made the file."""
        for name, option, what in (
            ("base_hash", "--base", "image model"),
            ("model_hash", "--model", "temporal layers"),
        ):
            if name in self.hashes and self.hashes[name] != hashes[name]:
                raise MsdvError(
                    f"--from {self.path}: the {what} it was made with ({self.hashes[name][:12]}) changed since "
                    f"({str(hashes[name])[:12]} now): give {option} to use others, or those"
                )


def repeated(config: SampleConfig) -> tuple[SampleConfig, Origin | None]:
    """The settings in the file that `config.from_file` names, but for those that were given to `config`; without such
    a file `config` itself.

    Raises UsageError if there is no such file, or one that it was made with is gone; MsdvError if it says nothing of
    how it was made, or one that it was made with is another now.
    """
    path = config.from_file
    if path is None:
        return config, None
    found = _settings(path)
    given = set(config.model_fields_set) - {"from_file"}
    if not config.prompt:
        given -= {"prompt"}
    unknown = sorted(found.keys() - SampleConfig.model_fields.keys() - _KNOWN)
    if unknown:
        say(f"{path} holds settings of another version, which are left out: {', '.join(unknown)}")
    excluding = {name for name in given if not _HARMLESS.get(name, lambda _: False)(getattr(config, name))}
    dropped = {name for option in excluding for name in _INSTEAD.get(option, ())} | NOT_REPEATED
    if "motion" in given and config.motion == "none":
        dropped |= {"still"}
    if "base" in given and found.get("model") == found.get("base"):
        dropped |= {"model"}  # the temporal layers were those that came with the image model
    values = {k: v for k, v in found.items() if k in SampleConfig.model_fields and k not in dropped}
    values |= {name: getattr(config, name) for name in given}
    try:
        merged = SampleConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first.get("ctx", {}).get("error", first["msg"])
        where = " ".join(str(part) for part in first["loc"][:1])
        raise UsageError(f"--from {path}: {where}{': ' if where else ''}{reason}") from None
    _check_inputs(path, merged, given, found.get("inputs"))
    hashes: dict[str, str] = {name: str(found[name]) for name in ("model_hash", "base_hash") if name in found}
    if "model" in given or "base" in given:
        hashes = {}
    return merged, Origin(path, hashes)


def _settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UsageError(f"--from {path} does not exist: give a file that msdv sample made")
    if path.suffix.lower() == ".toml":
        found = read_section(path, "sample")
        if not found.get("prompt"):
            raise MsdvError(f"--from {path} is no recipe of a video: give a file that msdv sample made")
        return found
    if path.name == "settings.json":  # of a folder of pictures
        path = path.parent
    try:
        found = read_metadata(path)
    except MsdvError:  # any file may be named
        found = {}
    if str(found.get("tool", "")).startswith("msdv") and "prompt" in found:
        return found
    beside = settings_beside(path)
    if beside.is_file():
        say(f"{path} holds no settings: they are from {beside}")
        return _settings(beside)
    raise MsdvError(
        f"--from {path}: msdv sample did not make it, or what it said of that got lost: give the file as it was made"
    )


def input_files(config: SampleConfig) -> Iterator[tuple[str, Path]]:
    """Files that settings name and the video depends on: (field, path)."""
    yield from (("lora", parse_lora(text).path) for text in config.lora)
    yield from (("image", place_of(text)[1]) for text in config.image)
    if (file := motion_file(config.motion)) is not None:
        yield "motion", file
    for name in ("still", "mask", "continue_from", "video", "latents"):
        if (path := getattr(config, name)) is not None:
            yield name, path


def hash_inputs(config: SampleConfig) -> dict[str, str]:
    """SHA-256 by path, of the files that the video depends on."""
    return {str(path): _sha256(path) for path in dict.fromkeys(path for _, path in input_files(config))}


def _sha256(path: Path) -> str:
    """Of a file, or of all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _check_inputs(path: Path, config: SampleConfig, given: set[str], said: Any) -> None:
    hashes = said if isinstance(said, dict) else {}
    options = {"continue_from": "--continue"}
    for name, file in (*_models(config), *input_files(config)):
        if name in given:
            continue
        option = options.get(name, f"--{name}")
        if not file.exists():
            raise UsageError(f"--from {path}: {file}, which it was made with, is gone: give it with {option}")
        if name in ("base", "model"):
            continue  # known by their weights
        if str(file) in hashes and _sha256(file) != hashes[str(file)]:
            raise MsdvError(
                f"--from {path}: {file} is another file than the one it was made with: give it with {option} to use it "
                "as it is"
            )


def _models(config: SampleConfig) -> Iterator[tuple[str, Path]]:
    """Image model and temporal layers, where they are files or folders: (field, path)."""
    if config.base is not None and Path(config.base).is_absolute():
        yield "base", Path(config.base)
    if config.model not in (None, "builtin", config.base) and not is_pipeline(config.model):
        yield "model", Path(config.model)
