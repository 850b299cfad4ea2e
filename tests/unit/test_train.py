import html
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from msdv.config import TrainConfig
from msdv.errors import MsdvError, UsageError
from msdv.run import Run
from msdv.train import evaluate, train
from msdv.weights import load_temporal
from tests.runs import settings


def test_a_run_folder_has_all_that_was_promised(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    config = settings(tiny_base, sky_frames, tmp_path / "run", sample_every=3, sample_prompt=("sea", "sky"), flip=True)
    report = train(config)
    run = Run(tmp_path / "run")
    assert [step for step, _ in run.checkpoints()] == [3, 6]
    assert run.sample(3).is_file()
    assert run.sample(6).is_file()
    losses = [row["loss"] for row in run.read_log() if "loss" in row]
    assert len(losses) == 6
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    page = run.report.read_text()
    assert page.count("data:image/gif;base64,") == 2
    assert "step-000006" in page
    assert "<svg" in page
    _, metadata = load_temporal(run.weights)
    assert (metadata.steps, metadata.frames, metadata.size, metadata.group_norm) == (6, 4, 32, "frame")
    assert metadata.reference is not None and metadata.reference.clips == 5
    moved = {row["step"]: row["motion"] for row in run.read_log() if "motion" in row}
    assert moved.keys() == {3, 6}
    assert moved[6]["clips"] == metadata.reference.numbers.as_dict()
    assert moved[6]["numbers"]["frames"] == 8  # of two prompts
    assert "likeness" in moved[6]["numbers"] and "likeness" not in moved[3]["numbers"]
    assert f"Step 6: <strong>{html.escape(moved[6]['verdict'])}" in page
    assert metadata.base == str(tiny_base)
    assert report.held_out[0].clips == 1
    again = TrainConfig.model_validate(
        {k: v for k, v in config.model_dump().items() if k != "out"} | {"out": tmp_path / "again"}
    )
    first, second = load_file(run.weights), load_file(train(again).run.weights)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_training_lowers_the_loss_and_changes_temporal_weights_only(
    tiny_base: Path, sky_frames: Path, tmp_path: Path
) -> None:
    before = {p: p.read_bytes() for p in tiny_base.rglob("*") if p.is_file()}
    train(settings(tiny_base, sky_frames, tmp_path / "run", steps=40, checkpoint_every=40))
    assert before == {p: p.read_bytes() for p in tiny_base.rglob("*") if p.is_file()}
    losses = [row["loss"] for row in Run(tmp_path / "run").read_log() if "loss" in row]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_spatial_weights_stay_as_they_were(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msdv.train
    from msdv.model.inflate import is_temporal, spatial_key

    kept: list[object] = []

    class Watched(msdv.train.Training):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            kept.append(self.model.unet)

    monkeypatch.setattr(msdv.train, "Training", Watched)
    train(settings(tiny_base, sky_frames, tmp_path / "run", weight_decay=0.5))
    original = load_file(tiny_base / "unet" / "diffusion_pytorch_model.safetensors")
    state = kept[0].state_dict()  # type: ignore[attr-defined]
    spatial = {spatial_key(key): value for key, value in state.items() if not is_temporal(key)}
    assert spatial.keys() == original.keys()
    assert all(torch.equal(spatial[key], original[key]) for key in original)
    identity = torch.nn.init.dirac_(torch.empty_like(state["conv_in.temporal_conv.weight"]))
    assert not torch.equal(state["conv_in.temporal_conv.weight"], identity)


@pytest.mark.parametrize("changes", [{}, {"fp16": True, "offload_optim": True, "ema": 0.9, "noise": "flow"}])
def test_a_resumed_run_ends_with_the_same_weights(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(settings(tiny_base, sky_frames, tmp_path / "whole", **changes))
    import msdv.train

    class KilledError(Exception):
        pass

    real = msdv.train._Loop._step

    def dies(self: msdv.train._Loop, step: int, stop: threading.Event) -> tuple[float, float, bool]:
        if step == 4:
            raise KilledError
        return real(self, step, stop)

    monkeypatch.setattr(msdv.train._Loop, "_step", dies)
    with pytest.raises(KilledError):
        train(settings(tiny_base, sky_frames, tmp_path / "cut", **changes))
    monkeypatch.setattr(msdv.train._Loop, "_step", real)
    resumed = train(TrainConfig(resume=str(tmp_path / "cut")))
    state, expected = load_file(resumed.run.weights), load_file(whole.run.weights)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert [r["step"] for r in resumed.run.read_log() if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert resumed.run.folder == tmp_path / "cut"


def test_more_steps_can_be_asked_for_and_other_data_cannot(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(settings(tiny_base, sky_frames, tmp_path / "run", steps=3)).run
    with pytest.raises(UsageError, match=r"--frames 5: .* was started with 4: leave the option out"):
        train(TrainConfig(resume=str(tmp_path / "run"), frames=5))
    with pytest.raises(UsageError, match=r"--steps 2: .* has 3 already: pass more"):
        train(TrainConfig(resume=str(tmp_path / "run"), steps=2))
    with pytest.raises(UsageError, match=r"--out elsewhere: a resumed run stays where it is"):
        train(TrainConfig(resume=str(tmp_path / "run"), out=Path("elsewhere")))
    run.weights.unlink()  # killed between its last checkpoint and its end
    report = train(TrainConfig(resume=str(tmp_path / "run")))
    assert load_temporal(run.weights)[1].steps == 3
    assert report.loss is None
    assert report.held_out
    assert "has all its 3 steps: pass --steps 6 to train on" in capfd.readouterr().err
    assert train(TrainConfig(resume=str(tmp_path / "run"), steps=5)).steps == 5


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msdv.train

    whole = train(settings(tiny_base, sky_frames, tmp_path / "whole", steps=2)).run
    with monkeypatch.context() as patch:
        patch.setattr(msdv.train._Loop, "_save", lambda *_, **__: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            train(settings(tiny_base, sky_frames, tmp_path / "cut", steps=2))
    resumed = train(TrainConfig(resume=str(tmp_path / "cut"))).run
    state, expected = load_file(resumed.weights), load_file(whole.weights)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_damaged_checkpoint_is_passed_over(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(settings(tiny_base, sky_frames, tmp_path / "run")).run
    expected = load_file(run.weights)
    (run.checkpoint(6) / "training.pt").write_bytes(content)
    state = load_file(train(TrainConfig(resume=str(run.folder))).run.weights)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    errors = capfd.readouterr().err
    assert "step-000006 is damaged" in errors
    assert "from step 3" in errors


def test_held_out_clips_stay_held_out_when_clips_are_added(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    data = tmp_path / "frames"
    shutil.copytree(sky_frames, data)
    run = train(settings(tiny_base, data, tmp_path / "run", steps=1)).run
    held = run.read_held_out()
    assert len(held) == 1
    for number in range(6, 30):
        shutil.copytree(sky_frames / "clip 0.mp4", data / f"clip {number}.mp4")
    train(TrainConfig(resume=str(run.folder), steps=2))
    assert run.read_held_out() == held


def test_another_image_model_in_the_same_place_is_noticed(sky_frames: Path, tmp_path: Path) -> None:
    from tests.tiny import save_folder, tiny_pipeline

    save_folder(tmp_path / "base", tiny_pipeline(seed=1))
    run = train(settings(tmp_path / "base", sky_frames, tmp_path / "run", steps=1)).run
    shutil.rmtree(tmp_path / "base")
    save_folder(tmp_path / "base", tiny_pipeline(seed=2))
    with pytest.raises(MsdvError, match=r"step-000001 was trained on .*base \("):
        train(TrainConfig(resume=str(run.folder), steps=2))


def test_a_sample_that_fails_does_not_end_the_training(
    tiny_base: Path,
    sky_frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import msdv.samples

    def fails(*_: object, **__: object) -> None:
        raise MsdvError("the denoised latents are not finite")

    monkeypatch.setattr(msdv.samples, "denoise", fails)
    report = train(settings(tiny_base, sky_frames, tmp_path / "run", steps=2, sample_every=1))
    assert report.run.weights.is_file()
    assert "no sample at step 1: the denoised latents are not finite" in capfd.readouterr().err


def test_motion_that_cannot_be_measured_does_not_end_the_training(
    tiny_base: Path,
    sky_frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no room\nfor flow")

    monkeypatch.setattr("msdv.data.moving.optical_flow", fails)
    data = tmp_path / "frames"
    shutil.copytree(sky_frames, data, ignore=shutil.ignore_patterns(".cache"))
    report = train(settings(tiny_base, data, tmp_path / "run", steps=1, sample_every=1))
    assert report.run.sample(1).is_file()
    assert not any("motion" in row for row in report.run.read_log())
    err = capfd.readouterr().err
    assert "the clips' motion can't be measured, and samples are compared with nothing: no room\n" in err
    assert "the motion of the sample at step 1 can't be measured: no room\n" in err


def test_what_the_clips_move_is_measured_once(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "frames"
    shutil.copytree(sky_frames, data, ignore=shutil.ignore_patterns(".cache"))
    first = train(settings(tiny_base, data, tmp_path / "a", steps=1, noise="independent")).run

    def fails(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("msdv.data.moving.optical_flow", fails)
    second = train(settings(tiny_base, data, tmp_path / "b", steps=1, noise="independent")).run
    references = [load_temporal(run.weights)[1].reference for run in (first, second)]
    assert references[0] is not None and references[0] == references[1]


def test_a_run_says_all_that_it_was_made_with_and_resumes_in_another_precision(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msdv.recipe import read_section

    start = train(settings(tiny_base, sky_frames, tmp_path / "start", steps=1, noise="flow", group_norm="joint")).run
    values = {"data": sky_frames, "init": str(start.folder), "frames": 4, "sample_every": 0, "fp16": True}
    config = TrainConfig.model_validate({**values, "steps": 2, "out": tmp_path / "run", "device": "cpu", "holdout": 0})
    run = train(config).run
    resolved = read_section(run.config, "train")
    assert resolved["base"] == str(tiny_base)
    assert (resolved["size"], resolved["noise"], resolved["group_norm"]) == (64, "flow", "joint")
    start.weights.unlink()  # what it started from may be gone
    monkeypatch.chdir(tiny_base.parent)
    resumed = train(TrainConfig(resume=str(run.folder), steps=3, bf16=True, base=tiny_base.name))
    assert load_temporal(resumed.run.weights)[1].group_norm == "joint"
    assert read_section(run.config, "train")["fp16"] is False


def test_an_existing_run_is_not_overwritten(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists: choose another name, or pass --overwrite"):
        train(settings(tiny_base, sky_frames, tmp_path / "run"))
    for _ in range(2):
        train(settings(tiny_base, sky_frames, tmp_path / "run", steps=1, overwrite=True))
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("[prep]")
    with pytest.raises(UsageError, match=r"config.toml is not that of a run: choose another --out"):
        train(settings(tiny_base, sky_frames, tmp_path / "other", overwrite=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file: give a folder"):
        train(settings(tiny_base, sky_frames, tmp_path / "file", overwrite=True))


def test_processes_do_what_one_does_in_more_passes_and_resume_exactly(
    tiny_base: Path, sky_frames: Path, tmp_path: Path
) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "msdv"]
    command = ["train", "--base", str(tiny_base), "--data", str(sky_frames), "--out", "run", "--frames", "4"]
    command += ["--size", "32", "--steps", "4", "--checkpoint-every", "2", "--sample-every", "0", "--holdout", "0"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}

    def start(arguments: list[str]) -> str:
        done = subprocess.run(
            launch + arguments, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300, env=environment
        )
        return done.stderr

    start(command)
    together = Run(tmp_path / "run")
    assert [row["step"] for row in together.read_log()] == [1, 2, 3, 4]
    expected, logged = together.weights.read_bytes(), [row["loss"] for row in together.read_log()]
    shutil.rmtree(together.checkpoint(4))
    said = start(["train", "--resume", "run"])
    assert said.count("from step 2") == 1  # the first process speaks
    assert together.weights.read_bytes() == expected
    assert [row["loss"] for row in together.read_log()] == logged
    changes: dict[str, object] = {"steps": 4, "checkpoint_every": 2, "grad_accum": 2, "holdout": 0, "lr": 1e-4}
    alone = train(settings(tiny_base, sky_frames, tmp_path / "alone", **changes)).run
    for key, value in load_file(alone.weights).items():
        torch.testing.assert_close(load_file(together.weights)[key], value, atol=2e-3, rtol=1e-2)
    assert logged == pytest.approx([row["loss"] for row in alone.read_log()], rel=1e-4)


def test_another_number_of_passes_is_said(
    tiny_base: Path, sky_frames: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(settings(tiny_base, sky_frames, tmp_path / "run", steps=1)).run
    train(TrainConfig(resume=str(run.folder), steps=2, grad_accum=3))
    errors = capfd.readouterr().err
    assert "going on with other settings: steps 1 -> 2, grad_accum 1 -> 3" in errors
    assert "a step now takes 3 passes, not 1: from here on it sees other clips" in errors


def test_evaluation_measures_and_writes_nothing(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    run = train(settings(tiny_base, sky_frames, tmp_path / "run", steps=40, noise="flow", checkpoint_every=40)).run
    config = settings(tiny_base, sky_frames, tmp_path / "none", init=str(run.folder), evaluate=True)
    report = evaluate(config)
    losses = json.loads(report.json())["losses"]
    assert [loss["noise"] for loss in losses] == ["independent", "flow"]
    assert all(loss["clips"] == 6 and loss["gain"] == pytest.approx(1 - loss["on"] / loss["off"]) for loss in losses)
    assert "with temporal layers" in report.lines()[0]
    assert not (tmp_path / "none").exists()
    untrained = evaluate(settings(tiny_base, sky_frames, tmp_path / "none", init="none", evaluate=True))
    assert untrained.losses[0].on == pytest.approx(untrained.losses[0].off, rel=1e-4)


def test_training_on_inpainting_models_works(sky_frames: Path, tmp_path: Path) -> None:
    from tests.tiny import save_folder, tiny_pipeline

    save_folder(tmp_path / "base", tiny_pipeline(in_channels=9))
    report = train(settings(tmp_path / "base", sky_frames, tmp_path / "run", sample_every=6, checkpointing="full"))
    assert report.run.sample(6).is_file()


def test_weights_of_another_base_are_refused_naming_both(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    from tests.tiny import save_folder, tiny_pipeline

    run = train(settings(tiny_base, sky_frames, tmp_path / "run", steps=1)).run
    save_folder(tmp_path / "other", tiny_pipeline(seed=7))
    with pytest.raises(MsdvError, match=rf"was trained on {tiny_base} .*not on {tmp_path / 'other'}"):
        train(settings(tmp_path / "other", sky_frames, tmp_path / "b", init=str(run.folder)))


@pytest.mark.skipif(os.name == "nt", reason="no POSIX signals")
def test_ctrl_c_saves_and_says_how_to_go_on(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "msdv", "train", "--base", str(tiny_base), "--data", str(sky_frames)]
    command += ["--out", "run", "--frames", "4", "--size", "32", "--steps", "100000", "--sample-every", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size > 500):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    last = errors.strip().splitlines()[-1]
    step = Run(tmp_path / "run").checkpoints()[-1][0]
    assert f"stopped after step {step}, which is saved: go on with msdv train --resume run" in last
