"""What cameras, disks, other programs and people do to files, and to prep while it works: every file gets exactly one
verdict, nothing hangs, and nothing that was finished is lost."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from msdv.config import PrepConfig
from msdv.data import prepare as prepare_module
from msdv.data.pool import Answer, Pool
from msdv.data.prepare import prepare
from msdv.data.sources import Source, assign_folders
from msdv.errors import MsdvError
from tests.unit.data.video_fixtures import numbered, read_numbers, write_clip, write_sound

SOURCE = str(Path(__file__).parents[3])
POSIX = os.name == "posix"
ROOT = POSIX and os.geteuid() == 0
B_FRAMES = {"bf": "3", "preset": "medium", "crf": "18"}
OPTIONS = ("--size", "64", "--trim-start", "0", "--trim-end", "0", "--workers", "2")


def start(where: Path, *arguments: str, **how: Any) -> "subprocess.Popen[str]":
    """`msdv prep` as people run it, from the folder `where`."""
    environment = {**os.environ, "PYTHONPATH": SOURCE, **how.pop("environment", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "msdv", "prep", *OPTIONS, *arguments],
        cwd=where,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="surrogateescape",
        **how,
    )


def finish(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    """What it said and how it ended, which must be soon and without a traceback."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "Traceback" not in err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(where: Path, *arguments: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    return finish(start(where, *arguments, **how))


def rows(frames: Path) -> dict[str, dict[str, Any]]:
    """The manifest, by the name of the source; one row a source, one a folder."""
    found = [json.loads(line) for line in (frames / "manifest.jsonl").read_text().splitlines()]
    assert len({row["source"] for row in found}) == len({row["clip"] for row in found}) == len(found)
    return {row["source"].rpartition("/")[2]: row for row in found}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(frames: Path) -> list[str]:
    return [path.name for path in frames.rglob(".unfinished-*")]


# Every odd file there is, in one folder: how it is made, and what prep has to say of it.

PLAIN = r"ok$"
ALONE = r"ok, one frame$"
DAMAGED = r"ok, damaged: "
UNREADABLE = r"failed: not a video, or broken beyond reading$"


class Zoo:
    """A folder of odd files, and for each the pattern of its verdict and its number of frames (None: some)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: dict[str, tuple[str, int | None]] = {}
        self.good = write_clip(folder / "good.mp4", 50).read_bytes()
        self.expect("good.mp4", PLAIN, 10)

    def expect(self, name: str, verdict: str, frames: int | None = 0) -> None:
        self.expected[name] = (verdict, frames)

    def add(self, name: str, data: bytes, verdict: str, frames: int | None = 0) -> None:
        (self.folder / name).write_bytes(data)
        self.expect(name, verdict, frames)

    def clip(self, name: str, count: int, frames: int, **options: Any) -> None:
        write_clip(self.folder / name, count, **options)
        self.expect(name, PLAIN if frames > 1 else ALONE, frames)


def fill(zoo: Zoo) -> None:
    folder, good = zoo.folder, zoo.good
    # Broken.
    zoo.add("no moov.mp4", good[: good.index(b"moov") - 4], UNREADABLE)
    long = write_clip(folder / "long.mp4", 100, container_options={"movflags": "faststart"}, options={"crf": "10"})
    whole = long.read_bytes()
    long.unlink()
    zoo.add("cut short.mp4", whole[: len(whole) * 7 // 10], DAMAGED + r"it breaks off at [\d.]+ s of 4.0 s", None)
    zoo.add("flipped bits.mp4", flip_bits(whole, whole.index(b"mdat") + 8, 100), DAMAGED, None)
    pictures = bytearray(write_clip(folder / "x.mov", 20, codec="png", pixels="rgb24").read_bytes())
    (folder / "x.mov").unlink()
    at = -1
    for _ in range(6):  # the sixth frame is the second that is kept
        at = pictures.index(b"IDAT", at + 1)
    pictures[at + 20 : at + 40] = b"\xff" * 20
    zoo.add("one broken picture.mov", bytes(pictures), DAMAGED + "1 of 4 frames can't be decoded", 3)
    zoo.add("nothing.mp4", b"", r"failed: the file is empty$")
    zoo.add("zeros.mp4", bytes(50_000), UNREADABLE)
    zoo.add("text.mp4", b"not a video\n" * 100, UNREADABLE)
    # No video in it.
    write_sound(folder / "sound.mp4")
    zoo.expect("sound.mp4", r"failed: sound only, no video$")
    write_sound(folder / "cover.mp3", cover=True)
    zoo.expect("cover.mp3", r"failed: sound with a cover picture, no video$")
    # Lengths.
    zoo.clip("one frame.mp4", 1, 1)
    write_without_duration(folder / "no duration.mkv", "libx264", {"preset": "ultrafast"})
    zoo.expect("no duration.mkv", PLAIN, 6)
    write_without_duration(folder / "no duration.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"})
    zoo.expect("no duration.webm", PLAIN, 6)
    zoo.clip("2 fps.mp4", 8, 8, rate=2)
    zoo.clip("23.976 fps.mp4", 48, 11, rate=Fraction(24000, 1001))
    # Streams.
    zoo.clip("raw.h264", 30, 6, container_format="h264", options=B_FRAMES)
    one = write_clip(folder / "1.ts", 30, options=B_FRAMES)
    for name, size in (("clock goes back.ts", (64, 64)), ("size changes.ts", (96, 80))):
        two = write_clip(
            folder / "2.ts",
            30,
            size=size,
            options=B_FRAMES,
            picture=lambda i, size=size: numbered(100 + i, *size),
        )
        zoo.add(name, one.read_bytes() + two.read_bytes(), PLAIN, 12)
        two.unlink()
    one.unlink()
    # Pictures.
    for name, size in {"wide.mp4": (8192, 16), "tall.mp4": (16, 8192), "small.mp4": (16, 16)}.items():
        zoo.clip(name, 5, 1, size=size)
    zoo.clip("1x1.mkv", 5, 1, codec="ffv1", size=(1, 1), pixels="gray")
    zoo.clip("interlaced.mpg", 30, 6, codec="mpeg2video", options={"flags": "+ildct+ilme", "q": "2"})
    # Names.
    shutil.copy(write_clip(folder / "x.mkv", 25), folder / "in truth mkv.avi")
    (folder / "x.mkv").unlink()
    zoo.expect("in truth mkv.avi", PLAIN, 5)
    for name in ("no suffix", "with  spaces .mp4", "100%d %s.mp4", "-rf.mp4", "--help.mp4", "雲 über.mp4", "🎬🌩️.mp4"):
        zoo.add(name, good, PLAIN, 10)
    for name in ("manifest.jsonl.mp4", "a[b]c.mp4", "a#2.mp4", "n" * 246 + ".mp4"):
        zoo.add(name, good, PLAIN, 10)
    for number, name in enumerate(("same.mp4", "same.mkv", "SAME.mp4")):
        if not (folder / name).exists():  # a file system may take the first and the last for the same
            zoo.clip(name, 5 * (number + 1), number + 1)
    if POSIX:
        for name in ("new\nline.mp4", "co:lon.mp4", "back\\slash.mp4", "tab\t'\".mp4", "space at the end.mp4 "):
            zoo.add(name, good, PLAIN, 10)
        # What is not what it is called.
        (folder / "dangling.mp4").symlink_to("nowhere.mp4")
        zoo.expect("dangling.mp4", r"failed: a link to nothing$")
        (folder / "loop.mp4").symlink_to("loop.mp4")
        zoo.expect("loop.mp4", r"failed: a link that leads in a circle$")
        (folder / "again and again").symlink_to(".")
        os.mkfifo(folder / "pipe.mp4")
        zoo.expect("pipe.mp4", r"failed: not a file$")
        zoo.add("locked.mp4", good, PLAIN if ROOT else r"failed: no permission to read it$", 10 if ROOT else 0)
        (folder / "locked.mp4").chmod(0)
    (folder / "folder.mp4").mkdir()
    zoo.expect("folder.mp4", r"failed: an empty folder, no video$")
    zoo.clip("full folder.mp4/inside.mp4", 25, 5)
    zoo.expected["inside.mp4"] = zoo.expected.pop("full folder.mp4/inside.mp4")


def flip_bits(data: bytes, start: int, count: int) -> bytes:
    flipped, random = bytearray(data), np.random.default_rng(0)
    for at in random.integers(start, len(data), count):
        flipped[at] ^= 1 << int(random.integers(8))
    return bytes(flipped)


def write_without_duration(path: Path, codec: str, options: dict[str, str]) -> None:
    """30 frames as a program writes them that can't go back to the header: into a pipe."""

    class Pipe:
        def __init__(self, file: Any) -> None:
            self.write = file.write

    with path.open("wb") as file, av.open(Pipe(file), "w", format=path.suffix[1:].replace("mkv", "matroska")) as made:
        stream: Any = made.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.duration is None


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    where = tmp_path_factory.mktemp("zoo")
    zoo = Zoo(where / "videos")
    fill(zoo)
    return zoo


@pytest.fixture(scope="module")
def visit(zoo: Zoo) -> "subprocess.CompletedProcess[str]":
    return run(zoo.folder.parent, "videos", "frames")


def test_every_file_has_its_verdict(zoo: Zoo, visit: "subprocess.CompletedProcess[str]") -> None:
    found = rows(zoo.folder.parent / "frames")
    assert set(found) == set(zoo.expected)
    wrong = {
        name: (found[name]["verdict"], found[name]["frames"])
        for name, (verdict, frames) in zoo.expected.items()
        if not re.match(verdict, found[name]["verdict"])
        or (found[name]["frames"] != frames if frames is not None else found[name]["frames"] < 2)
    }
    assert wrong == {}
    if ROOT:
        print("root may read everything: the verdict on locked.mp4 was not tested")


def test_files_that_can_not_be_used_are_no_failure_of_the_run(
    zoo: Zoo, visit: "subprocess.CompletedProcess[str]"
) -> None:
    """One short line on each of them, whatever is in its name; none on the others."""
    assert visit.returncode == 0
    bad = [name for name, (verdict, _) in zoo.expected.items() if verdict not in (PLAIN, ALONE)]
    lines = visit.stderr.splitlines()
    for name in bad:
        assert len([line for line in lines if f"{name}: " in line and len(line) < 120]) == 1
    assert not [line for line in lines if any(f"{name}: " in line for name in set(zoo.expected) - set(bad))]


def test_folders_hold_what_the_manifest_says(zoo: Zoo, visit: "subprocess.CompletedProcess[str]") -> None:
    frames = zoo.folder.parent / "frames"
    found = rows(frames)
    assert {path.name for path in frames.iterdir() if path.is_dir()} == {
        row["clip"] for row in found.values() if row["frames"]
    }
    for row in found.values():
        assert len(list((frames / row["clip"]).glob("*.jpg"))) == row["frames"]
        assert Path(row["clip"]).suffix.lower() == Path(row["source"]).suffix.lower()
    assert not leftovers(frames)
    assert read_numbers(frames / "size changes.ts")[::6] == [0, 100]
    assert read_numbers(frames / "2 fps.mp4") == list(range(8))
    folded = [row["clip"].casefold() for row in found.values()]
    assert len(set(folded)) == len(folded)  # so that it can be copied to Windows


def test_a_second_visit_changes_nothing(zoo: Zoo, visit: "subprocess.CompletedProcess[str]") -> None:
    frames = zoo.folder.parent / "frames"
    before = contents(frames)
    assert run(zoo.folder.parent, "videos", "frames").returncode == 0
    assert contents(frames) == before


def test_nothing_usable_is_a_failure_in_one_line(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("zeros.mp4", "sound.mp4"):
        shutil.copy(zoo.folder / name, tmp_path / "videos")
    result = run(tmp_path, "videos", "frames")
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 3  # one a file, and what it comes to
    assert "not one of 2 files" in result.stderr.splitlines()[-1]
    assert set(rows(tmp_path / "frames")) == {"zeros.mp4", "sound.mp4"}


def test_too_short_for_the_trim(tmp_path: Path) -> None:
    write_clip(tmp_path / "videos" / "a.mp4", 90)
    write_clip(tmp_path / "videos" / "b.mp4", 110)
    report = prepare(PrepConfig(videos=tmp_path / "videos", frames=tmp_path / "frames", size=64))
    assert (report.made, report.failed) == (1, 1)
    found = rows(tmp_path / "frames")
    assert re.match(r"(failed|skipped): 3\.6 s long, nothing left after --trim-start 2", found["a.mp4"]["verdict"])
    assert found["b.mp4"]["verdict"] == "ok"


def test_names_that_only_some_systems_tell_apart(tmp_path: Path) -> None:
    names = ["x.mp4", "X.mp4", "caf\u00e9.mp4", "cafe\u0301.mp4", "Stra\u00dfe.mp4", "STRASSE.mp4"]
    sources = [Source(tmp_path / name, Path(name), 1, 1.0) for name in names]
    folders = assign_folders(sources, {}, "videos")
    assert [folders[source.key] == source.path.name for source in sources].count(True) == 3
    assert len({folder.casefold() for folder in folders.values()}) == 6


def test_a_name_that_looks_like_a_scene(tmp_path: Path) -> None:
    """The second scene of a video called x, and a video called x#2, are not one folder."""
    sources = [Source(tmp_path / name, Path(name), 1, 1.0) for name in ("x", "x#2", "x_2", "y#2.mp4")]
    names = [assign_folders(sources, {}, "videos")[source.key] for source in sources]
    assert (names[0], names[3]) == ("x", "y#2.mp4")
    assert len(set(names)) == 4
    assert not [name for name in names if re.search(r"#\d+$", name)]


def test_a_video_of_several_scenes_is_known_by_its_first(tmp_path: Path) -> None:
    source = Source(tmp_path / "x.mp4", Path("x.mp4"), 1, 1.0)
    folders = ("x.mp4", *(f"x.mp4#{number}" for number in range(2, 12)))
    records = {folder: {"source": source.key, "scene": number} for number, folder in enumerate(folders, 1)}
    assert assign_folders([source], records, "videos") == {source.key: "x.mp4"}
    del records["x.mp4"]  # somebody deleted it: it is made anew
    assert assign_folders([source], records, "videos") == {source.key: "x.mp4"}


@pytest.mark.skipif(not POSIX or ROOT, reason="needs a folder that may not be looked into; root may")
def test_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    write_clip(tmp_path / "videos" / "a.mp4", 5)
    write_clip(tmp_path / "videos" / "locked" / "b.mp4", 5)
    (tmp_path / "videos" / "locked").chmod(0o444)
    try:
        assert run(tmp_path, "videos", "frames").returncode == 0
    finally:
        (tmp_path / "videos" / "locked").chmod(0o755)
    assert rows(tmp_path / "frames")["b.mp4"]["verdict"].startswith("failed: ")


# Damage at random.


def damage(data: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    at, length = int(random.integers(len(data))), int(random.integers(1, 3000))
    kind = random.integers(6)
    if kind == 0:
        return flip_bits(data, 0, int(random.integers(1, 60)))
    if kind == 1:
        damaged[at : at + length] = bytes(len(damaged[at : at + length]))
    elif kind == 2:
        del damaged[at : at + length]
    elif kind == 3:
        damaged[at:at] = random.bytes(length)
    elif kind == 4:
        damaged[at : at + 4] = b"\xff\xff\xff\x7f"
    else:
        damaged += damaged[at:] + damaged
    return bytes(damaged)


def test_no_damage_harms_another_file(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    kinds: dict[str, dict[str, Any]] = {
        "a.mp4": {"options": B_FRAMES, "sound": 1.0},
        "b.ts": {"options": B_FRAMES},
        "c.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
        "d.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
        "e.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
        "f.gif": {"codec": "gif", "pixels": "rgb8", "options": {}},
    }
    videos, frames = tmp_path / "videos", tmp_path / "frames"
    for name, options in kinds.items():
        whole = write_clip(videos / name, 25, **options).read_bytes()
        for number in range(8):
            (videos / f"{number}-{name}").write_bytes(damage(whole, random))
    prepare(PrepConfig(videos=videos, frames=frames, size=64, trim_start=0, trim_end=0, workers=2))
    found = rows(frames)
    assert len(found) == 9 * len(kinds)
    # Damaged copies are nearly the same as the whole one, or the other way round.
    verdicts = [found[name]["verdict"].split(", nearly the same as ")[0] for name in kinds]
    assert set(verdicts) == {"ok"}
    for row in found.values():
        assert re.match(r"ok$|ok, \S|failed: \S", row["verdict"])
        assert not re.search(r"\n|unexpected|crashed|given up", row["verdict"])
        assert len(list((frames / row["clip"]).glob("*.jpg"))) == row["frames"]
    assert not leftovers(frames)


# Workers that hang, crash, or are killed.


def break_workers(monkeypatch: pytest.MonkeyPatch, breaks: dict[str, str]) -> None:
    """Run code in a worker before it works on the video of that name; `report` is what it tells its progress to."""
    monkeypatch.setattr(
        "msdv.data.pool._START",
        "import json, os, signal, sys, time; sys.path[:] = json.loads(sys.argv[1])\n"
        "from msdv.data import worker\n"
        f"breaks = {breaks!r}\n"
        "make = worker.make_clips\n"
        "def make_clips(*given, **named):\n"
        "    report = next(g for g in (*given, *named.values()) if isinstance(g, worker._Reporter))\n"
        "    exec(breaks.get(given[0].name, ''))\n"
        "    return make(*given, **named)\n"
        "worker.make_clips = make_clips\n"
        "worker.main()\n",
    )


def verdicts(where: Path, names: Iterable[str], **options: Any) -> dict[str, str]:
    for name in names:
        write_clip(where / "videos" / name, 25)
    settings = {"size": 64, "trim_start": 0, "trim_end": 0, **options}
    prepare(PrepConfig(videos=where / "videos", frames=where / "frames", **settings))
    assert not leftovers(where / "frames")
    return {name: row["verdict"] for name, row in rows(where / "frames").items()}


def set_timeout(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(prepare_module, "Pool", functools.partial(Pool, timeout=seconds))


STOP = pytest.param("os.kill(os.getpid(), signal.SIGSTOP)", 2, marks=pytest.mark.skipif(not POSIX, reason="signals"))


@pytest.mark.parametrize(("hang", "workers"), [("time.sleep(600)", 1), STOP])
def test_a_worker_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang: str, workers: int
) -> None:
    leave = "report(1); (given[1].parent / '.unfinished-x').mkdir()"
    break_workers(monkeypatch, {"b.mp4": f"{leave}; {hang}"})
    set_timeout(monkeypatch, 0.7)
    assert verdicts(tmp_path, ("a.mp4", "b.mp4", "c.mp4"), workers=workers) == {
        "a.mp4": "ok",
        "b.mp4": "failed: given up: no progress for 0.7 s",
        "c.mp4": "ok",
    }


def test_slow_is_not_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written for long, as where a long start is cut off, but the work gets on."""
    break_workers(monkeypatch, {"a.mp4": "for _ in range(25): time.sleep(0.1); report(0)"})
    set_timeout(monkeypatch, 0.6)
    assert verdicts(tmp_path, ["a.mp4"]) == {"a.mp4": "ok"}


@pytest.mark.skipif(not POSIX, reason="named pipes")
def test_a_file_that_can_not_be_opened_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody writes to, put there after prep has looked: reads like a network drive that is gone."""
    break_workers(monkeypatch, {"a.mp4": "given[0].unlink(); os.mkfifo(given[0])"})
    set_timeout(monkeypatch, 0.6)
    assert verdicts(tmp_path, ("a.mp4", "b.mp4"), workers=1) == {
        "a.mp4": "failed: given up: no progress for 0.6 s",
        "b.mp4": "ok",
    }


def test_frames_that_are_not_kept_are_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To decode a long start that is cut off may take more than a minute."""
    break_workers(monkeypatch, {"a.mp4": "worker._PROGRESS_EVERY = -1"})
    told: list[int] = []

    class Listening(Pool):
        def answers(self) -> Iterator[Answer]:
            for answer in super().answers():
                told.extend([answer.message["frames"]] if "frames" in answer.message else [])
                yield answer

    monkeypatch.setattr(prepare_module, "Pool", Listening)
    write_clip(tmp_path / "videos" / "a.mp4", 300)
    assert verdicts(tmp_path, (), trim_start=11.5) == {"a.mp4": "ok"}
    assert sum(told) == 3
    assert told.count(0) >= 10


@pytest.mark.skipif(not POSIX, reason="signals")
def test_how_a_worker_ended_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "the decoder crashed on it"
    killed = f"{crash} (the system killed it; if memory ran out, use fewer --workers)"
    half_a_line = 'report._answer.__closure__[0].cell_contents.write(\'{"row": {"cl\'); '
    half_a_line += "report._answer.__closure__[0].cell_contents.flush(); os._exit(4)"
    deaths = {
        "os.kill(os.getpid(), signal.SIGSEGV)": f"{crash} (SIGSEGV)",
        "os.abort()": f"{crash} (SIGABRT)",
        "os.kill(os.getpid(), signal.SIGKILL)": killed,
        "os._exit(3)": f"{crash} (exit code 3)",
        half_a_line: f"{crash} (exit code 4)",
        "raise MemoryError": "not enough memory for it: use fewer --workers",
        "1 / 0": "unexpected ZeroDivisionError: division by zero",
        "raise OSError(22, 'Invalid argument')": "its name can't be a folder's there (Invalid argument): rename it",
    }
    names = [f"{number}.mp4" for number in range(len(deaths))]
    break_workers(monkeypatch, dict(zip(names, deaths, strict=True)))
    assert verdicts(tmp_path, [*names, "good.mp4"], workers=2) == {
        **{name: f"failed: {reason}" for name, reason in zip(names, deaths.values(), strict=True)},
        "good.mp4": "ok",
    }


def test_a_worker_that_never_gets_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msdv.data.pool._START", "import time; time.sleep(600)")
    monkeypatch.setattr("msdv.data.pool._STARTS_WITHIN", 0.3)
    with pytest.raises(MsdvError, match="can't start a worker process"):
        verdicts(tmp_path, ["a.mp4"])


# Runs that are disturbed.


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A folder of videos, and what prep makes of it when nothing comes in between."""
    where = tmp_path_factory.mktemp("undisturbed")
    videos = where / "videos"
    for number in range(4):
        write_clip(videos / f"{number}.mp4", 30, picture=lambda i, number=number: numbered(1000 * number + i))
    (videos / "3.txt").write_text("a caption")
    (videos / "broken.mp4").write_text("no video")
    cut = write_clip(videos / "cut.ts", 60, options=B_FRAMES)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    assert run(where, str(videos), "frames", "--fps", "25").returncode == 0
    return videos, contents(where / "frames")


def children(pid: int) -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if state(int(path.name))[1:2] == [str(pid)]]


def is_running(pid: int) -> bool:
    return state(pid)[:1] not in ([], ["Z"])


def state(pid: int) -> list[str]:
    """What /proc has after the name of a process: its state, its parent, ...; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "first frame": lambda frames: any(frames.glob(".unfinished-*/*.jpg")),
    "first clip": lambda frames: any(frames.glob("*.mp4")),
    "third clip": lambda frames: len(list(frames.glob("*.mp4"))) >= 3,
    "the end": lambda frames: any(frames.glob("contact_sheet.jpg")) or any(frames.glob(".unfinished-*.jpg")),
}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker processes in /proc")
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_run_again(undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path, moment: str) -> None:
    """The next run ends with the same bytes, and nobody goes on working in between."""
    videos, expected = undisturbed
    process = start(tmp_path, str(videos), "frames", "--fps", "25")
    while process.poll() is None and not MOMENTS[moment](tmp_path / "frames"):
        time.sleep(0.001)
    workers = list(children(process.pid))
    if process.poll() is None:
        # All in one moment, as when power fails; or it alone, as when somebody loses patience.
        for pid in (*workers, process.pid) if moment == "third clip" else (process.pid,):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, workers))
    again = run(tmp_path, str(videos), "frames", "--fps", "25")
    assert again.returncode == 0
    assert contents(tmp_path / "frames") == expected


def test_two_at_once_in_one_folder(undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """The second begins while the first is in the middle, and does not take its unfinished work for leftovers."""
    videos, expected = undisturbed
    one = start(tmp_path, str(videos), "frames", "--fps", "25")
    while one.poll() is None and not MOMENTS["first frame"](tmp_path / "frames"):
        time.sleep(0.001)
    two = start(tmp_path, str(videos), "frames", "--fps", "25")
    assert [finish(process).returncode for process in (one, two)] == [0, 0]
    assert contents(tmp_path / "frames") == expected


def test_two_folders_of_videos_at_once(undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    videos, _ = undisturbed
    write_clip(tmp_path / "more" / "x.mp4", 50)
    processes = [start(tmp_path, str(folder), "frames", "--fps", "25") for folder in (videos, tmp_path / "more")]
    assert [finish(process).returncode for process in processes] == [0, 0]
    found = rows(tmp_path / "frames")
    assert set(found) == {path.name for path in videos.iterdir() if path.suffix != ".txt"} | {"x.mp4"}
    assert not leftovers(tmp_path / "frames")


@pytest.mark.skipif(not POSIX, reason="limits of processes")
def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """Big pictures can't be written: exit 1, one line, nothing half done; with space again, the rest is made."""
    import resource

    random = np.random.default_rng(0)
    write_clip(tmp_path / "videos" / "a.mp4", 10)
    write_clip(
        tmp_path / "videos" / "b.mp4",
        10,
        size=(512, 512),
        picture=lambda _: random.integers(0, 255, (512, 512, 3), dtype=np.uint8),
        options={"crf": "10", "preset": "ultrafast"},
    )
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (60_000, 60_000))
    full = run(tmp_path, "videos", "frames", "--size", "512", "--workers", "1", preexec_fn=limit)
    assert full.returncode == 1
    assert len(full.stderr.splitlines()) == 1
    assert "too large" in full.stderr or "disk is full" in full.stderr
    assert not leftovers(tmp_path / "frames")
    assert not (tmp_path / "frames" / "b.mp4").exists()
    assert run(tmp_path, "videos", "frames", "--size", "512").returncode == 0
    assert {name: row["frames"] for name, row in rows(tmp_path / "frames").items()} == {"a.mp4": 2, "b.mp4": 2}


# Several processes.


def test_processes_started_together_join_their_manifests(
    undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    """As `accelerate launch` and `torchrun` start them: each says in its environment which one it is."""
    videos, expected = undisturbed
    processes = [
        start(
            tmp_path,
            str(videos),
            "frames",
            "--fps",
            "25",
            environment={"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    results = [finish(process) for process in processes]
    assert [result.returncode for result in results] == [0, 0]
    assert "next: msdv train" in results[0].stdout
    assert results[1].stdout == ""
    assert contents(tmp_path / "frames") == expected


@pytest.mark.slow
@pytest.mark.skipif(not POSIX, reason="torchrun needs a rendezvous that Windows builds of torch lack")
def test_torchrun(undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    videos, expected = undisturbed
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "msdv"]
    result = subprocess.run(
        [sys.executable, *launch, "prep", *OPTIONS, str(videos), "frames", "--fps", "25"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "frames") == expected
