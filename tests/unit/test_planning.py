import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from msdv.cli import run
from msdv.config import SampleConfig, TrainConfig
from msdv.data.video import write_video
from msdv.model.memory import AVERAGED
from msdv.model.plan import Estimate
from msdv.planning import plan_sample, plan_training
from tests.tiny import save_folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing in it, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def base(empty: Path) -> str:
    """A small image model without weights."""
    folder = save_folder(empty / "base")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return str(folder)


def test_a_training_is_planned_without_data_and_weights(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert run(["train", "--plan", "--json", "--vram", "6", "--base", base, "--frames", "6", "--fp16"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["budget_bytes"] == 6 * 2**30
    assert sum(plan["parts"].values()) == plan["peak_bytes"]
    assert plan["settings"]["frames"] == 6 and plan["settings"]["precision"] == "float16"
    assert plan["settings"]["checkpointing"] == "none"
    assert sorted(Path().rglob("*")) == before


def test_a_sample_is_planned_without_a_prompt(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", "--plan", "--json", "--base", base, "--frames", "6"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["settings"]["chunk_frames"] == 0 and "checkpointing" not in plan["settings"]
    assert list(plan["stages"]) == ["encoding texts", "denoising", "decoding"]


def test_videos_side_by_side_take_the_computers_memory_and_not_the_cards(base: str) -> None:
    def planned(**wish: object) -> Estimate:
        values = {"plan": True, "base": base, "frames": 12, "size": 256, "vram": 2, "steady": 8, **wish}
        return plan_sample(SampleConfig.model_validate(values)).plan.chosen

    one, many = planned(), planned(seeds="0-63")
    assert one.peak_bytes == many.peak_bytes  # they are decoded in turn
    assert many.host.parts[AVERAGED] > 64 * 8 * 31 * 256 * 256
    assert many.host.size > one.host.size + 63 * 8 * 31 * 256 * 256


def test_frames_that_can_not_wait_take_nothing(base: str) -> None:
    def averaged(**wish: object) -> int:
        values = {"plan": True, "base": base, "size": 256, "vram": 2, "seeds": "0-7", "steady": 32, **wish}
        plan = plan_sample(SampleConfig.model_validate(values)).plan
        return plan.chosen.host.parts.get(AVERAGED, 0)

    assert averaged(frames=1) == 0
    assert averaged(frames=3) == (287 + 31 * 8 * 2) * 256 * 256
    assert averaged(frames=3, loop=True) == (287 + 31 * 8 * 6) * 256 * 256  # its ends come once more


def test_noise_that_is_given_says_how_large_the_video_is(base: str) -> None:
    save_file({"latents": torch.randn(1, 4, 5, 8, 16)}, "noise.safetensors")
    values = {"plan": True, "base": base, "latents": "noise.safetensors"}
    report = plan_sample(SampleConfig.model_validate(values))
    assert report.what.startswith("sampling 5 frames of 128x64,")


def test_frames_that_are_shown_of_another_video_are_counted(base: str) -> None:
    write_video(Path("before.webp"), [np.zeros((32, 32, 3), np.uint8)] * 3, fps=5)
    alone, after = (
        plan_sample(SampleConfig.model_validate({"plan": True, "base": base, "frames": 4, "size": 64, **wish})).plan
        for wish in ({}, {"continue_from": "before.webp"})
    )
    assert (alone.chosen.frames, after.chosen.frames) == (4, 5)


def test_the_table_tells_where_everything_goes_and_what_else_there_is(base: str) -> None:
    config = TrainConfig(base=base, frames=16, size=128, vram=0.55, fp16=True, chunk_frames=0)
    lines = plan_training(config).lines()
    text = "\n".join(lines)
    assert lines[0].startswith("training 16 frames of 128x128") and "0.55 GiB" in lines[0]
    for part in ("kept for the backward pass", "CUDA", "fragmentation", "together", "program"):
        assert part in text
    assert "  this " in text
    assert "frames at most, with these settings: " in text
    assert lines[-1].startswith("fits: ")


def test_what_does_not_fit_says_what_would(base: str) -> None:
    lines = plan_sample(SampleConfig.model_validate({"plan": True, "base": base, "vram": 0.48})).lines()
    assert lines[-1].startswith("does not fit: ") and "--fp16" in lines[-1]


def test_what_was_asked_for_is_what_is_planned(base: str) -> None:
    config = TrainConfig(base=base, frames=4, vram=8, checkpointing="full", offload_optim=True, batch_size=2)
    settings = json.loads(plan_training(config).json())["settings"]
    assert settings["checkpointing"] == "full" and settings["offload_optim"] is True and settings["batch_size"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--json"], "--json prints the result of --plan or --evaluate"),
        (["sample", "sea", "-o", "a.gif", "--json"], "--json prints the result of --plan or --report"),
        (["train", "--plan", "--vram", "0"], "--vram 0"),
        (["train", "--plan", "--base", "nobody/nothing"], "sd-1.5"),
        (["sample", "--plan", "--model", "missing"], "missing does not exist"),
        (["sample", "--frames", "5"], "PROMPT"),
    ],
)
def test_wrong_requests_are_refused(
    empty: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert message in capsys.readouterr().err
