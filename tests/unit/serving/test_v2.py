"""Protocol V2: what a request must look like, and the sentence a client reads when it does not."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import TINY_SCHEMA
from loopwright.kernel.errors import BadInput, LoopwrightError
from loopwright.serving import v2
from loopwright.serving.rows import Reader, Rows

READER = Reader(TINY_SCHEMA)


def tensor(name: str, datatype: str, data: list[Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data, **more}


def body(
    distance: Any = (500.0,), hour: Any = (6,), carrier: Any = ("UA",), extra: Any = (), **more: Any
) -> bytes:
    inputs = [
        tensor("distance", "FP64", list(distance)),
        tensor("hour", "INT64", list(hour)),
        tensor("carrier", "BYTES", list(carrier)),
        *extra,
    ]
    return json.dumps({"inputs": inputs, **more}).encode()


def read(raw: bytes, json_length: int | None = None) -> Rows:
    return v2.read_rows(v2.parse_request(raw, json_length), READER, max_rows=100)


def test_a_row_is_read_in_schema_order() -> None:
    rows = read(body(id="r1", parameters={"unit": "N1", "event_time": "1970-01-01T00:00:01+00:00"}))
    assert rows.values == [[500.0, 6, "UA"]]
    assert (rows.ids, rows.units, rows.event_times) == (["r1"], ["N1"], [1_000_000])


def test_many_rows_bring_their_own_ids_units_and_times() -> None:
    rows = read(
        body(
            (1.0, None),
            (1, 2),
            ("UA", None),
            extra=[
                tensor("_id", "BYTES", ["a", "b"]),
                tensor("_unit", "BYTES", ["u", "v"]),
                tensor("_event_time", "INT64", [5, 6]),
            ],
        )
    )
    assert rows.values == [[1.0, 1, "UA"], [None, 2, None]]
    assert (rows.ids, rows.units, rows.event_times) == (["a", "b"], ["u", "v"], [5, 6])


def test_columns_have_nan_for_missing_numbers_and_none_for_missing_text() -> None:
    for values in ([[None, 6, None]], [[None, 6, None], [1.5, 7, "UA"]]):
        columns = READER.columns(values)  # type: ignore[arg-type]
        assert np.isnan(columns["distance"][0])
        assert columns["hour"].dtype == np.float64
        assert columns["carrier"][0] is None


@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b'{"id": "\xff", "inputs": []}', 400, "not JSON"),
        (
            b'{"inputs": [{"name": "a", "datatype": "FP64", "shape": [1], "data": ' + b"[" * 50_000,
            400,
            "nested too deeply",
        ),
        (b"[]", 422, "not a V2 inference request"),
        (b"{}", 422, "missing required field `inputs`"),
        (b'{"inputs": []}', 422, "input `distance` is missing and 2 more"),
        (
            body(extra=[tensor("distanc", "FP64", [1.0])]),
            422,
            r"no input `distanc`.*did you mean `distance`\?",
        ),
        (body(extra=[tensor("hour", "FP64", [1.0])]), 422, r"inputs\[3\]\.name: an input given twice"),
        (body(carrier=(5,)), 422, r"inputs\[2\]\.data\[0\]: a value of another kind; got 5, wanted string"),
        (body(("1.5",)), 422, r"inputs\[0\]\.data\[0\]: a value of another kind; got 1\.5, wanted float64"),
        (body((True,)), 422, "a value of another kind; got True"),
        (body(([1.0, 2.0],)), 422, r"inputs\[0\]\.data: rows of another length"),
        (body(({"a": 1},)), 422, "a value of another kind"),
        (body(hour=(None,)), 422, "`hour` may not be null"),
        (body(hour=(6.5,)), 422, "not a whole number; got 6.5"),
        (body(hour=(2**70,)), 422, "a number too large|not a V2"),
        (body((10**400,)), 422, "a number too large"),
        (body((1.0, 2.0)), 422, r"tensor `hour` has another number of rows; got 1, wanted 2"),
        (body((), (), ()), 422, "`distance` has no rows"),
        (body((1.0,) * 101, (1,) * 101, ("a",) * 101), 413, "too many rows; got 101, wanted at most 100"),
        (body(carrier=("x" * 5000,)), 422, "text too long; got 5000 characters"),
        (body(parameters={"event_time": "yesterday"}), 422, "parameters.event_time: not a time with a zone"),
        (body(parameters={"event_time": "2013-04-01T05:00:00"}), 422, "not a time with a zone"),
        (body(parameters={"event_time": 10**18}), 422, "a time outside 1900 to 2200"),
        (body(parameters={"event_time": True}), 422, "not a time"),
        (body(parameters={"unit": 7}), 422, "parameters.unit: not text"),
        (body(id="x" * 300), 422, "id: too long"),
        (body(id="a\nb"), 422, "cannot be printed"),
        (body(extra=[tensor("_event_time", "FP64", [1.0])]), 422, r"inputs\[3\]\.datatype: not a time"),
        (body(extra=[tensor("_unit", "BYTES", ["a", "b"])]), 422, "`_unit` has another number of rows"),
    ],
)
def test_a_mistake_is_named_with_where_and_what(raw: bytes, status: int, message: str) -> None:
    with pytest.raises(LoopwrightError, match=message) as caught:
        read(raw)
    assert caught.value.http_status == status


def test_a_tensor_of_another_shape_or_datatype_is_refused() -> None:
    wide = {"name": "distance", "datatype": "FP64", "shape": [1, 2], "data": [1.0, 2.0]}
    rest = [tensor("hour", "INT64", [6]), tensor("carrier", "BYTES", ["UA"])]
    with pytest.raises(BadInput, match=r"inputs\[0\]\.shape: .*one tensor per input"):
        read(json.dumps({"inputs": [wide, *rest]}).encode())
    with pytest.raises(
        BadInput, match=r"inputs\[0\]\.datatype: input `distance` is float64; got BYTES, wanted FP64"
    ):
        read(json.dumps({"inputs": [tensor("distance", "BYTES", ["a"]), *rest]}).encode())
    with pytest.raises(BadInput, match="has no data"):
        read(json.dumps({"inputs": [{**wide, "shape": [1], "data": None}, *rest]}).encode())


def test_integers_are_numbers_and_whole_floats_are_integers() -> None:
    assert read(body((5,), (6.0,))).values == [[5, 6.0, "UA"]]


# The binary tensor extension.


def binary(tensors: list[tuple[str, str, bytes, int]]) -> tuple[bytes, int]:
    head = json.dumps(
        {
            "inputs": [
                {"name": n, "datatype": d, "shape": [rows], "parameters": {"binary_data_size": len(p)}}
                for n, d, p, rows in tensors
            ]
        }
    ).encode()
    return head + b"".join(p for _, _, p, _ in tensors), len(head)


def text(*values: str) -> bytes:
    return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)


def test_binary_tensors_are_read_and_nan_is_null() -> None:
    raw, length = binary(
        [
            ("distance", "FP32", np.array([1.5, np.nan], dtype="<f4").tobytes(), 2),
            ("hour", "INT32", np.array([1, 2], dtype="<i4").tobytes(), 2),
            ("carrier", "BYTES", text("UA", "Zürich"), 2),
        ]
    )
    assert read(raw, length).values == [[1.5, 1, "UA"], [None, 2, "Zürich"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("distance", "FP64", b"\0" * 7, 1), "not a whole number of FP64"),
        (("distance", "FP65", b"\0" * 8, 1), r"no such datatype; got FP65\. did you mean `FP64`"),
        (("distance", "FP64", np.array([np.inf]).tobytes(), 1), "not finite"),
        (("distance", "FP64", np.array([1.0, 2.0]).tobytes(), 1), "data and shape differ"),
        (("carrier", "BYTES", b"\xff\0\0\0a", 1), "text cut off"),
        (("carrier", "BYTES", b"\1\0\0\0\xff", 1), "not UTF-8"),
    ],
)
def test_broken_binary_tensors_are_named(change: tuple[str, str, bytes, int], message: str) -> None:
    tensors = {
        "distance": ("distance", "FP64", np.array([1.0]).tobytes(), 1),
        "hour": ("hour", "INT64", np.array([1]).tobytes(), 1),
        "carrier": ("carrier", "BYTES", text("UA"), 1),
        change[0]: change,
    }
    raw, length = binary(list(tensors.values()))
    with pytest.raises(BadInput, match=message):
        read(raw, length)


def test_a_binary_body_that_does_not_add_up_is_refused() -> None:
    raw, length = binary([("distance", "FP64", np.array([1.0]).tobytes(), 1)])
    for wrong in (length + 100, 0, -1):
        with pytest.raises(v2.Malformed):
            v2.parse_request(raw, wrong)
    with pytest.raises(BadInput, match="bytes after the last tensor; got 3"):
        v2.parse_request(raw + b"abc", length)
    with pytest.raises(BadInput, match="more than the body holds"):
        v2.parse_request(raw[:-1], length)


@given(st.lists(st.text(max_size=20), max_size=20))
def test_texts_survive_packing(values: list[str]) -> None:
    packed = v2.pack_tensor(values, "BYTES")
    assert v2.unpack_tensor(packed, "BYTES", "x", shape=[len(values)]) == values


@given(st.binary(max_size=200), st.none() | st.integers(-5, 250))
def test_no_bytes_break_the_parser(raw: bytes, length: int | None) -> None:
    refused = _refusal(raw, length)
    assert refused is None or refused.http_status in (400, 413, 422)


def _refusal(raw: bytes, length: int | None = None) -> LoopwrightError | None:
    try:
        assert len(READER.columns(read(raw, length).values)) == 3
    except LoopwrightError as error:
        return error
    return None


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=3), st.lists(json_values, max_size=3), json_values, json_values)
def test_no_json_breaks_the_checks(distance: Any, carrier: Any, parameters: Any, name: Any) -> None:
    raw = body(distance, [6] * len(distance), carrier, parameters=parameters, id=name)
    refused = _refusal(raw)
    assert refused is None or refused.http_status in (400, 413, 422)


# Answers.


def answer(
    request: dict[str, Any], result: list[list[float]], **extra: list[str]
) -> tuple[dict[str, Any], bytes]:
    parsed = v2.parse_request(json.dumps({"inputs": [], **request}).encode(), None)
    raw, length = v2.respond(
        parsed, model="m", version=3, parameters={}, outputs=("p", "q"), result=result, extra=extra
    )
    return json.loads(raw[:length]), raw[length:] if length else b""


def test_an_answer_has_one_tensor_per_output() -> None:
    document, _ = answer({"id": "x"}, [[0.1, 0.9], [0.2, 0.8]], _arm=["stable", "canary"])
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "3", "x")
    assert {t["name"]: t["data"] for t in document["outputs"]} == {
        "p": [0.1, 0.2],
        "q": [0.9, 0.8],
        "_arm": ["stable", "canary"],
    }


def test_a_client_may_choose_outputs_and_have_them_in_binary() -> None:
    document, payload = answer(
        {"outputs": [{"name": "q", "parameters": {"binary_data": True}}]}, [[0.1, 0.9], [0.2, 0.8]]
    )
    assert [t["name"] for t in document["outputs"]] == ["q"]
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert np.frombuffer(payload).tolist() == [0.9, 0.8]


def test_an_output_the_model_does_not_have_is_refused() -> None:
    schema = Schema(inputs=(Field("a", "float64"),), features=("a",), outputs=("probability",), task="binary")
    request = v2.parse_request(b'{"inputs": [], "outputs": [{"name": "probabilty"}]}', None)
    with pytest.raises(BadInput, match=r"did you mean `probability`\?"):
        v2.check_outputs(request, schema)


def test_an_output_asked_for_twice_is_refused() -> None:
    # Otherwise a request of some megabytes asks for an answer of some gigabytes.
    request = v2.parse_request(
        json.dumps({"inputs": [], "outputs": [{"name": "probability"}] * 2}).encode(), None
    )
    with pytest.raises(BadInput, match=r"outputs\[1\].name: an output asked for twice"):
        v2.check_outputs(request, TINY_SCHEMA)


def test_one_row_may_be_written_as_a_row_of_its_own_in_every_tensor() -> None:
    inputs = [
        {"name": name, "datatype": datatype, "shape": [1, 1], "data": [[value]]}
        for name, datatype, value in (
            ("distance", "FP64", 500.0),
            ("hour", "INT64", 6),
            ("carrier", "BYTES", "UA"),
        )
    ]
    assert read(json.dumps({"inputs": inputs}).encode()).values == [[500.0, 6, "UA"]]
    inputs[1]["data"] = [[[6]]]
    with pytest.raises(BadInput, match="another kind"):
        read(json.dumps({"inputs": inputs}).encode())


# Halves, whole matrices, and what a client may ask of outputs.

NUMBERS = Schema(
    inputs=(Field("a", "float64"), Field("b", "int64"), Field("c", "float64", nullable=False)),
    features=("a", "b", "c"),
    outputs=("prediction",),
    task="regression",
)


def matrix(
    datatype: str, payload: bytes, shape: list[int], name: str = "x", **more: Any
) -> tuple[bytes, int]:
    tensor = {"name": name, "datatype": datatype, "shape": shape}
    head = json.dumps(
        {"inputs": [{**tensor, "parameters": {"binary_data_size": len(payload)}}], **more}
    ).encode()
    return head + payload, len(head)


def numbers(raw: bytes, length: int | None, max_rows: int = 100) -> Rows:
    asked = v2.parse_request(raw, length, max_rows=max_rows)
    return v2.read_rows(asked, Reader(NUMBERS), max_rows=max_rows)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_one_tensor_may_bring_all_numeric_inputs(datatype: str) -> None:
    values = np.array([[1.5, 2.0, -3.25], [np.nan, 7.0, 0.5]], dtype="<f4")
    if datatype == "BF16":
        payload = (values.view("<u4") >> 16).astype("<u2").tobytes()
    else:
        payload = values.astype(f"<f{int(datatype[2:]) // 8}").tobytes()
    rows = numbers(*matrix(datatype, payload, [2, 3], parameters={"unit": "u"}))
    assert rows.values == [[1.5, 2.0, -3.25], [None, 7.0, 0.5]]
    assert rows.units == ["u", "u"]


@pytest.mark.parametrize("data", [[1.5, 2, 3.5, 4.5, 5, 6.5], [[1.5, 2, 3.5], [4.5, 5, 6.5]]])
def test_a_matrix_in_json_is_the_same_as_its_columns(data: list[Any]) -> None:
    whole = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [2, 3], "data": data}]}
    columns = {
        "inputs": [
            tensor("a", "FP64", [1.5, 4.5]),
            tensor("b", "FP64", [2, 5]),
            tensor("c", "FP64", [3.5, 6.5]),
        ]
    }
    given = [numbers(json.dumps(form).encode(), None).values for form in (whole, columns)]
    assert given[0] == given[1] == [[1.5, 2, 3.5], [4.5, 5, 6.5]]


@pytest.mark.parametrize(
    ("shape", "values", "message"),
    [
        ([1, 4], [1.0] * 4, r"another number of inputs; got \[1, 4\], wanted \[rows, 3\]: a, b, c"),
        ([2, 3], [1.0] * 3, "data and shape differ; got 3 values, wanted 6"),
        ([1, 3], [1.0, 2.5, 1.0], r"inputs\[0\] column 1\.data\[0\]: not a whole number; got 2\.5"),
        ([1, 3], [1.0, 2.0, np.nan], r"column 2\.data\[0\]: input `c` may not be null"),
        ([101, 3], [1.0] * 303, "too many rows; got 101"),
        ([2**60, 3], [1.0] * 3, "too many rows"),
        ([-1, 3], [1.0] * 3, "not a shape"),
    ],
)
def test_a_matrix_that_does_not_fit_is_named(shape: list[int], values: list[float], message: str) -> None:
    with pytest.raises(LoopwrightError, match=message):
        numbers(*matrix("FP64", np.array(values).tobytes(), shape))


def test_a_matrix_for_a_model_with_text_says_why_not() -> None:
    raw, length = matrix("FP64", np.ones(3).tobytes(), [1, 3])
    with pytest.raises(
        BadInput, match="one tensor of all inputs is for numbers, and input `carrier` is text"
    ):
        read(raw, length)


def test_a_binary_tensor_is_measured_before_it_is_unpacked() -> None:
    for datatype, payload in (("UINT8", b"\0" * 1000), ("BYTES", b"\0" * 4000)):
        raw, length = binary([("distance", datatype, payload, 10)])
        with pytest.raises(BadInput, match="data and shape differ"):
            v2.parse_request(raw, length)
    with pytest.raises(v2.TooLarge, match="too many rows; got 101, wanted at most 100"):
        v2.parse_request(*binary([("distance", "UINT8", b"\0" * 101, 101)]), max_rows=100)


def test_one_output_may_differ_from_what_is_asked_for_all() -> None:
    chosen = [{"name": "p"}, {"name": "q", "parameters": {"binary_data": False}}]
    document, payload = answer(
        {"parameters": {"binary_data_output": True}, "outputs": chosen}, [[0.1, 0.9], [0.2, 0.8]]
    )
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert np.frombuffer(payload).tolist() == [0.1, 0.2]
    assert document["outputs"][1]["data"] == [0.9, 0.8]


@pytest.mark.parametrize("option", ["classification", "shared_memory_region"])
def test_what_is_not_offered_is_refused_not_ignored(option: str) -> None:
    wanted = {"inputs": [], "outputs": [{"name": "probability", "parameters": {option: 3}}]}
    with pytest.raises(BadInput, match=rf"outputs\[0\].parameters: not offered here; got {option}"):
        v2.check_outputs(v2.parse_request(json.dumps(wanted).encode(), None), TINY_SCHEMA)
