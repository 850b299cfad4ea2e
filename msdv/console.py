"""What people see while something takes long: one console on stderr, silent in all processes but the first."""

import os
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# No markup: names of files may hold square brackets.
console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0", highlight=False, markup=False)


def say(line: str | None) -> None:
    """Print a line for the user, unbroken, as it is; nothing for None."""
    if line is not None:
        console.print(line, soft_wrap=True)


def plain(text: str) -> str:
    """In one line that can be printed, whatever is in a name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class RateColumn(ProgressColumn):
    """Things per second, or seconds per thing where that is the readable number."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """From rich's own moving average."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        text = f"{speed:.1f} {self._unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{self._unit}"
        return Text(text, style="progress.data.speed")


def progress(unit: str, **fields: Any) -> Progress:
    """A progress display: bar, count, rate, time left, and a text field `note` that tasks may set."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,  # in a file a bar is noise; what matters is said in lines
        transient=True,
        speed_estimate_period=60,
        **fields,
    )
