"""Bulk requests as Arrow streams, with pyarrow as the other side."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loopwright.bundle.open import Bundle
from loopwright.bundle.testing import tiny_answer
from loopwright.serving.http import Bounds
from tests.unit.serving.inside import Inside, model_of, tiny

ARROW = "application/vnd.apache.arrow.stream"
COLUMNS: dict[str, Any] = {
    "distance": pa.array([500.0, None, 2000.0]),
    "hour": pa.array([6, 23, 12], pa.int64()),
    "carrier": pa.array(["UA", "AA", None]),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny(tmp_path_factory.mktemp("bundles") / "one")


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Iterator[Inside]:
    site = Inside(tmp_path_factory.mktemp("site"), model_of("late", {1: bundle}))
    yield site
    site.close()


def stream(*tables: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, tables[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for table in tables:
            writer.write_table(table)
    return sink.getvalue()


def table(**changes: Any) -> pa.Table:
    return pa.table({**COLUMNS, **changes})


def answers(inside: Inside, body: bytes) -> list[dict[str, Any]]:
    reply = inside.post("/models/late/bulk", body, ARROW)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == ARROW
    rows: list[dict[str, Any]] = pa.ipc.open_stream(reply.content).read_all().to_pylist()
    return rows


def expected(distance: Sequence[Any], hour: Sequence[Any], carrier: Sequence[Any]) -> list[float]:
    return [tiny_answer(*row) for row in zip(distance, hour, carrier, strict=True)]


RIGHT = expected([500.0, None, 2000.0], [6, 23, 12], ["UA", "AA", None])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"distance": pa.array([500, None, 2000], pa.int32())},
        {"distance": pa.array([500.0, None, 2000.0], pa.float32())},
        {"distance": pa.array([500.0, None, 2000.0], pa.float16())},
        {"distance": pa.array([500, None, 2000], pa.uint64())},
        {"distance": pa.array([500.0, math.nan, 2000.0])},
        {"hour": pa.array([6, 23, 12], pa.int8())},
        {"hour": pa.array([6.0, 23.0, 12.0])},
        {"carrier": pa.array(["UA", "AA", None], pa.large_string())},
        {"carrier": pa.array(["UA", "AA", None], pa.string_view())},
        {"carrier": pa.array(["UA", "AA", None]).dictionary_encode()},
        {"carrier": pa.array(["UA", "AA", None], pa.dictionary(pa.uint8(), pa.large_string()))},
        {"_id": pa.array(["a", "b", "c"]), "_event_time": pa.array([1, 2, 3], pa.timestamp("ms", "UTC"))},
        {"_unit": pa.nulls(3)},
    ],
    ids=lambda changes: ",".join(f"{name} {array.type}" for name, array in changes.items()) or "plain",
)
def test_every_type_that_holds_the_values_is_read(inside: Inside, changes: dict[str, Any]) -> None:
    told = answers(inside, stream(table(**changes)))
    assert [each["probability"] for each in told] == pytest.approx(RIGHT, abs=1e-6)
    assert [(each["_version"], each["_arm"], each["_source"], each["_error"]) for each in told] == [
        (1, "stable", "model", None)
    ] * 3
    if "_id" in changes:
        assert [each["_id"] for each in told] == ["a", "b", "c"]
        assert [event.event_time for event in inside.events()[-3:]] == [1000, 2000, 3000]


def test_slices_and_batches_of_any_length_are_rows_in_order(inside: Inside) -> None:
    n = 5000
    distance, hour = [float(i) for i in range(n)], [i % 24 for i in range(n)]
    carrier = [["UA", "AA", None][i % 3] for i in range(n)]
    whole = pa.table(
        {
            "distance": distance, "hour": hour,
            "carrier": pa.array(carrier).dictionary_encode(), "_id": [f"r{i}" for i in range(n)],
        }
    )  # fmt: skip
    cut = [whole.slice(0, 1), whole.slice(1, 0), whole.slice(1, 2222), whole.slice(2223, n)]
    told = answers(inside, stream(*cut))
    assert [each["_id"] for each in told] == [f"r{i}" for i in range(n)]
    assert [each["probability"] for each in told] == pytest.approx(
        expected(distance, hour, carrier), abs=1e-5
    )


def test_texts_of_views_are_read_wherever_they_stand(inside: Inside) -> None:
    """As polars writes them: short ones in the view itself, others in buffers beside."""
    texts = ["", "UA", "twelve bytes", "thirteen byte", "ü" * 40, None, "x" * 4096, "y" * 4097]
    n = len(texts)
    carrier = pa.chunked_array([pa.array(texts, pa.string_view())])
    whole = pa.table({"distance": [500.0] * n, "hour": [6] * n, "carrier": carrier})
    told = answers(inside, stream(whole, whole.slice(2)))
    assert [each["_error"] is None for each in told] == [True] * 7 + [False] + [True] * 5 + [False]
    assert "text too long" in told[7]["_error"]
    assert [event.inputs[2] for event in inside.events()[-12:]] == [*texts[:7], *texts[2:7]]


def test_a_dictionary_may_change_between_batches(inside: Inside) -> None:
    first = table(carrier=pa.array(["UA", "AA", None]).dictionary_encode())
    second = table(carrier=pa.array(["B6", None, "UA"]).dictionary_encode())
    told = answers(inside, stream(first, second))
    right = RIGHT + expected([500.0, None, 2000.0], [6, 23, 12], ["B6", None, "UA"])
    assert [each["probability"] for each in told] == pytest.approx(right, abs=1e-6)
    grown = [
        table(carrier=pa.DictionaryArray.from_arrays([0, 1, last], ["UA", "AA", "B6"][: last + 1]))
        for last in (1, 2)
    ]
    told = answers(inside, stream(*grown, emit_dictionary_deltas=True))
    assert [each["_error"] for each in told[:3]] == [None] * 3
    assert "additions to a dictionary are not read" in told[3]["_error"]


def test_a_bad_row_spoils_no_other(inside: Inside) -> None:
    hours = pa.array([6, None, 12], pa.int64())
    infinite = pa.array([500.0, None, math.inf])
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")]
    )
    told = answers(inside, stream(table(hour=hours, _id=["a", "b", "c"])))
    assert [each["_error"] for each in told] == [
        None,
        "row 2: hour: input `hour` may not be null; wanted int64",
        None,
    ]
    assert [each["_id"] for each in told] == ["a", "b", "c"]
    assert [each["probability"] is None for each in told] == [False, True, False]
    assert answers(inside, stream(table(distance=infinite)))[2]["_error"].startswith(
        "row 3: distance: not finite"
    )
    assert "a value of another kind" in answers(inside, stream(table(carrier=broken)))[1]["_error"]
    long = pa.array(["x" * 5000, "y" * 100_000, None])
    assert [bool(each["_error"]) for each in answers(inside, stream(table(carrier=long)))] == [
        True,
        True,
        False,
    ]


def test_an_empty_stream_is_answered_by_one(inside: Inside) -> None:
    reply = inside.post("/models/late/bulk", stream(table().slice(0, 0)), ARROW)
    assert pa.ipc.open_stream(reply.content).read_all().num_rows == 0
    assert pa.ipc.open_stream(reply.content).schema.names == [
        "_id", "probability", "_version", "_arm", "_source", "_error"
    ]  # fmt: skip


def test_the_answer_may_be_lines(inside: Inside) -> None:
    reply = inside.post(
        "/models/late/bulk", stream(table()), ARROW, accept="application/x-ndjson;q=0.5, text/html"
    )
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert len(reply.text.splitlines()) == 3
    line = b'{"distance": 500.0, "hour": 6, "carrier": "UA"}'
    reply = inside.post("/models/late/bulk", line, "application/x-ndjson", accept=ARROW)
    assert pa.ipc.open_stream(reply.content).read_all()["probability"].to_pylist() == pytest.approx(RIGHT[:1])


def file_of(given: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, given.schema) as writer:
        writer.write_table(given)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "an empty body"),
        (b"hello, arrow", 400, "not an Arrow stream"),
        (file_of(table()), 400, "got an Arrow file, wanted the IPC streaming format"),
        (stream(table())[:50], 400, "cut off"),
        (stream(table().drop_columns("hour")), 422, "schema: input `hour` is missing"),
        (stream(table(carier=["a"] * 3)), 422, "column carier: the model has no input `carier`"),
        (
            stream(table(hour=["6", "7", "8"])),
            422,
            "column hour: a column of another type; got string, wanted int64",
        ),
        (
            stream(table(carrier=[1, 2, 3])),
            422,
            "column carrier: a column of another type; got int64, wanted string",
        ),
        (stream(table(_id=[1, 2, 3])), 422, "column _id: a column of another type; got int64, wanted string"),
        (
            stream(table(_event_time=[1.0, 2.0, 3.0])),
            422,
            "column _event_time: a column of another type; got float64",
        ),
        (
            stream(table(carrier=pa.array([b"a"] * 3, pa.binary_view()))),
            422,
            "got binary_view, wanted string, plain or dictionary-encoded",
        ),
        (stream(table(), compression="zstd"), 422, "compressed buffers are not read"),
        (stream(table()) + b"", 200, ""),
    ],
)
def test_a_stream_that_cannot_be_begun_is_a_status(
    inside: Inside, body: bytes, status: int, message: str
) -> None:
    reply = inside.post("/models/late/bulk", body, ARROW)
    assert reply.status_code == status, reply.text
    if message:
        assert message in reply.json()["error"]


def test_what_breaks_later_is_the_last_row(inside: Inside) -> None:
    body = stream(table(), table())
    told = answers(inside, body[: len(body) - 200])
    assert [each["_error"] for each in told[:3]] == [None] * 3
    assert "cut off" in told[3]["_error"]


def test_a_batch_is_measured_before_it_is_read(inside: Inside, tmp_path: Path, bundle: Bundle) -> None:
    body = bytearray(stream(table()))
    # The length of the schema's metadata stands behind the first mark.
    body[4:8] = (1 << 30).to_bytes(4, "little")
    reply = inside.post("/models/late/bulk", bytes(body), ARROW)
    assert (reply.status_code, "a message head too large" in reply.text) == (413, True)
    n = 2_000_000
    many = pa.table({"distance": pa.nulls(n), "hour": pa.nulls(n, pa.int8()), "carrier": pa.nulls(n)})
    site = Inside(tmp_path / "wide", model_of("late", {1: bundle}), bounds=Bounds(stream=1 << 30))
    reply = site.post("/models/late/bulk", stream(many), ARROW)
    site.close()
    assert reply.status_code == 413
    assert "a record batch too large; got 2000000 rows" in reply.json()["error"]


GOOD = stream(
    table(carrier=COLUMNS["carrier"].dictionary_encode()),
    table(carrier=COLUMNS["carrier"].dictionary_encode()),
)


@given(
    places=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4),
    end=st.integers(0, len(GOOD)),
)
@example(places=[], end=len(GOOD))
def test_no_bytes_break_arrow(places: list[tuple[int, int]], end: int, inside: Inside) -> None:
    body = bytearray(GOOD)
    for place, value in places:
        body[place] = value
    reply = inside.post("/models/late/bulk", bytes(body[:end]), ARROW)
    assert reply.status_code in (200, 400, 413, 422), reply.text
    if reply.status_code == 200:
        for each in pa.ipc.open_stream(reply.content).read_all().to_pylist():
            assert (each["_error"] is None) == (each["probability"] is not None)
    else:
        assert reply.json()["error"]
