from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from msdv.errors import MsdvError, UsageError
from msdv.weights import Motion, TemporalMetadata, load_temporal, read_metadata, save_temporal

METADATA = TemporalMetadata(
    group_norm="frame",
    base="owner/model",
    unet_hash="ab" * 32,
    frames=25,
    size=512,
    fps=5.0,
    prediction_type="epsilon",
    scheduler={"beta_start": 0.00085, "beta_schedule": "scaled_linear"},
    noise="flow",
    motion=Motion(field=(((0.01, 0.0), (0.008, -0.001)), ((0.0, 0.0), (0.0, 0.0))), left=0.3, share=0.9, gain=1.39),
    shared_noise=0.5,
    steps=1000,
)
STATE = {"conv_in.temporal_conv.weight": torch.randn(4, 4, 3), "conv_in.temporal_conv.bias": torch.zeros(4)}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_temporal(tmp_path / "t.safetensors", STATE, METADATA)
    state, metadata = load_temporal(tmp_path / "t.safetensors")
    assert metadata == METADATA
    assert state.keys() == STATE.keys()
    for key, value in state.items():
        assert torch.equal(value, STATE[key].half())


def test_motion_of_older_files_is_read(tmp_path: Path) -> None:
    """They say how fast the rows of a picture went sideways."""
    path = tmp_path / "t.safetensors"
    header = METADATA.to_header()
    save_file(STATE, path, metadata={**header, "motion": '{"profile": [1.0, 0.5, 0.0], "speed": 0.01, "share": 1.0}'})
    motion = read_metadata(path).motion
    assert motion == Motion(field=(((0.01, 0.0),), ((0.005, 0.0),), ((0.0, 0.0),)), left=0.5, share=1.0)
    assert motion is not None and motion.gain == 1


@pytest.mark.parametrize(
    "motion",
    [
        '{"profile": [1.0, 0.5], "share": 1.0}',
        '{"profile": "fast", "speed": 0.01, "share": 1.0}',
        '{"profile": [1.0], "speed": "fast", "share": 1.0}',
        '{"profile": [], "speed": 0.01, "share": 1.0}',
        '{"field": [[[0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], "share": 1.0}',
        '{"field": [[[NaN, 0.0]]], "share": 1.0}',
        '{"field": [[]], "share": 1.0}',
        '{"field": [[[0.0, 0.0]]], "share": 1.0, "gain": 0.0}',
        "[1, 2]",
    ],
)
def test_motion_that_makes_no_sense_is_told(tmp_path: Path, motion: str) -> None:
    path = tmp_path / "t.safetensors"
    save_file(STATE, path, metadata={**METADATA.to_header(), "motion": motion})
    with pytest.raises(MsdvError, match="metadata that can't be read"):
        read_metadata(path)


def test_the_header_is_text_that_others_can_read(tmp_path: Path) -> None:
    save_temporal(tmp_path / "t.safetensors", STATE, METADATA)
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "msdv.temporal"
    assert (header["arch"], header["group_norm"], header["base"]) == ("pseudo3d", "frame", "owner/model")
    assert (header["frames"], header["size"], header["fps"], header["steps"]) == ("25", "512", "5.0", "1000")
    assert header["tool"].startswith("msdv ")


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    named = METADATA.model_copy(update={"base": 'C:\\models\\"Wolken über Köln"\n'})
    for number in range(5):
        save_temporal(tmp_path / f"{number}.safetensors", STATE, named)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    state, metadata = load_temporal(tmp_path / "0.safetensors")
    assert metadata == named
    assert torch.equal(state["conv_in.temporal_conv.weight"], STATE["conv_in.temporal_conv.weight"].half())


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_temporal(path, STATE, METADATA)
    before = path.read_bytes()
    with pytest.raises(MsdvError, match=r"conv_in.temporal_conv.bias is not finite: train with a lower --lr"):
        save_temporal(path, {**STATE, "conv_in.temporal_conv.bias": torch.tensor([1e6])}, METADATA)
    assert path.read_bytes() == before


def test_what_is_no_temporal_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(UsageError, match="does not exist: give a temporal"):
        read_metadata(path)
    path.write_text("text")
    with pytest.raises(MsdvError, match="is incomplete or damaged"):
        read_metadata(path)
    save_file(STATE, path)
    with pytest.raises(MsdvError, match=r"holds no temporal weights of msdv \(format: not given\)"):
        read_metadata(path)
    save_file(STATE, path, metadata={**METADATA.to_header(), "version": "99"})
    with pytest.raises(MsdvError, match="written by a newer msdv"):
        read_metadata(path)
    save_file(STATE, path, metadata={**METADATA.to_header(), "frames": "many"})
    with pytest.raises(MsdvError, match="metadata that can't be read"):
        read_metadata(path)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_temporal(path, STATE, METADATA)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(MsdvError):
        load_temporal(path)
