"""The documentation says what the program does: reference pages are as generated, links lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest

from msdv.config import CONFIGS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", CONFIGS)
def test_reference_is_up_to_date(command: str) -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate_reference.py"))["page"]
    written = (ROOT / "docs" / "reference" / f"{command}.md").read_text(encoding="utf-8")
    assert written == page(command), "run `make docs`"


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")]
    assert pages
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert broken == []
