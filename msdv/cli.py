"""The commands: read the options, import the stage, call it, report. The only module that prints and exits."""

import contextlib
import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from msdv import __version__
from msdv.config import CONFIGS, CommandConfig, ExportConfig, PrepConfig, SampleConfig, TrainConfig
from msdv.errors import MsdvError, UsageError, is_out_of_memory
from msdv.help import CommandHelp, TopHelp
from msdv.options import accept, fill_bare_options, resolve, settings
from msdv.recipe import suggest

EXAMPLE = """\
msdv prep videos/ frames/
msdv train --frames 25 --fp16 --offload-optim
msdv sample "clouds timelapse" --frames 120 -o out.gif
msdv export runs/<name> -o motion.safetensors"""


class _CheckError(MsdvError):
    """A check that found something wrong, with what it has to say besides."""

    def __init__(self, lines: Sequence[str], message: str) -> None:
        super().__init__(message)
        self.lines = lines


def _prep(config: PrepConfig) -> list[str]:
    if config.check is not None:
        from msdv.data.audit import audit

        report = audit(config.check)
        if not report.problem:
            return report.lines()
        raise _CheckError(report.lines()[:-1], report.problem)
    # The pictures that numpy sees here are small: threads would only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from msdv.data.prepare import prepare

    return prepare(config).lines()


def _train(config: TrainConfig) -> list[str]:
    if config.json_output and not (config.evaluate or config.plan):
        raise UsageError("--json prints the result of --plan or --evaluate: give one of them too, or leave it out")
    if config.plan:
        from msdv.planning import plan_training

        plan = plan_training(config)
        return [plan.json()] if config.json_output else plan.lines()
    from msdv.train import evaluate, train

    if config.evaluate:
        result = evaluate(config)
        return [result.json()] if config.json_output else result.lines()
    return train(config).lines()


def _sample(config: SampleConfig) -> list[str]:
    if config.json_output and not (config.plan or config.report):
        raise UsageError("--json prints the result of --plan or --report: give one of them too, or leave it out")
    if config.plan:
        from msdv.planning import plan_sample

        plan = plan_sample(config)
        return [plan.json()] if config.json_output else plan.lines()
    from msdv.sample import sample

    result = sample(config)
    return [result.json()] if config.json_output else result.lines()


def _export(config: ExportConfig) -> list[str]:
    from msdv.export import export

    return export(config).lines()


@dataclass(frozen=True)
class Command:
    """What help says of a command, and what runs it."""

    summary: str
    about: str
    example: str
    stage: Callable[[Any], list[str]]
    """Runs it; returns what to print at the end."""

    less_memory: str
    """What to change when memory does not suffice."""


COMMANDS = {
    "prep": Command(
        "Cut videos into frames.",
        "Cuts every video of a folder into frames, and says in a manifest what became of each. A second run "
        "goes on where the first one stopped.",
        "msdv prep videos/ frames/ --fps 5 --size 512",
        _prep,
        "try fewer --workers or a smaller --size",
    ),
    "train": Command(
        "Teach an image model to see time, from frames.",
        "Adds layers that see time to an image model and trains only those. Everything goes into one run folder, from "
        "which an interrupted run continues with --resume.",
        "msdv train --data frames/ --frames 25 --fp16 --offload-optim",
        _train,
        "try --fp16, --offload-optim, --checkpointing full, fewer --frames or a smaller --size",
    ),
    "sample": Command(
        "Make a video from a prompt.",
        "Makes a moving picture of a prompt, with the layers of a run. The suffix of the result chooses its format.",
        'msdv sample "clouds timelapse" --frames 120 -o out.gif',
        _sample,
        "try --fp16, fewer --frames or a smaller --size",
    ),
    "export": Command(
        "Write a trained model for other tools.",
        "Takes the trained layers out of a run, as one small file or as a complete pipeline folder.",
        "msdv export runs/<name> -o motion.safetensors",
        _export,
        "close other programs",
    ),
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"msdv {__version__}")
        raise typer.Exit


_Recipe = typer.Option(
    "--config",
    metavar="RECIPE",
    help="TOML file whose section of this command's name holds options; what the command line says goes first.",
)
_SHARED: dict[str, Any] = {
    "config": Annotated[str | None, _Recipe],
    "debug": Annotated[bool | None, typer.Option("--debug", help="Show the traceback of an error too.")],
}


def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error too.")] = False,
) -> None:
    """Make a stable diffusion video on a home computer: teach an image model to see time, on one small card."""


@dataclass(frozen=True)
class Job:
    """A command line that was understood."""

    name: str
    config: CommandConfig


def parser(name: str) -> Any:
    """What reads command lines. Only the command called `name` knows its options: finding them out takes a while."""
    app = typer.Typer(name="msdv", cls=TopHelp, epilog=EXAMPLE, pretty_exceptions_enable=False)
    app.callback()(_top)
    for command in COMMANDS:
        _add(app, command, name == command or "_MSDV_COMPLETE" in os.environ)
    return typer.main.get_command(app)


def _add(app: typer.Typer, name: str, with_options: bool) -> None:
    command = COMMANDS[name]

    def read(**given: Any) -> Job:
        recipe, _ = given.pop("config"), given.pop("debug")
        path = None if recipe is None else Path(recipe)
        return Job(name, resolve(name, CONFIGS[name], given, path, command.example))

    accept(read, CONFIGS[name] if with_options else CommandConfig, _SHARED)
    app.command(name, cls=CommandHelp, short_help=command.summary, help=command.about, epilog=command.example)(read)


def main() -> None:
    """The console script: do what the command line says; exit with 0, 1, 2 or 130."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """One command line, its errors included. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks must not be what a run dies of.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    options = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    debug = "--debug" in options
    name = next((argument for argument in options if not argument.startswith("-")), "")
    first = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` starts
    job: Any = None
    try:
        # Not standalone: Typer hands its errors to us and returns what the command returns, or an exit code.
        job = parser(name).main(fill_bare_options(arguments or ["--help"]), prog_name="msdv", standalone_mode=False)
        if not isinstance(job, Job):
            _say([])
            return int(job or 0)
        with contextlib.nullcontext() if debug else _quiet(), contextlib.redirect_stdout(sys.stderr):
            lines = COMMANDS[job.name].stage(job.config)
        if first:
            _say(lines)
        return 0
    except KeyboardInterrupt as error:
        if first:
            _complain(name, str(error) or "interrupted")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, message = _explain(error, name, debug)
        if isinstance(error, _CheckError) and first:
            _say(error.lines)
        # A command line is wrong in all processes alike; what goes wrong in a stage may be one process's own.
        if first or job is not None:
            _complain(name, message)
        return code


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No advice from libraries to their developers on a user's terminal; in worker processes neither."""
    silence = {
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    if not sys.stderr.isatty():
        silence["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for variable, value in silence.items():
        os.environ.setdefault(variable, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _say(lines: Sequence[str]) -> None:
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read our output (`| head`) has seen enough. Nothing is wrong, and Python must not flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(name: str, message: str) -> None:
    """One line on stderr, whatever is in the message."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
    rank = os.environ.get("RANK", "0")
    speaker = " ".join(["msdv", name] if name in COMMANDS else ["msdv"])
    if rank != "0":
        speaker += f" (process {rank})"
    with contextlib.suppress(OSError):
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text.assemble((f"{speaker}: ", "bold red"), line))


def _explain(error: Exception, name: str, debug: bool) -> tuple[int, str]:
    """Exit code and message."""
    classes = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if isinstance(error, MsdvError):
        return error.exit_code, text
    if hasattr(error, "format_message"):  # Typer's errors have no class that all its versions export
        return 2, _explain_parser(error, name)
    if "Abort" in classes:
        return 130, "interrupted"
    if is_out_of_memory(error):
        return 1, f"not enough memory: {COMMANDS[name].less_memory if name in COMMANDS else 'close other programs'}"
    if isinstance(error, OSError) and error.strerror:
        if error.errno == errno.ENOSPC:
            return 1, "the disk is full: free some space and run the command again"
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror[0].lower()}{error.strerror[1:]}"
    next_step = "" if debug else ": run again with --debug, and report what it prints"
    return 1, f"unexpected {type(error).__name__}" + (f" ({text})" if text else "") + next_step


def _explain_parser(error: Any, name: str) -> str:
    """An error of Typer's parser in our words."""
    message = str(error.format_message()).rstrip(".").replace("(s)", "")
    message = message[:1].lower() + message[1:]
    if name not in COMMANDS:
        return message if "?" in message else f"{message} (commands: {', '.join(COMMANDS)})"
    if hasattr(error, "possibilities"):
        flags = [flag for s in settings(CONFIGS[name]) for flag in (*s.flags, s.negation) if flag]
        nearest = suggest(error.option_name, [*flags, "--config", "--debug", "--help"])
        return f"{error.option_name} is not an option{nearest} (msdv {name} --help lists them)"
    if "extra argument" in message:
        return f"{message}: a value with spaces needs quotes, as in {COMMANDS[name].example}"
    if "requires an argument" in message:
        return f"{error.option_name} has no value (msdv {name} --help says what it takes)"
    return f"{message} (msdv {name} --help says more)"
