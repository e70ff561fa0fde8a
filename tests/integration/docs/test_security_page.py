"""docs/security.md promises only what a test shows."""

import re
from pathlib import Path

from tests.integration.docs.page import DOCS

TESTS = Path(__file__).parents[2]
TEXT = (DOCS / "security.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_is_there() -> None:
    named = set(re.findall(r"`((?:unit|contract|integration)/[\w/]+\.py)`", TEXT))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (TESTS / name).is_file()] == []


def test_every_defence_names_a_test() -> None:
    defended = TEXT[TEXT.index("## What is defended") : TEXT.index("## What is not defended")]
    rows = [line for line in defended.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    assert [row for row in rows if "test_" not in row.rsplit("|", 2)[1]] == []


def test_links_lead_somewhere() -> None:
    pages = [*DOCS.glob("*.md"), DOCS.parent / "SECURITY.md", DOCS.parent / "README.md"]
    dead = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert dead == []
