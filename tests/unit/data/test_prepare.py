"""prep as people run it: whole runs in temporary folders, with real worker processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from msdv.config import PrepConfig
from msdv.data import prepare as prepare_module
from msdv.data.contact_sheet import write_contact_sheet
from msdv.data.manifest import RECORD
from msdv.data.pool import Pool
from msdv.data.prepare import PrepReport, prepare
from msdv.errors import MsdvError, UsageError
from tests.unit.data.video_fixtures import numbered, read_numbers, write_clip, write_sound

SOURCE = str(Path(__file__).parents[3])


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return tmp_path / "videos"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    return tmp_path / "frames"


def prep(videos: Path, frames: Path, **options: Any) -> PrepReport:
    defaults = {"fps": 5, "size": 64, "trim_start": 0, "trim_end": 0, "workers": 2}
    return prepare(PrepConfig(videos=videos, frames=frames, **{**defaults, **options}))


def manifest(frames: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in (frames / "manifest.jsonl").read_text().splitlines()]
    assert len({row["clip"] for row in rows}) == len(rows)
    return {row["clip"]: row for row in rows}


def made(frames: Path) -> dict[str, list[int]]:
    return {folder.name: read_numbers(folder) for folder in sorted(frames.iterdir()) if folder.is_dir()}


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jpg")}


def test_a_folder_of_videos(videos: Path, frames: Path) -> None:
    write_clip(videos / "clouds 01.mp4", 100)
    write_clip(videos / "deep" / "er" / "雲.mkv", 60, rate=30)
    (videos / "clouds 01.txt").write_text("white clouds")
    (videos / "README.md").touch()
    (videos / ".hidden.mp4").touch()
    (videos / "Thumbs.db").touch()
    report = prep(videos, frames, trim_start=1, trim_end=1)
    assert made(frames) == {"clouds 01.mp4": list(range(25, 75, 5))}
    rows = manifest(frames)
    assert set(rows) == {"clouds 01.mp4", "雲.mkv"}
    row = rows["clouds 01.mp4"]
    source = videos / "clouds 01.mp4"
    assert {key: row[key] for key in ("fps", "frames", "width", "height", "start", "end", "caption", "verdict")} == {
        "fps": 5.0,
        "frames": 10,
        "width": 64,
        "height": 64,
        "start": 1.0,
        "end": 3.0,
        "caption": "white clouds",
        "verdict": "ok",
    }
    assert (row["source"], row["size"]) == (source.resolve().as_posix(), source.stat().st_size)
    assert row["mtime"] == pytest.approx(source.stat().st_mtime, abs=0.001)
    assert rows["雲.mkv"]["verdict"].startswith(
        "failed: 2.0 s long, nothing left after --trim-start 1 and --trim-end 1"
    )
    assert (report.made, report.skipped, report.failed, report.frames) == (1, 0, 1, 10)
    assert report.lines()[0] == f"1 clip, 10 frames in {frames} (1 failed: see {frames / 'manifest.jsonl'})"
    assert f"msdv train --data {frames}" in report.lines()[-1]
    names = sorted(path.name for path in (frames / "clouds 01.mp4").iterdir())
    assert names == [RECORD, *(f"{i:06d}.jpg" for i in range(1, 11))]


def test_files_are_ordinary_jpegs(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 10)
    prep(videos, frames, size=128)
    with Image.open(frames / "a.mp4" / "000001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))
        assert image.info["jfif"]
        assert max(image.quantization[0]) <= 21  # type: ignore[attr-defined]
    if os.name == "posix":
        assert (frames / "a.mp4").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_one_video(videos: Path, frames: Path) -> None:
    path = write_clip(videos / "a.mp4", 25)
    write_clip(videos / "b.mp4", 25)
    assert prep(path, frames).made == 1
    assert list(made(frames)) == ["a.mp4"]


def test_slow_sources_give_no_frame_twice(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 8, rate=2)
    prep(videos, frames)
    assert made(frames)["a.mp4"] == list(range(8))
    assert manifest(frames)["a.mp4"]["fps"] == 2


def test_script_selection_is_numbered_like_the_script(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 250)
    prep(videos, frames, trim_start=2, trim_end=2, select="script")
    names = sorted(path.name for path in (frames / "a.mp4").glob("*.jpg"))
    assert names == [f"{i:06d}.jpg" for i in range(2, 31)]


def test_second_run_makes_only_what_is_missing(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    assert prep(videos, frames).made == 1
    before = stamps(frames / "a.mp4")
    write_clip(videos / "b.mp4", 25)
    report = prep(videos, frames)
    assert (report.made, report.skipped, report.frames) == (1, 1, 10)
    assert "1 made before" in report.lines()[0]
    assert stamps(frames / "a.mp4") == before
    assert set(manifest(frames)) == {"a.mp4", "b.mp4"}
    assert prep(videos, frames).made == 0


def test_frames_that_a_power_cut_emptied_are_made_anew(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    prep(videos, frames)
    (frames / "a.mp4" / "000002.jpg").write_bytes(b"")
    assert prep(videos, frames).made == 1
    assert made(frames) == {"a.mp4": [0, 5, 10, 15, 20]}


def test_a_changed_video_is_made_anew(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    prep(videos, frames)
    write_clip(videos / "a.mp4", 50, picture=lambda i: numbered(100 + i))
    assert prep(videos, frames).made == 1
    assert made(frames)["a.mp4"] == list(range(100, 150, 5))
    assert manifest(frames)["a.mp4"]["frames"] == 10


def test_a_video_that_broke_since_keeps_its_frames(videos: Path, frames: Path) -> None:
    path = write_clip(videos / "a.mp4", 25)
    prep(videos, frames)
    path.write_bytes(b"broken")
    write_clip(videos / "b.mp4", 25)
    assert prep(videos, frames).failed == 1
    assert made(frames)["a.mp4"] == [0, 5, 10, 15, 20]
    row = manifest(frames)["a.mp4"]
    assert row["verdict"] == "failed: not a video, or broken beyond reading (frames made from it before are kept)"
    assert (row["frames"], row["fps"]) == (5, 5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("fps", 8), ("size", 32), ("trim_start", 0.2), ("trim_end", 0.2), ("select", "script")],
)
def test_other_settings_are_refused_by_name(videos: Path, frames: Path, option: str, value: Any) -> None:
    write_clip(videos / "a.mp4", 25)
    prep(videos, frames)
    before = stamps(frames / "a.mp4")
    with pytest.raises(UsageError, match=rf"a\.mp4 was made with --{option.replace('_', '-')} .*--overwrite"):
        prep(videos, frames, **{option: value})
    assert stamps(frames / "a.mp4") == before
    assert "fps = 5.0" in (frames / "prep.toml").read_text()


def test_overwrite_makes_anew(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    prep(videos, frames)
    assert prep(videos, frames, fps=25, overwrite=True).made == 1
    assert made(frames)["a.mp4"] == list(range(25))


def test_a_new_caption_needs_no_new_frames(videos: Path, frames: Path) -> None:
    write_clip(videos / "a storm.mp4", 25)
    prep(videos, frames)
    before = stamps(frames / "a storm.mp4")
    assert manifest(frames)["a storm.mp4"]["caption"] == "a storm"
    (videos / "a storm.txt").write_text("lightning")
    prep(videos, frames)
    assert manifest(frames)["a storm.mp4"]["caption"] == "lightning"
    prep(videos, frames, caption="")
    assert manifest(frames)["a storm.mp4"]["caption"] == ""
    assert stamps(frames / "a storm.mp4") == before


def test_two_videos_of_one_name(videos: Path, frames: Path) -> None:
    for number, folder in enumerate(("", "a", "b")):
        write_clip(videos / folder / "x.mp4", 5, picture=lambda i, n=number: numbered(100 * n + i))
    write_clip(videos / "b" / "x.mkv", 5)
    prep(videos, frames)
    assert made(frames) == {
        "x.mp4": [0],
        "a__x.mp4": [100],
        "b__x.mp4": [200],
        "x.mkv": [0],
    }
    assert prep(videos, frames).skipped == 4


def test_two_folders_of_videos_into_one(videos: Path, frames: Path, tmp_path: Path) -> None:
    write_clip(videos / "x.mp4", 5)
    write_clip(tmp_path / "more" / "x.mp4", 5, picture=lambda i: numbered(100 + i))
    prep(videos, frames)
    prep(tmp_path / "more", frames)
    assert made(frames) == {"x.mp4": [0], "more__x.mp4": [100]}
    assert set(manifest(frames)) == {"x.mp4", "more__x.mp4"}


def test_videos_that_moved_are_known(videos: Path, frames: Path, tmp_path: Path) -> None:
    write_clip(videos / "x.mp4", 5)
    prep(videos, frames)
    videos.rename(tmp_path / "elsewhere")
    assert prep(tmp_path / "elsewhere", frames).skipped == 1
    assert manifest(frames)["x.mp4"]["source"] == (tmp_path / "elsewhere" / "x.mp4").resolve().as_posix()


def test_folders_of_the_2022_script_stay(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    (frames / "a.mp4").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(frames / "a.mp4" / "000002.jpg")
    report = prep(videos, frames)
    assert (report.made, report.skipped, report.frames) == (0, 1, 1)
    assert manifest(frames)["a.mp4"]["verdict"].startswith("skipped")
    assert len(list((frames / "a.mp4").iterdir())) == 1
    prep(videos, frames, overwrite=True)
    assert made(frames)["a.mp4"] == [0, 5, 10, 15, 20]


def test_a_folder_of_other_things_in_the_way(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    write_clip(videos / "b.mp4", 25)
    (frames / "a.mp4").mkdir(parents=True)
    (frames / "a.mp4" / "thesis.tex").touch()
    assert prep(videos, frames, overwrite=True).failed == 1
    assert (frames / "a.mp4" / "thesis.tex").exists()


def test_bad_files_get_a_verdict_and_the_others_go_on(
    videos: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_clip(videos / "good.mp4", 25).read_bytes()
    (videos / "text.mp4").write_text("not a video " * 50)
    (videos / "empty.mp4").touch()
    (videos / "no-moov.mp4").write_bytes(whole[: whole.index(b"moov") - 4])
    write_sound(videos / "sound.m4a")
    write_sound(videos / "song.mp3", cover=True)
    (videos / "odd\nname.mp4").write_text("not a video either")
    failing = {"text.mp4", "empty.mp4", "no-moov.mp4", "sound.m4a", "song.mp3", "odd\nname.mp4"}
    if os.name == "posix":
        (videos / "dangling.mp4").symlink_to("nowhere.mp4")
        (videos / "loop.mp4").symlink_to("loop.mp4")
        (videos / "again").symlink_to(videos)
        os.mkfifo(videos / "pipe.mp4")
        failing |= {"dangling.mp4", "loop.mp4", "pipe.mp4"}
    report = prep(videos, frames)
    rows = manifest(frames)
    assert set(rows) == failing | {"good.mp4"}
    assert rows["good.mp4"]["verdict"] == "ok"
    for name in failing:
        assert rows[name]["verdict"].startswith("failed: ")
        assert rows[name]["frames"] == 0
    assert report.failed == len(failing)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(failing)
    assert "text.mp4: not a video, or broken beyond reading" in lines
    assert set(made(frames)) == {"good.mp4"}


def test_a_truncated_video_is_used_as_far_as_it_goes(videos: Path, frames: Path) -> None:
    path = write_clip(videos / "a.mp4", 100, container_options={"movflags": "faststart"}, options={"crf": "10"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    prep(videos, frames)
    row = manifest(frames)["a.mp4"]
    assert row["verdict"].startswith("ok, damaged: it breaks off at")
    assert row["frames"] == len(list((frames / "a.mp4").glob("*.jpg"))) > 5


def test_nothing_usable(videos: Path, frames: Path) -> None:
    videos.mkdir()
    (videos / "a.mp4").write_text("no video")
    with pytest.raises(MsdvError, match=r"nothing to train on: a\.mp4: not a video") as one:
        prep(videos, frames)
    (videos / "b.mp4").write_text("no video")
    with pytest.raises(MsdvError, match="not one of 2 files"):
        prep(videos, frames)
    assert one.value.exit_code == 1
    assert manifest(frames)["a.mp4"]["verdict"].startswith("failed")


def test_paths_that_can_not_be_meant(videos: Path, frames: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        prep(videos, frames)
    path = write_clip(videos / "a.mp4", 5)
    with pytest.raises(UsageError, match="holds the videos"):
        prep(videos, videos / ".." / "videos")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="is a picture"):
        prep(tmp_path / "a.png", frames)
    with pytest.raises(UsageError, match="holds the video itself"):
        prep(path, videos)
    with pytest.raises(UsageError, match="is a file"):
        prep(videos, path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MsdvError, match="holds no videos"):
        prep(tmp_path / "nothing", frames)
    assert not frames.exists()
    assert sorted(p.name for p in videos.iterdir()) == ["a.mp4"]


def test_frames_instead_of_videos(videos: Path, frames: Path, tmp_path: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    prep(videos, frames)
    with pytest.raises(MsdvError, match=rf"pictures.*msdv train --data {frames}"):
        prep(frames, tmp_path / "out")


def test_frames_below_the_videos(videos: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    prep(videos, videos / "frames")
    assert prep(videos, videos / "frames").skipped == 1
    assert set(made(videos / "frames")) == {"a.mp4"}


def test_videos_below_the_frames(tmp_path: Path) -> None:
    write_clip(tmp_path / "data" / "videos" / "a.mp4", 25)
    assert prep(tmp_path / "data" / "videos", tmp_path / "data").made == 1


def test_manifest_outlives_a_kill_that_lost_it(videos: Path, frames: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_clip(videos / name, 25)
    prep(videos, frames)
    before = manifest(frames)
    (frames / "manifest.jsonl").write_text(json.dumps(before["a.mp4"]) + '\n{"clip": "b.mp')
    prep(videos, frames)
    assert manifest(frames) == before


def test_deleted_clips_and_videos_leave_the_manifest(videos: Path, frames: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_clip(videos / name, 25)
    (videos / "c.mp4").write_text("no video")
    prep(videos, frames)
    (videos / "c.mp4").unlink()
    (videos / "b.mp4").unlink()
    for path in (frames / "b.mp4").iterdir():
        path.unlink()
    (frames / "b.mp4").rmdir()
    prep(videos, frames)
    assert set(manifest(frames)) == {"a.mp4"}


def test_contact_sheet(videos: Path, frames: Path, tmp_path: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    report = prep(videos, frames)
    with Image.open(report.contact_sheet) as image:
        assert image.width > 300 and image.height > 100
    write_contact_sheet(tmp_path / "many.jpg", [frames / "a.mp4"] * 1000)
    with Image.open(tmp_path / "many.jpg") as image:
        assert image.height < 10_000
    (frames / "a.mp4" / "000001.jpg").write_bytes(b"broken")
    (frames / "empty").mkdir()
    write_contact_sheet(tmp_path / "broken.jpg", [frames / "a.mp4", frames / "empty"])


def test_resolved_configuration_can_be_read_back(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    prep(videos, frames)
    if sys.version_info >= (3, 11):
        import tomllib

        settings = tomllib.loads((frames / "prep.toml").read_text(encoding="utf-8"))["prep"]
        assert PrepConfig(**settings).size == 64


def test_processes_of_accelerate_share_the_work(videos: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        write_clip(videos / f"{i}.mp4", 25)
    (videos / "5.mp4").write_text("no video")
    monkeypatch.setenv("WORLD_SIZE", "3")
    counts = []
    for rank in ("2", "0", "1"):
        monkeypatch.setenv("RANK", rank)
        report = prep(videos, frames)
        counts.append((report.made, report.failed))
    assert counts == [(1, 1), (2, 0), (2, 0)]
    assert set(manifest(frames)) == {f"{i}.mp4" for i in range(6)}
    assert sum(row["frames"] for row in manifest(frames).values()) == 25


def test_more_processes_than_videos(videos: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(videos / "a.mp4", 25)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    assert prep(videos, frames).made == 0


def test_a_worker_that_dies_costs_one_clip(videos: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_clip(videos / name, 25)
    crash = (
        "import json, os, signal, sys; sys.path[:] = json.loads(sys.argv[1])\n"
        "from msdv.data import worker\n"
        "make = worker.make_clips\n"
        "def crash(video, *rest):\n"
        "    if video.name == 'b.mp4': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return make(video, *rest)\n"
        "worker.make_clips = crash\n"
        "worker.main()\n"
    )
    monkeypatch.setattr("msdv.data.pool._START", crash)
    for workers in (1, 2):
        report = prep(videos, frames, workers=workers, overwrite=True)
        assert (report.made, report.failed) == (2, 1)
        assert "crashed" in manifest(frames)["b.mp4"]["verdict"]
        assert set(made(frames)) == {"a.mp4", "c.mp4"}


def test_workers_that_never_start(videos: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(videos / "a.mp4", 25)
    monkeypatch.setattr("msdv.data.pool._START", "raise SystemExit('no such library')")
    with pytest.raises(MsdvError, match=r"can't start a worker process .*no such library"):
        prep(videos, frames)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a folder that can't be written")
def test_frames_that_can_not_be_written(videos: Path, frames: Path) -> None:
    write_clip(videos / "a.mp4", 25)
    frames.mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        prep(videos, frames)


def test_a_full_disk_stops_the_run(videos: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_clip(videos / name, 25)
    full = (
        "import errno, json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
        "from msdv.data import worker\n"
        "def make(video, *rest): raise OSError(errno.ENOSPC, 'No space left on device', 'x.jpg')\n"
        "worker.make_clips = make\n"
        "worker.main()\n"
    )
    monkeypatch.setattr("msdv.data.pool._START", full)
    with pytest.raises(OSError, match="No space left"):
        prep(videos, frames)
    assert not (frames / "manifest.jsonl").read_text()


def start(videos: Path, frames: Path) -> "subprocess.Popen[str]":
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from msdv.cli import run\n"
        "sys.exit(run(['prep', *sys.argv[2:]]))\n"
    )
    options = ["--size", "64", "--trim-start", "0", "--trim-end", "0", "--workers", "2", "--fps", "120"]
    return subprocess.Popen(
        [sys.executable, "-c", code, SOURCE, str(videos), str(frames), *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_work(process: "subprocess.Popen[str]", frames: Path) -> None:
    """Until the long clip is being written and the short one is done."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        busy = list(frames.glob(".unfinished-*/000005.jpg")) if frames.exists() else []
        if busy and (frames / "short.mp4").exists():
            return
        time.sleep(0.01)
    raise AssertionError("it never got going")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_in_the_middle(videos: Path, frames: Path, how: signal.Signals) -> None:
    write_clip(videos / "long.mp4", 4000, options={"preset": "ultrafast", "crf": "30"})
    write_clip(videos / "short.mp4", 10)
    process = start(videos, frames)
    wait_for_work(process, frames)
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    assert not (frames / "long.mp4").exists()
    assert len(list((frames / "short.mp4").glob("*.jpg"))) == 10
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in err and "the same command goes on" in err
        assert not list(frames.glob(".unfinished-*"))
        assert manifest(frames)["short.mp4"]["verdict"] == "ok"
    short = stamps(frames / "short.mp4")
    report = prep(videos, frames, fps=120)
    assert (report.made, report.skipped) == (1, 1)
    assert len(list((frames / "long.mp4").glob("*.jpg"))) == 4000
    assert stamps(frames / "short.mp4") == short
    assert not list(frames.glob(".unfinished-*"))
    assert set(manifest(frames)) == {"long.mp4", "short.mp4"}


def test_leaving_the_pool_ends_its_processes(videos: Path, frames: Path) -> None:
    path = write_clip(videos / "a.mp4", 600, options={"preset": "ultrafast", "crf": "30"})
    request = {
        "video": str(path),
        "folder": str(frames / "a.mp4"),
        "settings": {"fps": 120, "size": 512, "trim_start": 0, "trim_end": 0, "select": "grid"},
        "row": {},
    }
    with Pool([request], 1) as pool:
        assert "frames" in next(pool.answers()).message
    assert not (frames / "a.mp4").exists()


def test_progress_is_quiet_without_a_terminal(videos: Path, frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(videos / "a.mp4", 25)
    prep(videos, frames)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_one_processor_is_enough(videos: Path, frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(videos / "a.mp4", 25)
    monkeypatch.setattr(prepare_module, "_processors", lambda: 1)
    assert prep(videos, frames, workers=None).made == 1
