"""What others' words and hidden options could do to whoever works at the command line."""

from importlib.resources import files
from pathlib import Path

import pytest

from loopwright.cli.session import harmless

from .conftest import Type

FLIGHTS = str(files("loopwright") / "examples" / "flights")


def test_a_name_somebody_else_chose_is_not_obeyed_by_the_terminal(loopwright: Type) -> None:
    evil = "fine\x1b]0;owned\x07\x1b[2J\u202egnp.exe"
    assert loopwright("user", "add", "dora").code == 0
    assert loopwright("token", "create", "dora", "--note", "plain").code == 0
    assert loopwright("keys", "rotate", "--reason", evil).code == 0
    shown = loopwright("audit", "show").out
    assert "fine\ufffd]0;owned\ufffd\ufffd[2J\ufffdgnp.exe" in shown
    assert "\x1b" not in shown
    assert harmless({"a": [evil, 3, "over\rwritten"], "b\x1b": "two\nlines\tand a tab"}) == {
        "a": ["fine\ufffd]0;owned\ufffd\ufffd[2J\ufffdgnp.exe", 3, "over\ufffdwritten"],
        "b\ufffd": "two\nlines\tand a tab",
    }


@pytest.mark.parametrize("who", [[], ["--as", "dora"]], ids=["the owner", "a developer"])
def test_nobody_has_their_own_work_called_the_products(
    loopwright: Type, who: list[str], tmp_path: Path
) -> None:
    """A version that a retraining made has no person as its author, whom four eyes would keep from approving it."""
    assert loopwright("user", "add", "dora").code == 0
    said = loopwright("run", FLIGHTS, "--retrain", "rt_of_my_own", *who)
    assert (said.code, "only the control plane answers its retrainings" in said.err) == (1, True)
