import pickle

import pytest

from loopwright.kernel.errors import (
    BadInput,
    LoopwrightError,
    NotFound,
    Refused,
    Tampered,
    Unavailable,
    did_you_mean,
)


def test_an_error_says_where_what_got_wanted_and_next() -> None:
    error = BadInput("3 of 500 rows < 0", where="flights.distance", got=-3, wanted=">= 0", next="See: --rows")
    assert str(error) == "flights.distance: 3 of 500 rows < 0; got -3, wanted >= 0. See: --rows"


def test_what_is_not_known_is_not_said() -> None:
    assert str(Refused("the author may not approve")) == "the author may not approve"
    assert str(Refused("it is late", next="Go home.")) == "it is late. Go home."


def test_a_zero_is_something_that_was_found() -> None:
    assert str(BadInput("too few", got=0, wanted="1")) == "too few; got 0, wanted 1"


def test_a_huge_value_is_shown_in_part() -> None:
    assert len(str(BadInput("too long", got="x" * 10_000))) < 250


@pytest.mark.parametrize(
    ("error", "builtin", "code", "status"),
    [
        (BadInput("x"), ValueError, 2, 422),
        (NotFound("x"), LookupError, 2, 404),
        (Refused("x"), PermissionError, 1, 403),
        (Tampered("x"), Refused, 1, 403),
        (Unavailable("x"), OSError, 2, 503),
    ],
)
def test_errors_are_also_what_python_calls_them(
    error: LoopwrightError, builtin: type[Exception], code: int, status: int
) -> None:
    assert isinstance(error, builtin)
    assert (error.exit_code, error.http_status) == (code, status)


def test_an_error_survives_the_way_to_another_process() -> None:
    error = Unavailable("cannot write", where="/x", next="Free some space.")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)


def test_json_carries_what_a_client_needs() -> None:
    assert BadInput("wrong", got=3, where="here").to_json() == {
        "error": "BadInput", "message": "here: wrong; got 3", "what": "wrong", "where": "here", "got": "3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "hint"),
    [("flihgts", "did you mean `flights`?"), ("FLIGHTS", "did you mean `flights`?"), ("zzz", ""), ("", "")],
)
def test_the_nearest_known_name_is_proposed(name: str, hint: str) -> None:
    assert did_you_mean(name, ["weather", "flights"]) == hint
