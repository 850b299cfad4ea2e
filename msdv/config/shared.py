"""Types and helpers that the commands' configurations share."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from msdv.config.motion import motion_file, motion_terms

SchedulerName = Literal["ddim", "dpmpp-2m", "euler", "euler-a", "unipc", "lcm"]
Arch = Literal["pseudo3d", "motion-module"]
GroupNormMode = Literal["frame", "joint"]
NoiseKind = Literal["independent", "flow"]
Dither = Literal["diffusion", "ordered", "none"]

VIDEO_SUFFIXES = (".gif", ".mp4", ".webm", ".webp", ".png")
OUTPUT_SUFFIXES = (*VIDEO_SUFFIXES, ".safetensors")


def _writable(path: Path) -> Path:
    if path.name.lower() in OUTPUT_SUFFIXES:
        raise ValueError(f"has no name before {path.name}: give one, such as out{path.name}")
    if path.suffix and path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ValueError(
            f"can't be written as {path.suffix}: choose {', '.join(OUTPUT_SUFFIXES)}, or a name without a suffix for a "
            "folder of PNGs"
        )
    return path


OutputPath = Annotated[Path, AfterValidator(_writable)]


def option(
    default: Any,
    group: str,
    *,
    flag: str | None = None,
    argument: bool = False,
    bare: str | None = None,
    metavar: str | None = None,
    json_schema: dict[str, Any] | None = None,
    **constraints: Any,
) -> Any:
    """A pydantic field with what the command line needs to know besides: its help group, a short flag, that it is
    given by position, what it means without a value, how help names its value, and what the type does not say of it."""
    extra: dict[str, Any] = {"group": group, **(json_schema or {})}
    if flag:
        extra["flag"] = flag
    if argument:
        extra["argument"] = True
    if bare:
        extra["bare"] = bare
    if metavar:
        extra["metavar"] = metavar
    return Field(default, json_schema_extra=extra, **constraints)


def _multiple_of_8(size: int) -> int:
    if size % 8:
        raise ValueError(f"must be a multiple of 8 (the image model works on 8x8 blocks): {size // 8 * 8} would do")
    return size


PictureSize = Annotated[int, Field(ge=16, le=4096, json_schema_extra={"multipleOf": 8}), AfterValidator(_multiple_of_8)]


def _frame_size(size: Any) -> int | str:
    text = str(size).strip().lower().replace("\u00d7", "x")
    match = re.fullmatch(r"(-?\d{1,5})(?:x(-?\d{1,5}))?", text, re.ASCII)
    if isinstance(size, bool) or not match:
        raise ValueError("must be one number, the side of a square, or WIDTHxHEIGHT: 512, or 768x512")
    width, height = int(match[1]), int(match[2] or match[1])
    for side in (width, height):
        if not 16 <= side <= 4096:
            raise ValueError(f"must be 16 to 4096 pixels: {side} is not")
        _multiple_of_8(side)
    return width if width == height else f"{width}x{height}"


FrameSize = Annotated[int | str, BeforeValidator(_frame_size)]
"""A square's side in pixels, or "WIDTHxHEIGHT"."""


def _motion(motion: str) -> str:
    if motion_terms(motion) is None and motion_file(motion) is None:
        raise ValueError(
            "must be auto, none, left, right, up, down or a direction such as 30deg, these with a speed under 1000 "
            "(left:1.5), zoom:0.5 (percent), several of these (left:1.5+zoom:0.5), or a video"
        )
    return motion


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid UTF-8 text: write it in plain letters") from None
    return text


def _below_2_to_63(seed: int) -> int:
    if seed >= 2**63:
        raise ValueError("must be below 2 to the 63rd: random generators take no more")
    return seed


Seed = Annotated[int, AfterValidator(_below_2_to_63)]

Text = Annotated[str, AfterValidator(_encodable)]


Motion = Annotated[str, AfterValidator(_motion)]


def _condition(condition: str) -> str:
    if not re.fullmatch(r"none|first-frame|keyframes:[2-8]", condition, re.ASCII):
        raise ValueError("must be none, first-frame, or keyframes:4 (2 to 8)")
    return condition


Condition = Annotated[str, AfterValidator(_condition)]


def keyframe_distance(condition: str) -> int | None:
    """The 4 of keyframes:4; None for another condition."""
    name, _, every = condition.partition(":")
    return int(every) if name == "keyframes" else None


class CommandConfig(BaseModel):
    """Shared by the four: immutable, no unknown keys, help texts from docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, defer_build=True
    )


class DeviceConfig(CommandConfig):
    """Where a model runs and in which precision."""

    base: str | None = option(None, "Model")
    """Image model: `builtin`, a hub id, a diffusers folder, or a .safetensors/.ckpt file. Not given: Stable Diffusion
    1.5 with a CUDA device, else `builtin`."""

    fp16: bool = option(False, "Device")
    """Compute in half precision (float16). On a CPU this means bfloat16."""

    bf16: bool = option(False, "Device")
    """Compute in half precision (bfloat16): needs an RTX 30 or newer; never overflows."""

    device: str | None = option(None, "Device")
    """`cuda`, `cuda:1`, `mps` or `cpu`. Not given: the best there is."""

    @model_validator(mode="after")
    def _one_half_precision(self) -> "DeviceConfig":
        if self.fp16 and self.bf16:
            raise ValueError("--fp16 and --bf16 exclude each other: choose one")
        return self
