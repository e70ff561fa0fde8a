"""The typed route: a model's own inputs by name, one row or many, and what is said of every mistake."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from loopwright.bundle.routes import Arm, ServingPolicy
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import STRICT, TINY_SCHEMA, tiny_answer
from loopwright.kernel.errors import LoopwrightError
from loopwright.serving.app import Bounds
from loopwright.serving.protocols.typed import TypedReader
from loopwright.serving.rows import MAX_INT, Reader, Rows
from tests.unit.serving.inside import (
    ODD,
    ODD_SCHEMA,
    ROW,
    Inside,
    model_of,
    odd_answer,
    odd_bundle,
    tiny,
)

PREDICT = "/models/late/predict"
ODD_ROW = {'weight "kg"': 4.5, "is wild": True, "lives": 9, "@note,": "it's ok"}


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    folder = tmp_path_factory.mktemp("inside")
    one, odd = tiny(folder / "late"), odd_bundle(folder / "odd")
    site = Inside(folder / "w", model_of("late", {1: one}), model_of(ODD, {1: odd}), bounds=Bounds(rows=4))
    yield site
    site.close()


def test_a_row_is_answered_with_version_arm_and_request_id(inside: Inside) -> None:
    answer = inside.post(
        PREDICT, {"inputs": ROW, "id": "order-7", "unit": "ana", "event_time": "2013-04-01T00:00:00Z"}
    )
    document = answer.json()
    assert answer.status_code == 200
    assert document["predictions"][0].pop("outputs") == {
        "probability": pytest.approx(tiny_answer(500, 6, "UA"))
    }
    assert document == {
        "model": "late", "version": 1, "arm": "stable", "request_id": "order-7",
        "predictions": [{"id": "order-7", "version": 1, "arm": "stable"}],
    }  # fmt: skip
    assert {name: value for name, value in answer.headers.items() if name.startswith("x-loop")} == {
        "x-loopwright-model": "late", "x-loopwright-version": "1", "x-loopwright-arm": "stable",
        "x-loopwright-request-id": "order-7",
    }  # fmt: skip
    event = inside.events()[-1]
    assert (event.id, event.unit, event.event_time, event.inputs) == (
        "order-7", "ana", 1_364_774_400_000_000, [500.0, 6, "UA"]
    )  # fmt: skip


def test_rows_bring_ids_units_and_times_of_their_own(inside: Inside) -> None:
    rows = [ROW, {**ROW, "distance": None, "_id": "b", "_unit": "bo", "_event_time": 5}]
    answer = inside.post(PREDICT, {"inputs": rows, "id": "batch", "unit": "ana"})
    predictions = answer.json()["predictions"]
    assert [p["id"] for p in predictions] == ["batch/0", "b"]
    assert [p["outputs"]["probability"] for p in predictions] == pytest.approx(
        [tiny_answer(500, 6, "UA"), tiny_answer(None, 6, "UA")]
    )
    assert [(e.unit, e.event_time) for e in inside.events()[-2:]] == [("ana", 1_000_000), ("bo", 5)]


def test_names_that_need_quotes_and_classes_that_look_like_fields(inside: Inside) -> None:
    answer = inside.post(f"/models/{quote(ODD)}/predict", {"inputs": [ODD_ROW]})
    wanted = odd_answer(4.5, True, 9)
    (prediction,) = answer.json()["predictions"]
    assert prediction["outputs"] == pytest.approx(dict(zip(ODD_SCHEMA.outputs, wanted, strict=True)))
    assert prediction["label"] == ODD_SCHEMA.classes[wanted.index(max(wanted))]
    assert "error" not in prediction
    assert answer.headers["x-loopwright-model"] == ODD


@pytest.mark.parametrize(
    ("body", "status", "where", "message"),
    [
        (b"", 400, "body", "not JSON"),
        (b'{"inputs":', 400, "body", "not JSON"),
        (b"[" * 5000, 400, "body", "nested too deeply"),
        (b'{"inputs":{"distance":NaN,"hour":6,"carrier":null}}', 400, "body", "not JSON"),
        (b'{"inputs":{"distance":1e999,"hour":6,"carrier":null}}', 422, "body", "$.inputs.distance"),
        (b"[]", 422, "body", "not an object"),
        ({}, 422, "inputs", "not a row"),
        ({"input": ROW}, 422, "body", "did you mean `inputs`?"),
        (ROW, 422, "body", "Inputs go into `inputs`."),
        ({"inputs": []}, 422, "inputs", "no rows; wanted at least one"),
        ({"inputs": [ROW] * 5}, 413, "inputs", "too many rows; got 5, wanted at most 4"),
        ({"inputs": [ROW, 3]}, 422, "inputs[1]", "not a row; got 3"),
        ({"inputs": {"distance": 1, "hour": 6}}, 422, "inputs", "input `carrier` is missing"),
        ({"inputs": [ROW, {**ROW, "carier": ""}]}, 422, "inputs[1].carier", "did you mean `carrier`?"),
        ({"inputs": {**ROW, "hour": None}}, 422, "inputs.hour", "may not be null"),
        ({"inputs": [ROW, {**ROW, "hour": 6.5}]}, 422, "inputs[1].hour", "not a whole number; got 6.5"),
        ({"inputs": {**ROW, "hour": 2**63}}, 422, "inputs.hour", "a number too large"),
        ({"inputs": {**ROW, "hour": 1e300}}, 422, "inputs.hour", "a number too large"),
        ({"inputs": {**ROW, "hour": True}}, 422, "inputs.hour", "got True, wanted int64"),
        ({"inputs": {**ROW, "distance": "far"}}, 422, "inputs.distance", "got far, wanted float64"),
        ({"inputs": {**ROW, "carrier": "x" * 4097}}, 422, "inputs.carrier", "text too long"),
        ({"inputs": {**ROW, "_id": "a\nb"}}, 422, "inputs._id", "cannot be printed"),
        ({"inputs": ROW, "unit": 7}, 422, "unit", "not text; got 7"),
        ({"inputs": ROW, "event_time": "today"}, 422, "event_time", "not a time with a zone"),
        ({"inputs": ROW, "id": "x" * 257}, 422, "id", "too long"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(
    inside: Inside, body: Any, status: int, where: str, message: str
) -> None:
    before = len(inside.events())
    answer = inside.post(PREDICT, body)
    assert (answer.status_code, answer.json()["where"]) == (status, where)
    assert message in answer.json()["error"]
    assert len(inside.events()) == before


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=latin-1", 415),
        ("", 415),
    ],
)
def test_only_json_in_utf8_is_read(inside: Inside, content_type: str, status: int) -> None:
    answer = inside.post(PREDICT, json.dumps({"inputs": ROW}), content_type)
    assert answer.status_code == status
    assert (
        status == 200 or "application/json" in answer.json()["error"] or "charset" in answer.json()["error"]
    )


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/late/versions/1/predict", 200),
        ("/models/late/versions/2/predict", 404),
        ("/models/x/predict", 404),
    ],
)
def test_a_version_is_asked_for_by_its_number(inside: Inside, path: str, status: int) -> None:
    assert inside.post(path, {"inputs": ROW}).status_code == status


def test_rows_without_an_answer_say_why_beside_the_others(tmp_path: Path) -> None:
    site = Inside(tmp_path, model_of("late", {1: tiny(tmp_path / "strict", transform=STRICT)}))
    both = site.post(PREDICT, {"inputs": [ROW, {**ROW, "carrier": "ZZ"}]})
    assert both.status_code == 200
    assert both.json()["errors"] == 1
    good, bad = both.json()["predictions"]
    assert "error" not in good
    assert "outputs" not in bad
    assert "KeyError" in bad["error"]
    none = site.post(PREDICT, {"inputs": {**ROW, "carrier": "ZZ"}})
    assert (none.status_code, "gave no answer" in none.json()["error"]) == (500, True)
    site.close()


def test_an_answer_in_another_arms_place_is_labelled(tmp_path: Path) -> None:
    bundles = {1: tiny(tmp_path / "one"), 2: tiny(tmp_path / "two", transform=STRICT)}
    site = Inside(
        tmp_path,
        model_of("late", bundles, Arm("stable", 1, 0.0), Arm("canary", 2, 1.0), policy=ServingPolicy()),
    )
    answer = site.post(PREDICT, {"inputs": {**ROW, "carrier": "ZZ"}})
    document = answer.json()
    assert (document["fallback"], document["arm"], document["version"]) == (True, "stable", 1)
    assert document["predictions"][0]["source"] == "stable"
    assert answer.headers["x-loopwright-fallback"] == "true"
    site.close()


# The decoder made from the signature, and the checks that explain: one accepts what the other does.

WIDE = Schema(
    inputs=(*TINY_SCHEMA.inputs, Field("late", "bool"), Field("vip", "bool", nullable=False), Field("n", "int64")),
    features=("distance",), outputs=("prediction",), task="regression",
)  # fmt: skip
FAST, SLOW = TypedReader(Reader(WIDE)), TypedReader(Reader(WIDE))
SLOW._decoder = None

numbers = st.one_of(
    st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-MAX_INT, MAX_INT), st.integers(-9, 9).map(float),
)  # fmt: skip
anything = st.one_of(numbers, st.text(max_size=5), st.lists(st.integers(), max_size=1), st.just({}))
right = {
    "distance": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-MAX_INT, MAX_INT),
    "hour": st.integers(-MAX_INT, MAX_INT) | st.integers(-9, 9).map(float),
    "carrier": st.none() | st.text(max_size=5),
    "late": st.none() | st.booleans(),
    "vip": st.booleans(),
    "n": st.none() | st.integers(-MAX_INT, MAX_INT),
}
moments = st.integers(0, 9) | st.just("2013-04-01T05:00:00+02:00")
reserved = {"_id": st.text("abc é", max_size=3), "_unit": st.none() | st.just("u"), "_event_time": moments}
extras = {
    "_id": st.text(max_size=3) | anything,
    "_event_time": st.integers(0, 9) | anything,
    "other": anything,
}
rows = st.fixed_dictionaries(right, optional=reserved)
good_bodies = st.fixed_dictionaries(
    {"inputs": rows | st.lists(rows, min_size=1, max_size=3)},
    optional={"unit": st.just("v"), "event_time": moments},
)
odd_rows = st.fixed_dictionaries({}, optional={**dict.fromkeys(right, anything), **extras})
bodies = st.fixed_dictionaries(
    {"inputs": rows | st.lists(rows, max_size=3) | odd_rows | anything},
    optional={"unit": st.text(max_size=3) | anything, "event_time": anything, "id": anything},
)


def read(reader: TypedReader, body: bytes) -> Rows | tuple[str, str]:
    try:
        return reader.read(body, 10)
    except LoopwrightError as error:
        return type(error).__name__, str(error)


@settings(max_examples=300, deadline=None)
@given(good_bodies | bodies)
def test_the_decoder_takes_what_the_checks_take_and_the_checks_explain_the_rest(body: Any) -> None:
    encoded = json.dumps(body).encode()
    fast, slow = read(FAST, encoded), read(SLOW, encoded)
    for rows in (fast, slow):
        if isinstance(
            rows, Rows
        ):  # the decoder makes floats of whole numbers at once, as the model does later
            for row in rows.values:
                row[0] = None if row[0] is None else float(row[0])
    event(type(fast).__name__)
    assert fast == slow  # the same rows, or the same words


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.recursive(anything, lambda deeper: st.lists(deeper, max_size=3)).map(
    lambda value: json.dumps({"inputs": value}).encode()
))  # fmt: skip
def test_no_bytes_are_the_servers_fault(body: bytes) -> None:
    for reader in (FAST, TypedReader(Reader(ODD_SCHEMA))):
        answer = read(reader, body)
        assert isinstance(answer, Rows) or answer[0] in ("BadInput", "Malformed", "TooLarge")
