"""Recipes: written and read back, from whatever editor."""

from pathlib import Path

import pytest

from msdv.config import CommandConfig, ExportConfig, PrepConfig, SampleConfig, TrainConfig
from msdv.recipe import read_section, suggest, to_toml


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 3\r\n")
    assert read_section(tmp_path / "recipe.toml", "train") == {"steps": 3}


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("prep", PrepConfig(videos=Path("videos"), frames=Path("a b") / "frames", fps=1e-5)),
        ("train", TrainConfig()),
        (
            "train",
            TrainConfig(
                lr=1e-7,
                fp16=True,
                data=Path("C:\\new\\frames"),
                sample_prompt=('a "b"\n', "\x7f 雲 \U0001f324", ""),
                size=64,
            ),
        ),
        ("sample", SampleConfig(prompt="clouds \\ 'timelapse'", out=Path("out.gif"), guidance=7.5)),
        ("export", ExportConfig(source="runs/x", out=Path("motion.safetensors"), to="msdv")),
    ],
)
def test_what_is_written_is_read_back(tmp_path: Path, command: str, config: CommandConfig) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(command, config), encoding="utf-8")
    assert type(config).model_validate(read_section(path, command)) == config


def test_suggest() -> None:
    assert suggest("stpes", ["steps", "seed"]) == ": did you mean steps?"
    assert suggest("zzz", ["steps", "seed"]) == ""
