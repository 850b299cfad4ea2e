import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from msdv.errors import MsdvError, UsageError
from msdv.model.tensors import TensorFile, fill_module, read_json


def test_safetensors_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, path, metadata={"format": "pt"})
    file = TensorFile(path)
    assert file.shapes == {"a": (2, 3), "b": (4,)}
    assert file.metadata == {"format": "pt"}
    assert list(file.read(["b"])) == ["b"] and file.read()["b"].dtype == torch.float16


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_read_with_or_without_a_state_dict_around(tmp_path: Path, zipped: bool) -> None:
    tensors = {"a": torch.ones(2), "step": 3}
    for name, content in (("a.ckpt", {"state_dict": tensors, "epoch": 1}), ("b.bin", tensors)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert torch.equal(TensorFile(tmp_path / name).read()["a"], torch.ones(2))
        assert set(TensorFile(tmp_path / name).shapes) == {"a"}


class Stranger:
    """What loading would have to run code for."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Path, ("owned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(
        {"state_dict": {"a": torch.ones(1)}, "callback": Stranger()}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(MsdvError, match=r"a\.ckpt.*run code.*safetensors"):
        TensorFile(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".bin"])
@pytest.mark.parametrize(
    "content", [b"", b"hello, this is text\n" * 40, bytes(range(256)) * 8], ids=["empty", "text", "noise"]
)
def test_files_that_are_something_else_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(MsdvError, match="download or copy it again") as caught:
        TensorFile(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    tensors = {f"t{n}": torch.rand(100) for n in range(20)}
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(MsdvError, match="download or copy it again"):
        TensorFile(path).read()


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(MsdvError, match="git lfs pull"):
        TensorFile(path)


def test_no_file_is_a_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        TensorFile(tmp_path / "a.safetensors")


def test_a_pickle_of_something_else_is_named(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "a.bin")
    with pytest.raises(MsdvError, match="a list"):
        TensorFile(tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(MsdvError):
        TensorFile(tmp_path / "b.bin").read(["a"])


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(MsdvError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def small() -> nn.Linear:
    return nn.Linear(2, 3, device="meta")


def test_a_filled_module_is_frozen_and_keeps_the_files_precision() -> None:
    module = small()
    fill_module(module, {"weight": torch.ones(3, 2, dtype=torch.float16), "bias": torch.zeros(3)}, "x")
    assert module.weight.dtype == torch.float16 and not module.weight.requires_grad and not module.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "lacks the tensor bias"),
        ({"more": torch.ones(1)}, "holds the tensor more"),
        ({"weight": torch.ones(2, 3)}, "weight is 2x3, its configuration wants 3x2"),
        ({"weight": torch.full((3, 2), torch.nan)}, "weight has values that are not a number"),
        ({"bias": torch.tensor([0.0, torch.inf, 0.0])}, "bias has values that are not a number"),
        ({"bias": torch.ones(3, dtype=torch.int8)}, "quantized"),
        ({"bias": torch.ones(3).to(torch.float8_e4m3fn)}, "quantized"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)} | change
    with pytest.raises(MsdvError, match=message):
        fill_module(small(), {key: tensor for key, tensor in tensors.items() if tensor is not None}, "x")
