"""Frames as numbers: a safetensors file, written part by part, of which never more than a part is in memory.

The format (https://huggingface.co/docs/safetensors, "Format"): eight bytes that say how long the header is, the header
in JSON with each tensor's type, shape and place, then the tensors one after the other.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msdv.files import write_file

FORMAT = "msdv.frames"
_SETTINGS = "settings"
_LONGEST_HEADER = 100_000_000  # bytes, as in the library


def write_tensors(
    path: Path,
    frames: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    latents: np.ndarray,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a video as float32 tensors, whole or not at all.

    `frames`, parts (n, h, w, 3) from 0 to 1, of a video of `shape` (f, h, w) becomes `frames` (f, h, w, 3), and latents
    (1, 4, f, h/8, w/8) `latents`. `metadata`, a mapping that JSON can hold, goes into the file's as `settings`;
    `read_settings` gives it back. Raises ValueError if frames are not of that shape.
    """
    whole = (*shape, 3)
    sizes = {"frames": math.prod(whole) * 4, "latents": latents.size * 4}
    settings = json.dumps(dict(metadata or {})).encode("utf-8", "replace").decode("utf-8")
    header = {
        "__metadata__": {"format": FORMAT, _SETTINGS: settings},
        "frames": _entry(whole, 0, sizes["frames"]),
        "latents": _entry(latents.shape, sizes["frames"], sum(sizes.values())),
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with write_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        count = 0
        for part in frames:
            if part.shape[1:] != whole[1:]:
                raise ValueError(f"frames must be (n, {shape[1]}, {shape[2]}, 3), not {part.shape}")
            count += len(part)
            file.write(np.ascontiguousarray(part, "<f4").data)
        if count != shape[0]:
            raise ValueError(f"{count} frames came, not {shape[0]}")
        file.write(np.ascontiguousarray(latents, "<f4").data)


def read_settings(path: Path) -> dict[str, Any]:
    """What `write_tensors` was given as metadata; {} for a safetensors file that has none.

    Raises OSError, and ValueError for what is no safetensors file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size):
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
    entries = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    found = json.loads(entries.get(_SETTINGS, "{}"))
    return found if isinstance(found, dict) else {}


def _entry(shape: tuple[int, ...], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
