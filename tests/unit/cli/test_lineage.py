"""lineage on the command line: trees, drawings, pages, and what is refused."""

import json
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from loopwright.cli.commands import loopwright as top
from loopwright.ledger.engine import Ledger
from tests.contract.lineage.history import History
from tests.unit.cli.conftest import Type


@pytest.fixture
def lineage(loopwright: Type, tmp_path: Path) -> Type:
    """The command line on a home with a past."""
    loopwright("user", "add", "ada")
    (home,) = {path.parent for path in tmp_path.rglob("ledger.db")}
    ledger = Ledger.open(f"sqlite:///{home / 'ledger.db'}")
    History(ledger).usual()
    ledger.dispose()
    return loopwright


@pytest.mark.parametrize(
    "form",
    ["M 1", "show M 1", "M 1 --downstream", "--batch T/ID", "--snapshot D", "--source NAME", "--run ID", "--column T.C",
     "M --column T.C", "M 1 --svg F --html F", "columns RUN --recompute", "export --since 2013-07-01T00:00:00Z -o F"],
)  # fmt: skip
def test_the_forms_are_understood(form: str) -> None:
    group = top.get_command(click.Context(top), "lineage")
    assert isinstance(group, click.Group)
    words = form.split()
    name = words.pop(0) if words[0] in group.commands else "show"
    group.commands[name].make_context(name, words)


def test_where_a_version_comes_from_is_a_tree(lineage: Type) -> None:
    answer = lineage("lineage", "late", "2")
    assert answer.code == 0
    lines = answer.out.splitlines()
    place = {word: next(n for n, line in enumerate(lines) if word in line) for word in (
        "bundle", "run ", "snapshot", "table flights", "flights batch", "source https://data.example.com/flights/0.csv",
    )}  # fmt: skip
    assert "late 2 was trained by run" in lines[0]
    assert (
        place["table flights"]
        < place["flights batch"]
        < place["source https://data.example.com/flights/0.csv"]
    )
    assert "late 1 · stage Archived" in answer.out and "[baseline of]" in answer.out
    assert "columns read: flights.distance, flights.id, flights.late, weather.id, weather.temp" in answer.out
    assert "approved by bo, cy" in answer.out


def test_what_became_of_a_version_is_a_tree_the_other_way(lineage: Type) -> None:
    answer = lineage("lineage", "late", "1", "--downstream")
    assert answer.code == 0
    assert "What was seen of it led to 1 later version: 2." in answer.out
    assert (
        answer.out.index("alert P1") < answer.out.index("retrain quality drop") < answer.out.rindex("late 2")
    )


@pytest.mark.parametrize(
    "words", [["--source", "weather"], ["--column", "weather.temp"], ["late", "--source", "data/weather.csv"]]
)
def test_what_data_touched_begins_with_what_serves_now(lineage: Type, words: list[str]) -> None:
    answer = lineage("lineage", *words)
    assert answer.code == 0
    assert answer.out.startswith(
        "1 version that serves now was made with it: late 2 answers 100% of requests as stable."
    )
    assert "went into 2 versions" in answer.out or "is read by 2 versions" in answer.out


def test_a_drawing_and_a_page_are_written(lineage: Type, tmp_path: Path) -> None:
    svg, html = tmp_path / "a.svg", tmp_path / "a.html"
    answer = lineage("lineage", "late", "2", "--svg", str(svg), "--html", str(html))
    assert (answer.code, answer.out) == (0, "")
    assert f"wrote {svg}" in answer.err and f"wrote {html}" in answer.err
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    page = html.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "<svg" in page and "Data lineage of late 2" in page
    for told in ("weather.csv", "flights.distance", "approved for Production", "transform.py", "late 1"):
        assert told in page
    told = json.loads(lineage("lineage", "--column", "flights.late", "--svg", str(svg), "--json").out)
    assert told["live"] == ["late/2"]


def test_columns_of_a_run_are_a_table(lineage: Type) -> None:
    graph = json.loads(lineage("lineage", "late", "2", "--json").out)
    run = next(node["id"] for node in graph["nodes"] if node["kind"] == "run")
    answer = lineage("lineage", "columns", run[:10])
    assert answer.code == 0
    assert "temp" in answer.out and "joined on flights.id, weather.id" in answer.out
    assert "only its Python says" in answer.out


def test_export_writes_one_event_a_line(lineage: Type, tmp_path: Path) -> None:
    out = tmp_path / "events.jsonl"
    assert lineage("lineage", "export", "-o", str(out)).out == f"0 events in {out}\n"
    assert out.read_text() == ""
    assert lineage("lineage", "export", "-o", str(tmp_path / "no" / "x")).code == 2


def test_the_old_name_gives_the_same_answer(lineage: Type) -> None:
    assert lineage("models", "lineage", "late", "2").out == lineage("lineage", "late", "2").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["late"], "no version is named"),
        ([], "no version is named"),
        (["late", "9"], "has no version 9"),
        (["lat", "1"], "did you mean `late`"),
        (["late", "1", "--batch", "flights/a"], "a version and a thing are both named"),
        (["--batch", "a/b", "--run", "c"], "name one thing to ask about"),
        (["--column", "flights.lat"], "did you mean `flights.late`"),
        (["late", "1", "--generations", "0"], "out of range"),
        (["export", "--since", "yesterday"], "since"),
        (["export", "--since", "2013-07-01T00:00:00"], "without its zone"),
        (["columns", "nope"], "no such run"),
    ],
)
def test_what_cannot_be_answered_is_one_paragraph_and_exit_code_2(
    lineage: Type, words: list[str], said: str
) -> None:
    answer = lineage("lineage", *words)
    assert (answer.code, answer.out) == (2, ""), answer
    assert said in answer.err and len(answer.err.strip().splitlines()) == 1
