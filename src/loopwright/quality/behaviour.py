"""Behavioural checks: what a model must do whatever its metrics say. Projects write them in tests/behaviour.py.

    from loopwright.quality.behaviour import directional, invariance, minimum_functionality

    @invariance(tolerance=0.01)
    def the_flight_number_does_not_matter(inputs):
        return {"flight": inputs["flight"] + 1}

    @directional("up", share=0.95)
    def worse_visibility_never_helps(inputs):
        return {"visib": np.full_like(inputs["visib"], 0.25)}

    @minimum_functionality(share=0.9)
    def a_calm_dawn_departure_is_probably_punctual(inputs):
        calm = {name: values[inputs["hour"] < 7] for name, values in inputs.items()}
        return calm, lambda predictions: predictions[:, 0] < 0.5

What a check is given: `inputs`, the raw inputs (as a request brings them, before any transform) of up to
`rows` rows of the holdout, drawn with the run's seed: `dict[str, np.ndarray]`, numbers as float64 with NaN
for null, text as object with None for null. They are copies: a check may change them in place. How predict is
called: once on the rows as they were, once on what the check returns, through the sealed bundle, so transform
and ONNX are part of what is checked.
The first line of the docstring, or else the name, is the sentence in the report.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.digest import sha256_file
from loopwright.kernel.errors import BadInput
from loopwright.kernel.verdict import Verdict

Columns = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]
Function = Callable[[Columns], Any]
Kind = Literal["invariance", "directional", "minimum functionality"]

_MARK = "__loopwright_check__"


class Predicts(Protocol):
    """The part of a bundle that checks need."""

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Check:
    """One decorated function. `share` of the rows must behave; `judge` says which do."""

    name: str
    sentence: str
    kind: Kind
    share: float
    rows: int
    function: Function
    judge: Callable[[Predicts, Columns, Any], tuple[NDArray[np.bool_], str]]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`value` is the share of rows that behaved (None when the check raised), `limit` the share that must."""

    name: str
    sentence: str
    kind: Kind
    verdict: Verdict
    value: float | None
    limit: float
    rows: int
    detail: str


def invariance(
    *, tolerance: float = 0.0, share: float = 0.99, rows: int = 500
) -> Callable[[Function], Function]:
    """The check returns inputs changed in a way that must not matter; columns it leaves out stay as they
    were.

    A row behaves when no output moves by more than `tolerance` (in the outputs' unit).
    """

    def judge(model: Predicts, inputs: Columns, changed: Any) -> tuple[NDArray[np.bool_], str]:
        before, after = model.predict(inputs), model.predict(_merged(inputs, changed))
        moved = np.abs(after - before).max(axis=1)
        return moved <= tolerance, f"largest move {np.max(moved):.4g}, tolerance {tolerance:g}"

    return _check("invariance", share, rows, judge)


def directional(
    direction: Literal["up", "down"], *, share: float = 0.95, rows: int = 500
) -> Callable[[Function], Function]:
    """The check returns inputs changed in a way that must move the first output `direction`, never against
    it.

    A row behaves when its first output does not move the other way; besides, the mean must move the right
    way, so a model that ignores the input does not pass.
    """
    if direction not in ("up", "down"):
        raise BadInput("not a direction", got=direction, wanted='"up" or "down"')

    def judge(model: Predicts, inputs: Columns, changed: Any) -> tuple[NDArray[np.bool_], str]:
        before, after = model.predict(inputs)[:, 0], model.predict(_merged(inputs, changed))[:, 0]
        moved = (after - before) * (1.0 if direction == "up" else -1.0)
        detail = f"mean moves by {np.mean(after - before):+.4g}"
        if not np.mean(moved) > 0:
            return np.zeros(len(moved), dtype=bool), f"{detail}: it must move {direction}"
        return moved >= 0, detail

    return _check("directional", share, rows, judge)


def minimum_functionality(*, share: float = 0.9, rows: int = 500) -> Callable[[Function], Function]:
    """The check returns `(inputs, holds)`: easy cases, and what must be true of the answers to them.

    `inputs` are whole columns of any one length (all the model's inputs); `holds(predictions)` gets float64
    of shape (n, outputs) and returns n booleans.
    """

    def judge(model: Predicts, _inputs: Columns, returned: Any) -> tuple[NDArray[np.bool_], str]:
        if not (isinstance(returned, tuple) and len(returned) == 2 and callable(returned[1])):
            raise BadInput(
                "a minimum functionality check returns (inputs, holds)", got=type(returned).__name__
            )
        cases, holds = returned
        predictions = model.predict(cases)
        behaved = np.asarray(holds(predictions), dtype=bool)
        if behaved.shape != (len(predictions),):
            raise BadInput(
                "`holds` gives one boolean a row", got=behaved.shape, wanted=f"({len(predictions)},)"
            )
        finite = np.isfinite(predictions).all(axis=1)
        middle = f"median answer {np.median(predictions[:, 0]):.4g}" if len(predictions) else "no rows"
        return behaved & finite, middle

    return _check("minimum functionality", share, rows, judge)


def load_checks(path: Path) -> tuple[Check, ...]:
    """Import `path` afresh and return its checks in the order they stand.

    Raises BadInput when the file is missing, cannot be imported, or holds no check.
    """
    module = _import(path)
    found = [getattr(value, _MARK) for value in vars(module).values() if hasattr(value, _MARK)]
    if not found:
        raise BadInput("no behavioural checks in the file", where=str(path),
                       wanted="one under @invariance, @directional or @minimum_functionality")  # fmt: skip
    return tuple(found)


def run_check(check: Check, model: Predicts, inputs: Mapping[str, NDArray[Any]], *, seed: int) -> CheckResult:
    """Run one check on a seeded sample of `inputs`. Whatever it raises becomes ERROR, which is not a pass."""
    sample = _sample(inputs, check.rows, seed)
    try:
        returned = check.function({name: values.copy() for name, values in sample.items()})
        behaved, detail = check.judge(model, sample, returned)
    except Exception as error:  # noqa: BLE001 - the function is the project's: anything may come out of it
        said = f"{type(error).__name__}: {error}"
        return CheckResult(check.name, check.sentence, check.kind, Verdict.ERROR, None, check.share, 0, said)
    if not len(behaved):
        said = "no rows to check: no evidence is not a pass"
        return CheckResult(check.name, check.sentence, check.kind, Verdict.ERROR, None, check.share, 0, said)
    share = float(behaved.mean())
    verdict = Verdict.PASS if share >= check.share else Verdict.FAIL
    said = f"{int(behaved.sum())} of {len(behaved)} rows behave; {detail}"
    return CheckResult(
        check.name, check.sentence, check.kind, verdict, share, check.share, len(behaved), said
    )


def _check(kind: Kind, share: float, rows: int, judge: Callable[..., Any]) -> Callable[[Function], Function]:
    if not 0 < share <= 1:
        raise BadInput("not a share of rows", got=share, wanted="more than 0 and at most 1")
    if rows < 1:
        raise BadInput("a check needs rows", got=rows, wanted="at least 1")

    def decorate(function: Function) -> Function:
        sentence = (function.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        name = function.__name__
        setattr(
            function,
            _MARK,
            Check(name, sentence or name.replace("_", " "), kind, share, rows, function, judge),
        )
        return function

    return decorate


def _merged(inputs: Columns, changed: Any) -> Columns:
    if not isinstance(changed, Mapping):
        raise BadInput(
            "a check returns changed inputs", got=type(changed).__name__, wanted="a dict of columns"
        )
    unknown = sorted(set(changed) - set(inputs))
    if unknown:
        raise BadInput("the check changes inputs the model does not have", got=", ".join(unknown))
    merged = {**inputs, **changed}
    rows = len(next(iter(inputs.values())))
    short = [name for name, values in merged.items() if np.shape(values) != (rows,)]
    if short:
        raise BadInput("the check changed the number of rows", where=short[0], got=np.shape(merged[short[0]]),
                       wanted=f"({rows},)")  # fmt: skip
    if all(_same(inputs[name], merged[name]) for name in inputs):
        raise BadInput("the check changed nothing", wanted="inputs that differ from the rows it was given")
    return merged


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    b = np.asarray(b)
    if a.shape != b.shape:
        return False
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        return bool(np.array_equal(a, b, equal_nan=True))
    return bool(np.array_equal(a, b))


def _sample(inputs: Mapping[str, NDArray[Any]], rows: int, seed: int) -> Columns:
    total = len(next(iter(inputs.values()))) if inputs else 0
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:rows])
    return {name: np.asarray(values)[chosen] for name, values in inputs.items()}


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadInput("the file of behavioural checks is missing", where=str(path),
                       next="Create it, or remove `gates.behaviour` from loop.yaml.")  # fmt: skip
    spec = importlib.util.spec_from_file_location(f"loopwright_behaviour_{sha256_file(path)[:16]}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the project's: anything may come out of it
        raise BadInput(f"the file of behavioural checks cannot be imported ({type(error).__name__}: {error})",
                       where=str(path)) from error  # fmt: skip
    return module
