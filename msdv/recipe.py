"""Recipes: TOML files with a section a command. People write them, and every run leaves one beside its result."""

import difflib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msdv.config import CONFIGS, CommandConfig
from msdv.errors import UsageError
from msdv.files import write_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def to_toml(command: str, config: CommandConfig) -> str:
    """All settings of a command as a recipe, which `read_section` and --config read back to the same settings.

    What is None is left out: TOML has no word for it, and it is what a key that is not there means.
    """
    lines = [f"{key} = {_toml(value)}" for key, value in config.model_dump(mode="json").items() if value is not None]
    return "\n".join([f"[{command}]", *lines, ""])


def settings_beside(out: Path) -> Path:
    """Where the settings that made the file `out` are written: out.gif.toml for out.gif."""
    return out.with_name(out.name + ".toml")


def write_beside(out: Path, command: str, config: CommandConfig) -> None:
    """Write the settings that made the file `out` beside it."""
    with write_file(settings_beside(out)) as temporary:
        temporary.write_text(to_toml(command, config), encoding="utf-8")


def _toml(value: Any) -> str:
    """A value in TOML, where texts, numbers, lists and truth look as in JSON, but for one control character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_section(path: Path, command: str) -> dict[str, Any]:
    """The section of a command in a TOML recipe; empty if the recipe has none for it.

    Raises:
        UsageError: no such file, broken TOML, a section or a key that no command has.
    """
    try:
        # Editors on Windows put a byte order mark in front, which TOML does not allow.
        text = path.read_bytes().decode("utf-8-sig")
        recipe = tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text: save it with that encoding") from None
    except tomllib.TOMLDecodeError as error:
        hint = "; in a path, write / for \\" if "\\" in text else ""
        raise UsageError(f"{path}: not TOML: {error}{hint}") from None
    for section, content in recipe.items():
        if section not in CONFIGS:
            sections = " ".join(f"[{name}]" for name in CONFIGS)
            nearest = next((c for c in CONFIGS if section in CONFIGS[c].model_fields), None)
            if isinstance(content, dict):
                raise UsageError(f"{path}: unknown section {section}{suggest(section, CONFIGS)} (known: {sections})")
            hint = f": it belongs in a section, such as [{nearest}]" if nearest else f" outside of {sections}"
            raise UsageError(f"{path}: unknown key {section}{hint}")
        if not isinstance(content, dict):
            raise UsageError(f"{path}: {section} must be a section: write [{section}] on a line of its own")
    own: dict[str, Any] = recipe.get(command, {})
    fields = CONFIGS[command].model_fields
    for key in own:
        if key not in fields:
            raise UsageError(
                f"{path} [{command}]: unknown key {key}{suggest(key.replace('-', '_'), fields)}"
                f" (msdv {command} --help lists them all)"
            )
    return own


def suggest(word: str, known: Iterable[str]) -> str:
    """`: did you mean ...?` if something known is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""
