"""Answers in JSON's own types, and the faults of machines in words."""

import errno
import json
import math
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.control.faults import explain
from loopwright.control.plain import plain
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import Conflict, Unavailable
from loopwright.kernel.verdict import Verdict

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes(timezones=st.just(UTC))
)
nested = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(nested)
def test_what_is_plain_survives_json_unchanged(value: object) -> None:
    once = plain(value)
    assert json.loads(json.dumps(once, allow_nan=False)) == once
    assert plain(once) == once


@dataclass
class Point:
    x: float
    role: Role


def test_types_take_their_one_form() -> None:
    assert plain(Point(math.nan, Role.ADMIN)) == {"x": None, "role": "admin"}
    assert plain([Verdict.PASS, timedelta(hours=6), datetime(2013, 1, 1, tzinfo=UTC)]) == [
        "PASS",
        "6h",
        "2013-01-01T00:00:00Z",
    ]
    assert plain((np.float64(0.5), np.int64(2))) == [0.5, 2]
    with pytest.raises(TypeError, match="object"):
        plain(object())


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left", "/x"), Unavailable, "disk is full"),
        (OSError(errno.EROFS, "Read-only", "/x"), Unavailable, "read-only"),
        (PermissionError(errno.EACCES, "denied", "/x"), Unavailable, "permission denied"),
        (OSError(errno.EADDRINUSE, "in use"), Conflict, "port is in use"),
        (sqlite3.OperationalError("database or disk is full"), Unavailable, "disk is full"),
        (sqlite3.OperationalError("attempt to write a readonly database"), Unavailable, "read-only"),
    ],
)  # fmt: skip
def test_faults_of_the_machine_are_told_in_words(error: Exception, kind: type[Exception], words: str) -> None:
    known = explain(error)
    assert isinstance(known, kind)
    assert words in str(known)
    assert known.next  # type: ignore[union-attr]


def test_a_fault_of_ours_is_not_dressed_up() -> None:
    assert explain(ValueError("x")) is None
