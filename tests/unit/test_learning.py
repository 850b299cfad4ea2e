"""What training learns from, by option: kept when it goes on, told to sampling, and nothing silent when it fails."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from msdv.config import ExportConfig, SampleConfig, TrainConfig
from msdv.data.video import read_video
from msdv.errors import MsdvError, UsageError
from msdv.export import export
from msdv.recipe import read_section
from msdv.run import Run
from msdv.sample import sample
from msdv.train import train
from msdv.training import Training
from msdv.weights import read_metadata

LEARNING = {
    "offset_noise": 0.2,
    "temporal_loss": 1.0,
    "flicker_loss": 2.0,
    "shared_noise": 1.0,
    "ema": 0.9,
    "schedule": "constant",
}


@pytest.fixture(scope="module")
def velocity_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image model that predicts v."""
    from tests.tiny import save_folder, tiny_pipeline

    folder = tmp_path_factory.mktemp("models") / "velocity"
    save_folder(folder, tiny_pipeline(prediction_type="v_prediction"))
    return folder


def settings(base: Path, data: Path, out: Path, **changes: object) -> TrainConfig:
    values = {"base": str(base), "data": data, "out": out, "frames": 4, "size": 32, "steps": 2, "lr": 1e-2}
    values |= {"checkpoint_every": 1, "sample_every": 0, "device": "cpu", "warmup": 0, **changes}
    return TrainConfig.model_validate(values)


@pytest.fixture(scope="module")
def zero_snr_run(velocity_base: Path, sky_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that sampling must know of."""
    out = tmp_path_factory.mktemp("runs") / "zero"
    train(settings(velocity_base, sky_frames, out, zero_terminal_snr=True, **LEARNING))
    return out


def sampled_with(monkeypatch: pytest.MonkeyPatch, model: Path, out: Path, **changes: object) -> dict[str, Any]:
    """What `denoise` is given when `model` is sampled from."""
    import msdv.sampling.sampler

    real, seen = msdv.sampling.sampler.denoise, {}

    def watched(model: Any, noise: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        seen.update(options, noise=noise)
        return real(model, noise, *args, **options)

    monkeypatch.setattr(msdv.sampling.sampler, "denoise", watched)
    values = {"prompt": "sea", "out": out, "model": str(model), "frames": 3, "steps": 2, "device": "cpu", **changes}
    sample(SampleConfig.model_validate(values))
    return seen


@pytest.mark.parametrize("schedule", ["ddim", "dpmpp-2m", "euler"])
def test_sampling_uses_the_schedule_and_the_noise_that_was_trained_on(
    zero_snr_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    metadata = read_metadata(Run(zero_snr_run).weights)
    assert metadata.scheduler["rescale_betas_zero_snr"] is True
    assert metadata.shared_noise == 1.0
    seen = sampled_with(monkeypatch, zero_snr_run, tmp_path / "a.gif", scheduler=schedule)
    scheduler = seen["scheduler"]
    assert scheduler.config.rescale_betas_zero_snr
    assert scheduler.timesteps[0] == 999
    assert scheduler.alphas_cumprod[999] <= 2**-24
    one, other = seen["noise"][0, :, 0].flatten(), seen["noise"][0, :, 2].flatten()
    assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.2
    plain = sampled_with(monkeypatch, zero_snr_run, tmp_path / "b.gif", motion="none")["noise"]
    assert abs(torch.corrcoef(plain[0].transpose(0, 1).flatten(1))[0, 2]) < 0.2


def test_an_exported_pipeline_has_the_schedule_too(
    zero_snr_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(ExportConfig(source=str(zero_snr_run), out=tmp_path / "pipeline"))
    written = json.loads((tmp_path / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    assert (written["rescale_betas_zero_snr"], written["timestep_spacing"]) == (True, "trailing")
    seen = sampled_with(monkeypatch, tmp_path / "pipeline", tmp_path / "a.gif")
    assert seen["scheduler"].timesteps[0] == 999
    sampled_with(monkeypatch, zero_snr_run, tmp_path / "b.gif")
    frames = [read_video(tmp_path / name)[0] for name in ("a.gif", "b.gif")]
    assert np.array_equal(*frames)


def test_a_training_goes_on_from_weights_as_these_were_trained(
    zero_snr_run: Path, velocity_base: Path, sky_frames: Path, tmp_path: Path
) -> None:
    config = settings(velocity_base, sky_frames, tmp_path / "run", steps=1, init=str(zero_snr_run))
    metadata = read_metadata(train(config).run.weights)
    assert metadata.shared_noise == 1.0
    assert metadata.scheduler["rescale_betas_zero_snr"] is True
    losses = [row["held_out"]["noise"] for row in Run(tmp_path / "run").read_log() if "held_out" in row]
    assert losses == ["shared"]


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_a_resumed_run_keeps_what_it_learns_by(
    tiny_base: Path, velocity_base: Path, sky_frames: Path, tmp_path: Path, kind: str
) -> None:
    changes = {**LEARNING, **({"min_snr": 5.0} if kind == "epsilon" else {"zero_terminal_snr": True})}
    base = tiny_base if kind == "epsilon" else velocity_base
    whole = train(settings(base, sky_frames, tmp_path / "whole", steps=4, **changes)).run
    train(settings(base, sky_frames, tmp_path / "cut", steps=2, **changes))
    resumed = train(TrainConfig(resume=str(tmp_path / "cut"), steps=4)).run
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    kept = read_section(resumed.config, "train")
    assert {name: kept[name] for name in changes} == changes
    with pytest.raises(UsageError, match="--shared-noise 2"):
        train(TrainConfig(resume=str(resumed.folder), steps=5, shared_noise=2.0))


def test_each_option_changes_what_is_learned(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    def losses(**changes: object) -> list[float]:
        training = Training(settings(tiny_base, sky_frames, tmp_path / "run", **changes))
        with torch.no_grad():
            first = [training.loss(number).item() for number in range(3)]
            assert first == [training.loss(number).item() for number in (0, 1, 2)]
        return first

    plain = losses()
    options = {"offset_noise": 0.3, "temporal_loss": 1.0, "flicker_loss": 1.0, "shared_noise": 1.0, "min_snr": 1.0}
    for name, value in options.items():
        changed = losses(**{name: value})
        assert changed != plain, name
        assert losses(**{name: value, "seed": 1}) != changed, name
        if name in ("temporal_loss", "flicker_loss"):
            assert all(more > less for more, less in zip(changed, plain, strict=True))
        if name == "min_snr":
            assert all(less <= more for less, more in zip(changed, plain, strict=True))


def test_what_nothing_can_be_learned_from_is_refused_before_the_work(
    tiny_base: Path, velocity_base: Path, sky_frames: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"--zero-terminal-snr: {tiny_base} predicts the noise"):
        train(settings(tiny_base, sky_frames, tmp_path / "run", zero_terminal_snr=True))
    with pytest.raises(UsageError, match="--min-snr 5: gives no weight to the last step"):
        train(settings(velocity_base, sky_frames, tmp_path / "run", zero_terminal_snr=True, min_snr=5))
    with pytest.raises(UsageError, match="--shared-noise 1: noise that flows is shared along the motion already"):
        train(settings(tiny_base, sky_frames, tmp_path / "run", noise="flow", shared_noise=1))
    assert not (tmp_path / "run").exists()


def break_calls(monkeypatch: pytest.MonkeyPatch, calls: range) -> None:
    """What goes into the model is not a number, in these calls of `predict`, counted from 0."""
    import msdv.model.step

    real, number = msdv.model.step.predict, iter(range(10_000))

    def breaks(model: Any, latents: torch.Tensor, *args: Any) -> torch.Tensor:
        return real(model, latents * (math.nan if next(number) in calls else 1.0), *args)

    monkeypatch.setattr(msdv.model.step, "predict", breaks)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    tiny_base: Path,
    sky_frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = settings(tiny_base, sky_frames, tmp_path / "run", steps=3, holdout=0, keep_checkpoints=5)
    with monkeypatch.context() as patch:
        break_calls(patch, range(1, 2))
        report = train(config)
    assert report.skipped == 1
    assert "steps skipped, as loss or gradient was not finite: 1" in report.lines()
    assert "the loss of step 2 is nan: the step is skipped" in capfd.readouterr().err
    rows = [(row["step"], row["loss"] is None, row["skipped"]) for row in report.run.read_log()]
    assert rows == [(1, False, 0), (2, True, 1), (3, False, 1)]
    first, second = (load_file(report.run.checkpoint(step) / "temporal.safetensors") for step in (1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    resumed = train(TrainConfig(resume=str(report.run.folder), steps=4))
    assert resumed.skipped == 1
    assert resumed.run.read_log()[-1]["skipped"] == 1


def test_steps_that_stay_not_finite_end_with_the_layer_where_it_begins(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_calls(monkeypatch, range(2, 10_000))
    config = settings(tiny_base, sky_frames, tmp_path / "run", steps=9, holdout=0, checkpoint_every=2)
    with pytest.raises(MsdvError) as caught:
        train(config)
    words = str(caught.value)
    assert words.startswith(
        "the loss of step 5 is nan, and the 2 steps before it were no better; the first layer whose "
    )
    assert "output is not finite is conv_in" in words
    assert "what goes in is not finite either (clip " in words
    assert "try --lr 0.003" in words
    assert words.endswith("the newest good weights are those of step 4")
    assert all(torch.isfinite(value).all() for value in load_file(Run(tmp_path / "run").weights).values())


def test_overflows_lower_the_loss_scale_and_are_counted(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msdv.train

    real = msdv.train.MasterOptimizer
    monkeypatch.setattr(msdv.train, "MasterOptimizer", lambda *a, **k: real(*a, **{**k, "loss_scaling": True}))
    config = settings(tiny_base, sky_frames, tmp_path / "run", steps=8, holdout=0, checkpoint_every=8)
    with monkeypatch.context() as patch:
        break_calls(patch, range(2, 7))
        rows = train(config).run.read_log()
    assert [row["skipped"] for row in rows] == [0, 0, 1, 2, 3, 4, 5, 5]
    assert rows[-1]["loss_scale"] == rows[0]["loss_scale"] / 2**5
    break_calls(monkeypatch, range(1, 10_000))
    with pytest.raises(MsdvError, match=r"step 21 is nan, and the 19 steps before .*: try --bf16 instead of --fp16"):
        train(settings(tiny_base, sky_frames, tmp_path / "other", steps=30, holdout=0, checkpoint_every=30))
