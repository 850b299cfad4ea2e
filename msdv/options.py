"""A config model -> the options of a command; then options over recipe over defaults -> one validated config.

Every option reaches Typer as text that defaults to None: None tells that it was not given, and the model alone decides
what a text means, so that an option, a recipe and a Python caller are held to the same rules.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from msdv.config import CONFIGS, CommandConfig
from msdv.errors import UsageError
from msdv.recipe import read_section, suggest

GROUPS = (
    "Arguments",
    "Result",
    "Frames",
    "Captions",
    "Selection",
    "Data",
    "Picture",
    "Start",
    "Length",
    "Training",
    "Model",
    "Description",
    "Device",
    "Run",
)
"""The order of the panels in help."""

_METAVARS = {"integer": "N", "number": "NUMBER", "string": "TEXT"}

Config = TypeVar("Config", bound=CommandConfig)


@dataclass(frozen=True)
class Setting:
    """What the command line shows of a config field."""

    name: str
    """The field, which is also the key in a recipe."""

    flags: tuple[str, ...]
    """Its spellings, the one used in messages first; none for what is given by position."""

    negation: str | None
    """What switches a flag off that a recipe has switched on."""

    metavar: str
    """How help names the value; empty for a flag, in square brackets if the value can be left out."""

    kind: str
    """`boolean`, `integer`, `number`, `string`, `path` or `array` (of texts)."""

    group: str
    help: str
    choices: tuple[str, ...]
    limits: str
    """The range in words, as in "must be ..."; empty if there is none."""

    default: str
    """In words; empty if there is none or the help text says what happens without a value."""

    required: bool
    bare: str | None
    """The value that the option has when none follows it."""

    @property
    def label(self) -> str:
        """How a message refers to it."""
        return self.flags[0] if self.flags else self.metavar

    @property
    def spellings(self) -> tuple[str, ...]:
        """As help lists them: for what is on anyway, what switches it off comes too."""
        return (*self.flags, self.negation) if self.negation and self.default else self.flags

    @property
    def notes(self) -> str:
        """Choices, range and default, as help shows them behind the text."""
        notes = [" | ".join(self.choices), self.limits, f"default: {self.default}" if self.default else ""]
        return "; ".join([*filter(None, notes), *(["required"] if self.required else [])])


def settings(model: type[CommandConfig]) -> tuple[Setting, ...]:
    """The fields of a config model, panel by panel."""
    schema = model.model_json_schema()
    found = [_setting(name, field, name in schema["required"]) for name, field in _properties(schema).items()]
    return tuple(sorted(found, key=lambda setting: GROUPS.index(setting.group)))


def _properties(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The fields of a JSON schema, `X | None` seen as X."""
    schema.setdefault("required", [])
    properties: dict[str, dict[str, Any]] = {}
    for name, field in schema["properties"].items():
        inner = [choice for choice in field.get("anyOf", []) if choice["type"] != "null"]
        properties[name] = {**field, **(inner[0] if inner else {})}
    return properties


def _setting(name: str, field: dict[str, Any], required: bool) -> Setting:
    kind = "path" if field.get("format") == "path" else field["type"]
    long = "--" + name.replace("_", "-")
    flag = field.get("flag", long)
    flags = (flag,) if flag.startswith("--") else (flag, long)
    choices = tuple(field.get("enum", ()))
    metavar = field.get("metavar") or ("NAME" if choices else _METAVARS.get(kind, kind.upper()))
    default = field.get("default")
    if kind == "boolean":
        metavar, shown = "", "on" if default else ""
    elif kind == "array":
        metavar, shown = "TEXT", ", ".join(default or ())
    else:
        shown = "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
    argument = field.get("argument", False)
    return Setting(
        name=name,
        flags=() if argument else flags,
        negation=flags[-1].replace("--", "--no-", 1) if kind == "boolean" else None,
        metavar=name.upper() if argument else f"[{metavar}]" if "bare" in field else metavar,
        kind=kind,
        group=field["group"] or "Arguments",
        help=" ".join(field["description"].split()),
        choices=choices,
        limits=_limits(field),
        default=shown,
        required=required,
        bare=field.get("bare"),
    )


def _limits(field: dict[str, Any]) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        words = [f"{low} to {high}"]
    else:
        bounds = {"minimum": "at least", "exclusiveMinimum": "more than", "exclusiveMaximum": "less than"}
        bounds["maximum"] = "at most"
        words = [f"{text} {field[key]}" for key, text in bounds.items() if key in field]
    if "multipleOf" in field:
        words.append(f"a multiple of {field['multipleOf']}")
    return " and ".join(words)


def accept(command: Callable[..., Any], model: type[CommandConfig], extra: Mapping[str, Any]) -> None:
    """Give `command` (a function of keyword arguments) a signature that Typer reads the model's options from.

    `extra` holds parameters that every command has besides: name -> annotation with its typer.Option.
    """
    parameters = []
    for setting in settings(model):
        kind: Any = {"boolean": bool, "array": list[str]}.get(setting.kind, str)
        shown: dict[str, Any] = {"help": setting.help, "show_default": False}
        if setting.metavar:
            shown["metavar"] = setting.metavar
        if setting.choices:
            shown["autocompletion"] = _completion(setting.choices)
        flags = list(setting.flags)
        if setting.negation:
            flags[-1] += "/" + setting.negation
        info = typer.Option(*flags, rich_help_panel=setting.group, **shown) if flags else typer.Argument(**shown)
        parameters.append((setting.name, Annotated[kind | None, info]))
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None)
            for name, annotation in [*parameters, *extra.items()]
        ]
    )


def _completion(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def fill_bare_options(arguments: Sequence[str]) -> list[str]:
    """`--resume` without a value, the only spelling that Typer does not read -> `--resume=newest`.

    A value is missing where the line ends or another option follows.
    """
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if command not in CONFIGS:
        return list(arguments)
    bare = {flag: s.bare for s in settings(CONFIGS[command]) if s.bare for flag in s.flags}
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    filled = list(arguments)
    for index, argument in enumerate(arguments[:end]):
        if argument in bare and (index + 1 == len(arguments) or arguments[index + 1].startswith("-")):
            filled[index] = f"{argument}={bare[argument]}"
    return filled


def resolve(command: str, model: type[Config], given: Mapping[str, Any], recipe: Path | None, example: str) -> Config:
    """Options over recipe over defaults, validated once. Paths in a recipe are relative to the current folder.

    given: field -> value, None or empty where an option was not given; example: a line that works, for messages.
    The `model_fields_set` of the result are the fields that an option or the recipe gave.

    Raises:
        UsageError: a recipe that can't be read, an unknown section or key, a value out of range, a missing one. One
            line, with the option or key as the user wrote it, the value, and what is allowed.
    """
    known = {setting.name: setting for setting in settings(model)}
    options = {name: value for name, value in given.items() if value is not None and value != []}
    flags = {flag for setting in known.values() for flag in (*setting.flags, setting.negation) if flag}
    for name, value in options.items():
        if isinstance(value, str) and value.split("=")[0] in flags:
            raise UsageError(f"{known[name].label} has no value ({value} behind it is another option): {example}")
    from_recipe = read_section(recipe, command) if recipe else {}
    merged = {**from_recipe, **options}

    def where(name: str) -> str:
        if name not in options:
            return f"{recipe} [{command}] {name} = {_shown(merged[name], quoted=True)}"
        return f"{known[name].label} {_shown(merged[name])}"

    problems = []
    for name, value in merged.items():
        number = known[name].kind in ("integer", "number")
        if isinstance(value, bool) and number:  # Python counts true as 1
            problems.append(f"{where(name)}: must be a number")
        elif value == "" and known[name].kind == "path":  # which would mean the current folder
            problems.append(f"{where(name)}: must be a path")
        elif known[name].kind == "path" and name not in options and re.search(r"[\x00-\x1f]", str(value)):
            problems.append(f"{where(name)}: \\ has another meaning here: write / instead")
        elif known[name].kind == "path" and isinstance(value, str) and value.startswith("~"):
            merged[name] = _expand_home(value)
    if problems:
        raise UsageError("; ".join(problems))
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        missing = [known[str(e["loc"][0])].label for e in error.errors() if e["type"] == "missing"]
        problems = [
            f"{where(str(e['loc'][0]))}: {_allowed(e, known[str(e['loc'][0])])}" if e["loc"] else _reason(e)
            for e in error.errors()
            if e["type"] != "missing"
        ]
        if missing:
            problems.append(f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} missing: {example}")
        raise UsageError("; ".join(problems)) from None


def _allowed(error: Any, setting: Setting) -> str:
    """What a field takes, in one phrase."""
    kind = error["type"]
    if kind == "literal_error":
        nearest = suggest(str(error["input"]), setting.choices)
        return f"must be one of {', '.join(setting.choices)}{nearest}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return f"must be {setting.limits}"
    if setting.kind in ("integer", "number") and kind != "value_error":
        noun = "a whole number" if setting.kind == "integer" else "a number"
        return f"must be {noun}" + (f", {setting.limits}" if setting.limits else "")
    expected = {
        "boolean": "true or false",
        "string": "text",
        "path": "a path",
        "array": 'a list of texts: ["...", "..."]',
    }
    return _reason(error) if kind == "value_error" else f"must be {expected[setting.kind]}"


def _reason(error: Any) -> str:
    """The words of a validator of ours."""
    return str(error.get("ctx", {}).get("error", error["msg"]))


def _shown(value: Any, quoted: bool = False) -> str:
    """A value as it may stand in a message: quoted where needed, not too long."""
    if isinstance(value, str) and not quoted and re.fullmatch(r"[^\s\"'\x00-\x1f]+", value):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _expand_home(value: str) -> str:
    """`~` is the home folder in a recipe too, where no shell has seen it."""
    try:
        return str(Path(value).expanduser())
    except RuntimeError:  # no such user
        return value
