"""The bench of a step runs, at a size that tells nothing about time."""

import pytest

from tests.bench import step


@pytest.mark.slow
def test_the_bench_of_a_step_has_a_row_a_contender(capsys: pytest.CaptureFixture[str]) -> None:
    step.main(["--rounds", "1", "--width", "32", "--latents", "8", "--frames", "2"])
    _, *lines = capsys.readouterr().out.splitlines()
    rows = ["ours", "ours, layers off", "image model", "2022", "motion model"]
    assert [line.split("  ")[1] for line in lines if line.startswith("  ")] == 2 * rows
    # Each kind of step compares ours with itself, and counts operations of all.
    assert sum(line.endswith("1.000 1.000") for line in lines) == 2
    assert all(float(line[20:].split()[1]) > 0 for line in lines if line.startswith("  "))
