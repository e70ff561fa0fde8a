"""What of a card counts as written by a person."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.kernel.verdict import Verdict
from loopwright.registry.documents.sections import (
    MAX_BYTES,
    is_filled,
    parse_card,
    read_card,
    section_name,
    template,
    title_of,
)

ENOUGH = "Planners hold gates with it, an hour before departure."


def test_headings_become_sections() -> None:
    card = parse_card(
        f"# late\n\nIt says how late.\n\n## Intended use\n\n{ENOUGH}\n\n### More\n\nx\n", file="card.md"
    )
    assert dict(card.sections) == {
        "summary": "It says how late.",
        "intended_use": f"{ENOUGH}\n\n### More\n\nx",
    }
    assert card.filled == ("intended_use",) and card.verdict is Verdict.PASS


def test_headings_in_code_and_quotes_are_none() -> None:
    card = parse_card(
        f"## Risks\n\n{ENOUGH}\n\n```\n## Limitations\n```\n\n> ## Training data\n", file="card.md"
    )
    assert list(card.sections) == ["risks"]


def test_an_underlined_heading_is_one_too() -> None:
    assert dict(parse_card("Risks\n-----\nFew.\n", file="c").sections) == {"risks": "Few."}


def test_sections_of_one_name_are_joined() -> None:
    assert parse_card("## Risks\na\n## risks\nb\n", file="c").sections["risks"] == "a\n\nb"


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("Intended use", "intended_use"),
        ("License", "licence"),
        ("  Risks & harms! ", "risks_harms"),
        ("!!", "section"),
    ],
)
def test_names_of_sections(heading: str, name: str) -> None:
    assert section_name(heading) == name
    assert section_name(title_of(name)) == name


@pytest.mark.parametrize(
    "text",
    ["", "Todo", "TBD: somebody should write this down for the auditors", "…", "Lorem ipsum " * 3, "a" * 200,
     "- " * 60, "n/a", "fill this in", "x" * 39, "<!-- the intended use is to hold gates an hour before -->",
     "- _What decision does the model support, who makes it, and how often?_\n- _What must it not be used for?_"],
)  # fmt: skip
def test_placeholders_do_not_count(text: str) -> None:
    if "somebody" in text:
        assert is_filled(text), "a sentence with a TBD in it still says something"
    else:
        assert not is_filled(text)


def test_forty_characters_count() -> None:
    assert is_filled("Gates are held with it, an hour before t")
    assert not is_filled("Gates are held with it, an hour before ")


def test_a_new_projects_card_counts_for_nothing() -> None:
    card = parse_card(template("late"), file="card.md")
    assert card.filled == () and card.verdict is Verdict.FAIL
    assert card.payload(by="ana")["sections"] == {}
    assert card.payload(by="ana")["unfilled"] == [
        "intended_use", "limitations", "training_data", "risks", "contact",
    ]  # fmt: skip


def test_an_answer_below_the_question_counts_and_the_question_is_left_out() -> None:
    asked = "- _What must it not be used for?_"
    card = parse_card(template("late").replace(asked, f"{asked}\n\n{ENOUGH}"), file="card.md")
    assert card.filled == ("intended_use",)
    assert "What must it not" not in card.sections["intended_use"]


def test_a_licence_may_be_brief() -> None:
    assert parse_card("## License\n\nApache-2.0\n", file="c").filled == ("licence",)


def test_what_is_too_long_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "long.md").write_bytes(b"a" * (MAX_BYTES + 1))
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="too long"):
        read_card(tmp_path / "long.md")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_card(tmp_path / "binary.md")
    with pytest.raises(BadInput, match="control characters"):
        parse_card("a\x00b", file="c")
    with pytest.raises(BadInput, match="too many sections"):
        parse_card("".join(f"## s{n}\nx\n" for n in range(60)), file="c")
    with pytest.raises(Unavailable, match="cannot read"):
        read_card(tmp_path / "nowhere.md")


@given(st.text(max_size=400))
def test_any_text_is_a_card_or_is_refused(text: str) -> None:
    try:
        card = parse_card(text, file="c")
    except BadInput:
        return
    assert set(card.filled) <= set(card.sections)


def test_a_card_of_comments_that_nothing_closes_is_read_in_no_time() -> None:
    """It is looked at again whenever the policy is asked: one card must not hold the control plane for a minute."""
    text = "## Intended use\n" + "<!--" * 24_000
    since = time.process_time()
    assert parse_card(text, file="card.md").filled == ()
    assert time.process_time() - since < 5
    hidden = "## Intended use\n<!-- " + "who decides what with it, and how often " * 3 + "-->"
    assert parse_card(hidden, file="card.md").filled == ()
    assert parse_card(
        f"{hidden}\nFor whoever plans crews, once an hour before take-off.", file="card.md"
    ).filled
