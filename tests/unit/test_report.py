import base64
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


def held_out(on: float) -> dict[str, object]:
    return {"on": on, "off": 1.0, "noise": "flow", "clips": 2, "levels": 4, "gain": 1 - on}


@pytest.mark.parametrize("steps", [0, 1, 3, 2000])
def test_the_page_is_whole_at_every_length(tmp_path: Path, steps: int) -> None:
    run = Run(tmp_path / "run <1>")
    (run.folder / "samples").mkdir(parents=True)
    for step in range(1, steps + 1):
        run.log(step=step, loss=1 / step, lr=1e-4, seconds=0.5, memory_gib=2.5)
    if steps > 1:
        run.log(step=1, held_out=held_out(0.9))
        run.log(step=steps, held_out=held_out(0.5))
        run.sample(steps).write_bytes(b"GIF89a picture")
    write_report(run, TrainConfig(steps=4000))
    page = run.report.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert f"{steps} of 4000 steps" in reader.text
    assert "msdv run run <1>" in reader.text
    assert "nan" not in page
    assert "http" not in page
    if steps > 1:
        assert reader.images == ["data:image/gif;base64," + base64.b64encode(b"GIF89a picture").decode()]
        assert "50.0%" in reader.text
        assert page.count("<polyline") == 7  # loss and its mean, held out on and off, rate, seconds, memory
        assert "0.5 seconds a step" in reader.text
        assert "2.5 GiB at most" in reader.text
    else:
        assert "Not enough steps yet" in reader.text
        assert "nothing was held out" in reader.text


def test_samples_are_spread_over_time_and_large_ones_stay_outside(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "samples").mkdir()
    for step in range(1, 41):
        run.sample(step).write_bytes(b"GIF" + bytes(30 * 2**20 if step == 40 else 10))
    write_report(run, TrainConfig())
    reader = Reader()
    reader.feed(run.report.read_text(encoding="utf-8"))
    assert len(reader.images) == 12
    assert reader.images[0] == "samples/step-000040.gif"
    assert all(str(source).startswith("data:image/gif;base64,") for source in reader.images[1:])
    assert reader.text.index("step-000040") < reader.text.index("step-000022") < reader.text.index("step-000001")


def test_steps_that_overflowed_leave_a_gap_and_are_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step, loss in enumerate((0.5, None, 0.4), start=1):
        run.log(step=step, loss=loss)
    write_report(run, TrainConfig())
    page = run.report.read_text(encoding="utf-8")
    assert "<polyline" in page
    assert "1 without a finite loss" in page


def motion(flow: float) -> dict[str, object]:
    numbers = {"frames": 25, "flow": flow / 2, "flow_moving": flow, "flicker": 0.5}
    return {
        "verdict": f"moves <{flow}>",
        "numbers": numbers,
        "clips": {"frames": 90, "flow_moving": 0.81, "seams": 1.0},
    }


def test_motion_stands_beside_that_of_the_clips(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.log(step=10, motion=motion(0.1))
    write_report(run, TrainConfig())
    assert run.report.read_text(encoding="utf-8").count("<polyline") == 0
    run.log(step=20, motion=motion(0.7))
    write_report(run, TrainConfig())
    page = run.report.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert page.count("<polyline") == 2
    assert "Step 20: moves <0.7>" in reader.text
    assert "<td>where the clips move</td><td>0.7</td><td>0.81</td>" in page
    assert "<td>flicker of areas</td><td>0.5</td><td></td>" in page
    assert "borders of windows" not in page


def test_motion_without_clips_to_compare_with(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    for step in (1, 2):
        run.log(step=step, motion={"verdict": "static", "numbers": {"frames": 4, "flow": 0.0}})
    write_report(run, TrainConfig())
    page = run.report.read_text(encoding="utf-8")
    assert page.count("<polyline") == 1
    assert "<td>moves, pixels a frame</td><td>0</td><td></td>" in page
