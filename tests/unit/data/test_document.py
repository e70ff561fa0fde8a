from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.data.document import parse_document
from loopwright.kernel.errors import BadInput


def test_a_value_knows_its_line() -> None:
    document = parse_document(b"a: 1\nb:\n  - x\n  - y: 2\n", "c.yaml")
    assert document.value == {"a": 1, "b": ["x", {"y": 2}]}
    assert document.where(("b", 1, "y")) == "c.yaml:4: b[1].y"


def test_a_missing_value_is_placed_at_its_nearest_ancestor() -> None:
    document = parse_document(b"a: 1\nb:\n  c: 2\n", "c.yaml")
    assert document.where(("b", "d")) == "c.yaml:3: b.d"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: [1, 2\nb: 3", "c.yaml:2:"),
        (b"a: 1\na: 2", "c.yaml:2: key given twice; got a"),
        (b"- 1", "not a mapping"),
        (b"a: \xff", "not UTF-8"),
        (b"a: " + b"[" * 100 + b"]" * 100, "nested too deep"),
        (b"", "not a mapping"),
    ],
)
def test_what_is_no_document_is_said_with_its_place(text: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=said.replace("[", r"\[")):
        parse_document(text, "c.yaml")


def test_a_bomb_of_aliases_is_refused_in_time() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(BadInput, match="too many values"):
        parse_document("\n".join(lines).encode(), "bomb.yaml")


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_bad_input(data: bytes) -> None:
    with suppress(BadInput):
        assert isinstance(parse_document(data, "x").value, dict)
