import os
from pathlib import Path

import pytest

from msdv.errors import MsdvError, UsageError
from msdv.run import Run, new_run, newest_run_with_weights, run_to_resume, weights_in


def make_run(folder: Path, *, age: int = 0, weights: bool = False, steps: tuple[int, ...] = ()) -> Run:
    run = Run(folder)
    folder.mkdir(parents=True)
    run.config.write_text("[train]\n")
    os.utime(run.config, (1_000_000 - age, 1_000_000 - age))
    if weights:
        run.weights.write_bytes(b"")
    for step in steps:
        run.checkpoint(step).mkdir(parents=True)
    return run


def test_the_newest_run_with_weights_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert newest_run_with_weights() is None
    make_run(Path("runs/b"), age=2, weights=True)
    make_run(Path("runs/a"), age=1, weights=True)
    make_run(Path("runs/c"), age=0)
    (tmp_path / "runs" / "stray file").write_text("")
    run = newest_run_with_weights()
    assert run is not None
    assert run.folder == Path("runs/a")


def test_what_resume_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no run under runs/: start one"):
        run_to_resume("newest")
    make_run(Path("runs/old"), age=9, steps=(5, 10))
    make_run(Path("runs/new"))
    assert run_to_resume("newest").folder == Path("runs/new")
    assert run_to_resume("runs/old").checkpoints()[-1][0] == 10
    with pytest.raises(UsageError, match="runs/none is not a run folder"):
        run_to_resume("runs/none")


def test_what_model_means(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", weights=True)
    assert weights_in(str(run.folder)) == run.weights == weights_in(str(run.weights))
    with pytest.raises(UsageError, match="does not exist: give a run folder"):
        weights_in(str(tmp_path / "none"))
    empty = make_run(tmp_path / "b")
    with pytest.raises(MsdvError, match=r"has no temporal.safetensors yet: train on, or give another run") as error:
        weights_in(str(empty.folder))
    assert error.value.exit_code == 1


def test_checkpoints_are_kept_by_age(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=(5, 10, 20))
    (tmp_path / "a" / "checkpoints" / ".unfinished-1").mkdir()
    run.drop_old_checkpoints(2)
    assert [step for step, _ in run.checkpoints()] == [10, 20]
    assert len(list((tmp_path / "a" / "checkpoints").iterdir())) == 2


def test_the_log_survives_a_half_written_row_and_forgets_what_is_done_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for step in (1, 2, 3):
        run.log(step=step, loss=step / 2)
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.read_log()] == [1, 2, 3]
    run.forget_after(2)
    assert [row["step"] for row in run.read_log()] == [1, 2]


def test_new_runs_are_named_after_time_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260101-120000")
    first = new_run(None, Path("skies"))
    assert first.folder == Path("runs/20260101-120000-skies")
    first.folder.mkdir(parents=True)
    assert new_run(None, Path("skies")).folder == Path("runs/20260101-120000-skies-2")
    assert new_run(Path("x"), Path("skies")).folder == Path("x")
