import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from msdv.errors import MsdvError
from msdv.model.base import load_base
from msdv.model.single_file import read_single_file
from tests.tiny import original_state_dict, save_single_file, tiny_pipeline

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize(
    ("second", "in_channels", "blocks"), [(False, 4, 2), (False, 9, 4), (True, 4, 2), (True, 9, 2)]
)
def test_every_tensor_arrives(tmp_path: Path, suffix: str, second: bool, in_channels: int, blocks: int) -> None:
    pipeline = tiny_pipeline(sd2=second, in_channels=in_channels, blocks=blocks, clip_vocabulary=True)
    path = save_single_file(tmp_path / f"model{suffix}", pipeline)
    base = load_base(str(path), device=CPU, dtype=torch.float32)
    assert base.name == str(path.resolve())
    assert (base.in_channels, base.vae_scale_factor) == (in_channels, 8)
    assert base.prediction_type == ("v_prediction" if second else "epsilon")
    for ours, theirs in (
        (base.unet, pipeline.unet),
        (base.vae, pipeline.vae),
        (base.text_encoder, pipeline.text_encoder),
    ):
        assert ours is not None
        state = ours.state_dict()
        assert state.keys() == theirs.state_dict().keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in theirs.state_dict().items())


def test_it_computes_as_the_networks_that_it_was_made_from(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(clip_vocabulary=True)
    base = load_base(str(save_single_file(tmp_path / "a.safetensors", pipeline)), device=CPU, dtype=torch.float32)
    tokens = base.tokenizer("a photo of a cat", padding="max_length", return_tensors="pt").input_ids
    assert tokens[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    with torch.no_grad():
        expected = pipeline.text_encoder(tokens)[0]
    assert torch.equal(base.encode_prompts(["a photo of a cat"]), expected)


def test_text_encoder_names_without_text_model_are_known(tmp_path: Path) -> None:
    state = original_state_dict(tiny_pipeline(clip_vocabulary=True))
    merged = {key.replace("transformer.text_model.", "transformer."): tensor for key, tensor in state.items()}
    save_file(merged, tmp_path / "merge.safetensors")
    assert load_base(str(tmp_path / "merge.safetensors"), device=CPU, dtype=torch.float32).text_encoder is not None


@pytest.mark.parametrize(
    ("name", "metadata", "yaml", "expected"),
    [
        ("v2-1_768-ema-pruned", {}, None, "v_prediction"),
        ("v2-1_512-ema-pruned", {}, None, "epsilon"),
        ("512-inpainting-ema", {}, None, "epsilon"),
        ("anything", {}, None, "v_prediction"),
        ("anything", {"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        ("v2-1_512", {"modelspec.prediction_type": "v"}, None, "v_prediction"),
        ("v2-1_512", {}, 'model:\n  params:\n    parameterization: "v"\n', "v_prediction"),
        ("v2-1_768", {}, "model:\n  params:\n    parameterization: eps\n", "epsilon"),
    ],
)
def test_what_a_2x_predicts(
    tmp_path: Path, name: str, metadata: dict[str, str], yaml: str | None, expected: str
) -> None:
    pipeline = tiny_pipeline(sd2=True, clip_vocabulary=True)
    path = save_single_file(tmp_path / f"{name}.safetensors", pipeline, metadata=metadata or None)
    if yaml:
        path.with_suffix(".yaml").write_text(yaml)
    parts = read_single_file(path)
    assert parts.scheduler["prediction_type"] == expected
    guessed = not metadata and not yaml
    assert any("parameterization" in note for note in parts.notes) == guessed
    if guessed:
        assert parts.unet.config["sample_size"] == (96 if expected == "v_prediction" else 64)


def test_the_yaml_beside_a_file_tells_heads_and_size(tmp_path: Path) -> None:
    path = save_single_file(tmp_path / "a.safetensors", tiny_pipeline(sd2=True, clip_vocabulary=True))
    path.with_suffix(".yaml").write_text(
        "params:\n  image_size: 16\n  unet:\n    image_size: 32\n    num_head_channels: 16\n"
    )
    config = read_single_file(path).unet.config
    assert config["attention_head_dim"] == [2, 4]
    assert config["sample_size"] == 16


def test_metadata_tell_the_size(tmp_path: Path) -> None:
    path = save_single_file(tmp_path / "a.safetensors", metadata={"modelspec.resolution": "256x384"})
    assert read_single_file(path).unet.config["sample_size"] == 32


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["conditioner.embedders.0.transformer.x", "model.diffusion_model.input_blocks.0.0.weight"], "this is SDXL"),
        (["model.diffusion_model.joint_blocks.0.x"], "this is Stable Diffusion 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "this is Flux"),
        (["lora_unet_down_blocks_0.lora_up.weight"], "this is a LoRA"),
        (
            ["unet.down_blocks.0.attn1.to_q.lora_A.weight", "unet.down_blocks.0.attn1.to_q.lora_B.weight"],
            "this is a LoRA",
        ),
        (["encoder.down.0.block.0.conv1.weight"], "autoencoder"),
        (["first_stage_model.encoder.conv_in.weight"], "autoencoder"),
        (["conv_in.temporal_conv.weight"], "--model"),
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "AnimateDiff"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "UNet alone"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "text encoder alone"),
        (["emb_params"], "textual inversion"),
        (["model.diffusion_model.out.2.weight"], "no autoencoder"),
        (["model.diffusion_model.out.2.weight", "first_stage_model.x"], "no text encoder"),
        (["something.else"], "no Stable Diffusion"),
        ([], "no tensors"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, keys: list[str], message: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({key: torch.ones(2, 2) for key in keys}, path)
    with pytest.raises(MsdvError, match=message) as caught:
        read_single_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("channels", "message"), [(8, "InstructPix2Pix"), (5, "depth"), (7, "upscaler"), (12, "12 input")]
)
def test_unets_that_take_something_else_are_refused(tmp_path: Path, channels: int, message: str) -> None:
    path = save_single_file(tmp_path / "a.safetensors", tiny_pipeline(in_channels=channels, clip_vocabulary=True))
    with pytest.raises(MsdvError, match=message):
        read_single_file(path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = original_state_dict(tiny_pipeline(clip_vocabulary=True))
    del state["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    with pytest.raises(MsdvError, match=r"a\.safetensors lacks the tensor mid_block\.resnets\.0\.conv1\.weight"):
        load_base(str(path), device=CPU, dtype=torch.float32)


def test_a_vocabulary_that_is_not_clips_is_refused(tmp_path: Path) -> None:
    path = save_single_file(tmp_path / "a.safetensors", tiny_pipeline(clip_vocabulary=False))
    with pytest.raises(MsdvError, match="520 tokens"):
        read_single_file(path)
