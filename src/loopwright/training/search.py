"""Hyperparameter search: seeded, in order, the same trials every time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import optuna

from loopwright.kernel.errors import BadInput


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of parameters and what it scored; NaN where the objective gave no number."""

    number: int
    params: Mapping[str, Any]
    value: float


@dataclass(frozen=True, slots=True)
class Found:
    """`best_params` is what the search space returned for the best trial, the earliest one among equals."""

    best_params: Mapping[str, Any]
    best_value: float
    trials: tuple[Trial, ...]


def search(
    objective: Callable[[Mapping[str, Any]], float],
    space: Callable[[optuna.trial.Trial], Mapping[str, Any]],
    *,
    trials: int,
    direction: Literal["maximize", "minimize"] = "maximize",
    seed: int = 0,
    on_trial: Callable[[int, float, float], None] | None = None,
) -> Found:
    """Score `trials` points of `space` by Optuna's TPE sampler and return the best.

    Deterministic: equal arguments (and a deterministic objective) give equal trials. `on_trial(number, value,
    best)` is called after each. An objective that raises ends the search with its own error; one that gives
    no finite number only loses that trial. Raises BadInput when no trial gave one.
    """
    if direction not in ("maximize", "minimize"):
        raise BadInput("unknown direction", got=direction, wanted="maximize or minimize")
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=seed))
        done: list[Trial] = []
        best: Trial | None = None
        for number in range(trials):
            asked = study.ask()
            params = dict(space(asked))
            value = float(objective(params))
            if math.isfinite(value):
                study.tell(asked, value)
            else:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
                value = math.nan
            trial = Trial(number, params, value)
            done.append(trial)
            if math.isfinite(value) and (best is None or _better(value, best.value, direction)):
                best = trial
            if on_trial is not None:
                on_trial(number, value, best.value if best else math.nan)
    finally:
        optuna.logging.set_verbosity(level)
    if best is None:
        raise BadInput(
            "no trial gave a finite score",
            where="search",
            got=f"{trials} trials",
            wanted="at least one number",
            next="Widen the search space, or look at the objective's metric.",
        )
    return Found(best.params, best.value, tuple(done))


def _better(value: float, best: float, direction: str) -> bool:
    return value > best if direction == "maximize" else value < best
