from typing import Any

import pytest
import torch

from msdv.errors import UsageError
from msdv.model.devices import choose_device, choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.fixture
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_a_machine_without_cards_gets_its_cpu(no_cards: None) -> None:
    assert choose_device(None) == CPU == choose_device("CPU")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_absent_devices_are_refused_with_what_to_do(no_cards: None, name: str) -> None:
    with pytest.raises(UsageError, match=rf"--device {name}.*--device cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "xpu"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="take cuda, cuda:1, mps or cpu"):
        choose_device(name)


def test_cards_by_number(two_cards: None) -> None:
    assert choose_device(None) == CUDA
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="has 2 CUDA device"):
        choose_device("cuda:2")


def test_a_launched_process_takes_its_own_card(two_cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(None) == choose_device("cuda") == torch.device("cuda", 1)
    assert choose_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("flags", "device", "dtype"),
    [
        ({}, CPU, torch.float32),
        ({"bf16": True}, CPU, torch.bfloat16),
        ({}, CUDA, torch.float32),
        ({"fp16": True}, CUDA, torch.float16),
    ],
)
def test_precision_is_what_was_asked_for(flags: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
    precision = choose_precision(**({"fp16": False, "bf16": False} | flags), device=device)
    assert (precision.dtype, precision.note) == (dtype, None)


def test_fp16_on_a_cpu_is_bfloat16_and_says_so() -> None:
    precision = choose_precision(True, False, CPU)
    assert precision.dtype == torch.bfloat16
    assert precision.note is not None and "bfloat16" in precision.note


def test_bf16_on_an_old_card_names_fp16(two_cards: None) -> None:
    with pytest.raises(UsageError, match="--fp16"):
        choose_precision(False, True, CUDA)


def test_both_half_precisions_are_refused() -> None:
    with pytest.raises(UsageError, match="exclude"):
        choose_precision(True, True, CPU)
