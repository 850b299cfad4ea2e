"""The judge of the built-in model: what it measures by is right on clips of which the truth is known."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdv.data.synthetic import Sky, ground_mask, render

HERE = Path(__file__).parents[2] / "recipes" / "builtin"
TIMES = {"day": "puffy", "sunset": "wispy", "night": "scattered", "overcast": "overcast"}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of recipes/builtin/ by name, as they import each other."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module


def clip(time: str, seconds: float = 12) -> tuple[Sky, np.ndarray]:
    sky = Sky(time, TIMES[time], "mountains", "left", "mid", 4)
    return sky, render(sky, round(5 * seconds), fps=5)


@pytest.mark.parametrize("time", TIMES)
def test_the_skyline_is_found_and_stays_where_it_is(scripts: Any, time: str) -> None:
    skyline = scripts("skyline")
    sky, frames = clip(time)
    edge = ground_mask(sky).argmax(0)
    assert np.abs(skyline.find_skyline(frames.mean(0)) - edge).mean() < 1.5
    assert skyline.skyline_shift(frames) < 1
    sinking = np.stack([np.roll(frame, 4 * i // len(frames), 0) for i, frame in enumerate(frames)])
    assert 2 < skyline.skyline_shift(sinking) < 5


def test_real_clips_have_every_speed_and_both_winds_as_often_as_the_training_clips(scripts: Any) -> None:
    skies = scripts("clips").real_skies(4, 7, "night")
    assert sorted(sky.speed for sky in skies) == ["fast", "mid", "mid", "slow"]
    assert sorted(sky.wind for sky in skies) == ["left", "left", "right", "right"]
    assert {sky.time for sky in skies} == {"night"}
    assert skies == scripts("clips").real_skies(4, 7, "night")


def test_the_table_compares_models_and_counts_what_was_missed(scripts: Any) -> None:
    judge = scripts("judge")
    one = judge.Judged("one", [judge.Row("ground by sky", "below 0.1", 0.05, 0.03, 0.06, good=True)])
    two = judge.Judged("two", [judge.Row("ground by sky", "below 0.1", 0.2, good=False), judge.Row("speed", "", 1.5)])
    table = judge.make_table([one, two]).splitlines()
    assert table[2] == "| ground by sky | below 0.1 | 0.03 |  | 0.06 | 0.05 ✓ | 0.2 ✗ |"
    assert table[3] == "| speed |  |  |  |  |  | 1.5 |"
    assert table[-2:] == ["one: 0 targets missed", "two: 1 targets missed"]


@pytest.mark.slow
def test_it_judges_what_ships(scripts: Any, tmp_path: Path) -> None:
    """Few frames, few steps: every part runs, and what must hold even so holds."""
    judge, clips = scripts("judge"), scripts("clips")
    amount = judge.Amount(seeds=1, tries=2, longs=1, loss_clips=1, short=9, long=12, pictures=6)
    *_, judged = judge.Judge(clips.Model("builtin", None, 4, None), tmp_path, tmp_path / "work", 1, amount).run()
    rows = {row.what: row for row in judged.rows}
    named = next(row for what, row in rows.items() if what.startswith("sky named rightly"))
    assert named.real == named.coded == 1  # the classifier knows real clips, through the autoencoder too
    assert rows["--motion obeyed"].found == "2 of 2"
    assert rows["temporal parameters, millions"].found > 1
    assert {"skies.png", "long.png", "steered.png", "worded.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "| architecture |" in judge.make_table([judged])
