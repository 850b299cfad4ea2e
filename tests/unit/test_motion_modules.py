"""Training, resuming, planning and sampling with motion modules."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from msdv.config import SampleConfig, TrainConfig
from msdv.data.video import read_video
from msdv.errors import MsdvError, UsageError
from msdv.model.build import network_config
from msdv.model.inflate import inflate
from msdv.model.known import find_architecture
from msdv.planning import plan_sample, plan_training
from msdv.run import Run
from msdv.sample import sample
from msdv.train import train
from msdv.weights import load_temporal
from tests.runs import assert_same_training, settings


def test_a_run_learns_samples_and_goes_on(motion_run: Path, tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    state, metadata = load_temporal(motion_run / "temporal.safetensors")
    assert (metadata.arch, metadata.group_norm, metadata.mid_block) == ("motion-module", "joint", False)
    assert all(".motion_modules." in key for key in state)
    assert state["down_blocks.0.motion_modules.0.proj_out.weight"].abs().max() > 0
    sample(SampleConfig(prompt="sea", out=tmp_path / "a", model=str(motion_run), frames=5, steps=2, device="cpu"))
    assert read_video(tmp_path / "a")[0].shape == (5, 32, 32, 3)
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    config = {"arch": "motion-module", "mid_block": True}
    train(settings(tiny_base, sky_frames, whole, **config))
    train(settings(tiny_base, sky_frames, halted, **config, steps=3, schedule="constant", warmup=0, lr=1e-3))
    train(settings(tiny_base, sky_frames, tmp_path / "again", **config))
    assert_same_training(Run(whole), Run(tmp_path / "again"))
    resumed = train(TrainConfig.model_validate({"resume": str(halted), "steps": 4}))
    assert "--frames 120 --window 16 -o" in resumed.lines()[-1]
    assert load_temporal(resumed.run.weights)[1].mid_block


def test_layers_of_the_other_kind_are_not_taken(
    motion_run: Path, flow_run: Path, sky_frames: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--arch motion-module: the temporal layers to start from are pseudo3d"):
        train(TrainConfig(arch="motion-module", init=str(flow_run), data=sky_frames, frames=4, size=32, device="cpu"))
    config = {"data": sky_frames, "frames": 4, "size": 32, "steps": 1, "sample_every": 0, "device": "cpu"}
    with pytest.raises(UsageError, match="--mid-block: the motion modules to start from have none in the middle"):
        train(TrainConfig.model_validate({**config, "init": str(motion_run), "mid_block": True}))
    train(TrainConfig.model_validate({**config, "arch": "motion-module", "base": "builtin", "out": tmp_path / "run"}))
    assert "builtin's own temporal layers are pseudo3d: these motion-module layers start un" in capfd.readouterr().err
    going_on = {**config, "init": str(tmp_path / "run"), "out": tmp_path / "on"}
    train(TrainConfig.model_validate(going_on))
    assert load_temporal(tmp_path / "on" / "temporal.safetensors")[1].arch == "motion-module"


def test_options_for_motion_modules_alone(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    for changes, words in (({"betas": "linear"}, "--betas linear"), ({"mid_block": True}, "--mid-block")):
        config = settings(tiny_base, sky_frames, tmp_path / "run", **changes)
        for command in (train, plan_training):
            with pytest.raises(UsageError, match=f"{words}: is for --arch motion-module"):
                command(config)


def test_more_frames_than_there_are_positions(motion_run: Path, sky_frames: Path, tmp_path: Path) -> None:
    words = "33 frames at once: motion modules see no more than 32: train with fewer --frames; sample longer"
    with pytest.raises(UsageError, match=words):
        sample(SampleConfig(prompt="sea", out=tmp_path / "a", model=str(motion_run), frames=33, steps=1, device="cpu"))
    values = {
        "prompt": "sea",
        "out": tmp_path / "long",
        "model": str(motion_run),
        "frames": 40,
        "window": 16,
        "steps": 2,
    }
    values |= {"steps": 2, "device": "cpu"}
    sample(SampleConfig.model_validate(values))
    assert read_video(tmp_path / "long")[0].shape == (40, 32, 32, 3)
    with pytest.raises(UsageError, match="33 frames at once"):
        sample(SampleConfig.model_validate({**values, "out": tmp_path / "b", "window": 33}))
    with pytest.raises((UsageError, MsdvError), match=f"{words}|too short"):
        train(TrainConfig(arch="motion-module", base="builtin", data=sky_frames, frames=33, device="cpu"))
    with pytest.raises(UsageError, match=words):
        plan_training(TrainConfig(arch="motion-module", base="sd-1.5", frames=33, vram=8))


def test_plans_know_the_architecture(motion_run: Path) -> None:
    config = TrainConfig(arch="motion-module", base="builtin", frames=31, size=64, vram=2, checkpointing="none")
    plan = json.loads(plan_training(config).json())
    assert plan["settings"]["arch"] == "motion-module"
    assert max(plan["most_frames"].values()) == 32
    with torch.device("meta"):
        unet = UNet2DConditionModel(**network_config(UNet2DConditionModel, find_architecture("builtin").unet))
        trained = inflate(unet, arch="motion-module").temporal_parameters().values()
    assert plan["parts"]["temporal weights"] == pytest.approx(4 * sum(p.numel() for p in trained), rel=0.01)
    plan = plan_sample(SampleConfig(prompt="", out=Path("a.gif"), model=str(motion_run), frames=4, vram=2))
    assert plan.plan.fits
