"""Who may ask: tokens known by their digest, rights, and how much they may send."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from loopwright.kernel.errors import BadInput, NotFound, Refused, Unauthenticated
from loopwright.serving.callers import Callers, TooFast

SHOP = {"name": "shop", "token_sha256": sha256(b"lw_shop").hexdigest()}
OPS = {"name": "ops", "token_sha256": sha256(b"lw_ops").hexdigest(), "may": ["predict", "override", "admin"]}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def write(*callers: Any) -> Callers:
        path = tmp_path / "callers.json"
        path.write_text(json.dumps(callers))
        return Callers.read(path)

    return write


def test_without_a_file_everybody_predicts_and_this_machine_administers() -> None:
    callers = Callers()
    assert callers.check("predict", None, "10.0.0.9", 0.0) == ""
    assert callers.check("admin", None, "127.0.0.1", 0.0) == ""
    with pytest.raises(Refused, match=r"this machine only; got 10\.0\.0\.9"):
        callers.check("override", None, "10.0.0.9", 0.0)


def test_with_a_file_a_token_says_who_asks_and_what_they_may(read: Any) -> None:
    callers = read(SHOP, OPS)
    assert callers.check("predict", "Bearer lw_shop", "10.0.0.9", 0.0) == "shop"
    assert callers.check("admin", "bearer lw_ops", "10.0.0.9", 0.0) == "ops"
    with pytest.raises(Refused, match="got shop, wanted the right to override"):
        callers.check("override", "Bearer lw_shop", "127.0.0.1", 0.0)


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", "Basic lw_shop", "Bearer lw_shop2", "lw_shop"]
)
def test_who_is_not_known_is_turned_away_even_from_this_machine(read: Any, given: str | None) -> None:
    with pytest.raises(Unauthenticated):
        read(SHOP).check("predict", given, "127.0.0.1", 0.0)


def test_a_caller_who_sends_too_much_is_told_when_to_come_again(read: Any) -> None:
    callers = read({**SHOP, "per_second": 2})
    for _ in range(2):
        callers.check("predict", "Bearer lw_shop", "", 10.0)
    with pytest.raises(TooFast) as caught:
        callers.check("predict", "Bearer lw_shop", "", 10.1)
    assert caught.value.retry_after == pytest.approx(0.4)
    callers.check("predict", "Bearer lw_shop", "", 10.51)


@pytest.mark.parametrize(
    ("callers", "message"),
    [
        ([{**SHOP, "may": ["everything"]}], "not a list of callers"),
        ([{**SHOP, "token": "lw_shop"}], "unknown field `token`"),
        ([{**SHOP, "token_sha256": "lw_shop"}], "not a list of callers"),
        ([SHOP, {**SHOP, "name": "other"}], "two callers with one token"),
        ([SHOP, {**OPS, "name": "shop"}], "two callers with one name"),
        ([{**SHOP, "per_second": 0}], "not a list of callers"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(read: Any, callers: list[Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(*callers)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="--callers"):
        Callers.read(tmp_path / "none.json")
