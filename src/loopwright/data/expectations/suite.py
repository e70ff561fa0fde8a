"""A suite's JSON, in the layouts of 0.x (`expectation_type`) and 1.x (`type`), read with care."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loopwright.kernel.errors import BadInput

MAX_BYTES = 10_000_000
MAX_EXPECTATIONS = 10_000


@dataclass(frozen=True, slots=True)
class Expectation:
    """`number`: its place in the suite, from 1. `type`: like expect_column_values_to_not_be_null."""

    number: int
    type: str
    kwargs: Mapping[str, Any]
    notes: str = ""
    severity: str = ""

    @property
    def column(self) -> str:
        """What it is about, for people."""
        found = self.kwargs.get("column", self.kwargs.get("column_list", self.kwargs.get("column_A", "")))
        return ", ".join(map(str, found)) if isinstance(found, list) else str(found or "")


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    expectations: tuple[Expectation, ...] = field(default_factory=tuple)


def read_suite(data: bytes, source: str) -> Suite:
    """Parse a suite; raises BadInput naming what is no suite."""
    if len(data) > MAX_BYTES:
        raise BadInput(
            "file too large", where=source, got=f"{len(data)} bytes", wanted=f"at most {MAX_BYTES}"
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput("not JSON", where=source, got=str(error), wanted="an expectation suite") from None
    if isinstance(value, dict) and isinstance(value.get("expectation_suite"), dict):
        value = value["expectation_suite"]
    listed = value.get("expectations") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(listed, list):
        raise BadInput(
            "not an expectation suite", where=source, got=type(value).__name__, wanted="{expectations: […]}",
            next="Hand in the JSON that Great Expectations stores under `expectations/`",
        )  # fmt: skip
    if len(listed) > MAX_EXPECTATIONS:
        raise BadInput(
            "too many expectations", where=source, got=len(listed), wanted=f"at most {MAX_EXPECTATIONS}"
        )
    name = str(value.get("name") or value.get("expectation_suite_name") or "suite")
    return Suite(name, tuple(_expectation(one, n, source) for n, one in enumerate(listed, start=1)))


def _expectation(value: Any, number: int, source: str) -> Expectation:
    where = f"{source}: expectations[{number - 1}]"
    if not isinstance(value, dict):
        raise BadInput("not an expectation", where=where, got=value, wanted="{type: …, kwargs: {…}}")
    type_, kwargs = value.get("type", value.get("expectation_type")), value.get("kwargs", {})
    if not isinstance(type_, str) or not isinstance(kwargs, dict):
        raise BadInput("not an expectation", where=where, got=value, wanted="{type: …, kwargs: {…}}")
    meta = value.get("meta")
    notes = (
        value.get("notes")
        or (meta.get("notes") if isinstance(meta, dict) else None)
        or value.get("description")
    )
    if isinstance(notes, dict):
        notes = notes.get("content")
    if isinstance(notes, list):
        notes = " ".join(str(one) for one in notes)
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type_).lower()
    return Expectation(number, snake, kwargs, str(notes or ""), str(value.get("severity") or ""))
