"""What --help looks like. Typer's own page knows neither required options nor ranges that a config model checks, and
spends a column on every --no-<flag>."""

from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from msdv.config import CONFIGS
from msdv.options import settings

Rows = list[tuple[str, str, str]]
"""Name, text, notes."""


class CommandHelp(TyperCommand):
    """Help of one command, from the settings of its config; its epilog is the example."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        name = str(self.name)
        found = settings(CONFIGS[name])
        panels: dict[str, Rows] = {}
        for s in found:
            left = " ".join(filter(None, [", ".join(s.spellings), s.metavar]))
            panels.setdefault(s.group, []).append((left, s.help, s.notes))
        own = CONFIGS[name].model_fields
        panels["Common"] = [_row(parameter) for parameter in self.get_params(ctx) if parameter.name not in own]
        required = [f"{s.label} {s.metavar}" if s.flags else s.metavar for s in found if s.required]
        _print_page(
            " ".join(["msdv", name, *required, "[OPTIONS]"]),
            f"{self.help}",
            f"{self.epilog}",
            panels,
            "A flag that a recipe switches on is switched off with --no- before its name: --no-overwrite.",
        )


class TopHelp(TyperGroup):
    """Help of msdv itself, in the same dress."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, f"{command.short_help}", "") for name, command in self.commands.items()]
        _print_page(
            "msdv COMMAND [OPTIONS]",
            f"{self.help}",
            f"{self.epilog}",
            {"Commands": commands, "Options": [_row(parameter) for parameter in self.get_params(ctx)]},
            "msdv COMMAND --help says more about each.",
        )


def _row(parameter: Any) -> tuple[str, str, str]:
    """An option that is not a config's, such as --debug."""
    return " ".join(filter(None, [", ".join(parameter.opts), parameter.metavar])), parameter.help or "", ""


def _print_page(usage: str, about: str, example: str, panels: dict[str, Rows], end: str) -> None:
    console = Console(highlight=False)
    console.print(Text.assemble(("Usage: ", "bold"), usage), "", _highlighted(about), "", sep="\n")
    console.print(Text("\n".join(f"  {line}" for line in example.splitlines()), style="bold"), "", sep="\n")
    for name, rows in panels.items():
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column(ratio=1)
        for left, text, notes in rows:
            table.add_row(left, _highlighted(text).append(f"  [{notes}]" if notes else "", style="dim"))
        console.print(Panel(table, title=name, title_align="left", border_style="dim", box=box.ROUNDED))
    console.print(_highlighted(end))


def _highlighted(text: str) -> Text:
    """Options and `names` in a text stand out."""
    shown = Text(text)
    shown.highlight_regex(r"`[^`]+`|(?<![\w-])--?[a-z][\w-]*", "cyan")
    return shown
