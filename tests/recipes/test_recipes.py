"""Every recipe that ships is one that the commands take, and the smallest really runs."""

import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from msdv.cli import COMMANDS, parser, run
from msdv.config import CONFIGS
from msdv.options import fill_bare_options, resolve, settings

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
PLANNED = [section for section in SECTIONS if section.values[1] in ("train", "sample")]


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


def test_every_recipe_says_how_it_is_used() -> None:
    """Comments name the commands, which are understood and take the recipe that they stand in."""
    for path in FOUND:
        comments = re.sub(r"\\\n#\s*", "", path.read_text(encoding="utf-8"))
        lines = re.findall(r"^#\s{2,}msdv (.+)$", comments, re.MULTILINE)
        for line in lines:
            words = fill_bare_options(shlex.split(line))
            assert parser(words[0]).main(words, prog_name="msdv", standalone_mode=False).name == words[0]
            assert (RECIPES.parent / words[words.index("--config") + 1]) == path
        assert lines or path.parent != RECIPES, path.name


def plan(path: Path, section: str, capsys: Any) -> Any:
    """What `--plan --json` prints; of sample, as if the training of the recipe had ended."""
    from safetensors.torch import save_file

    from msdv.weights import TemporalMetadata

    recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    trained = recipe.get("train", {})
    if section == "sample" and "model" in recipe["sample"]:
        weights = Path(recipe["sample"]["model"]) / "temporal.safetensors"
        weights.parent.mkdir(parents=True)
        arch, size = trained.get("arch", "pseudo3d"), trained.get("size", 128)
        metadata = TemporalMetadata(
            arch=arch,
            group_norm=trained.get("group_norm", "joint" if arch == "motion-module" else "frame"),
            base=trained["base"],
            unet_hash="",
            frames=trained["frames"],
            size=size,
            fps=5.0,
            prediction_type="epsilon",
            scheduler={},
            noise=trained.get("noise", "independent"),
            condition=trained.get("condition", "none"),
            steps=trained["steps"],
        )
        save_file({}, weights, metadata.to_header())
    code = run([section, "--config", str(path), "--plan", "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


@pytest.mark.parametrize(("path", "section"), PLANNED)
def test_every_recipe_is_planned(
    path: Path, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """All that is looked at before the first byte of memory is counted: options together, sizes, kinds of layers."""
    monkeypatch.chdir(tmp_path)
    jobs = []

    def report(what: str, planner: Any, settings: dict[str, Any]) -> Any:
        jobs.append(planner.job)
        return SimpleNamespace(json=lambda: json.dumps(settings))

    monkeypatch.setattr("msdv.planning._report", report)
    recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    said = plan(path, section, capsys)
    trained = section == "train" or "model" in recipe["sample"]
    assert said["arch"] == (recipe["train"].get("arch", "pseudo3d") if trained else "pseudo3d")
    assert jobs[0].frames <= recipe[section].get("frames", 25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "section"),
    [p for p in PLANNED if "vram" in tomllib.loads(p.values[0].read_text(encoding="utf-8"))[p.values[1]]],
)
def test_the_planner_confirms_what_names_a_card(
    path: Path, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Neither weights nor network nor card: only configurations."""
    monkeypatch.chdir(tmp_path)
    said = plan(path, section, capsys)
    assert said["fits"] is True
    vram = tomllib.loads(path.read_text(encoding="utf-8"))[section]["vram"]
    assert said["peak_bytes"] <= vram * 2**30


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
