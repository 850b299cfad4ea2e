"""The command line as a person meets it: help, exit codes, one line for each error. Stages are stand-ins."""

import errno
import io
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from msdv.cli import COMMANDS, run
from msdv.config import CONFIGS
from msdv.errors import MsdvError, UsageError
from msdv.options import settings

COMMAND_LINES = {
    "prep": ["prep", "videos", "frames"],
    "train": ["train"],
    "sample": ["sample", "clouds timelapse", "-o", "out.gif"],
    "export": ["export", "runs/x", "-o", "motion.safetensors"],
}
MODULES = {"prep": "msdv.data.prepare", "train": "msdv.train", "sample": "msdv.sample", "export": "msdv.export"}


class Report:
    def lines(self) -> list[str]:
        return ["made it", "next: more"]

    def json(self) -> str:
        return '{"loss": 0.1}'


@pytest.fixture(autouse=True)
def untouched_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A wide terminal that is not there, an empty folder; the variables that the command line sets are taken back."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "FORCE_COLOR", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Put a stand-in where the stages of all commands are; returns the configs that it is called with."""

    def put(does: Callable[[], object] = lambda: None) -> list[Any]:
        configs: list[Any] = []

        def call(config: Any) -> Report:
            configs.append(config)
            does()
            return Report()

        for command, name in MODULES.items():
            module: Any = types.ModuleType(name)
            setattr(module, "prepare" if command == "prep" else command, call)
            module.evaluate = call
            monkeypatch.setitem(sys.modules, name, module)
        planning: Any = types.ModuleType("msdv.planning")
        planning.plan_training = planning.plan_sample = call
        monkeypatch.setitem(sys.modules, "msdv.planning", planning)
        return configs

    return put


def fail(error: BaseException) -> Callable[[], object]:
    def raise_it() -> None:
        raise error

    return raise_it


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout, lines on stderr."""
    code = run(arguments)
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_a_command_calls_its_stage_and_prints_the_report(command: str, stage: Any, capsys: Any) -> None:
    configs = stage()
    code, out, err = told(capsys, *COMMAND_LINES[command])
    assert (code, out, err) == (0, "made it\nnext: more\n", [])
    assert [type(config) for config in configs] == [CONFIGS[command]]


def _a_value(name: str, kind: str, choices: tuple[str, ...]) -> tuple[str, Any]:
    """What to type for an option, and what its config then holds."""
    if choices:
        return choices[-1], choices[-1]
    special: dict[str, Any] = {"motion": "left:1.5", "condition": "first-frame", "keyframe_passes": 2, "cache": 3}
    if name in special:
        return str(special[name]), special[name]
    return {
        "integer": ("32", 32),
        "number": ("0.5" if name != "guidance" else "1.5", 0.5 if name != "guidance" else 1.5),
        "string": ("a b", "a b"),
        "path": ("a/b", Path("a/b")),
        "array": ("a b", ("a b",)),
        "boolean": ("", True),
    }[kind]


EVERY_OPTION = [
    (command, s.name, flag)
    for command in CONFIGS
    for s in settings(CONFIGS[command])
    for flag in s.flags
    if flag != "--check"  # takes the place of the folders: tests/unit/data/test_audit.py
]


@pytest.mark.parametrize(("command", "name", "flag"), EVERY_OPTION)
def test_every_field_can_be_given_as_an_option(command: str, name: str, flag: str, stage: Any, capsys: Any) -> None:
    configs = stage()
    setting = next(s for s in settings(CONFIGS[command]) if s.name == name)
    typed, meant = _a_value(name, setting.kind, setting.choices)
    extra = ["--plan"] if name == "json_output" else []
    code, _, err = told(capsys, *COMMAND_LINES[command], flag, *filter(None, [typed]), *extra)
    assert (code, err) == (0, [])
    assert getattr(configs[0], name) == meant


@pytest.mark.parametrize("command", CONFIGS)
def test_help_shows_every_option_with_its_text(command: str, capsys: Any) -> None:
    code, out, err = told(capsys, command, "--help")
    assert (code, err) == (0, [])
    # Without the frames and line breaks of the panels.
    shown = " ".join("".join(c if c.isascii() else " " for c in out).split())
    for s in settings(CONFIGS[command]):
        assert (", ".join(s.flags) or s.metavar) in shown
        assert s.help in shown
        if s.notes:
            assert f"{s.help} [{s.notes}]" in shown
    assert COMMANDS[command].example in shown and COMMANDS[command].about in shown
    assert "--config RECIPE" in shown and "--debug" in shown and "--help" in shown


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_help_fits_its_terminal(columns: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in CONFIGS:
        _, out, _ = told(capsys, command, "--help")
        assert max(len(line) for line in out.splitlines()) <= int(columns)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_of_all(arguments: list[str], capsys: Any) -> None:
    code, out, err = told(capsys, *arguments)
    assert (code, err) == (0, [])
    places = [out.index(COMMANDS[command].summary) for command in ("prep", "train", "sample", "export")]
    assert places == sorted(places)
    assert 'msdv sample "clouds timelapse" --frames 120 -o out.gif' in out


def test_version(capsys: Any) -> None:
    code, out, _ = told(capsys, "--version")
    assert code == 0 and out.startswith("msdv ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--frame", "3"],
            "msdv train: --frame is not an option: did you mean --frames? (msdv train --help lists them)",
        ),
        (["train", "-x"], "msdv train: -x is not an option (msdv train --help lists them)"),
        (["train", "--steps"], "msdv train: --steps has no value (msdv train --help says what it takes)"),
        (
            ["train", "--size", "100"],
            "msdv train: --size 100: must be a multiple of 8 (the image model works on 8x8 blocks): 96 would do",
        ),
        (["train", "--fp16", "--bf16"], "msdv train: --fp16 and --bf16 exclude each other: choose one"),
        (
            ["train", "--json"],
            "msdv train: --json prints the result of --plan or --evaluate: give one of them too, or leave it out",
        ),
        (["train", "--config", "no.toml"], "msdv train: no.toml: no such file"),
        (["sample"], f"msdv sample: PROMPT and -o are missing: {COMMANDS['sample'].example}"),
        (
            ["sample", "clouds", "timelapse", "-o", "x.gif"],
            "msdv sample: got unexpected extra argument (timelapse): a value with spaces needs quotes, as in "
            + COMMANDS["sample"].example,
        ),
        (
            ["sample", "sky", "-o", "x.gif", "--motion", "upwards"],
            "msdv sample: --motion upwards: must be auto, none, left, right, up, down or a direction such as 30deg, "
            "these with a speed under 1000 (left:1.5), zoom:0.5 (percent), several of these (left:1.5+zoom:0.5), "
            "or a video",
        ),
        (["trian"], "msdv: no such command 'trian'. Did you mean 'train'?"),
        (["zzz"], "msdv: no such command 'zzz' (commands: prep, train, sample, export)"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], message: str, stage: Any, capsys: Any) -> None:
    configs = stage()
    assert told(capsys, *arguments) == (2, "", [message])
    assert configs == []


def test_option_over_recipe_over_default(stage: Any, capsys: Any) -> None:
    configs = stage()
    Path("recipe.toml").write_text("[train]\nfp16 = true\nsteps = 7\nlr = 2e-4\n", encoding="utf-8")
    told(capsys, "train", "--config", "recipe.toml", "--steps", "8", "--no-fp16")
    told(capsys, "train", "--config", "recipe.toml")
    assert [(c.fp16, c.steps, c.lr, c.batch_size) for c in configs] == [(False, 8, 2e-4, 1), (True, 7, 2e-4, 1)]


def test_resume(stage: Any, capsys: Any) -> None:
    configs = stage()
    for line in (
        "train --resume",
        "train --resume --steps 5",
        "train --resume runs/x",
        "train --resume=runs/x",
        "train",
    ):
        told(capsys, *line.split())
    assert [c.resume for c in configs] == ["newest", "newest", "runs/x", "runs/x", None]


def test_an_option_may_be_given_several_times(stage: Any, capsys: Any) -> None:
    configs = stage()
    told(capsys, "train", "--sample-prompt", "a b", "--sample-prompt", "c")
    assert configs[0].sample_prompt == ("a b", "c")


def test_evaluate_as_json_is_all_of_stdout(stage: Any, capsys: Any) -> None:
    stage(lambda: print("a library talks"))
    assert told(capsys, "train", "--evaluate", "--json") == (0, '{"loss": 0.1}\n', ["a library talks"])
    assert told(capsys, "train", "--evaluate")[1] == "made it\nnext: more\n"


def _named(name: str, base: type[Exception] = RuntimeError) -> Exception:
    error: Exception = type(name, (base,), {})("CUDA out of memory. Tried to allocate 2 GiB")
    return error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MsdvError("frames/ is empty:\n  run msdv prep"), 1, "frames/ is empty: run msdv prep"),
        (UsageError("runs/x exists: pass --overwrite"), 2, "runs/x exists: pass --overwrite"),
        (MsdvError("a\x1b[31mb\udcff.mp4: broken"), 1, "a\\x1b[31mb\\udcff.mp4: broken"),
        (MsdvError("[bold]x[/] is [1] broken"), 1, "[bold]x[/] is [1] broken"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("saved; go on with msdv train --resume"), 130, "saved; go on with msdv train --resume"),
        (MemoryError(), 1, f"not enough memory: {COMMANDS['train'].less_memory}"),
        (_named("OutOfMemoryError"), 1, f"not enough memory: {COMMANDS['train'].less_memory}"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            1,
            f"not enough memory: {COMMANDS['train'].less_memory}",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "the disk is full: free some space and run the command again",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "runs: permission denied"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "broken pipe"),
        (ValueError("no\nway"), 1, "unexpected ValueError (no way): run again with --debug, and report what it prints"),
        (AssertionError(), 1, "unexpected AssertionError: run again with --debug, and report what it prints"),
    ],
)
def test_a_failing_stage_is_one_line(error: BaseException, code: int, message: str, stage: Any, capsys: Any) -> None:
    stage(fail(error))
    assert told(capsys, "train") == (code, "", [f"msdv train: {message}"])


@pytest.mark.parametrize("arguments", [["--debug", "train"], ["train", "--debug"]])
def test_debug_adds_the_traceback(arguments: list[str], stage: Any, capsys: Any) -> None:
    stage(fail(MsdvError("broken")))
    code, out, err = told(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err[0].startswith("Traceback") and err[-1] == "msdv train: broken"


def test_debug_behind_two_dashes_is_a_value(stage: Any, capsys: Any) -> None:
    configs = stage(fail(MsdvError("broken")))
    assert told(capsys, "sample", "-o", "x.gif", "--", "--debug")[2] == ["msdv sample: broken"]
    assert configs[0].prompt == "--debug"


def test_advice_of_libraries_stays_off_the_terminal(stage: Any, capsys: Any) -> None:
    import logging

    def advise() -> None:
        warnings.warn("`foo` is deprecated", FutureWarning, stacklevel=1)
        logging.getLogger("somelibrary").warning("you should probably train this model")

    stage(advise)
    assert told(capsys, "train") == (0, "made it\nnext: more\n", [])
    with pytest.warns(FutureWarning, match="deprecated"):
        run(["train", "--debug"])
    assert not logging.root.manager.disable


def test_only_the_first_process_reports(stage: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    stage()
    assert told(capsys, "train") == (0, "", [])
    assert told(capsys, "train", "--size", "7") == (2, "", [])
    stage(fail(MsdvError("a.mp4 is broken")))
    assert told(capsys, "train") == (1, "", ["msdv train (process 1): a.mp4 is broken"])


def test_a_terminal_that_can_not_spell_is_no_error(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage()
    monkeypatch.setattr(Report, "lines", lambda self: ["wrote 雲.gif"])
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(["train"]) == 0
    assert stream.buffer.getvalue().decode("cp1252").strip() == "wrote \\u96f2.gif"  # type: ignore[attr-defined]
    assert run(["train", "--help"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end differently there")
@pytest.mark.parametrize("arguments", ["--version", "train --help"])
def test_a_reader_that_goes_away_is_no_error(arguments: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "msdv", *arguments.split()]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [("msdv ", "prep"), ("msdv train --sch", "--schedule"), ("msdv train --schedule c", "constant")],
)
def test_shell_completion(words: str, expected: str) -> None:
    environment = {**os.environ, "_MSDV_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    done = subprocess.run(
        [sys.executable, "-m", "msdv"], env=environment, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert expected in done.stdout.splitlines()


def test_python_m_msdv_exits_like_msdv() -> None:
    done = subprocess.run([sys.executable, "-m", "msdv", "sample"], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
