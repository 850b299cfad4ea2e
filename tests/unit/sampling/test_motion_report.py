"""`msdv sample --report`."""

import json
from pathlib import Path

import numpy as np
import pytest

from msdv.cli import run as cli
from msdv.config import SampleConfig
from msdv.data.moving import make_reference, measure
from msdv.data.synthetic import Sky, render
from msdv.data.video import read_metadata, read_video
from msdv.model.keyframes import Passes
from msdv.model.windows import Length
from msdv.sample import sample
from msdv.sampling.moving import MotionReport, Watch, borders_of
from msdv.weights import read_metadata as read_weights

SKY = Sky("day", "puffy", "hills", "right", "mid", 3)


def settings(run: Path, out: Path, **changes: object) -> SampleConfig:
    values = {"prompt": "sea", "out": out, "model": str(run), "frames": 5, "steps": 2, "device": "cpu", **changes}
    return SampleConfig.model_validate(values)


@pytest.mark.parametrize("name", ["a.png", "a.safetensors", "a"])
def test_the_frames_are_measured_as_they_are(flow_run: Path, tmp_path: Path, name: str) -> None:
    report = sample(settings(flow_run, tmp_path / name, report=True)).motion
    sample(settings(flow_run, tmp_path / "plain", report=False))
    reference = read_weights(flow_run / "temporal.safetensors").reference
    assert report is not None and reference is not None
    frames, _ = read_video(tmp_path / "plain")
    assert report.videos[0].numbers == measure(frames, reference.regions)
    assert report.reference == reference


def test_a_report_changes_nothing_in_the_file(flow_run: Path, tmp_path: Path) -> None:
    sample(settings(flow_run, tmp_path / "a.gif", report=True))
    sample(settings(flow_run, tmp_path / "b.gif"))
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    assert "report" not in read_metadata(tmp_path / "a.gif")


def test_the_table_stands_on_stdout(flow_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(flow_run), "--frames", "5", "--steps", "2", "--report", "-o", str(tmp_path / "a.gif")]
    assert cli(["sample", "sea", *options]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("5 frames in ")
    assert out[1].split() == ["motion", "this", "video", "training", "clips"]
    assert any(line.startswith("moves, pixels a frame") for line in out)
    assert out[-1].split()[0] in ("static", "flickers", "frames", "moves")


def test_json_is_alone_on_stdout(flow_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(flow_run), "--frames", "4", "--steps", "1", "-o", str(tmp_path / "a.gif")]
    assert cli(["sample", "sea", *options, "--report", "--json", "--seeds", "1,2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [video["name"] for video in found["videos"]] == ["seed 1", "seed 2"]
    assert found["videos"][0]["numbers"]["frames"] == 4
    assert found["clips"]["flow"] >= 0
    assert 0 <= found["likeness"] <= 1


def test_several_files_have_a_line_each(flow_run: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("sea\nsky\n")
    config = settings(flow_run, tmp_path / "a.gif", prompt="", prompts=prompts, report=True)
    lines = sample(config).lines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["a-001.gif", "a-002.gif"]
    assert "mean of 2 videos" in lines[1]
    assert sample(config).lines()[-1] == "no video was measured"


def test_only_new_frames_are_measured(flow_run: Path, tmp_path: Path) -> None:
    sample(settings(flow_run, tmp_path / "first.png"))
    config = settings(flow_run, tmp_path / "b.png", continue_from=tmp_path / "first.png", frames=3, report=True)
    report = sample(config)
    assert report.motion is not None
    assert report.before == 5
    assert report.motion.videos[0].numbers.frames == 3


def test_what_cannot_be_measured_ends_no_video(
    flow_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no room\nfor flow")

    monkeypatch.setattr("msdv.data.moving.optical_flow", fails)
    report = sample(settings(flow_run, tmp_path / "a.gif", report=True))
    assert len(read_video(tmp_path / "a.gif")[0]) == 5
    assert capfd.readouterr().err.count("--report: the motion can't be measured: no room") == 1
    assert "a.gif" in report.lines()[0]


def test_without_numbers_of_the_clips_it_says_so() -> None:
    watch = Watch(1)
    for _ in watch.frames(0, render(SKY, 4)):
        pass
    report = MotionReport(None)
    report.add(watch, ["a.gif"])
    lines = report.lines()
    assert "training clips" in lines[0] and "not known" in lines[1]
    assert lines[-1].startswith("moves (") and "no numbers of training clips" in lines[-1]


def test_floats_are_measured_as_the_bytes_they_stand_for() -> None:
    frames = render(SKY, 4)
    watch = Watch(1)
    passed = np.concatenate(list(watch.parts(0, [frames[:2] / np.float32(255), frames[2:] / np.float32(255)])))
    assert np.array_equal((passed * 255).round(), frames)
    assert watch.meters[0].numbers() == measure(frames)


def test_likeness_leaves_out_what_the_clips_share() -> None:
    reference = make_reference([render(SKY, 4), render(Sky("day", "thick", "sea", "left", "mid", 9), 4)])
    watch = Watch(2)
    for index, seed in enumerate((11, 12)):
        for _ in watch.frames(index, render(Sky("day", "puffy", "hills", "right", "mid", seed), 4)):
            pass
    report = MotionReport(reference)
    report.add(watch, ["seed 1", "seed 2"])
    assert report.alike[0] < 0.5


def test_borders_are_where_windows_meet() -> None:
    assert borders_of(Length(), None, 30) == set()
    assert borders_of(Length(window=16, overlap=5), None, 16) == set()
    windows = Length(window=16, overlap=5)
    starts = [start for start in windows.starts(40, 0) if start]
    assert borders_of(windows, None, 40) == {start + 3 for start in starts}
    assert borders_of(windows, None, 40, lead=2) == {start + 1 for start in starts}
    assert 0 in borders_of(Length(overlap=8, loop=True), None, 20)
    passes = Passes.needed(60, 4, 17)
    borders = borders_of(Length(), passes, 60)
    assert borders and all(frame % passes.every in (0, 1) and frame < 60 for frame in borders)
