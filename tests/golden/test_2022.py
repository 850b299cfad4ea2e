"""What the 2022 code computed with tiny random weights (see 2022/README.md) is what this code computes."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from msdv.cli import run
from msdv.data.video import read_video
from msdv.model.base import load_base
from msdv.model.temporal import build_video_unet
from msdv.weights import read_metadata

VECTORS = Path(__file__).parent / "2022"


@pytest.mark.parametrize("kind", ["text", "inpaint"])
@pytest.mark.parametrize("channels_last", [False, True])
@torch.no_grad()
def test_unet_output(kind: str, channels_last: bool) -> None:
    reference = load_file(VECTORS / kind / "reference.safetensors")
    base = load_base(str(VECTORS / kind / "pipeline"), device=torch.device("cpu"), dtype=torch.float32)
    model, _ = build_video_unet(base, base.temporal, channels_last=channels_last)
    assert model.group_norm == "joint"
    out = model(reference["unet_sample"], reference["unet_timestep"], reference["unet_text"])
    torch.testing.assert_close(out, reference["unet_output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["text", "inpaint"])
def test_the_2022_state_dict_loads_under_its_own_names(kind: str) -> None:
    folder = VECTORS / kind / "pipeline"
    base = load_base(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    model, _ = build_video_unet(base, base.temporal)
    state = torch.load(folder / "unet" / "diffusion_pytorch_model.bin", weights_only=True)
    model.unet.load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", ["base", "model"])
@pytest.mark.parametrize("kind", ["text", "inpaint"])
def test_frames_from_the_command_line(kind: str, name: str, tmp_path: Path) -> None:
    folder, out = VECTORS / kind, tmp_path / "frames.safetensors"
    arguments = ["--latents", folder / "reference.safetensors", "--frames", 9, "-o", out]
    arguments += [f"--{name}", folder / "pipeline"]  # fmt: skip
    arguments += ["--scheduler", "ddim", "--steps", 5, "--guidance", 7.5, "--device", "cpu"]
    if kind == "inpaint":
        arguments += ["--image", folder / "first_frame.png"]
    assert run(["sample", "clouds timelapse", *map(str, arguments)]) == 0
    frames = load_file(out)["frames"]
    torch.testing.assert_close(frames, load_file(folder / "reference.safetensors")["frames"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["text", "inpaint"])
def test_it_goes_through_all_commands(kind: str, sky_frames: Path, tmp_path: Path) -> None:
    data, out = shutil.copytree(sky_frames, tmp_path / "frames"), tmp_path / "run"
    arguments = ["--base", VECTORS / kind / "pipeline", "--data", data, "--out", out, "--frames", 3, "--size", 32]
    arguments += ["--steps", 2, "--sample-every", 2, "--device", "cpu"]
    assert run(["train", *map(str, arguments)]) == 0
    assert read_metadata(out / "temporal.safetensors").group_norm == "joint"
    assert run(["export", str(out), "-o", str(tmp_path / "pipeline")]) == 0
    for model in (out, tmp_path / "pipeline"):
        arguments = ["--model", model, "--frames", 3, "--steps", 2, "--device", "cpu", "-o", model.with_suffix(".gif")]
        assert run(["sample", "sea", *map(str, arguments)]) == 0
    assert read_video(tmp_path / "run.gif")[0].tolist() == read_video(tmp_path / "pipeline.gif")[0].tolist()


def test_whole_models_of_their_own_need_no_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = VECTORS / "text" / "pipeline"
    assert run(["sample", "sea", "--model", str(model), "--base", "builtin", "-o", str(tmp_path / "a.gif")]) == 2
    assert f"--model {model} has its own image model: leave --base out" in capsys.readouterr().err
    assert run(["sample", "sea", "--model", "lxj616/make-a-stable-diffusion-video-timelapse", "-o", "a.gif"]) == 1
    assert "isn't (all) on this disk and HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_an_image_model_is_no_model_of_time(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sample", "sea", "--model", str(tiny_base), "-o", str(tmp_path / "a.gif")]) == 2
    assert "is an image model without temporal layers: pass it as --base" in capsys.readouterr().err
