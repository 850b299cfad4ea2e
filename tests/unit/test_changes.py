from pathlib import Path

import pytest

from msdv.changes import NOT_OF_A_TRAINING, RULES, changes
from msdv.config import TrainConfig
from msdv.errors import UsageError

RUN = Path("runs/sky")


def test_every_setting_has_a_rule_with_a_reason() -> None:
    assert set(RULES) | set(NOT_OF_A_TRAINING) == set(TrainConfig.model_fields)
    assert not set(RULES) & set(NOT_OF_A_TRAINING)
    assert all(len(rule.why) > 20 for rule in RULES.values())


@pytest.mark.parametrize(
    "name", ["base", "data", "init", "frames", "size", "group_norm", "noise", "flip", "holdout", "seed", "ema"]
)
def test_what_would_lie_is_refused(name: str) -> None:
    with pytest.raises(
        UsageError, match=rf"--{name.replace('_', '-')} new: runs/sky was started with old: leave the option out, or"
    ) as caught:
        changes({name: "old"}, {name: "new"}, RUN)
    assert RULES[name].why in str(caught.value)
    assert changes({name: "old"}, {name: "old"}, RUN) == []


def test_all_that_is_refused_is_named() -> None:
    with pytest.raises(UsageError, match=r"--frames 9, --size 64: .* with 4, \(not given\): leave the options out"):
        changes({"frames": 4}, {"size": 64, "frames": 9, "steps": 3}, RUN)


def test_what_is_harmless_is_told() -> None:
    before = {"steps": 6, "lr": 0.01, "sample_prompt": ["sea"]}
    given = {"steps": 10, "lr": 0.01, "sample_prompt": ("sea", "sky"), "keep_checkpoints": 3, "resume": "runs/sky"}
    assert changes(before, given, RUN) == [
        "steps 6 -> 10",
        "keep_checkpoints 2 -> 3",
        "sample_prompt sea -> sea, sky",
    ]


def test_a_folder_may_have_been_moved(tmp_path: Path) -> None:
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.mkdir()
    assert changes({"data": str(gone)}, {"data": str(here)}, RUN) == []
    gone.mkdir()
    with pytest.raises(UsageError, match="was started with"):
        changes({"data": str(gone)}, {"data": str(here)}, RUN)
    with pytest.raises(UsageError, match="was started with builtin"):
        changes({"base": "builtin"}, {"base": str(here)}, RUN)
