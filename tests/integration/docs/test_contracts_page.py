"""The table of rules in docs/contracts.md is whole, and what the parser makes of each line."""

from loopwright.data.terms import BATCH_KINDS, ROW_KINDS
from tests.integration.docs.page import DOCS
from tests.integration.docs.rules import WAYS, parsed, rules, with_rules


def test_every_kind_of_rule_is_in_the_table_once() -> None:
    assert sorted(kind for kind, *_ in WAYS) == sorted({*ROW_KINDS, *BATCH_KINDS, "unique"})


def test_the_table_is_on_the_page_as_the_parser_has_it() -> None:
    text = (DOCS / "contracts.md").read_text(encoding="utf-8")
    assert rules() in text and with_rules(text) == text, "run scripts/pages and read what it changes"


def test_what_the_page_says_of_severities_holds_for_the_parser() -> None:
    assert parsed("condition", "implementation", "x <= y").severity == "quarantine"
    counted = "{condition: x <= y, mustBeLessThan: 1, unit: percent}"
    assert parsed("condition", "implementation", counted).severity == "block"
    assert parsed(
        "freshness", "implementation", "{metric: freshness, property: seen, mustBeLessThan: 6}"
    ).severity == ("block")
