"""What the 2022 code computed with tiny random weights (see 2022/README.md) is what this code computes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from msdv.model.base import load_base
from msdv.model.temporal import build_video_unet

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


@torch.no_grad()
def test_frames_of_the_text_pipeline() -> None:
    from msdv.model.diffusion import denoise, make_scheduler

    reference = load_file(VECTORS / "text" / "reference.safetensors")
    base = load_base(str(VECTORS / "text" / "pipeline"), device=torch.device("cpu"), dtype=torch.float32)
    model, _ = build_video_unet(base, base.temporal)
    text = base.encode_prompts(["clouds timelapse", ""])
    latents = denoise(
        model,
        reference["latents"],
        text[:1],
        text[1:],
        scheduler=make_scheduler("ddim", base.scheduler_config),
        steps=5,
        guidance=7.5,
    )
    frames = base.decode(latents[0].transpose(0, 1)).permute(0, 2, 3, 1) / 2 + 0.5
    torch.testing.assert_close(frames.clamp(0, 1), reference["frames"], atol=1e-4, rtol=0)
