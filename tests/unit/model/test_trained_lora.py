"""A LoRA trained beside the temporal layers: right under every saving, and in a file the same."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from msdv.errors import UsageError
from msdv.model.inflate import VideoUNet
from msdv.model.job import Job
from msdv.model.lora import Choice, Lora, merge
from msdv.model.memory import Rehearsal
from msdv.model.savings import Savings
from msdv.model.trained_lora import add_lora, save_kohya, save_lora
from msdv.weights import TemporalMetadata
from tests.tiny import tiny_unet
from tests.unit.model.test_memory import architecture
from tests.unit.model.test_savings import EXACT, check, inputs, trained_model

ARCHS = ["pseudo3d", "motion-module"]
SAVINGS = [
    Savings(checkpoint="full"),
    Savings(checkpoint="full", host_checkpoints=True),
    Savings(chunk_frames=2),
    Savings(checkpoint="full", chunk_frames=2),
    Savings(checkpoint="full", host_checkpoints=True, chunk_frames=2),
    Savings(checkpoint="full", host_checkpoints=True, chunk_frames=2, stream_weights=True),
]


def model_with_lora(**shape: object) -> VideoUNet:
    """Of rank 4, trained: neither half of a pair is zero."""
    model = trained_model(**shape)  # type: ignore[arg-type]
    add_lora(model, 4)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.lora_parameters().values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def step(model: VideoUNet, *arguments: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of all that is trained."""
    parameters = model.trained_parameters()
    for parameter in parameters.values():
        parameter.grad = None
    out = model(*arguments)
    out.float().square().mean().backward()
    results = {"output": out.detach()}
    for key, parameter in parameters.items():
        assert parameter.grad is not None, key
        results[key] = parameter.grad
    return results


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("text_of_frames", [False, True])
def test_gradients_are_right_under_every_saving(arch: str, text_of_frames: bool) -> None:
    model = model_with_lora(arch=arch)
    arguments = inputs(model, text_of_frames)
    expected = step(model, *arguments)
    assert all(expected[key].abs().max() > 0 for key in model.lora_parameters())
    for savings in SAVINGS:
        model.save_memory(savings)
        check(step(model, *arguments), expected, EXACT)
    model.save_memory(Savings())
    check(step(model, *arguments), expected, EXACT)


def test_a_gradient_is_how_the_loss_changes() -> None:
    model = model_with_lora().double()
    arguments = inputs(model)
    model.save_memory(Savings(checkpoint="full", chunk_frames=2))
    gradients = step(model, *arguments)
    generator = torch.Generator().manual_seed(7)
    for key in list(model.lora_parameters())[::5]:
        parameter = model.lora_parameters()[key]
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        losses = []
        with torch.no_grad():
            for sign in (1, -2):
                parameter.add_(sign * 1e-5 * direction)
                losses.append(model(*arguments).square().mean().item())
            parameter.add_(1e-5 * direction)
        expected = (gradients[key] * direction).sum().item()
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(expected, rel=1e-4, abs=1e-9), key


@pytest.mark.parametrize("arch", ARCHS)
def test_untrained_it_changes_nothing_and_frozen_weights_stay(arch: str) -> None:
    model = trained_model(arch=arch)  # type: ignore[arg-type]
    arguments = inputs(model)
    expected = step(model, *arguments)
    with model.temporal_layers_off(), torch.no_grad():
        off = model(*arguments)
    before = {key: tensor.clone() for key, tensor in model.unet.state_dict().items()}
    add_lora(model, 4)
    got = step(model, *arguments)
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert model.lora_parameters().keys() == {
        f"{key.removesuffix('.weight')}.lora_{half}.weight"
        for key in before
        if any(part in key for part in (".attn1.to_", ".attn2.to_"))
        and key.endswith(".weight")
        and "motion_modules" not in key
        for half in "AB"
    }
    after = model.unet.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    with torch.no_grad():
        for parameter in model.lora_parameters().values():
            parameter.add_(0.3)
    with model.temporal_layers_off(), torch.no_grad():
        assert torch.equal(model(*arguments), off)


def metadata() -> TemporalMetadata:
    return TemporalMetadata(
        group_norm="frame",
        base="tiny",
        unet_hash="",
        frames=5,
        size=64,
        fps=5.0,
        prediction_type="epsilon",
        scheduler={},
        noise="independent",
        steps=3,
    )


@pytest.mark.parametrize("kind", ["ours", "kohya"])
def test_merged_from_its_file_the_model_gives_what_it_gave_in_training(kind: str, tmp_path: Path) -> None:
    model = model_with_lora()
    arguments = inputs(model)
    with torch.no_grad():
        for parameter in model.lora_parameters().values():
            parameter.copy_(parameter.half().float())  # as in the file
        expected = model(*arguments)
    path = tmp_path / "lora.safetensors"
    save_lora(path, model.lora_parameters(), metadata())
    if kind == "kohya":
        save_kohya(tmp_path / "look.safetensors", load_file(path), metadata())
        path = tmp_path / "look.safetensors"
        name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
        tensors = load_file(path)
        assert tensors[f"{name}.alpha"] == 4
        assert tensors[f"{name}.lora_down.weight"].shape == (4, 32)
        assert tensors[f"{name}.lora_up.weight"].shape == (32, 4)
    else:
        assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight" in load_file(path)
    lora = Lora(Choice(path, 1.0))
    assert not lora.others
    unet = tiny_unet()
    lines = merge([lora], "tiny", unet, None, torch.float32)
    assert lines == [f"LoRA {path.name}, weight 1: {len(model.lora_parameters()) // 2} layers"]
    plain = trained_model()
    merged = unet.state_dict()
    with torch.no_grad():
        for key, parameter in plain.unet.named_parameters():
            if (spatial := key.replace(".spatial_conv.", ".")) in merged:
                parameter.copy_(merged[spatial])
        error = (plain(*arguments) - expected).abs().max()
        assert error < 1e-4 * expected.abs().max()
        assert (trained_model()(*arguments) - expected).abs().max() > 10 * error


def test_a_rank_as_large_as_the_layers_is_refused() -> None:
    model = trained_model()
    with pytest.raises(UsageError, match="--lora-rank 32: this image model has attention layers 32 wide"):
        add_lora(model, 32)


def test_it_is_the_same_for_a_seed_and_another_for_another() -> None:
    models = [copy.deepcopy(trained_model()) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        add_lora(model, 4, seed)
    key = next(key for key in models[0].lora_parameters() if ".lora_A." in key)
    first, same, other = (model.lora_parameters()[key] for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_its_memory_is_foreseen() -> None:
    job = Job(architecture(), frames=4, height=64, width=64, card=False)
    peaks = {}
    for rank in (0, 8):
        found = Rehearsal(Job(**{**vars(job), "lora_rank": rank})).train(Savings(checkpoint="full")).device
        peaks[rank] = found
    model = trained_model(mode="frame")
    add_lora(model, 8)
    size = sum(p.numel() * 4 for p in model.lora_parameters().values())
    assert peaks[8].parts["LoRA weights"] == size
    assert "LoRA weights" not in peaks[0].parts or peaks[0].parts["LoRA weights"] == 0
    # Weights, gradients and what the optimizer has of each: a master, a gradient, two moments.
    assert peaks[8].size - peaks[0].size >= 5 * size
