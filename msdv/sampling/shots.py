"""Several videos of one command: a file of prompts, a list of seeds, and which of them are there already."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msdv.config import SampleConfig
from msdv.console import plain, say
from msdv.data.video import output_format, read_metadata
from msdv.errors import MsdvError, UsageError

MOST_SEEDS = 64
_SHOWN = 60  # characters of a prompt in a message
# What a file says of the circumstances: the same video comes of others too.
_CIRCUMSTANCES = frozenset(("tool", "motion_used", "chunk_frames", "stream_weights", "device", "preview", "vram"))


def parse_seeds(text: str) -> list[int]:
    """`0-15`, `3,8,21` or both -> the seeds, in that order.

    Raises UsageError for anything else, for a seed that comes twice, and for more than 64.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?", part, re.ASCII)
        if not match:
            raise UsageError(f"--seeds {text}: {part.strip() or 'nothing'} is no seed: give 0-15, or 3,8,21")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"--seeds {text}: {part.strip()} goes down: give {last}-{first}")
        if last >= 2**63:
            raise UsageError(f"--seeds {text}: a seed must be below 2 to the 63rd: random generators take no more")
        if len(seeds) + last - first >= MOST_SEEDS:
            raise UsageError(f"--seeds {text}: more than {MOST_SEEDS} don't fit into one picture: give fewer")
        seeds += range(first, last + 1)
    if twice := [seed for index, seed in enumerate(seeds) if seed in seeds[:index]]:
        raise UsageError(f"--seeds {text}: {twice[0]} is there twice: leave one out")
    return seeds


def seeds_of(config: SampleConfig) -> list[int]:
    """Of the videos that stand side by side in one result. Errors as in `parse_seeds`."""
    return [config.seed] if config.seeds is None else parse_seeds(config.seeds)


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file, without those that are empty or begin with #.

    Raises UsageError if there is no such file, MsdvError if it holds no such line or is no text.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"--prompts {path} {what}: give a text file with a prompt a line")
    try:
        # Editors on Windows put a byte order mark in front.
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise MsdvError(f"--prompts {path} can't be read: {error.strerror or error}") from error
    if "\0" in text:
        raise MsdvError(f"--prompts {path} is no UTF-8 text: save it with that encoding")
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise MsdvError(f"--prompts {path} holds no prompt: write one a line")
    return prompts


def shots_of(config: SampleConfig) -> list[SampleConfig]:
    """The results that a command is to make, each with settings of its own.

    Raises UsageError and MsdvError as `read_prompts` does.
    """
    if config.prompts is None:
        return [config]
    prompts, out = read_prompts(config.prompts), config.out
    width = max(3, len(str(len(prompts))))
    return [
        config.model_copy(
            update={
                "prompt": prompt,
                "prompts": None,
                "out": out.with_name(f"{out.stem}-{number:0{width}}{out.suffix}"),
            }
        )
        for number, prompt in enumerate(prompts, start=1)
    ]


def own_share(shots: Sequence[SampleConfig]) -> list[SampleConfig]:
    """What this process is to make, of those that `accelerate launch` or torchrun has started."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return list(shots[rank::processes])


def is_finished(out: Path, settings: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether a result is there that was made with these settings; those not named don't matter.

    Raises UsageError if another one is there that may not be overwritten.
    """
    if not (any(out.iterdir()) if out.is_dir() else out.exists()):
        return False
    try:
        found = read_metadata(out)
    except MsdvError:
        found = {}
    keys = (settings if "tool" not in settings else {**found, **settings}).keys() - _CIRCUMSTANCES
    changed = (key for key in keys if _value(found, key) != _value(settings, key))
    other = sorted(changed, key=lambda key: (key == "inputs", key))  # the files' names say more than what is in them
    if not other:
        return True
    if overwrite:
        return False
    if "tool" not in found:
        raise UsageError(f"{out} exists, and msdv did not make it: choose another -o, or pass --overwrite")
    raise UsageError(
        f"{out} exists, made with {_difference(other[0], found)}: choose another -o, or pass --overwrite to replace it"
    )


def _value(settings: Mapping[str, Any], key: str) -> Any:
    """A setting; the default where it is not named, as an older version did not know it."""
    if key in settings or key not in SampleConfig.model_fields:
        return settings.get(key)
    default = SampleConfig.model_fields[key].default
    return list(default) if isinstance(default, tuple) else default


def _difference(key: str, found: Mapping[str, Any]) -> str:
    if key == "model_hash":
        return "other temporal layers"
    if key == "base_hash":
        return "another image model"
    if key == "inputs":
        return "files of the same names that have changed since"
    name = "PROMPT" if key == "prompt" else "--" + key.replace("_", "-")
    return f"{name} {shortened(str(found[key]))}" if key in found else f"another {name}"


def shortened(text: str) -> str:
    """The beginning of a long text, for messages."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4].rstrip()} ..."


@dataclass
class Progress:
    """How far a list of results has come."""

    total: int
    made: list[Path] = field(default_factory=list)
    there: list[Path] = field(default_factory=list)

    @property
    def words(self) -> str:
        """For messages about an end before the end."""
        done = len(self.made) + len(self.there)
        return f"{done} of {self.total} videos are finished, the same command goes on with the others"

    @contextmanager
    def told(self) -> Iterator[None]:
        """Whatever ends the block early, it is said what was finished."""
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: {self.words}") from None
        except Exception:
            say(self.words)
            raise


def make_all(
    shots: Sequence[SampleConfig],
    finished: Callable[[SampleConfig], bool],
    make: Callable[[SampleConfig, bool], None],
) -> Progress:
    """Make those that are not finished, one after the other; `make` is told whether it is the last one."""
    progress = Progress(len(shots), there=[shot.out for shot in shots if finished(shot)])
    if progress.there:
        say(f"{len(progress.there)} of {len(shots)} videos are there already, made with these settings")
    todo = [shot for shot in shots if shot.out not in progress.there]
    with progress.told():
        for index, shot in enumerate(todo):
            say(plain(f"{shot.out} ({index + 1} of {len(todo)}): {shortened(shot.prompt)}"))
            make(shot, index == len(todo) - 1)
            progress.made.append(shot.out)
    return progress


def check_list(config: SampleConfig) -> None:
    """Raise UsageError where there is nothing to make, or several processes would make the same."""
    if config.prompts is not None:
        output_format(config.out)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("several processes would make the same video: start one, or give them --prompts")
    elif not config.prompt.strip():
        raise UsageError('PROMPT is empty: say what to show: msdv sample "clouds timelapse" -o out.gif')


def check_seeds(config: SampleConfig) -> None:
    """Raise UsageError for --seeds that can't be meant, or go with another option."""
    if config.seeds is not None:
        parse_seeds(config.seeds)
        if config.seed:
            raise UsageError(f"--seed {config.seed} and --seeds {config.seeds}: leave one of them out")
        if config.latents is not None:
            raise UsageError(f"--seeds {config.seeds}: the noise in --latents is the same for all: leave one out")
