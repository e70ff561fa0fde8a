"""MLflow's scoring protocol: its table formats give the same rows, and what cannot be read is told with its place."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import TINY_SCHEMA, tiny_answer
from loopwright.kernel.errors import LoopwrightError
from loopwright.serving.app import Bounds
from loopwright.serving.protocols.mlflow import FORMATS, read_csv, read_json, without_nan
from loopwright.serving.rows import Reader
from tests.unit.serving.inside import ODD, ODD_SCHEMA, ROW, Inside, model_of, odd_answer, odd_bundle, tiny

SCORE = "/invocations"
JSON, CSV = "application/json", "text/csv"
SPLIT = "dataframe_split"
TWO = [ROW, {"distance": None, "hour": 7, "carrier": "AA"}]
ANSWERS = [tiny_answer(500, 6, "UA"), tiny_answer(None, 7, "AA")]
COLUMNS = {name: [row[name] for row in TWO] for name in ROW}
LISTS = [list(row.values()) for row in TWO]


@pytest.fixture(autouse=True)
def a_workers_field_limit() -> Iterator[None]:
    """Reading data raises the limit of the whole process, which a worker never does."""
    before = csv.field_size_limit(131_072)
    yield
    csv.field_size_limit(before)


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    folder = tmp_path_factory.mktemp("inside")
    site = Inside(folder / "w", model_of("late", {1: tiny(folder / "late")}), bounds=Bounds(rows=4))
    yield site
    site.close()


@pytest.mark.parametrize(
    "body",
    [
        {SPLIT: {"columns": list(ROW), "data": LISTS}},
        {SPLIT: {"columns": list(ROW)[::-1], "data": [row[::-1] for row in LISTS], "index": ["a", "b"]}},
        {SPLIT: {"columns": ["other", *ROW], "data": [[{}, *row] for row in LISTS]}},
        {SPLIT: {"data": LISTS}},
        {"dataframe_records": TWO},
        {"dataframe_records": [TWO[0], {"hour": 7, "carrier": "AA", "extra": [1]}], "params": None},
        {"instances": TWO, "params": {}},
        {"instances": LISTS},
        {"inputs": LISTS},
        {"inputs": TWO},
        {"inputs": COLUMNS},
        {"inputs": {name: [[value] for value in values] for name, values in COLUMNS.items()}},
        b'{"dataframe_split":{"columns":["hour","distance","carrier"],"data":[[6,500,"UA"],[7.0,NaN,"AA"]]}}',
        "distance,hour,carrier\n500,6,UA\n,7,AA\n",
        "\ufeffcarrier,hour,distance,x\r\n\r\nUA, 6 ,5e2,1\r\nAA,7,nan,\r\n",
        ",hour,carrier,distance\n0,6,UA,500.0\n1,7,AA,\n",
    ],
)  # fmt: skip
def test_every_format_of_a_table_is_answered_alike(inside: Inside, body: Any) -> None:
    answer = inside.post(SCORE, body, CSV if isinstance(body, str) else JSON)
    assert answer.json() == {"predictions": pytest.approx(ANSWERS)}
    assert answer.status_code == 200
    assert answer.headers["x-loopwright-version"] == "1"


def test_single_values_by_column_are_one_row_with_what_params_say(inside: Inside) -> None:
    params = {"id": "order-7", "unit": "ana", "event_time": 77}
    answer = inside.post("/models/late/versions/1/invocations", {"inputs": ROW, "params": params})
    assert answer.json() == {"predictions": pytest.approx(ANSWERS[:1])}
    assert answer.headers["x-loopwright-request-id"] == "order-7"
    event = inside.events()[-1]
    assert (event.id, event.unit, event.event_time) == ("order-7", "ana", 77)


def test_a_column_may_bring_the_unit_of_each_row(inside: Inside) -> None:
    inside.post(SCORE, b"_id,_unit,_event_time,hour\nr1,u1,5,6\nr2,,2013-04-01T00:00:00Z,7\n", "text/csv")
    assert [(e.id, e.unit, e.event_time, e.inputs) for e in inside.events()[-2:]] == [
        ("r1", "u1", 5, [None, 6, None]),
        ("r2", "r2", 1_364_774_400_000_000, [None, 7, None]),
    ]


def test_several_outputs_are_records_by_name(tmp_path: Path) -> None:
    site = Inside(
        tmp_path,
        model_of(ODD, {1: odd_bundle(tmp_path / "odd")}),
        model_of("late", {1: tiny(tmp_path / "l")}),
    )
    frame = pd.DataFrame(
        {'weight "kg"': [4.5, None], "is wild": [True, False], "lives": [9, 0], "@note,": ['a "b"\n', None]}
    )
    answer = site.post(f"/models/{quote(ODD)}/invocations", frame.to_csv(index=False).encode(), "text/csv")
    wanted = [odd_answer(4.5, True, 9), odd_answer(0, False, 0)]
    assert [list(row.values()) for row in answer.json()["predictions"]] == [
        pytest.approx(row) for row in wanted
    ]
    assert list(answer.json()["predictions"][0]) == ["tabby", "<script>", "error"]
    several = site.post(SCORE, {"inputs": ROW})
    assert (several.status_code, "several models" in several.json()["message"]) == (422, True)
    site.close()


@pytest.mark.parametrize(
    ("body", "content_type", "status", "where", "message"),
    [
        (b"", JSON, 400, "body", "not JSON"),
        (b"NaN", JSON, 422, "body", "not an object"),
        (b"[1]", JSON, 422, "body", "dataframe_split, dataframe_records, instances, inputs"),
        ({}, JSON, 422, "body", "not exactly one table; got none"),
        ({"inputs": ROW, "instances": [ROW]}, JSON, 422, "body", "got instances, inputs"),
        ({"dataframe_spilt": {}}, JSON, 422, "body", "did you mean `dataframe_split`?"),
        ({"inputs": ROW, "params": {"threshold": 1}}, JSON, 422, "params", "no parameter `threshold`"),
        ({"inputs": ROW, "params": [1]}, JSON, 422, "params", "not an object"),
        ({"inputs": []}, JSON, 422, "inputs", "no rows"),
        ({"inputs": {}}, JSON, 422, "inputs", "no columns"),
        ({"inputs": 3}, JSON, 422, "inputs", "not a table; got 3"),
        ({"instances": [3]}, JSON, 422, "instances[0]", "not a row; got 3"),
        ({"instances": [ROW, 3]}, JSON, 422, "instances[1]", "not a row; got 3"),
        ({"instances": [[500, 6]]}, JSON, 422, "instances[0]", "got 2, wanted a list of 3 values"),
        ({"instances": [ROW] * 5}, JSON, 413, "instances", "got 5, wanted at most 4"),
        ({"dataframe_records": ROW}, JSON, 422, "dataframe_records", "wanted a list of rows"),
        ({"dataframe_records": [[1]]}, JSON, 422, "dataframe_records[0]", "an object of inputs by name"),
        ({"dataframe_records": [ROW, {"carrier": "x"}]}, JSON, 422, "dataframe_records[1].hour", "null"),
        ({SPLIT: []}, JSON, 422, SPLIT, "not an object"),
        ({SPLIT: {"dat": []}}, JSON, 422, SPLIT, "columns, data and index"),
        ({SPLIT: {"columns": ["hour"]}}, JSON, 422, f"{SPLIT}.data", "not a list"),
        ({SPLIT: {"columns": [0], "data": [[1]]}}, JSON, 422, f"{SPLIT}.columns", "not names"),
        ({SPLIT: {"columns": ["hour"] * 2, "data": [[1, 1]]}}, JSON, 422, f"{SPLIT}.columns", "twice"),
        ({SPLIT: {"columns": ["hour"], "data": [[1], [1, 2]]}}, JSON, 422, f"{SPLIT}.data[1]", "got 2"),
        ({SPLIT: {"columns": ["x", "hour"], "data": [[1, "two"]]}}, JSON, 422, f"{SPLIT}.data[0][1]", "got two"),
        ({"inputs": {"distance": [1.0]}}, JSON, 422, "inputs", "input `hour` is missing"),
        ({"inputs": {"hour": [1], "carier": ["UA"]}}, JSON, 422, "inputs", "did you mean it by `carier`?"),
        ({"inputs": {"hour": [1, 2], "carrier": ["UA"]}}, JSON, 422, "inputs.carrier", "got 1, wanted 2"),
        ({"inputs": {"hour": [1, 2], "carrier": "UA"}}, JSON, 422, "inputs.carrier", "other inputs are"),
        (b'{"inputs": {"hour": [1], "distance": [-Infinity]}}', JSON, 422, "inputs.distance[0]", "-Infinity"),
        (b"hour\n\xff\n", CSV, 400, "byte 5", "not UTF-8"),
        (b'hour\n"1', CSV, 400, "line 2", "not CSV"),
        (b"", CSV, 422, "body", "no rows"),
        (b"hour,carrier\n", CSV, 422, "body", "no rows"),
        (b"hour,hour\n1,2\n", CSV, 422, "line 1", "given twice; got hour"),
        (b"hour,carrier\n1,UA\n2\n", CSV, 422, "line 3", "another number of cells; got 1, wanted 2"),
        (b'carrier,hour\n"a\nb",1\nx,six\n', CSV, 422, "line 4, column `hour`", "got six, wanted int64"),
        (b"hour\n6.5\n", CSV, 422, "line 2, column `hour`", "not a whole number"),
        (b"hour,distance\n1,1e999\n", CSV, 422, "line 2, column `distance`", "not finite"),
        (b"hour,distance\n1,1_000\n", CSV, 422, "line 2, column `distance`", "another kind"),
        (b"hour\n1\n1\n1\n1\n1\n", CSV, 413, "line 6", "too many rows"),
        (b"hour\n" + b"1" * 200_000, CSV, 400, "line 2", "field limit"),
        (b"hour", "text/plain", 415, None, "application/json or text/csv"),
        (b"hour", "text/csv; header=present", 415, None, "charset=utf-8 or none"),
        (b"{}", "application/json; charset=utf-16", 415, None, "charset=utf-8 or none"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_mlflows_form_with_its_place(
    inside: Inside, body: Any, content_type: str, status: int, where: str | None, message: str
) -> None:
    answer = inside.post(SCORE, body, content_type)
    document = answer.json()
    assert (answer.status_code, document.get("where")) == (status, where)
    assert message in document["message"]
    assert document["message"] == document["error"]
    assert document["error_code"] in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")


def test_it_is_well_while_the_process_is_ready(inside: Inside) -> None:
    assert [inside.call("GET", path).status_code for path in ("/ping", "/health", "/version")] == [200] * 3
    inside.host.reason = "late: no version may answer"
    try:
        answer = inside.call("GET", "/ping")
    finally:
        inside.host.reason = ""
    assert (answer.status_code, answer.json()) == (503, {"error": "late: no version may answer"})


def test_without_a_model_the_plain_address_says_so(tmp_path: Path) -> None:
    site = Inside(tmp_path)
    answer = site.post(SCORE, {"inputs": ROW})
    assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    site.close()


READER, ODD_READER = Reader(TINY_SCHEMA), Reader(ODD_SCHEMA)
ONE_READER = Reader(
    Schema(inputs=(Field("x", "float64"),), features=("x",), outputs=("y",), task="regression")
)


def test_a_model_of_one_input_takes_a_plain_list() -> None:
    assert read_json(b'{"instances": [1, 2.5, null]}', ONE_READER, 9).values == [[1], [2.5], [None]]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.booleans(),
            st.none() | st.integers(-(2**53), 2**53),
            st.none() | st.text(min_size=1, max_size=6).filter(lambda text: "\r" not in text and "\0" not in text),
        ),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_what_pandas_writes_is_read_as_it_was(rows: list[tuple[Any, ...]]) -> None:
    names = [field.name for field in ODD_SCHEMA.inputs]
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    numbers = frame.astype({names[0]: "float64"})
    wanted = [list(row) for row in rows]
    assert read_csv(numbers.to_csv().encode(), ODD_READER, 9).values == wanted
    split = json.dumps({SPLIT: numbers.to_dict(orient="split")}).encode()
    assert read_json(split, ODD_READER, 9).values == wanted
    records = json.dumps({"dataframe_records": numbers.to_dict(orient="records")}).encode()
    assert read_json(records, ODD_READER, 9).values == wanted


@settings(max_examples=200, deadline=None)
@given(st.recursive(
    st.none() | st.floats() | st.text("NaIfity-\"\\u{}:, ", max_size=12),
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(st.text("NaN\"\\", max_size=4), deeper, max_size=3),
    max_leaves=8,
))  # fmt: skip
def test_nan_becomes_null_and_text_stays_text(document: Any) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None if math.isnan(value) else {"not finite": "Infinity" if value > 0 else "-Infinity"}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return {name: plain(one) for name, one in value.items()} if isinstance(value, dict) else value

    assert json.loads(without_nan(json.dumps(document).encode())) == plain(document)


def test_many_quotes_that_never_close_take_no_longer_than_their_length() -> None:
    body = b'NaN"' + b'\\"' * 2_000_000
    assert without_nan(body) == b"null" + body[3:]


cells = st.text('0123456789.,"\n\r-eENaNhour x\0é', max_size=8)
tables = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda deeper: (
        st.lists(deeper, max_size=3)
        | st.dictionaries(
            st.sampled_from(["hour", "distance", "carrier", "columns", "data", "x"]), deeper, max_size=3
        )
    ),
    max_leaves=12,
)


csv_bodies = st.binary(max_size=60) | st.lists(cells).map(lambda line: f"hour,x\n{','.join(line)}".encode())
json_bodies = st.binary(max_size=40) | st.dictionaries(
    st.sampled_from([*FORMATS, "params"]), tables, max_size=2
).map(lambda document: json.dumps(document).encode())


@settings(max_examples=250, deadline=None)
@given(st.tuples(st.just(read_csv), csv_bodies) | st.tuples(st.just(read_json), json_bodies))
def test_no_bytes_are_the_servers_fault(asked: tuple[Any, bytes]) -> None:
    read, body = asked
    for reader in (READER, ODD_READER, ONE_READER):
        try:
            rows = read(body, reader, 5)
        except LoopwrightError as error:
            status = error.http_status
        else:
            values = [value for row in rows.values for value in row if value is not None]
            assert all(isinstance(value, str) or np.isfinite(value) for value in values)
            continue
        assert status in (400, 413, 422)
