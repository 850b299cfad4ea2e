"""A page as somebody at a terminal goes through it: what is typed, and what the page shows then."""

import re
from dataclasses import dataclass, field

# A code block, or what a sentence has in backticks.
_CODE = re.compile(r"^```(?P<language>\w*)\n(?P<block>.*?)^```|`(?P<inline>[^`]+)`", re.MULTILINE | re.DOTALL)
_PROGRAMS = ("msdv", "python", "make", "cat", "tensorboard", "accelerate", "pip")
_NUMBER = re.compile(r"\d[\d.,]*\d|\d")
# What a number or its sign decides, and so differs from machine to machine as numbers do.
_EITHER = {"lower": "(lower|higher)", "higher": "(lower|higher)", "clip": "clips?", "clips": "clips?"}

_VERDICT = re.compile("static|flickers|frames are independent|moves (?:like|less than|more than) the data")


@dataclass
class Passage:
    """Commands, and the lines that the page says they print; `...` stands for any number of lines, or for the end of
    one."""

    commands: list[str]
    shown: list[str] = field(default_factory=list)


def passages(text: str) -> list[Passage]:
    """In the page's order: each block in `sh` with the output after it, blocks that begin with `$ `, and commands with
    arguments in sentences. A second output after the same commands is a passage of the same commands."""
    found: list[Passage] = []
    last: Passage | None = None  # whose output a block without a language would be
    for code in _CODE.finditer(text):
        if code["inline"] is not None:
            words = " ".join(code["inline"].split())
            # The name of a command alone is not meant to be typed.
            if words.startswith(tuple(f"{name} " for name in _PROGRAMS)) and not re.fullmatch(r"msdv \w+", words):
                found.append(Passage([words]))
            continue
        lines = re.sub(r"\\\n\s*", "", code["block"]).splitlines()
        if code["language"] == "sh":
            last = Passage([typed for line in lines if (typed := line.split(" #")[0].strip())])
        elif code["language"]:
            continue  # for other shells and other programs
        elif lines[0].startswith("$ "):
            last = Passage([lines[0].removeprefix("$ ")], lines[1:])
        elif last is None:
            raise ValueError(f"output of no command: {lines[0]}")
        elif last.shown:
            last = Passage(last.commands, lines)
        else:
            last.shown = lines
            continue
        found.append(last)
    return found


def form(line: str) -> re.Pattern[str]:
    """What a printed line looks like, whatever its numbers are, and whatever they are said to mean."""
    said = _VERDICT.search(line)
    line, end = (line[: said.start()], f"({_VERDICT.pattern}).*") if said else (line, "")
    if line.endswith("..."):
        line, end = line.removesuffix("..."), ".*"
    pattern = ""
    for word in re.findall(r"\s+|\w+|[^\w\s]", _NUMBER.sub("\0", line)):
        pattern += r"\s+" if word.isspace() else _EITHER.get(word, re.escape(word))
    return re.compile(pattern.replace(re.escape("\0"), r"-?\d[\d.,]*") + end)


def missing(shown: list[str], printed: str) -> str | None:
    """The first line that a page shows and the program did not print, each after the one before; None if there is
    none."""
    rest = iter(line.rstrip() for line in printed.splitlines())
    for line in shown:
        if line.strip() and line != "..." and not any(form(line.rstrip()).fullmatch(printed) for printed in rest):
            return line
    return None


def named_paths(text: str) -> set[str]:
    """What a page's sentences name as a file or a folder."""
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    names = re.findall(r"`([^`\n]+)`", without_blocks)
    return {name for name in names if re.fullmatch(r"(?![\s-])[^:]*\w(/|\.[a-z]\w{2,})", name) and "msdv" not in name}
