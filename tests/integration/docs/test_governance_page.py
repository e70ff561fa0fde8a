"""docs/governance.md is what the product does: every command on it is typed, every answer compared."""

from pathlib import Path

import pytest

from tests.integration.docs.page import DOCS, PLAYED, kinds, play, steps, tiers, with_tiers

WRITE = "run scripts/pages and read what it changes"


@pytest.mark.parametrize("name", PLAYED)
def test_the_commands_of_a_page_print_what_it_shows(name: str, tmp_path: Path) -> None:
    played = play((DOCS / name).read_text(encoding="utf-8"), tmp_path / "home")
    assert not played.differs, "\n".join([WRITE, *played.differs])


def test_the_table_of_tiers_is_that_of_the_built_in_documents() -> None:
    text = (DOCS / "governance.md").read_text(encoding="utf-8")
    assert with_tiers(text, tiers()) == text, WRITE
    assert tiers() in text


def test_what_changes_from_run_to_run_is_compared_by_its_kind() -> None:
    said = "row 12 with hash 9f86d081884c7d65… is signed by key 2c26b46b68ffc68f, 2026-03-02 09:00, roc_auc 0.7554"
    says = "row 12 with hash 60303ae22b998861… is signed by key 486ea46224d1bb4f, 2027-01-09 23:59, roc_auc 0.7601"
    assert kinds([said]) == kinds([says])
    assert kinds(["1  lending   dora"]) == kinds(["1   lending  dora"])


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("approval ok: approved by ada, bob", "approval ok: approved by ada"),
        ("refused with 403: PERMISSION_DENIED", "refused with 400: PERMISSION_DENIED"),
        ("still missing: 2 approvals", "still missing: 1 approvals"),
        ("stage: Production", ""),
        ("seal ok key 2c26b46b68ffc68f, current", "seal bad key 2c26b46b68ffc68f, current"),
    ],
)
def test_what_does_not_change_by_itself_is_compared_letter_by_letter(said: str, says: str) -> None:
    assert kinds([said]) != kinds([says])


def test_a_command_may_go_on_in_the_next_line() -> None:
    (first, second) = steps("$ loopwright run \\\n    --json\nsaid\n$ true\n")
    assert (first.typed, first.printed) == ("loopwright run \\\n    --json", ["said"])
    assert (second.typed, second.printed) == ("true", [])
