from html.parser import HTMLParser
from pathlib import Path

import pytest

from msdv.config import TrainConfig
from msdv.report import write_report
from msdv.run import Run


class Reader(HTMLParser):
    """Collects pictures and text, and fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str | None] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("steps", [0, 1, 3, 2000])
def test_the_page_is_whole_at_every_length(tmp_path: Path, steps: int) -> None:
    run = Run(tmp_path / "run <1>")
    (run.folder / "samples").mkdir(parents=True)
    for step in range(1, steps + 1):
        run.log(step=step, loss=1 / step, lr=1e-4)
    if steps > 1:
        held = {"on": 0.5, "off": 1.0, "noise": "flow", "clips": 2, "levels": 4, "gain": 0.5}
        run.log(step=steps, held_out=held)
        run.sample(steps).write_bytes(b"")
    write_report(run, TrainConfig(steps=4000))
    page = run.report.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert f"{steps} of 4000 steps" in reader.text
    assert "msdv run run <1>" in reader.text
    assert "nan" not in page
    if steps > 1:
        assert reader.images == [f"samples/step-{steps:06d}.gif"]
        assert "50.0%" in reader.text
        assert page.count("<polyline") == 2
    else:
        assert "Not enough steps yet" in reader.text
        assert "No clips were held out" in reader.text


def test_steps_that_overflowed_leave_a_gap(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step, loss in enumerate((0.5, None, 0.4), start=1):
        run.log(step=step, loss=loss)
    write_report(run, TrainConfig())
    assert "<polyline" in run.report.read_text(encoding="utf-8")
