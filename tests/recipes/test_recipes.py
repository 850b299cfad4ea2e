"""Every recipe that ships is one that the commands take, and the smallest really runs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from msdv.cli import COMMANDS, run
from msdv.config import CONFIGS
from msdv.options import resolve, settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parents[2] / "recipes"
# Settings of scripts that make the built-in image model: not of the commands.
OTHER = {RECIPES / "builtin" / "base.toml"}
FOUND = sorted(set(RECIPES.rglob("*.toml")) - OTHER)
SECTIONS = [
    pytest.param(path, section, id=f"{path.relative_to(RECIPES).as_posix()}-{section}")
    for path in FOUND
    for section in tomllib.loads(path.read_text(encoding="utf-8"))
]
SMOKE = RECIPES / "smoke.toml"


@pytest.mark.parametrize(("path", "section"), SECTIONS)
def test_every_section_resolves(path: Path, section: str) -> None:
    content = tomllib.loads(path.read_text(encoding="utf-8"))[section]
    model = CONFIGS[section]
    # What is required may be left to the command line.
    given: dict[str, Any] = {s.name: "x" for s in settings(model) if s.required and s.name not in content}
    config = resolve(section, model, given, path, COMMANDS[section].example)
    assert config.model_fields_set == {*content, *given}


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_every_recipe_is_listed(path: Path) -> None:
    assert path.name in (RECIPES / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(RECIPES.glob("timelapse-*gb.toml")), ids=lambda path: path.name)
@pytest.mark.parametrize("command", ["train", "sample"])
def test_the_planner_confirms_what_names_a_card(path: Path, command: str, capsys: Any) -> None:
    """Neither weights nor network nor card: only configurations."""
    assert run([command, "--config", str(path), "--plan", "--json"]) == 0, capsys.readouterr().err
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["peak_bytes"] <= int(path.stem.removeprefix("timelapse-").removesuffix("gb")) * 2**30


def test_smoke_runs_from_videos_to_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from msdv.data.synthetic import main as write_videos
    from msdv.weights import read_metadata

    monkeypatch.chdir(tmp_path)
    write_videos(["smoke/videos", "--count", "2", "--seconds", "6"])
    shorter = {
        "prep": ["--workers", "1"],
        "train": ["--steps", "2", "--sample-every", "0"],
        "sample": ["--frames", "3", "--steps", "2"],
        "export": [],
    }
    for command, options in shorter.items():
        assert run([command, "--config", str(SMOKE), *options]) == 0, capsys.readouterr().err
    smoke = tmp_path / "smoke"
    assert len(list(smoke.glob("frames/*.mp4/*.jpg"))) == 2 * 10
    rows = (smoke / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum('"loss"' in row for row in rows) == 2
    assert (smoke / "out.gif").read_bytes()[:6] == b"GIF89a"
    assert read_metadata(smoke / "motion.safetensors") == read_metadata(smoke / "run" / "temporal.safetensors")
