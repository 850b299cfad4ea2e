"""Named tensors from files: nothing is run that a file holds."""

import errno
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msdv.errors import MsdvError, UsageError


class TensorFile:
    """The tensors of a .safetensors file, read when asked for, or of a pickle, read at once.

    `shapes` tells names and shapes, `metadata` what the header of a .safetensors file says besides.

    Raises:
        UsageError: when there is no such file.
        MsdvError: when it can't be read as what its suffix says, or would have to run code to be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, Tensor] | None = None
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        _refuse_pointer(path)
        if path.suffix.lower() == ".safetensors":
            with _explain(path), safe_open(path, framework="pt") as file:
                self.metadata = file.metadata() or {}
                self.shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        else:
            self._tensors = _read_pickle(path)
            self.shapes = {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}

    def read(self, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The tensors of these names, or all, on the CPU and in the dtype of the file."""
        wanted = list(self.shapes if keys is None else keys)
        if self._tensors is not None:
            return {key: self._tensors[key] for key in wanted}
        with _explain(self.path), safe_open(self.path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in wanted}


class _explain:  # noqa: N801 - reads as a verb where it is used
    """Turns what reading a file raises into one line that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SafetensorError):
            reason = str(error).splitlines()[0]
            raise MsdvError(f"{self.path} is incomplete or damaged ({reason}): download or copy it again") from error
        if isinstance(error, OSError):
            raise MsdvError(f"{self.path} can't be read: {error.strerror or error}") from error


def _refuse_pointer(path: Path) -> None:
    with _explain(path), path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise MsdvError(f"{path} is only a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
    if not start:
        raise MsdvError(f"{path} is empty: download or copy it again")


def _read_pickle(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        # About the pickle's protocol: what can't be read is an error anyway.
        warnings.simplefilter("ignore")
        try:
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:
            # On bytes that are no pickle, the unpickler fails wherever they lead it.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise MsdvError(f"{path} can't be read: {error.strerror}") from error
            reason = str(error).rpartition("WeightsUnpickler error:")[2]
            if isinstance(error, pickle.UnpicklingError) and re.search(r"(?i)\b(global|class)\b", reason):
                raise MsdvError(
                    f"{path} holds Python objects besides weights, and loading them would run code: take a "
                    ".safetensors of this model, or convert it to one"
                ) from error
            raise MsdvError(
                f"{path} is no PyTorch weights file, or incomplete or damaged: download or copy it again"
            ) from error
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]
    if not isinstance(data, dict):
        raise MsdvError(f"{path} holds no named weights but a {type(data).__name__}: take a .safetensors of this model")
    return {key: value for key, value in data.items() if isinstance(key, str) and isinstance(value, Tensor)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        MsdvError: naming the file, when it is missing, unreadable or something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MsdvError(f"{path} is missing: the image model is incomplete, download or copy it again") from error
    except OSError as error:
        raise MsdvError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise MsdvError(f"{path} is damaged ({error}): download or copy it again") from error
    if not isinstance(data, dict):
        raise MsdvError(f"{path} holds no settings: download or copy it again")
    return data
