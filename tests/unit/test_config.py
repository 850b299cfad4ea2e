"""The config models: what they take, what they refuse, and that every field can be explained."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from msdv.config import CONFIGS, ExportConfig, PrepConfig, SampleConfig, TrainConfig
from msdv.config.motion import Auto, Drift, Zoom, motion_file, motion_terms
from msdv.options import GROUPS

EVERY_FIELD = [(command, name) for command, model in CONFIGS.items() for name in model.model_fields]


@pytest.mark.parametrize(("command", "name"), EVERY_FIELD)
def test_every_field_has_a_help_text_and_a_panel(command: str, name: str) -> None:
    field = CONFIGS[command].model_fields[name]
    assert field.description and field.description.rstrip().endswith(".")
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    assert extra["group"] in GROUPS or extra.get("argument")


def test_configs_are_frozen_and_refuse_unknown_keys() -> None:
    config = TrainConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra_forbidden"):
        TrainConfig(step=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("size", [16, 128, 4096])
def test_size_takes_multiples_of_8(size: int) -> None:
    assert SampleConfig(prompt="sky", out=Path("sky.gif"), size=size).size == size


@pytest.mark.parametrize(("size", "message"), [(100, "96 would do"), (8, "16"), (4104, "4096"), (-8, "16")])
def test_size_refuses_others(size: int, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrepConfig(videos=Path("videos"), frames=Path("frames"), size=size)


@pytest.mark.parametrize(
    "motion",
    [
        *("auto", "none", "left", "right", "left:1.5", "right:12", "up", "down:0.5", "30deg", "-45.5deg:2", "zoom"),
        *("zoom:-0.5", "left:1+zoom:0.5", "auto+zoom:1", "clip.mp4", "C:\\clips\\a.MOV", "frames/", "./left"),
    ],
)
def test_motion(motion: str) -> None:
    assert SampleConfig(prompt="sky", out=Path("sky.gif"), motion=motion).motion == motion


@pytest.mark.parametrize(
    "motion",
    [
        *("", "upwards", "left:", "left:-1", "left:1.", "auto:2", "LEFT", "left\n", "left:١", "left:1000", "left:1.5x"),
        *("none+left", "left+", "+", "zoom:100", "zoom:fast", "deg", "30deg:", "left:1 + up:1", "a\0/b.mp4"),
    ],
)
def test_motion_refuses_others(motion: str) -> None:
    with pytest.raises(ValidationError, match=r"left:1\.5"):
        SampleConfig(prompt="sky", out=Path("sky.gif"), motion=motion)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("none", []),
        ("left:1.5", [Drift(180, 1.5)]),
        ("up", [Drift(90, None)]),
        ("-30deg:2+zoom", [Drift(-30, 2.0), Zoom(1.0)]),
        ("auto+zoom:-0.5", [Auto(), Zoom(-0.5)]),
        ("a.mp4", None),
    ],
)
def test_what_motion_says(text: str, terms: list[object] | None) -> None:
    assert motion_terms(text) == terms
    assert motion_file(text) == (Path("a.mp4") if terms is None else None)


def test_one_half_precision_at_a_time() -> None:
    with pytest.raises(ValidationError, match="--fp16 and --bf16 exclude each other"):
        TrainConfig(fp16=True, bf16=True)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("field", ["max_grad_norm", "lr", "ema"])
def test_numbers_are_finite(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate({field: value})


def test_required_fields() -> None:
    required = {
        command: {name for name, field in model.model_fields.items() if field.is_required()}
        for command, model in CONFIGS.items()
    }
    assert required == {
        "prep": {"videos", "frames"},
        "train": set(),
        "sample": {"prompt", "out"},
        "export": {"source", "out"},
    }


def test_export_names_its_formats() -> None:
    with pytest.raises(ValidationError, match="'msdv', 'pipeline', 'motion-adapter', 'animatediff', '2022' or 'lora'"):
        ExportConfig(source="run", out=Path("out"), to="onnx")  # type: ignore[arg-type]
