import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from msdv.errors import MsdvError, UsageError
from msdv.model import base as base_module
from msdv.model.base import Base, choose_base, hash_unet, load_base
from tests.tiny import save_folder, save_single_file, tiny_pipeline, tiny_unet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(str(folder), device=CPU, dtype=torch.float32)


def test_what_is_known_about_a_base(base: Base, folder: Path) -> None:
    assert base.name == str(folder.resolve())
    assert (base.in_channels, base.prediction_type) == (4, "epsilon")
    assert (base.vae_scale_factor, base.sample_size) == (8, 64)
    assert (base.sampling.scheduler, base.sampling.steps, base.sampling.guidance) == ("dpmpp-2m", 25, 7.5)
    assert base.temporal is None and base.group_norm is None and base.notes == []


def test_networks_are_frozen_and_in_eval_mode(base: Base) -> None:
    for network in (base.unet, base.vae, base.text_encoder):
        assert network is not None and not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_only_the_parts_asked_for_are_loaded(folder: Path) -> None:
    base = load_base(str(folder), device=CPU, dtype=torch.float32, parts=["vae"])
    assert base.unet is None and base.text_encoder is None and base.vae is not None
    with pytest.raises(RuntimeError, match="isn't loaded"):
        base.encode_prompts(["sky"])
    base.unload("vae")
    with pytest.raises(RuntimeError, match="isn't loaded"):
        base.decode_latents(torch.zeros(1, 4, 8, 8))


def test_half_precision_is_what_is_stored(folder: Path) -> None:
    base = load_base(str(folder), device=CPU, dtype=torch.bfloat16)
    for network in (base.unet, base.vae, base.text_encoder):
        assert network is not None
        assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert base.encode_prompts(["sky"]).dtype == torch.bfloat16
    assert base.encode_frames(torch.zeros(1, 3, 64, 64)).dtype == torch.bfloat16


def test_prompts_are_encoded_as_diffusers_does(base: Base) -> None:
    assert base.text_encoder is not None
    tokens = base.tokenizer(["sky", ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = base.text_encoder(tokens)[0]
    both = base.encode_prompts(["sky", ""])
    assert both.shape == (2, 77, 32)
    assert torch.allclose(both, expected, atol=1e-6)
    assert torch.equal(base.encode_prompts([""]), both[1:])


def test_a_long_prompt_is_cut_and_the_note_says_what_is_lost(base: Base) -> None:
    long = "cloud " * 80 + "sky"
    first = base.encode_prompts([long])
    base.encode_prompts([long])
    assert first.shape == (1, 77, 32)
    pieces = len(base.tokenizer("cloud").input_ids) - 2  # the tiny tokenizer has no whole words
    seen = 75 // pieces
    assert base.notes == [
        f'"cloud cloud cloud cloud cloud ..." has {len(base.tokenizer(long).input_ids) - 2} tokens, and the model sees '
        f'75: from word {seen + 1} on, "cloud", nothing is seen'
    ]
    base.encode_prompts(["cloud " * 75])
    assert len(base.notes) == 1


def test_latents_are_the_mode_times_the_scaling_factor(base: Base) -> None:
    assert base.vae is not None
    frames = torch.rand(11, 3, 64, 32) * 2 - 1
    latents = base.encode_frames(frames)
    with torch.no_grad():
        expected = base.vae.encode(frames).latent_dist.mean * 0.18215
    assert latents.shape == (11, 4, 8, 4)
    assert torch.allclose(latents, expected, atol=1e-5)


def test_decoding_in_passes_gives_what_one_pass_gives(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base.vae is not None
    latents = torch.randn(5, 4, 8, 4)
    with torch.no_grad():
        pictures = base.vae.decode(latents / 0.18215).sample
    expected = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    monkeypatch.setattr(base_module, "PASS_PIXELS", 2 * 64 * 32)
    frames = base.decode_latents(latents)
    assert frames.shape == (5, 64, 32, 3) and frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - expected).max() <= 1
    assert torch.allclose(base.decode(latents), pictures, atol=1e-5)


@pytest.mark.parametrize("passes", [Base.decode_passes, Base.picture_passes])
def test_a_pass_that_is_handed_out_is_not_kept_on_the_device(
    base: Base, monkeypatch: pytest.MonkeyPatch, passes: Callable[[Base, torch.Tensor], Iterator[object]]
) -> None:
    decode, made = Base.decode, []

    def watched(self: Base, latents: torch.Tensor) -> torch.Tensor:
        pictures = decode(self, latents)
        made.append(weakref.ref(pictures))
        return pictures

    monkeypatch.setattr(Base, "decode", watched)
    running = passes(base, torch.randn(20, 4, 2, 2))
    assert next(running) is not None
    assert [pictures() for pictures in made] == [None]


@pytest.mark.parametrize(("side", "frames"), [(128, 8), (256, 8), (512, 2), (1024, 1)])
def test_large_pictures_are_decoded_fewer_at_a_time(side: int, frames: int) -> None:
    assert base_module._frames_a_pass(side, side) == frames


def test_an_autoencoder_that_overflows_goes_on_in_float32(folder: Path) -> None:
    base = load_base(str(folder), device=CPU, dtype=torch.float16, parts=["vae"])
    assert base.vae is not None
    with torch.no_grad():
        base.vae.decoder.conv_in.weight.mul_(0).add_(200.0)
        base.vae.post_quant_conv.weight.fill_(200.0)
    frames = base.decode_latents(torch.ones(1, 4, 8, 8))
    assert frames.shape == (1, 64, 64, 3)
    assert base.vae.dtype == torch.float32
    assert base.notes == ["the autoencoder overflows in half precision: it decodes in float32"]


def test_numbers_that_are_none_are_not_shown(base: Base) -> None:
    assert base.vae is not None
    with pytest.raises(MsdvError, match="latents are not a number"):
        base.decode_latents(torch.full((1, 4, 8, 8), torch.nan))
    with torch.no_grad():
        base.vae.decoder.conv_in.bias.fill_(torch.inf)
    with pytest.raises(MsdvError, match="picture is not a number"):
        base.decode_latents(torch.zeros(1, 4, 8, 8))


def test_one_model_has_one_hash_in_any_precision(tmp_path: Path, folder: Path) -> None:
    half = save_folder(tmp_path / "half", variant="fp16")
    hashes = {
        load_base(str(path), device=CPU, dtype=dtype, parts=["unet"]).unet_hash
        for path in (folder, half)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    assert len(hashes) == 1


def test_another_model_has_another_hash() -> None:
    unet = tiny_unet()
    before = hash_unet(unet.config, unet.state_dict())
    assert hash_unet(dict(unet.config) | {"sample_size": 99}, unet.state_dict()) == before
    assert hash_unet(dict(unet.config) | {"attention_head_dim": [8, 8]}, unet.state_dict()) == before
    assert hash_unet(dict(unet.config) | {"attention_head_dim": 4}, unet.state_dict()) != before
    with torch.no_grad():
        unet.conv_out.bias[0] += 0.1
    assert hash_unet(unet.config, unet.state_dict()) != before


def test_a_single_file_of_usual_widths_has_the_hash_of_its_folder(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(clip_vocabulary=True)
    pipeline.unet.register_to_config(norm_num_groups=32)
    folder, file = save_folder(tmp_path / "a", pipeline), save_single_file(tmp_path / "a.safetensors", pipeline)
    first, second = (load_base(str(p), device=CPU, dtype=torch.float32, parts=["unet"]) for p in (folder, file))
    assert first.unet_hash == second.unet_hash


def test_not_given_it_depends_on_the_device_and_says_so() -> None:
    assert choose_base("x", CPU) == ("x", None)
    name, note = choose_base(None, CPU)
    assert name == "builtin" and note is not None and "builtin" in note
    name, note = choose_base(None, torch.device("cuda"))
    assert name == "stable-diffusion-v1-5/stable-diffusion-v1-5" and note is not None and "CUDA" in note


@pytest.mark.parametrize(
    "name",
    [
        "./nothing",
        "/nothing/here",
        "nothing",
        "a/b/c",
        "models/x.safetensors",
        "~/nothing/x",
        "C:\\models\\x",
        "x.ckpt",
        " ",
    ],
)
def test_paths_that_do_not_exist_are_wrong_usage(name: str) -> None:
    with pytest.raises(UsageError, match="--base"):
        load_base(name, device=CPU, dtype=torch.float32)


def test_files_that_can_not_be_a_model_are_wrong_usage(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"\.png is no image model"):
        load_base(str(tmp_path / "cat.png"), device=CPU, dtype=torch.float32)
    with pytest.raises(UsageError, match="give the folder"):
        load_base(str(folder / "model_index.json"), device=CPU, dtype=torch.float32)


def test_without_the_builtin_the_message_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(base_module, "BUILTIN", tmp_path)
    with pytest.raises(MsdvError, match="install msdv again"):
        load_base("builtin", device=CPU, dtype=torch.float32)


def test_the_builtin_is_sampled_in_few_steps_unless_it_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(base_module, "BUILTIN", save_folder(tmp_path))
    base = load_base("builtin", device=CPU, dtype=torch.float32, parts=[])
    assert base.name == "builtin" and base.sampling.steps == 15
    (tmp_path / "sampling.json").write_text('{"scheduler": "euler", "steps": 7, "guidance": 2}')
    assert load_base("builtin", device=CPU, dtype=torch.float32, parts=[]).sampling.steps == 7


def test_loading_prints_nothing(folder: Path) -> None:
    program = (
        "import sys, torch; from msdv.model.base import load_base; "
        "base = load_base(sys.argv[1], device=torch.device('cpu'), dtype=torch.bfloat16); "
        "base.encode_prompts(['a ' * 200])"
    )
    result = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
