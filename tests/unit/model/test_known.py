from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from msdv.errors import MsdvError, UsageError
from msdv.model.build import network_config
from msdv.model.folder import read_folder
from msdv.model.known import KNOWN, find_architecture
from msdv.run import BUILTIN
from tests.tiny import save_folder, save_single_file, tiny_pipeline, tiny_unet

# What the published weights count.
PARAMETERS = {
    "sd-1.5": (859_520_964, 83_653_863, 123_060_480),
    "sd-1.5-inpainting": (859_535_364, 83_653_863, 123_060_480),
    "sd-2.1": (865_910_724, 83_653_863, 340_387_840),
    "2022": (859_535_364, 83_653_863, 123_060_480),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_known_models_have_as_many_parameters_as_the_published(name: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    known = KNOWN[name]
    with torch.device("meta"):
        modules = [
            UNet2DConditionModel(**network_config(UNet2DConditionModel, known.unet)),
            AutoencoderKL(**network_config(AutoencoderKL, known.vae)),
            CLIPTextModel(CLIPTextConfig.from_dict(known.text_encoder)),
        ]
    assert tuple(sum(p.numel() for p in module.parameters()) for module in modules) == PARAMETERS[name]


def test_hub_ids_and_short_names_are_known() -> None:
    ids = ["stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5", "SD-1.5"]
    assert {find_architecture(name).size for name in ids} == {512}
    assert find_architecture("runwayml/stable-diffusion-inpainting").unet["in_channels"] == 9
    assert find_architecture("stabilityai/stable-diffusion-2-1").size == 768
    assert find_architecture("lxj616/make-a-stable-diffusion-video-timelapse").group_norm == "joint"
    assert find_architecture("2022").group_norm == "joint"


def test_what_is_not_here_is_named_with_what_to_plan_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"somebody/something: not on this disk.*sd-1\.5"):
        find_architecture("somebody/something")
    with pytest.raises(UsageError, match="not on this disk"):
        find_architecture(str(tmp_path / "missing"))
    with pytest.raises(MsdvError, match="no unet"):
        find_architecture(str(tmp_path))


def test_folders_need_no_weights(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "tiny", tiny_pipeline(in_channels=9))
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    found = find_architecture(str(folder))
    assert found.unet["in_channels"] == 9
    assert found.size == 64


def test_a_single_file_and_the_builtin_tell_theirs(tmp_path: Path) -> None:
    file = save_single_file(tmp_path / "tiny.safetensors", tiny_pipeline(clip_vocabulary=True))
    assert tuple(find_architecture(str(file)).unet["block_out_channels"]) == tuple(
        tiny_unet().config.block_out_channels
    )
    builtin = find_architecture("builtin")
    assert builtin.size == 128 and builtin.steady == read_folder(BUILTIN).sampling.steady == 4


def test_the_2022_layout_is_known_by_its_configuration() -> None:
    folder = Path(__file__).parents[2] / "golden" / "2022" / "inpaint" / "pipeline"
    found = find_architecture(str(folder))
    assert found.group_norm == "joint"
    assert found.unet["down_block_types"][0] == "CrossAttnDownBlock2D"
