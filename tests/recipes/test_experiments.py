"""The rows of docs/experiments.md: commands that msdv takes, and scripts that change what they say they change."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from msdv.cli import parser, run
from msdv.model.chunks import memory_format
from msdv.model.frozen import convolve, norm_silu, upsample
from msdv.model.layers import TemporalAttention
from msdv.options import fill_bare_options

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "experiments"


def load(name: str) -> ModuleType:
    """One of the scripts, as a module."""
    spec = importlib.util.spec_from_file_location(f"experiments_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ROWS: dict[str, Any] = load("rows").ROWS
WHOLE = [slice(0, 6)]


def after_script(command: list[str]) -> list[str]:
    """The options of a command that begins with msdv, or with python and a script in its place."""
    if command[0] == "msdv":
        return command[1:]
    assert (ROOT / command[1]).is_file()
    return command[2:]


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_planned(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(ROOT)
    command = after_script(ROWS[name].train(seed=0))
    assert run([*command, "--plan", "--json"]) == 0, capsys.readouterr().err
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is not False
    assert plan["peak_bytes"] > 2**20


@pytest.mark.parametrize("name", ROWS)
def test_every_command_is_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    row = ROWS[name]
    for seed in row.seeds:
        jobs = []
        for command in map(after_script, row.commands(seed)):
            jobs.append(parser(command[0]).main(fill_bare_options(command), standalone_mode=False))
        train, *others = (job.config for job in jobs)
        assert (train.seed, train.out, train.init, train.noise) == (seed, row.folder(seed), "none", "independent")
        assert train.holdout == 0, "clips held out are in a folder of their own"
        measured = [config for config in others if hasattr(config, "evaluate")]
        assert [(config.data.name, config.frames) for config in measured] == list(row.measured_of(seed))
        assert row.measured[0] == ("held-out", 25), "what all rows are compared by"
        assert all(config.evaluate and str(row.folder(seed)) in f"{config.init} {config.base}" for config in measured)
        samples = [config for config in others if config not in measured]
        assert [config.frames for config in samples] == list(row.lengths_of(seed))
        assert all(config.prompts.is_file() for config in samples)


def test_the_page_names_rows_that_exist() -> None:
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE)
    assert named
    assert set(named) <= set(ROWS)
    assert set(re.findall(r"recipes/experiments/run\.py ([a-z][a-z0-9-]*)", page)) <= set(ROWS)


def test_positions_tell_frames_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TemporalAttention, "forward", TemporalAttention.forward)  # put back at the end
    torch.manual_seed(0)
    layer = TemporalAttention(16, 2)
    nn.init.normal_(layer.to_out[0].weight)
    x = torch.randn(1, 3, 16).repeat(5, 1, 1)  # five frames alike
    with torch.no_grad():
        assert torch.allclose(layer(x, 5)[0], layer(x, 5)[4], atol=1e-6)
        positions = load("positions")
        positions.add_positions()
        assert not torch.allclose(layer(x, 5)[0], layer(x, 5)[4], atol=1e-2)
    table = positions.sines(120, 16)
    assert table.shape == (120, 16)
    assert torch.equal(table[:25], positions.sines(25, 16)), "a frame's code must not depend on the number of frames"
    assert torch.cdist(table, table).fill_diagonal_(9).min() > 0.1


def test_unfrozen_layers_compute_the_same_and_have_gradients() -> None:
    unfrozen = load("unfrozen")
    torch.manual_seed(0)
    norm, conv = nn.GroupNorm(4, 16), nn.Conv2d(16, 8, 3, padding=1)
    shortcut = nn.Conv2d(16, 8, 1)
    parts = [torch.randn(6, 8, 5, 7).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2)]
    frozen = [
        norm_silu(parts, norm, conv, WHOLE, None),
        convolve(parts, shortcut, WHOLE),
        upsample(torch.cat(parts, 1), [10, 14], conv, WHOLE),
    ]
    trained = [
        unfrozen.norm_silu(parts, norm, conv, WHOLE, None),
        unfrozen.convolve(parts, shortcut, WHOLE),
        unfrozen.upsample(torch.cat(parts, 1), [10, 14], conv, WHOLE),
    ]
    layers = [*norm.parameters(), *conv.parameters(), *shortcut.parameters()]
    for one, other in zip(frozen, trained, strict=True):
        torch.testing.assert_close(other, one)
        assert memory_format(other) == torch.channels_last
        of_frozen = torch.autograd.grad(one.square().sum(), parts)
        of_trained = torch.autograd.grad(other.square().sum(), parts, retain_graph=True)
        torch.testing.assert_close(of_trained, of_frozen)
    gradients = torch.autograd.grad(sum(y.square().sum() for y in trained), layers)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_half_has_the_range_and_the_steps_of_float16() -> None:
    half = load("half")
    x = torch.tensor([1.0, 1.0004, 1e-8, 7e4], requires_grad=True)
    with half.InHalf():
        y = x * 1
        rows = y.view(2, 2)
        rows.neg_()  # writes through the view
        total = (y * 2e4).sum()
    assert y.tolist() == [-1.0, -1.0, 0.0, -float("inf")]
    assert total.item() == -float("inf")
    with half.InHalf():
        (gradient,) = torch.autograd.grad((x * 1e-9).sum(), x)
    assert gradient.tolist() == [0.0] * 4, "gradients that are too small are lost"
    with half.InHalf():
        (gradient,) = torch.autograd.grad((x * 1e-9).sum() * 2.0**16, x)
    assert gradient.abs().min() > 0, "scaled, they are not"
