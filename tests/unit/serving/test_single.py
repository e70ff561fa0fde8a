"""Requests of one row in the usual form are read and answered in one go, exactly as all others are."""

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.bundle.signature import Field, Schema
from loopwright.kernel.errors import LoopwrightError
from loopwright.serving import v2
from loopwright.serving.rows import Reader, Rows
from loopwright.serving.single import Template, read_single

NUMBERS = Schema(
    inputs=(Field("a", "float64"), Field("b", "float64")), features=("a", "b"), outputs=("p",), task="binary"
)
MIXED = Schema(
    inputs=(Field("a", "float64"), Field("n", "int64"), Field("s", "string"), Field("t", "bool")),
    features=("a",),
    outputs=("p",),
    task="binary",
)
READERS = [Reader(NUMBERS), Reader(MIXED)]

_values = st.one_of(
    st.floats(), st.integers(), st.integers(-(2**70), 2**70), st.text(max_size=3), st.booleans(), st.none(),
    st.just("x" * 5000), st.just(1e308),
)  # fmt: skip


@st.composite
def _bodies(draw: st.DrawFn) -> tuple[Reader, bytes]:
    reader = draw(st.sampled_from(READERS))
    fitting: dict[str, tuple[str, Any]] = {
        "float64": ("FP64", 1.5), "int64": ("INT64", 7), "string": ("BYTES", "x"), "bool": ("BOOL", True),
    }  # fmt: skip
    inputs = []
    for name, dtype in zip(reader.order, reader.dtypes, strict=True):
        datatype, value = fitting[dtype]
        if draw(st.integers(0, 3)) == 0:
            value = draw(_values)
        if draw(st.integers(0, 9)) == 0:
            datatype = draw(st.sampled_from(["FP32", "INT64", "BOOL", "nothing"]))
        shape = draw(st.sampled_from([[1]] * 8 + [[1, 1], [2], [1.0], []]))
        data = draw(st.sampled_from([[value]] * 8 + [[value, value], [], [[value]], None]))
        inputs.append({"name": name, "datatype": datatype, "shape": shape, "data": data})
    if draw(st.integers(0, 9)) == 0:
        inputs.reverse()
    more = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "id": st.sampled_from(["k", "", 5, "\n", "x" * 300, None]),
                "parameters": st.sampled_from(
                    [{}, {"unit": "u"}, {"unit": 1}, {"event_time": 0}, {"event_time": "x"}, {"timeout": 5}, {"z": 1}]
                ),
                "outputs": st.sampled_from([None, [], [{"name": "p"}]]),
            },
        )
    )  # fmt: skip
    return reader, json.dumps({"inputs": inputs, **more}).encode()


@given(_bodies())
@settings(max_examples=400, deadline=None)
def test_what_is_read_in_one_go_is_what_the_long_way_reads(case: tuple[Reader, bytes]) -> None:
    reader, body = case
    assert _outcome(lambda: read_single(body, reader) or _long(body, reader)) == _outcome(
        lambda: _long(body, reader)
    )


def _long(body: bytes, reader: Reader) -> tuple[v2.InferRequest, Rows]:
    request = v2.parse_request(body, None)
    return request, v2.read_rows(request, reader, max_rows=10)


def _outcome(read: Any) -> Any:
    try:
        request, rows = read()
    except LoopwrightError as error:
        return type(error), str(error)
    kinds = [[type(value) for value in row] for row in rows.values]
    return request.id, request.parameters or None, rows, kinds


def test_the_usual_form_is_read_in_one_go() -> None:
    inputs = [{"name": name, "datatype": "FP64", "shape": [1], "data": [0.5]} for name in "ab"]
    found = read_single(json.dumps({"inputs": inputs}).encode(), READERS[0])
    assert found is not None
    assert found[1].values == [[0.5, 0.5]]


_texts = st.text(max_size=20)


@given(
    names=st.tuples(_texts, _texts, _texts), id=_texts, request_id=_texts,
    outputs=st.lists(st.tuples(_texts, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=4),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_filled_template_is_the_answer_that_would_be_written(
    names: tuple[str, str, str], id: str, request_id: str, outputs: list[tuple[str, float]]
) -> None:
    model, arm, _ = names
    titles, numbers = tuple(name for name, _ in outputs), [number for _, number in outputs]
    wanted, _ = v2.respond(
        v2.InferRequest([], id), model=model, version=3, parameters={"arm": arm, "request_id": request_id},
        outputs=titles, result=[numbers], extra={},
    )  # fmt: skip
    filled = Template(model, 3, arm, titles).fill(id, request_id, numbers)
    assert filled == wanted
    assert np.isfinite([tensor["data"][0] for tensor in json.loads(filled)["outputs"]]).all()
