"""At the real sizes (without memory) and, against diffusers' own converter, at a tiny one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from msdv.errors import MsdvError
from msdv.model.original_names import read_clip, read_open_clip, read_unet, read_vae, split_projections
from tests.tiny import TinyPipeline as Pipeline
from tests.tiny import original_state_dict, save_folder, save_single_file, tiny_pipeline

SD1_UNET = {
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
}
SD2_UNET = {
    "cross_attention_dim": 1024,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SD_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VIT_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def real_size(*, second: bool, in_channels: int = 4) -> Pipeline:
    with init_empty_weights(include_buffers=False), torch.device("meta"):
        text = CLIPTextConfig(
            vocab_size=49408, hidden_act="gelu" if second else "quick_gelu", **(VIT_H if second else CLIP_L)
        )
        return Pipeline(
            unet=UNet2DConditionModel(in_channels=in_channels, **(SD2_UNET if second else SD1_UNET)),
            vae=AutoencoderKL(**SD_VAE),
            text_encoder=CLIPTextModel(text),
            scheduler={},
            clip_vocabulary=True,
        )


def below(state: dict[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): tuple(t.shape) for key, t in state.items() if key.startswith(prefix)}


def build(kind: type, config: dict[str, Any]) -> nn.Module:
    with init_empty_weights(include_buffers=False):
        return kind(CLIPTextConfig(**config)) if kind is CLIPTextModel else kind(**config)


@pytest.mark.parametrize(
    ("second", "in_channels", "parameters"),
    [(False, 4, 859_520_964), (False, 9, 859_535_364), (True, 4, 865_910_724), (True, 9, 865_925_124)],
)
def test_the_real_unets_are_recognised(second: bool, in_channels: int, parameters: int) -> None:
    pipeline = real_size(second=second, in_channels=in_channels)
    layout = read_unet(below(original_state_dict(pipeline), "model.diffusion_model."))
    unet = build(UNet2DConditionModel, layout.config)
    assert count(unet) == parameters
    assert {k: tuple(t.shape) for k, t in unet.state_dict().items()} == below(pipeline.unet.state_dict(), "")
    assert set(layout.names.values()) == set(unet.state_dict())
    assert layout.assumed == ()
    heads = layout.config["attention_head_dim"]
    assert heads == ([5, 10, 20, 20] if second else 8)
    assert layout.config["norm_num_groups"] == 32


@pytest.mark.parametrize(("second", "parameters", "layers"), [(False, 123_060_480, 12), (True, 340_387_840, 23)])
def test_the_real_text_encoders_and_autoencoder_are_recognised(second: bool, parameters: int, layers: int) -> None:
    pipeline = real_size(second=second)
    state = original_state_dict(pipeline)
    vae = read_vae(below(state, "first_stage_model."))
    assert count(build(AutoencoderKL, vae.config)) == 83_653_863
    assert vae.config["norm_num_groups"] == 32 and vae.assumed == ()
    prefix = "cond_stage_model.model." if second else "cond_stage_model.transformer."
    text = (read_open_clip if second else read_clip)(below(state, prefix))
    assert count(build(CLIPTextModel, text.config)) == parameters
    assert text.config["num_hidden_layers"] == layers
    assert text.config["num_attention_heads"] == (16 if second else 12)
    assert text.config["hidden_act"] == ("gelu" if second else "quick_gelu")


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("blocks", [2, 4])
def test_names_agree_with_diffusers_converter(tmp_path: Path, second: bool, blocks: int) -> None:
    """diffusers' converter, told the configuration, finds the tensors under the names that are read here."""
    pipeline = tiny_pipeline(sd2=second, blocks=blocks, clip_vocabulary=True)
    folder, file = save_folder(tmp_path / "folder", pipeline), save_single_file(tmp_path / "a.safetensors", pipeline)
    state = original_state_dict(pipeline)
    for kind, part, prefix, read in (
        (UNet2DConditionModel, "unet", "model.diffusion_model.", read_unet),
        (AutoencoderKL, "vae", "first_stage_model.", read_vae),
    ):
        theirs = kind.from_single_file(str(file), config=str(folder), subfolder=part).state_dict()
        names = read(below(state, prefix)).names
        ours = {new: state[prefix + old] for old, new in names.items()}
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key].flatten(), theirs[key].flatten()) for key in theirs)


def test_openclips_joint_projections_are_cut(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(sd2=True, clip_vocabulary=True)
    state = original_state_dict(pipeline)
    names = read_open_clip(below(state, "cond_stage_model.model.")).names
    tensors = split_projections({new: state[f"cond_stage_model.model.{old}"] for old, new in names.items()})
    expected = {key.removeprefix("text_model."): t for key, t in pipeline.text_encoder.state_dict().items()}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_openclip_files_without_the_unused_layer_keep_all_of_theirs() -> None:
    shapes = below(original_state_dict(tiny_pipeline(sd2=True, clip_vocabulary=True)), "cond_stage_model.model.")
    assert read_open_clip(shapes).config["num_hidden_layers"] == 2
    converted = {k: s for k, s in shapes.items() if k not in ("text_projection", "logit_scale")}
    assert read_open_clip(converted).config["num_hidden_layers"] == 3


def test_missing_tensors_are_named() -> None:
    shapes = below(original_state_dict(tiny_pipeline(clip_vocabulary=True)), "model.diffusion_model.")
    for key in ("input_blocks.0.0.weight", "out.2.weight", "middle_block.1.proj_in.weight"):
        with pytest.raises(MsdvError, match=f"lacks the tensor {key}"):
            read_unet({name: shape for name, shape in shapes.items() if name != key})
    with pytest.raises(MsdvError, match="lacks"):
        read_vae({"decoder.conv_in.weight": (4, 4, 3, 3)})
    with pytest.raises(MsdvError, match="lacks"):
        read_clip({})


def test_heads_come_from_whoever_knows_them() -> None:
    shapes = below(original_state_dict(tiny_pipeline(sd2=True)), "model.diffusion_model.")
    assert read_unet(shapes, heads=4).config["attention_head_dim"] == 4
    assert read_unet(shapes, head_channels=16).config["attention_head_dim"] == [2, 4]
    assert "attention heads" in " ".join(read_unet(shapes).assumed)
