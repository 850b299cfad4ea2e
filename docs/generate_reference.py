"""Writes docs/reference/: a page a command, from the config models and the command table. `make docs` runs it."""

from pathlib import Path

from msdv.changes import RULES
from msdv.cli import COMMANDS
from msdv.config import CONFIGS
from msdv.options import Setting, settings

REFERENCE = Path(__file__).parent / "reference"

FILES = {
    "prep": """\
| Path | What |
|---|---|
| `FRAMES/<video file name>/000001.jpg` ... | the frames of a video; `<video file name>` keeps its extension |
| `FRAMES/manifest.jsonl` | a JSON object a clip: source, times kept, fps, frames, caption, verdict |
| `FRAMES/contact_sheet.jpg` | three frames a clip with its numbers, to look over the data at a glance |
| `FRAMES/.dropped/` | clips that `--min-motion` and the like left out: another limit brings them back |
| `FRAMES/prep.toml` | every setting of the last run, as a recipe |
""",
    "train": """\
| Path | What |
|---|---|
| `runs/<name>/config.toml` | every setting of the run, as a recipe |
| `runs/<name>/metrics.jsonl` | loss, gradient length and more, a JSON object a line; also as TensorBoard events |
| `runs/<name>/samples/step-000500.gif` | samples with fixed seeds |
| `runs/<name>/checkpoints/step-000500/` | what `--resume` goes on from |
| `runs/<name>/temporal.safetensors` | the newest good weights |
| `runs/<name>/report.html` | curves, samples and settings on one page, which needs no network |
""",
    "sample": """\
One file, or a folder of PNGs if the result has no suffix. What made it (prompt, seed, model, every setting) is written
into it where the format has a place.
""",
    "export": """\
| Result | What |
|---|---|
| `NAME.safetensors` (`--to msdv`) | the temporal layers alone, in half precision |
| `NAME/` (`--to pipeline`) | a folder with the image model and the temporal layers, complete |
| `NAME/` (`--to motion-adapter`) | motion modules as diffusers' `MotionAdapter` |
| `NAME.safetensors` (`--to animatediff`) | motion modules as the file that ComfyUI and A1111 load |
| `NAME/` (`--to 2022`) | the image model with pseudo-3D layers inside its UNet, as the code of 2022 loads it |
| `NAME/README.md`, `NAME/sample.gif` | the model card, and the newest sample of the run if there is one |
| `NAME/export.toml`, `NAME.safetensors.toml` | every setting of the export, as a recipe |

`--push` uploads the folder, or the file together with a model card made for it. `--overwrite` replaces files, and
folders that an export wrote; never a run, what the result is made from, or another folder.
""",
}


def page(command: str) -> str:
    """The reference page of a command, in Markdown."""
    about = COMMANDS[command]
    found = settings(CONFIGS[command])
    lines = [
        "<!-- Made by docs/generate_reference.py from msdv/config.py: change it there. -->",
        "",
        f"# msdv {command}",
        "",
        about.about,
        "",
        "```sh",
        about.example,
        "```",
    ]
    for group in dict.fromkeys(setting.group for setting in found):
        lines += ["", f"## {group}", "", "| Option | Values | Default | Meaning |", "|---|---|---|---|"]
        lines += [_row(setting) for setting in found if setting.group == group]
    lines += [
        "",
        "## Common",
        "",
        "| Option | Meaning |",
        "|---|---|",
        f"| `--config RECIPE` | TOML file whose section `[{command}]` holds options. What the command line says goes "
        "first; paths are relative to the current folder. |",
        "| `--debug` | Show the traceback of an error too. |",
        "| `--help` | Show the options. |",
        "",
        "In a recipe, an option has its name without the leading dashes, and `_` for `-` inside it"
        + _exceptions(found)
        + ". A flag is `true` or `false` there; what a recipe switches on, `--no-` before the name switches off.",
        "",
        "## What it writes",
        "",
        FILES[command].rstrip(),
        "",
        *(_rules() if command == "train" else ()),
    ]
    return "\n".join(lines)


def _rules() -> list[str]:
    """What may be changed with --resume."""
    lines = ["## Going on with other settings", "", "| Setting | With `--resume` | Why |", "|---|---|---|"]
    for name, rule in RULES.items():
        lines.append(f"| `{name}` | {'may be changed' if rule.allowed else 'stays as it was'} | {rule.why} |")
    return [*lines, ""]


def _row(setting: Setting) -> str:
    spelled = ", ".join(f"`{flag}`" for flag in setting.spellings) or f"`{setting.metavar}`"
    if setting.flags and setting.metavar and not setting.choices:
        spelled += " " + setting.metavar.replace("|", "\\|")  # which would end the cell
    values = ", ".join(f"`{choice}`" for choice in setting.choices) or setting.limits
    default = "required" if setting.required else f"`{setting.default}`" if setting.default else ""
    return f"| {spelled} | {values} | {default} | {_escaped(setting.help)} |"


def _escaped(text: str) -> str:
    """For a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _exceptions(found: tuple[Setting, ...]) -> str:
    """Keys that do not follow from the option's spelling."""
    odd = [s for s in found if s.flags and s.flags[-1] != "--" + s.name.replace("_", "-")]
    return "".join(f" (`{s.name}` for `{s.flags[-1]}`)" for s in odd)


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for name in COMMANDS:
        (REFERENCE / f"{name}.md").write_text(page(name), encoding="utf-8", newline="\n")
