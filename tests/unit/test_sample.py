from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from msdv.config import SampleConfig, TrainConfig
from msdv.data.video import read_metadata, read_video
from msdv.errors import MsdvError, UsageError
from msdv.sample import sample
from msdv.train import train


@pytest.fixture
def run(flow_run: Path) -> Path:
    return flow_run


def settings(run: Path, out: Path, **changes: object) -> SampleConfig:
    values = {"prompt": "sea", "out": out, "model": str(run), "frames": 5, "steps": 2, "device": "cpu", **changes}
    return SampleConfig.model_validate(values)


@pytest.mark.parametrize("name", ["a.gif", "a.mp4", "a.webm", "a.webp", "a.png", "folder"])
def test_every_format_holds_the_frames_and_what_made_them(run: Path, tmp_path: Path, name: str) -> None:
    report = sample(settings(run, tmp_path / name, seed=3, negative="land"))
    frames, _ = read_video(tmp_path / name)
    assert frames.shape == (5, 32, 32, 3)
    made_by = read_metadata(tmp_path / name)
    assert (made_by["prompt"], made_by["seed"], made_by["negative"]) == ("sea", 3, "land")
    assert (made_by["steps"], made_by["scheduler"], made_by["frames"]) == (2, "dpmpp-2m", 5)
    assert len(made_by["model_hash"]) == 64
    assert name in report.lines()[0]
    assert (made_by["trained_steps"], len(made_by["base_hash"])) == (10, 64)
    if name != "folder":
        assert (tmp_path / f"{name}.toml").read_text().startswith("[sample]\n")


def test_the_same_seed_gives_the_same_file_and_another_another(run: Path, tmp_path: Path) -> None:
    for name, seed in (("a.gif", 1), ("b.gif", 1), ("c.gif", 2)):
        sample(settings(run, tmp_path / name, seed=seed))
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.gif", "b.gif", "c.gif"))
    assert a == b
    assert a != c


def test_settings_change_the_picture(run: Path, tmp_path: Path) -> None:
    results = {}
    changes: dict[str, dict] = {
        "plain": {},
        "prompt": {"prompt": "night"},
        "negative": {"negative": "night"},
        "guidance": {"guidance": 1.0},
        "scheduler": {"scheduler": "euler-a"},
        "steps": {"steps": 3},
        "left": {"motion": "left:2"},
        "none": {"motion": "none"},
    }
    for name, change in changes.items():
        sample(settings(run, tmp_path / name, **change))
        results[name] = read_video(tmp_path / name)[0]
    for name in changes:
        if name != "plain":
            assert not np.array_equal(results[name], results["plain"]), name


def test_noise_from_a_file_decides_size_and_frames(run: Path, tmp_path: Path) -> None:
    noise = torch.randn(1, 4, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    save_file({"latents": noise}, tmp_path / "noise.safetensors")
    latents = tmp_path / "noise.safetensors"
    sample(settings(run, tmp_path / "a", frames=3, seed=1, latents=latents))
    values = {"prompt": "sea", "model": str(run), "steps": 2, "device": "cpu", "prompt_at": ("2:sea",)}
    sample(SampleConfig.model_validate({**values, "out": tmp_path / "b", "latents": latents}))
    frames = [read_video(tmp_path / name)[0] for name in ("a", "b")]
    assert frames[0].shape == (3, 48, 32, 3)
    assert np.array_equal(*frames)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, UsageError, "does not exist: give a .safetensors file with the key latents"),
        (b"text", MsdvError, "is not a safetensors file"),
        ({"noise": torch.zeros(1)}, MsdvError, "has no key latents (but noise)"),
        ({"latents": torch.full((1, 4, 5, 4, 4), torch.nan)}, MsdvError, "holds numbers that are none"),
        ({"latents": torch.zeros(1, 4, 5, 4, 4, dtype=torch.int64)}, MsdvError, "holds whole numbers (int64)"),
        ({"latents": torch.zeros(1, 4, 2, 4, 4)}, UsageError, "is (1, 4, 2, 4, 4), not (1, 4, 5, height/8, width/8)"),
    ],
)
def test_noise_that_cannot_be_used_says_why(
    run: Path, tmp_path: Path, content: object, error: type[Exception], words: str
) -> None:
    path = tmp_path / "noise.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        save_file(content, path)
    with pytest.raises(error) as caught:
        sample(settings(run, tmp_path / "a.gif", latents=path))
    assert words in str(caught.value)


def test_the_newest_run_is_used_where_no_model_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "sky").symlink_to(run)
    sample(settings(run, tmp_path / "a.gif", model=None))
    assert read_metadata(tmp_path / "a.gif")["model"] == str(Path("runs/sky/temporal.safetensors"))


def test_wrong_results_are_refused_before_the_work(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"choose .gif, .mp4"):
        settings(run, tmp_path / "a.avi")
    with pytest.raises(ValueError, match=r"has no name before .gif: give one, such as out.gif"):
        settings(run, tmp_path / ".gif")
    (tmp_path / "a.gif").write_text("mine")
    with pytest.raises(UsageError, match=r"a.gif is what the video is made of, and would be replaced"):
        sample(settings(run, tmp_path / "a.gif", continue_from=tmp_path / "." / "a.gif", overwrite=True))
    with pytest.raises(UsageError, match="exists: choose another name, or pass --overwrite"):
        sample(settings(run, tmp_path / "a.gif"))
    assert (tmp_path / "a.gif").read_text() == "mine"
    sample(settings(run, tmp_path / "a.gif", overwrite=True))


def test_models_that_cannot_be_used_say_why(run: Path, tiny_base: Path, tmp_path: Path) -> None:
    from tests.tiny import save_folder, tiny_pipeline

    with pytest.raises(UsageError, match="nowhere does not exist: give a run folder or a temporal"):
        sample(settings(run, tmp_path / "a.gif", model="nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MsdvError, match=r"has no temporal.safetensors yet: train on, or give another run"):
        sample(settings(run, tmp_path / "a.gif", model=str(tmp_path / "empty")))
    other = tmp_path / "other"
    save_folder(other, tiny_pipeline(seed=7))
    with pytest.raises(MsdvError, match=rf"was trained on {tiny_base} .*, not on {other} .*: pass --base {tiny_base}"):
        sample(settings(run, tmp_path / "a.gif", base=str(other)))
    assert not (tmp_path / "a.gif").exists()


def test_a_base_without_temporal_layers_says_what_to_do(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="has no temporal layers and there is no run under runs/: train some"):
        sample(SampleConfig(prompt="sea", out=tmp_path / "a.gif", base=str(tiny_base), device="cpu"))


def test_builtin_can_be_named_and_is_what_there_is_without_a_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = {"prompt": "sea", "frames": 2, "steps": 1, "device": "cpu"}
    sample(SampleConfig.model_validate({**quick, "out": tmp_path / "a.gif"}))
    assert "image model and temporal layers are builtin" in capfd.readouterr().err
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "sky").symlink_to(run)
    sample(SampleConfig.model_validate({**quick, "out": tmp_path / "b.gif", "model": "builtin"}))
    sample(SampleConfig.model_validate({**quick, "out": tmp_path / "c.gif", "base": "builtin"}))
    assert "the newest run was trained on another image model" in capfd.readouterr().err
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "c.gif").read_bytes()
    assert [read_metadata(tmp_path / f"{name}.gif")["base"] for name in "abc"] == ["builtin"] * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guidance": 1.0, "negative": "land"}, "--negative land: without guidance it does nothing"),
        ({"scheduler": "lcm", "steps": 60}, "--steps 60: LCMScheduler can't take so many"),
        ({"scheduler": "ddim", "steps": 1000}, "--steps 1000: DDIMScheduler can't take so many"),
    ],
)
def test_settings_that_cannot_be_meant(run: Path, tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample(settings(run, tmp_path / "a.gif", **changes))
    assert words in str(caught.value)


def test_a_recipe_beside_the_result_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gif.toml").write_text("mine")
    with pytest.raises(UsageError, match=r"a.gif.toml exists"):
        sample(settings(run, tmp_path / "a.gif"))
    assert (tmp_path / "a.gif.toml").read_text() == "mine"


def test_weights_of_another_noise_schedule_are_refused(run: Path, tiny_base: Path, tmp_path: Path) -> None:
    import json
    import shutil

    other = tmp_path / "velocity"
    shutil.copytree(tiny_base, other)
    config = other / "scheduler" / "scheduler_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "prediction_type": "v_prediction"}))
    with pytest.raises(MsdvError, match=r"was trained with epsilon, .* predicts v_prediction"):
        sample(settings(run, tmp_path / "a.gif", base=str(other)))
    config.write_text(json.dumps({**values, "beta_end": 0.02}))
    with pytest.raises(MsdvError, match=r"noise schedule with beta_end 0.012, .* has 0.02"):
        sample(settings(run, tmp_path / "a.gif", base=str(other)))


def test_motion_needs_a_model_that_was_trained_for_it(tiny_base: Path, sky_frames: Path, tmp_path: Path) -> None:
    config = {"frames": 4, "size": 32, "steps": 1, "sample_every": 0, "device": "cpu"}
    train(TrainConfig(base=str(tiny_base), data=sky_frames, out=tmp_path / "still", **config))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--motion left: these temporal layers were not trained on noise that flows"):
        sample(settings(tmp_path / "still", tmp_path / "a.gif", motion="left"))
    sample(settings(tmp_path / "still", tmp_path / "a.gif", motion="auto"))


def test_half_precision_on_a_cpu_samples_nearly_the_same(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sample(settings(run, tmp_path / "full", guidance=1.0))
    sample(settings(run, tmp_path / "half", guidance=1.0, fp16=True))
    full, half = (read_video(tmp_path / name)[0].astype(int) for name in ("full", "half"))
    assert np.abs(full - half).mean() < 6


def test_long_videos_and_loops_are_made_in_windows(run: Path, tmp_path: Path) -> None:
    sample(settings(run, tmp_path / "long.gif", frames=12, window=5))
    made_by = read_metadata(tmp_path / "long.gif")
    assert (made_by["frames"], made_by["window"], made_by["overlap"]) == (12, 5, 1)
    assert read_video(tmp_path / "long.gif")[0].shape[0] == 12
    for name, changes in {
        "whole": {},
        "one": {"window": 5, "overlap": 2},
        "more": {"window": 1000},
        "loop": {"loop": True},
    }.items():
        sample(settings(run, tmp_path / name, **changes))
    whole, one, more, loop = (read_video(tmp_path / name)[0] for name in ("whole", "one", "more", "loop"))
    assert np.array_equal(whole, one) and np.array_equal(whole, more)
    assert not np.array_equal(whole, loop)
    assert read_metadata(tmp_path / "loop")["overlap"] == 8


def test_texts_change_from_frame_to_frame(run: Path, tmp_path: Path) -> None:
    sample(settings(run, tmp_path / "one", motion="none"))
    sample(settings(run, tmp_path / "two", motion="none", prompt_at=("3:night",)))
    sample(settings(run, tmp_path / "windows", motion="none", prompt_at=("3:night",), window=3, overlap=1))
    assert not np.array_equal(*(read_video(tmp_path / name)[0] for name in ("one", "two")))
    assert read_metadata(tmp_path / "windows")["prompt_at"] == ["3:night"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overlap": 2}, "--overlap 2: there are no windows to overlap"),
        ({"window": 4, "overlap": 4}, "--overlap 4: windows of 4 frames can share 3 at most"),
        ({"prompt_at": ("5:night",)}, "--prompt-at 5:night: the last of 5 frames is 4"),
    ],
)
def test_lengths_and_texts_that_cannot_be_meant(run: Path, tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample(settings(run, tmp_path / "a.gif", **changes))
    assert words in str(caught.value)
    assert not (tmp_path / "a.gif").exists()
