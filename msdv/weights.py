"""Temporal weights in and out: a safetensors file with the temporal tensors and what is needed to use them rightly.

Motion modules of other programs are read too: they say less of themselves, and go with any image model of their size.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from msdv import __version__
from msdv.config import Arch, Condition, GroupNormMode, NoiseKind
from msdv.errors import MsdvError, UsageError
from msdv.files import write_file
from msdv.foreign import MotionFile, read_motion_file
from msdv.tensors import TensorFile
from msdv.verdict import Reference

FORMAT = "msdv.temporal"
VERSION = 1
FILE_NAME = "temporal.safetensors"


class Motion(BaseModel):
    """How the training clips moved on average, for noise that moves likewise at sampling (see model/steering.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    field: tuple[tuple[tuple[float, float], ...], ...]
    """Rows from top to bottom of places from left to right, evenly over the picture: how far what is there goes, to the
    right and down, in picture widths a frame. Clips that go left count mirrored."""
    left: float = 0.5
    """Share of the clips that go left, 0 to 1."""
    share: float
    """Share of the noise's variance that flows, 0 to 1; the rest is independent in each frame."""
    gain: float = Field(default=1.0, gt=0)
    """How many times as fast as the picture the noise has to go: see `Slippage` in model/steering.py."""

    @model_validator(mode="before")
    @classmethod
    def _from_rows(cls, given: Any) -> Any:
        """Older files say how fast the rows of a picture went sideways, relative to the fastest of them."""
        if not isinstance(given, dict) or "profile" not in given:
            return given
        rest = {key: value for key, value in given.items() if key not in ("profile", "speed")}
        try:
            return rest | {"field": tuple(((float(given["speed"]) * row, 0.0),) for row in given["profile"])}
        except (KeyError, TypeError) as error:
            raise ValueError("its motion has rows without speed") from error

    @model_validator(mode="after")
    def _is_a_grid(self) -> "Motion":
        if not self.field or not self.field[0] or len({len(row) for row in self.field}) > 1:
            raise ValueError("its motion is no grid")
        return self


class TemporalMetadata(BaseModel):
    """What a temporal weights file says about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: Arch = "pseudo3d"
    mid_block: bool = False
    """Whether there is a motion module in the middle of the network."""
    group_norm: GroupNormMode
    base: str
    """Image model, as it was named for training."""
    unet_hash: str
    """Of the image model's UNet configuration and weights: see model/base.py. Empty: any of its size will do."""
    frames: int
    """Frames of a training clip."""
    size: int
    """Short side of the training pictures, in pixels."""
    fps: float
    """Frames per second of the training clips."""
    prediction_type: str
    scheduler: dict[str, str | int | float | bool | None]
    """The noise schedule of training: the betas and what changes them."""
    noise: NoiseKind
    motion: Motion | None = None
    shared_noise: float = 0.0
    """How much of the noise was the same in all frames: see `partly_shared_noise` in model/noise.py."""
    condition: Condition = "none"
    """What of a clip the layers have learned to start from: as --condition of `msdv train`."""
    reference: Reference | None = None
    """How the training clips move, for reports on what moves in samples; not known of older files."""
    steps: int
    """Optimizer steps trained."""
    tool: str = f"msdv {__version__}"

    def to_header(self) -> dict[str, str]:
        """As safetensors metadata: strings only, JSON where a value is not a string."""
        header = {"format": FORMAT, "version": str(VERSION)}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is None:
                continue
            header[name] = value if isinstance(value, str) else _json_of(self, name)
        return header

    @classmethod
    def from_header(cls, header: Mapping[str, str]) -> "TemporalMetadata":
        """The inverse of `to_header`. Keys that a later version may have added are ignored."""
        values: dict[str, object] = {}
        for name, field in cls.model_fields.items():
            if name in header:
                plain = field.annotation is str or name in ("arch", "group_norm", "noise")
                values[name] = header[name] if plain else json.loads(header[name])
        return cls.model_validate(values)


LINEAR: dict[str, str | int | float | bool | None] = {
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
"""The noise schedule that AnimateDiff's motion modules were trained on."""
_OURS = "msdv."
"""Before what files for other programs say of their training."""


def header_for_others(metadata: TemporalMetadata) -> dict[str, str]:
    """The metadata as further lines in the header of a file for other programs, from which msdv reads it again."""
    return {f"{_OURS}{key}": value for key, value in metadata.to_header().items()}


def _metadata_of(modules: MotionFile) -> TemporalMetadata:
    ours = {key.removeprefix(_OURS): value for key, value in modules.header.items() if key.startswith(_OURS)}
    if ours:
        return TemporalMetadata.from_header(ours).model_copy(update={"unet_hash": ""})
    return TemporalMetadata(
        arch="motion-module",
        mid_block=modules.mid_block,
        group_norm="joint",
        base="stable-diffusion-v1-5/stable-diffusion-v1-5",
        unet_hash="",
        frames=16,
        size=512,
        fps=8.0,
        prediction_type="epsilon",
        scheduler=LINEAR,
        noise="independent",
        steps=0,
        tool=modules.kind,
    )


def _json_of(metadata: TemporalMetadata, name: str) -> str:
    return json.dumps(metadata.model_dump(include={name}, mode="json")[name])


def save_temporal(
    path: Path, state: Mapping[str, Tensor], metadata: TemporalMetadata, more: Mapping[str, str] | None = None
) -> None:
    """Write temporal weights whole or not at all, in half precision: float16, which is what every tool reads. `more`:
    further lines of the header.

    Raises MsdvError if a weight is not finite or too large for half precision.
    """
    save_half(path, state, {**metadata.to_header(), **(more or {})})


def save_half(path: Path, state: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write trained weights as a .safetensors with these lines in its header: what `save_temporal` is about, and its
    error."""
    half = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in state.items()}
    broken = [k for k, v in half.items() if not torch.isfinite(v).all()]
    if broken:
        raise MsdvError(f"{path} was not written: {broken[0]} is not finite: train with a lower --lr or with --bf16")
    with write_file(path) as temporary:
        save_file(half, temporary, metadata=dict(header))
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Order the metadata in a safetensors file by name: safetensors writes it in another order each time, and the same
    weights shall give the same bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # the tensors' places count from its end
            file.seek(8)
            file.write(text.ljust(length))


def read_metadata(path: Path) -> TemporalMetadata:
    """The metadata of a temporal weights file, or what is known of motion modules of another program.

    Raises UsageError if there is no such file, MsdvError if it is something else.
    """
    return _open(path)[0]


def load_temporal(path: Path) -> tuple[dict[str, Tensor], TemporalMetadata]:
    """Temporal weights (on the CPU, as they are in the file) and their metadata. Errors as in `read_metadata`."""
    metadata, modules = _open(path)
    if modules is not None:
        return modules.read(), metadata
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise MsdvError(f"{path} is damaged ({error}): export the run again") from error


def _open(path: Path) -> tuple[TemporalMetadata, MotionFile | None]:
    """Metadata, and the file if it is another program's."""
    if not path.exists():
        raise UsageError(f"{path} does not exist: give a temporal .safetensors or a run folder")
    header = TensorFile(path).metadata if path.suffix.lower() == ".safetensors" and path.is_file() else {}
    modules = read_motion_file(path) if header.get("format") != FORMAT else None
    if modules is None and header.get("format") != FORMAT:
        raise MsdvError(
            f"{path} holds no temporal weights of msdv (format: {header.get('format', 'not given')}) and no motion "
            "modules: give a file that `msdv train` or `msdv export` wrote, or one of AnimateDiff"
        )
    if header.get("version", "").isdigit() and int(header["version"]) > VERSION:
        raise MsdvError(f"{path} was written by a newer msdv ({header.get('tool', 'unknown')}): update msdv")
    try:
        return _metadata_of(modules) if modules else TemporalMetadata.from_header(header), modules
    except (ValidationError, ValueError) as error:
        fault = str(error).splitlines()[0]
        raise MsdvError(f"{path} has metadata that can't be read ({fault}): export the run again") from error
