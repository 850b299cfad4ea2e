"""The hub's answers and faults, played by a stand-in: nothing here asks a network."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from msdv.errors import MsdvError
from msdv.model.base import load_base
from msdv.model.hub import download, needed_files
from tests.tiny import save_folder

ID = "somebody/some-model"


class Hub:
    """Stands in for the hub: `files` are what the repository has, `fault` is what asking for it raises."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.fault: Exception | None = None
        self.download_fault: Exception | None = None
        self.wanted: list[str] = []
        self.cached: str | None = None

    def model_info(self, model_id: str, *, timeout: float | None = None) -> Any:
        assert model_id == ID and timeout is not None and timeout <= 10
        if self.fault:
            raise self.fault
        files = [path.relative_to(self.repository).as_posix() for path in self.repository.rglob("*") if path.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files], sha="abc")

    def snapshot_download(self, model_id: str, *, allow_patterns: list[str]) -> str:
        if self.download_fault:
            raise self.download_fault
        self.wanted = sorted(allow_patterns)
        for name in allow_patterns:
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / name, self.cache / name)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    repository = save_folder(tmp_path / "repository")
    save_folder(repository, variant="fp16")
    save_folder(repository, weights="bin")
    (repository / "safety_checker").mkdir()
    (repository / "safety_checker" / "model.safetensors").write_bytes(b"x")
    (repository / "v1-5-pruned.ckpt").write_bytes(b"x")
    hub = Hub(repository, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, *a, **k: hub.model_info(*a, **k))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: hub.cached)
    return hub


def answer(kind: Callable[..., Exception], status: int) -> Exception:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("no\nsecond line", response=response)


@pytest.mark.parametrize(("dtype", "variant"), [(torch.float32, ""), (torch.bfloat16, ".fp16")])
def test_only_what_is_needed_is_downloaded(hub: Hub, dtype: torch.dtype, variant: str) -> None:
    base = load_base(ID, device=torch.device("cpu"), dtype=dtype)
    assert base.name == ID and base.unet is not None and base.unet.dtype == dtype
    assert hub.wanted == sorted(
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            f"text_encoder/model{variant}.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            f"unet/diffusion_pytorch_model{variant}.safetensors",
            "vae/config.json",
            f"vae/diffusion_pytorch_model{variant}.safetensors",
        ]
    )


def test_weights_in_several_files_are_all_needed() -> None:
    names = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json"]
    shards = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    other = ["unet/diffusion_pytorch_model-00001-of-00002.bin"]
    assert set(needed_files(names + shards + other, prefer_half=False)) == {*names, *shards}


@pytest.mark.parametrize(
    "fault",
    [
        lambda: ConnectionError("unreachable"),
        lambda: OfflineModeIsEnabled("offline"),
        lambda: TimeoutError("slow"),
        lambda: answer(RepositoryNotFoundError, 401),
    ],
)
def test_where_the_hub_does_not_help_what_was_downloaded_is_taken(hub: Hub, fault: Callable[[], Exception]) -> None:
    hub.fault = fault()
    hub.cached = str(hub.repository / "model_index.json")
    assert download(ID) == hub.repository


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: ConnectionError("unreachable"), "on this disk and the model hub can't be reached.*--base builtin"),
        (lambda: OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set: unset it"),
        (lambda: answer(HfHubHTTPError, 503), "can't be reached"),
        (lambda: answer(GatedRepoError, 403), "accept its licence at https.*hf auth login"),
        (lambda: answer(RepositoryNotFoundError, 401), "neither a file or folder here nor a model on the hub.*private"),
        (lambda: answer(HfHubHTTPError, 400), r"download failed \(no\)"),
    ],
)
def test_each_fault_says_what_to_do(hub: Hub, fault: Callable[[], Exception], message: str) -> None:
    hub.fault = fault()
    with pytest.raises(MsdvError, match=message) as caught:
        download(ID)
    text = str(caught.value)
    assert ID in text and "safetensors file works too" in text and "\n" not in text


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), "HF_HOME"),
        (RuntimeError("odd"), r"download failed \(odd\)"),
    ],
)
def test_faults_while_downloading(hub: Hub, fault: Exception, message: str) -> None:
    hub.download_fault = fault
    with pytest.raises(MsdvError, match=message):
        download(ID)


def test_a_full_disk_is_found_below_other_errors(hub: Hub) -> None:
    hub.download_fault = RuntimeError("download failed")
    hub.download_fault.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(MsdvError, match="the disk is full"):
        download(ID)


def test_repositories_of_something_else(hub: Hub) -> None:
    (hub.repository / "model_index.json").unlink()
    with pytest.raises(MsdvError, match="no diffusers model"):
        download(ID)
