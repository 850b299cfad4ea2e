"""What the README and the tutorial tell people to type is typed here, in the pages' order, and does what they say."""

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from msdv.run import Run
from tests.recipes.typing_pages import Passage, form, missing, named_paths, passages

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
# Put behind what is typed, so that it takes seconds on any machine: little of everything, and the processor. Of six
# clips one is held out, of fewer than five none. A training that is stopped after a step stops after the next.
SHORT = {
    "python -m msdv.data.synthetic": "--count 6 --seconds 6",
    "msdv prep": "--workers 1",
    "msdv train --resume runs/sky --steps": "--steps 4 --sample-every 0",
    "msdv train --resume": "--sample-every 0",
    "msdv train --evaluate": "--frames 2 --device cpu",
    "msdv train --plan": "--frames 2 --device cpu",
    "msdv train": "--steps 3 --frames 4 --sample-prompt clouds --device cpu",
    "msdv sample": "--frames 4 --steps 2 --device cpu",
}
MADE_FROM_A_CHECKOUT = "sets up an environment of its own; it is what this project is tested with anyway"
INSTALLS = "installs packages"
A_CARD = "needs a graphics card and the model hub"
LEFT_OUT = {
    README: {
        "make demo": MADE_FROM_A_CHECKOUT,
        "make test": MADE_FROM_A_CHECKOUT,
        "python3 -m venv .venv": INSTALLS,
        ". .venv/bin/activate": INSTALLS,
        "pip install -c constraints.txt -e .": INSTALLS,
        "accelerate launch -m msdv train --frames 25 --fp16": "needs several cards",
    },
    TUTORIAL: {
        "tensorboard --logdir runs": "serves until it is stopped",
        "msdv train --out runs/sky --noise flow --fp16 --offload-optim": A_CARD,
    },
}
# Typed with --slow alone: seconds each, and tests of their own besides.
SLOW = {"msdv train --plan --vram 6", "msdv train --evaluate --init RUN"}
# Shown by the tutorial, and not said after trainings so short: of what hardly moves there is no speed.
UNSAID = ("the picture goes ",)
# Named in the tutorial, and not what its commands make.
EXAMPLES = {"clouds.txt", "clouds.mp4", "VID_20260612.mp4", "clouds drifting left over hills.mp4"}

Type = Callable[..., tuple[int, str]]
"""Types a line; with `interrupt`, Ctrl-C follows when the run folder given logs its first step. Returns exit code and
what was printed."""


@pytest.fixture
def type_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Type:
    """In this process, with the cuts."""
    from msdv.cli import run
    from msdv.data.synthetic import main as write_videos

    monkeypatch.chdir(tmp_path)

    def typing(line: str, interrupt: Path | None = None) -> tuple[int, str]:
        cut = next((options for command, options in SHORT.items() if line.startswith(command)), "")
        words = shlex.split(f"{line} {cut}")
        with pytest.MonkeyPatch.context() as patch:
            if interrupt is not None:
                _press_at_the_first_step(patch)
            if words[0] == "cat":
                print(_cat(words[1]))
                code = 0
            elif words[:3] == ["python", "-m", "msdv.data.synthetic"]:
                write_videos(words[3:])
                code = 0
            else:
                assert words[0] == "msdv", f"how to type it here? {line}"
                code = run(words[1:])
        return code, "".join(reversed(capfd.readouterr()))  # what is said on the way comes before the result

    return typing


@pytest.fixture
def type_all(tmp_path: Path) -> Type:
    """As it stands, in processes of their own."""

    def typing(line: str, interrupt: Path | None = None) -> tuple[int, str]:
        words = shlex.split(line)
        if words[0] == "cat":
            return 0, _cat(str(tmp_path / words[1]))
        words = [sys.executable, *(["-m", "msdv"] if words[0] == "msdv" else []), *words[1:]]
        output = tmp_path / "printed.txt"
        with output.open("w", encoding="utf-8") as printed, output.open(encoding="utf-8") as read:
            process = subprocess.Popen(words, cwd=tmp_path, stdout=printed, stderr=subprocess.STDOUT)
            if interrupt is not None:
                log = tmp_path / interrupt / "metrics.jsonl"
                while process.poll() is None and '"loss"' not in (log.read_text() if log.exists() else ""):
                    time.sleep(0.2)
                process.send_signal(signal.SIGINT)
            return process.wait(), read.read()

    return typing


def _cat(pattern: str) -> str:
    path = Path(pattern)
    return "".join(file.read_text(encoding="utf-8") for file in sorted(path.parent.glob(path.name)))


def _press_at_the_first_step(patch: pytest.MonkeyPatch) -> None:
    log, pressed = Run.log, []

    def logging(run: Run, **values: Any) -> None:
        log(run, **values)
        if "loss" in values and not pressed:
            pressed.append(signal.raise_signal(signal.SIGINT))

    patch.setattr(Run, "log", logging)


def go_through(
    page: Path,
    folder: Path,
    typing: Type,
    filled_in: Callable[[str], str],
    skip: Collection[str],
    unsaid: tuple[str, ...] = (),
) -> None:
    """Type all of a page but what is to be skipped, and look at what comes. Lines that begin like those in `unsaid`
    need not come."""
    for passage in passages(page.read_text(encoding="utf-8")):
        stopped = any(line.startswith("stopping after this step") for line in passage.shown)
        commands = [line for line in passage.commands if line not in skip]
        if stopped:
            (run,) = (Path(shlex.split(line)[shlex.split(line).index("--out") + 1]) for line in commands)
            (folder / run).rename(folder / "unstopped")  # it ended; here is what would have come if it had been stopped
        printed = ""
        for line in commands:
            code, output = typing(filled_in(line), run) if stopped else typing(filled_in(line))
            assert code == (130 if stopped else 0), f"{line}\n{output}"
            printed += output
        line = missing([line for line in passage.shown if not line.startswith(unsaid)], printed)
        assert line is None, f"{page.name} shows after {commands}:\n{line}\nBut this came:\n{printed}"


def results(page: Path) -> set[str]:
    """What the typed commands are told to write."""
    lines = [line for p in passages(page.read_text(encoding="utf-8")) for line in p.commands]
    return {match[1] for line in lines if line not in LEFT_OUT[page] and (match := re.search(r" -o (\S+)", line))}


def check_tutorial(folder: Path) -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    promised = named_paths(text)
    assert promised >= {"videos/", "frames/contact_sheet.jpg", "frames/.cache/", "runs/sky/report.html"}
    assert promised >= EXAMPLES
    for name in (promised - EXAMPLES) | results(TUTORIAL):
        path = folder / name
        assert path.is_dir() if name.endswith("/") else path.exists(), name
    shown = " ".join(line for p in passages(text) for line in p.shown)
    for name in re.findall(r"(?<!\S)(?:frames|runs)/[\w./]+\w", shown):
        assert (folder / name).exists(), name


def test_the_readme_does_what_it_says(tmp_path: Path, type_short: Type, request: pytest.FixtureRequest) -> None:
    make_videos = "python -m msdv.data.synthetic videos/"
    assert f"`{make_videos}`" in README.read_text(encoding="utf-8")
    type_short(make_videos)  # it has the reader's own videos first, and these for who has none

    def filled_in(line: str) -> str:
        if line == make_videos:
            return "python -m msdv.data.synthetic others/"
        runs = sorted(tmp_path.glob("runs/*"))
        return re.sub(r"runs/<name>|RUN\b", runs[0].relative_to(tmp_path).as_posix() if runs else "", line)

    skip = LEFT_OUT[README].keys() | (set() if request.config.getoption("--slow") else SLOW)
    go_through(README, tmp_path, type_short, filled_in, skip)
    # The table below the four commands.
    (run,) = (tmp_path / "runs").iterdir()
    assert '"caption"' in (tmp_path / "frames" / "manifest.jsonl").read_text(encoding="utf-8")
    assert (tmp_path / "frames" / "contact_sheet.jpg").is_file()
    assert {"config.toml", "temporal.safetensors", "report.html"} <= {path.name for path in run.iterdir()}
    assert list(run.glob("samples/*.gif"))
    assert all((tmp_path / name).is_file() for name in results(README))


def test_the_tutorial_does_what_it_says(tmp_path: Path, type_short: Type) -> None:
    go_through(TUTORIAL, tmp_path, type_short, str, LEFT_OUT[TUTORIAL], UNSAID)
    check_tutorial(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no other process can be sent Ctrl-C there")
def test_the_tutorial_does_what_it_says_as_written(tmp_path: Path, type_all: Type) -> None:
    go_through(TUTORIAL, tmp_path, type_all, str, LEFT_OUT[TUTORIAL])
    check_tutorial(tmp_path)


@pytest.mark.parametrize("page", LEFT_OUT, ids=lambda page: page.name)
def test_what_is_left_out_is_there(page: Path) -> None:
    typed = {line for passage in passages(page.read_text(encoding="utf-8")) for line in passage.commands}
    assert set(LEFT_OUT[page]) | (SLOW if page == README else set()) <= typed


def test_a_page_is_read_as_it_is_meant() -> None:
    page = """Run `msdv --version` and `msdv train`.\n```sh\nmsdv prep a \\\n    b  # note\n```\n```\n6 clips in b\n```
Stopped:\n```\nstopping\n```\n```\n$ cat b/*.txt\nclouds\n```\n```powershell\npip x\n```\n"""
    assert passages(page) == [
        Passage(["msdv --version"]),
        Passage(["msdv prep a b"], ["6 clips in b"]),
        Passage(["msdv prep a b"], ["stopping"]),
        Passage(["cat b/*.txt"], ["clouds"]),
    ]
    assert named_paths("`a.gif` and `b/`, `--fps 1`, `x: y.gif`, `v1.5`\n```\n`c.gif`\n```\n") == {"a.gif", "b/"}


def test_lines_are_compared_by_their_form() -> None:
    assert form("step 100: 0.4% lower; ...").fullmatch("step 3: -12.25% higher; and more")
    assert not form("step 100: 0.4% lower").fullmatch("step 3: 0.4% better")
    assert not form("step 100: ...").fullmatch("steps: 3")
    assert form("motion at step 5: static (flow 0)").fullmatch("motion at step 50: flickers (by 3); colours drift")
    assert not form("motion at step 5: static (flow 0)").fullmatch("motion at step 50: nothing")
    assert missing(["a 1", "...", "b"], "a 25\nother\nb\n") is None
    assert missing(["b", "a 1"], "a 25\nb\n") == "a 1"
