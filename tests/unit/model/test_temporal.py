import copy
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from msdv.errors import MsdvError, UsageError
from msdv.model.base import load_base
from msdv.model.temporal import build_video_unet, module_hash, noise_schedule
from msdv.weights import LINEAR, TemporalMetadata, load_temporal, read_metadata, save_temporal
from tests.tiny import tiny_vae


def metadata(unet_hash: str, **changes: object) -> TemporalMetadata:
    values = {
        "group_norm": "joint",
        "base": "the right one",
        "unet_hash": unet_hash,
        "frames": 4,
        "size": 32,
        "fps": 5.0,
        "prediction_type": "epsilon",
        "scheduler": {},
        "noise": "independent",
        "steps": 1,
        **changes,
    }
    return TemporalMetadata.model_validate(values)


def test_weights_are_put_into_the_model_that_they_belong_to(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base), device=torch.device("cpu"), dtype=torch.float32)
    assert base.unet_hash is not None
    model, none = build_video_unet(base, None, group_norm="joint", seed=1)
    assert none is None
    state = {k: p.detach() + 0.5 for k, p in model.temporal_parameters().items()}
    file = tmp_path / "t.safetensors"
    save_temporal(file, state, metadata(base.unet_hash))
    again = load_base(str(tiny_base), device=torch.device("cpu"), dtype=torch.float32)
    loaded, found = build_video_unet(again, file)
    assert found is not None
    assert loaded.group_norm == "joint"
    for key, value in loaded.temporal_parameters().items():
        assert torch.equal(value, state[key].half().float())


def test_another_group_norm_than_the_weights_were_made_with_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base), device=torch.device("cpu"), dtype=torch.float32)
    assert base.unet_hash is not None
    save_temporal(tmp_path / "t.safetensors", {"a": torch.zeros(1)}, metadata(base.unet_hash))
    with pytest.raises(UsageError, match=r"--group-norm frame: .* were made with joint: leave the option out"):
        build_video_unet(base, tmp_path / "t.safetensors", group_norm="frame")


def test_weights_of_another_base_name_both(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base), device=torch.device("cpu"), dtype=torch.float32)
    save_temporal(tmp_path / "t.safetensors", {"a": torch.zeros(1)}, metadata("0" * 64))
    with pytest.raises(MsdvError, match=rf"trained on the right one \(0+\), not on {tiny_base} .*--base the right one"):
        build_video_unet(base, tmp_path / "t.safetensors")


def test_untrained_layers_follow_from_the_seed(tiny_base: Path) -> None:
    def build(seed: int) -> dict[str, torch.Tensor]:
        base = load_base(str(tiny_base), device=torch.device("cpu"), dtype=torch.float32)
        return {k: p.detach() for k, p in build_video_unet(base, None, seed=seed)[0].temporal_parameters().items()}

    one, same, other = build(1), build(1), build(2)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_module_hash_sees_weights_precision_and_no_parts_that_do_not_count() -> None:
    vae = tiny_vae()
    changed, half = copy.deepcopy(vae), copy.deepcopy(vae).half()
    with torch.no_grad():
        next(changed.decoder.parameters()).add_(1)
    assert module_hash(vae) == module_hash(copy.deepcopy(vae))
    assert len({module_hash(vae), module_hash(changed), module_hash(half)}) == 3
    encoder = ("encoder.", "quant_conv.")
    assert module_hash(vae, encoder) == module_hash(changed, encoder) != module_hash(half, encoder)


def test_weights_that_are_not_finite_are_named(tiny_base: Path, flow_run: Path, tmp_path: Path) -> None:
    state, metadata = load_temporal(flow_run / "temporal.safetensors")
    key = next(iter(state))
    state[key].view(-1)[0] = float("nan")
    file = tmp_path / "broken.safetensors"
    save_file(state, file, metadata=metadata.to_header())
    base = load_base(str(tiny_base), device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(MsdvError, match=rf"broken.safetensors can't be used: {re.escape(key)} is not finite"):
        build_video_unet(base, file)


def test_layers_for_any_base_leave_it_its_own_prediction(tiny_base: Path, flow_run: Path) -> None:
    base = load_base(str(tiny_base), device=torch.device("cpu"), dtype=torch.float32, parts=("unet",))
    metadata = read_metadata(flow_run / "temporal.safetensors")
    other = {**LINEAR, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    anywhere = metadata.model_copy(update={"unet_hash": "", "prediction_type": "v_prediction", "scheduler": other})
    schedule = noise_schedule(base, anywhere)
    assert schedule["prediction_type"] == base.prediction_type == "epsilon"
    assert not schedule.get("rescale_betas_zero_snr")
    assert schedule["beta_schedule"] == "linear"
