"""Base models from the model hub: which files are needed, and what each fault means."""

import errno
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from msdv.errors import MsdvError
from msdv.model.folder import PARTS, choose_weights

# A machine whose network answers nothing must not hang: one question, then what is on the disk.
TIMEOUT_SECONDS = 8
_TOP_FILES = ("model_index.json", "scheduler/scheduler_config.json", "temporal.safetensors", "sampling.json")
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "requests", "urllib3")
_LOCAL = "a local diffusers folder or a .safetensors file works too: --base PATH"


def download(model_id: str, *, prefer_half: bool = False) -> Path:
    """The folder of a hub model on this disk, with what a base model needs downloaded and nothing else.

    Without network, what an earlier run downloaded is taken.

    Raises:
        MsdvError: when there is no such model, it is gated or private, the disk is full, or there is neither network
            nor an earlier download.
    """
    try:
        info = huggingface_hub.HfApi().model_info(model_id, timeout=TIMEOUT_SECONDS)
    except Exception as error:
        # Whatever keeps the hub from answering, also a repository that is gone by now: an earlier download is as good.
        # One file tells its folder; asking for the whole snapshot would miss the files that were never wanted.
        index = None if isinstance(error, HFValidationError) else find_downloaded(model_id)
        if index is None:
            raise _explain(model_id, error) from error
        return index.parent
    files = needed_files([sibling.rfilename for sibling in info.siblings or []], prefer_half=prefer_half)
    if not files:
        raise MsdvError(f"{model_id} on the hub has no model_index.json, so it is no diffusers model; {_LOCAL}")
    try:
        # Not by commit: only a download of the branch is found again without network.
        return Path(huggingface_hub.snapshot_download(model_id, allow_patterns=files))
    except Exception as error:
        raise _explain(model_id, error) from error


def needed_files(names: list[str], *, prefer_half: bool) -> list[str]:
    """Of all files in a repository, those of a Stable Diffusion: configurations, tokenizer, one weights file a part."""
    if "model_index.json" not in names:
        return []
    files = [name for name in names if name in _TOP_FILES]
    files += [n for n in names if n.startswith("tokenizer/") and n.endswith((".json", ".txt"))]
    for part in PARTS:
        here = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        files += [f"{part}/config.json"] if "config.json" in here else []
        weights = choose_weights(here, part, prefer_half=prefer_half)
        if weights:
            files.append(f"{part}/{weights}")
            if weights.endswith(".index.json"):
                suffix = weights.removesuffix(".index.json").rpartition(".")[2]
                files += [f"{part}/{name}" for name in here if "-of-" in name and name.endswith(f".{suffix}")]
    return files


def find_downloaded(model_id: str) -> Path | None:
    """The model_index.json of an earlier download, if there is one."""
    index = huggingface_hub.try_to_load_from_cache(model_id, "model_index.json")
    return Path(index) if isinstance(index, str) else None


def _is_unreachable(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        status: Any = getattr(getattr(error, "response", None), "status_code", None)
        return status is None or status >= 500 or status == 429
    # Which classes stand for "no network" depends on the hub client's version and its HTTP library.
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or library in _HTTP_LIBRARIES


def _explain(model_id: str, error: Exception) -> MsdvError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, GatedRepoError):
        return MsdvError(
            f"{model_id} is gated: accept its licence at https://huggingface.co/{model_id}, then `hf auth login`; "
            f"{_LOCAL}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return MsdvError(
            f"{model_id}: neither a file or folder here nor a model on the hub; check the name, or if it is private, "
            f"`hf auth login`; {_LOCAL}"
        )
    if isinstance(error, HFValidationError):
        return MsdvError(
            f"{model_id}: neither a file or folder here nor a name the hub can have (owner/name); {_LOCAL}"
        )
    if _is_disk_full(error):
        cache = huggingface_hub.constants.HF_HUB_CACHE
        return MsdvError(f"{model_id}: the disk is full; free space for it at {cache}, or set HF_HOME to another disk")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return MsdvError(
            f"{model_id}: can't write the download ({reason}): set HF_HOME to a folder that you may write to"
        )
    if _is_unreachable(error):
        switched_off = isinstance(error, OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if switched_off else "the model hub can't be reached"
        step = "unset it to download" if switched_off else "connect to download it"
        return MsdvError(f"{model_id} isn't (all) on this disk and {why}: {step}, or take --base builtin; {_LOCAL}")
    return MsdvError(f"{model_id}: the download failed ({reason}): start again to go on with it; {_LOCAL}")


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
