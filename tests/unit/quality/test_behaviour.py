"""Behavioural checks: what they are given, what counts as behaving, and that a broken check never passes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict
from loopwright.quality.behaviour import (
    CheckResult,
    Columns,
    directional,
    invariance,
    load_checks,
    minimum_functionality,
    run_check,
)


class Risk:
    """Rises with wind, ignores the carrier."""

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        wind = np.nan_to_num(np.asarray(inputs["wind"], dtype=np.float64))
        return (wind / 100)[:, None]


INPUTS: Columns = {
    "wind": np.arange(100, dtype=np.float64),
    "carrier": np.array(["AA", None] * 50, dtype=object),
}


def run(decorated: Any) -> CheckResult:
    return run_check(decorated.__loopwright_check__, Risk(), INPUTS, seed=1)


def test_an_input_the_model_ignores_passes_invariance() -> None:
    @invariance()
    def the_carrier_does_not_matter(inputs: Columns) -> Columns:
        return {"carrier": np.array(["ZZ"] * len(inputs["wind"]), dtype=object)}

    result = run(the_carrier_does_not_matter)
    assert (result.verdict, result.value, result.rows) == (Verdict.PASS, 1.0, 100)
    assert result.sentence == "the carrier does not matter"


def test_an_input_the_model_reads_fails_invariance() -> None:
    @invariance(tolerance=0.001)
    def wind(inputs: Columns) -> Columns:
        return {"wind": inputs["wind"] + 1}

    assert run(wind).verdict is Verdict.FAIL


def test_direction_is_checked_both_ways() -> None:
    @directional("up")
    def stronger(inputs: Columns) -> Columns:
        return {"wind": inputs["wind"] + 5}

    @directional("down")
    def wrong_way(inputs: Columns) -> Columns:
        return {"wind": inputs["wind"] + 5}

    assert run(stronger).verdict is Verdict.PASS
    assert run(wrong_way).verdict is Verdict.FAIL


def test_a_model_that_ignores_the_input_does_not_pass_a_directional_check() -> None:
    @directional("up")
    def carrier(inputs: Columns) -> Columns:
        return {"carrier": np.array(["ZZ"] * len(inputs["wind"]), dtype=object)}

    assert run(carrier).verdict is Verdict.FAIL


def test_easy_cases_are_judged_by_what_the_check_says() -> None:
    @minimum_functionality(share=0.9)
    def calm(inputs: Columns) -> Any:
        """No wind means little risk.

        More words.
        """
        quiet = {name: values[:10] for name, values in inputs.items()}
        return quiet, lambda answers: answers[:, 0] < 0.2

    result = run(calm)
    assert (result.verdict, result.rows, result.sentence) == (Verdict.PASS, 10, "No wind means little risk")


def test_a_check_gets_copies() -> None:
    @invariance(tolerance=10.0)
    def in_place(inputs: Columns) -> Columns:
        inputs["wind"] += 1
        return inputs

    assert run(in_place).verdict is Verdict.PASS
    assert INPUTS["wind"][0] == 0.0


@pytest.mark.parametrize(
    "returned",
    [{}, {"wind": INPUTS["wind"][:1]}, {"unknown": np.zeros(100)}, None, 3],
    ids=["nothing changed", "another length", "unknown input", "None", "a number"],
)
def test_a_check_that_cannot_be_run_is_an_error_and_no_pass(returned: Any) -> None:
    @invariance(tolerance=100.0)
    def broken(inputs: Columns) -> Any:
        return returned

    assert run(broken).verdict is Verdict.ERROR


def test_what_a_check_raises_is_reported() -> None:
    @directional("up")
    def raises(inputs: Columns) -> Columns:
        raise KeyError("wnd")

    result = run(raises)
    assert result.verdict is Verdict.ERROR
    assert "KeyError: 'wnd'" in result.detail


def test_easy_cases_without_rows_are_no_evidence() -> None:
    @minimum_functionality()
    def none(inputs: Columns) -> Any:
        return {name: values[:0] for name, values in inputs.items()}, lambda answers: answers[:, 0] < 1

    assert run(none).verdict is Verdict.ERROR


def test_nan_answers_do_not_behave() -> None:
    class Broken:
        def predict(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
            return np.full((len(inputs["wind"]), 1), np.nan)

    @invariance(tolerance=1.0)
    def wind(inputs: Columns) -> Columns:
        return {"wind": inputs["wind"] + 1}

    check: Any = wind
    assert run_check(check.__loopwright_check__, Broken(), INPUTS, seed=1).verdict is Verdict.FAIL


def test_a_file_of_checks_is_loaded_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "behaviour.py"
    file.write_text(
        "from loopwright.quality.behaviour import directional, invariance\n"
        "@invariance(tolerance=9)\ndef b(inputs): return {'wind': inputs['wind'] + 1}\n"
        "@directional('up')\ndef a(inputs): return {'wind': inputs['wind'] + 1}\n"
    )
    assert [check.name for check in load_checks(file)] == ["b", "a"]


@pytest.mark.parametrize("text", [None, "x = 1", "import not_a_module_at_all", "def ("])
def test_a_file_without_usable_checks_is_bad_input(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "behaviour.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadInput, match="behaviour"):
        load_checks(file)


def test_shares_outside_zero_and_one_are_refused() -> None:
    with pytest.raises(BadInput):
        invariance(share=0.0)
    with pytest.raises(BadInput):
        directional("sideways")  # type: ignore[arg-type]
