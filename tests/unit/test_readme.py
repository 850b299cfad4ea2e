"""What the pages tell people to type is what the program takes."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from msdv.cli import COMMANDS, parser
from msdv.config import CONFIGS
from msdv.options import fill_bare_options, settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")]
_FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# `msdv train: ...` is how errors begin.
_COMMAND = re.compile(r"(?:\$ )?(?:accelerate launch .*?-m )?msdv (?!\w+:)(.+)")


def blocks(text: str) -> list[list[str]]:
    """Lines of each code block; a line that ends in a backslash and its continuation are one."""
    return [re.sub(r"\\\n\s*", "", block).splitlines() for block in _FENCED.findall(text)]


def command_lines(text: str) -> list[str]:
    """Everything that a page writes as a command of msdv, without the `msdv`: in code blocks, and `msdv ...` in a
    sentence, where the name of a command alone is not meant to be typed."""
    found = [match[1] for block in blocks(text) for line in block if (match := _COMMAND.fullmatch(line.strip()))]
    inline = re.findall(r"`msdv ([^`]+)`", _FENCED.sub("", text).replace("\n", " "))
    return found + [line for line in inline if line.strip() not in COMMANDS]


def parse(line: str) -> Any:
    """What the program makes of a command line, nothing being run: a job, or None for --help and the like."""
    words = fill_bare_options(shlex.split(line, comments=True))
    job = parser(words[0]).main(words, prog_name="msdv", standalone_mode=False)
    return job or None


LINES = [
    pytest.param(line, id=f"{page.relative_to(ROOT).as_posix()}: {line}")
    for page in PAGES
    for line in command_lines(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_is_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(ROOT)  # the recipes that ship are named relative to it
    recipe = re.search(r"--config (\S+)", line)
    if recipe and not recipe[1].startswith("recipes/"):  # one that a run wrote: it holds all that is required
        command = line.split()[0]
        required = [s.name for s in settings(CONFIGS[command]) if s.required]
        (tmp_path / "recipe.toml").write_text("\n".join([f"[{command}]", *(f'{name} = "x"' for name in required)]))
        line = line.replace(recipe[1], (tmp_path / "recipe.toml").as_posix())
    job = parse(line)
    if job is not None:
        assert type(job.config) is CONFIGS[job.name]
    else:
        assert capsys.readouterr().out


def test_finds_and_refuses() -> None:
    block = "```sh\n$ msdv prep a \\\n    b  # note\nmsdv prep: fault\n```\n"
    text = f"Run `msdv train`, or `msdv train\n--steps 3`.\n{block}"
    assert command_lines(text) == ["prep a b  # note", "train --steps 3"]
    assert parse("prep a b  # note").config.frames == Path("b")
    with pytest.raises(Exception, match="--stpes"):
        parse("train --stpes 3")
    with pytest.raises(Exception, match="must be"):
        parse("train --steps 0")


def test_readme_shows_all_four_commands() -> None:
    shown = {line.split()[0] for line in command_lines(README.read_text(encoding="utf-8"))}
    assert shown >= set(COMMANDS)


def test_readme_begins_with_make_demo_and_make_test() -> None:
    first = blocks(README.read_text(encoding="utf-8"))[0]
    assert [line.split("#")[0].strip() for line in first[:2]] == ["make demo", "make test"]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        typed = [line for block in blocks(text) for line in block] + re.findall(r"`([^`]+)`", text)
        named = {match[1] for line in typed if (match := re.match(r"make (\w+)", line.strip()))}
        assert named <= targets, page


def test_pictures_are_there() -> None:
    missing = [
        f"{page.relative_to(ROOT)}: {source}"
        for page in PAGES
        for source in re.findall(r'<img[^>]* src="([^":]+)"', page.read_text(encoding="utf-8"))
        if not (page.parent / source).is_file()
    ]
    assert missing == []


def test_links_to_headings_lead_somewhere() -> None:
    def headings(page: Path) -> set[str]:
        titles = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    broken = [
        f"{page.relative_to(ROOT)}: {path}#{anchor}"
        for page in PAGES
        for path, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
        if anchor not in headings(page.parent / path if path else page)
    ]
    assert broken == []
