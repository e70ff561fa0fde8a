"""Rows as people have them, made into rows as a model takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loopwright.compression.artefact import Port
from loopwright.compression.subject import MIN_ROWS, Array, Rows, Samples, check_feeds
from loopwright.kernel.errors import BadInput

Data = Rows | tuple[Any, Any]
"""(inputs, truth): inputs an array (n, …) or a mapping of them by name, truth (n,)."""

INPUT = "features"
"""The name of an only input where nothing else names it."""


def split(
    train: Data, held_out: Data | None, validation: Data | None, test: Data | None, ports: Sequence[Port], seed: int
) -> Samples:  # fmt: skip
    """The rows in their parts: what is held out is halved by `seed`, unless both halves are given."""
    taught = rows_of(train, ports, "train")
    if held_out is not None and (validation is not None or test is not None):
        raise BadInput(
            "rows held out, and their parts too", where="rows", wanted="held_out, or validation and test"
        )
    if held_out is None:
        if validation is None or test is None:
            raise BadInput(
                "no rows that choose and report", where="rows", wanted="held_out=, or validation= and test=",
                next="Rows that the model was trained on say nothing about what is lost: hold some out.",
            )  # fmt: skip
        return Samples(taught, rows_of(validation, ports, "validation"), rows_of(test, ports, "test"))
    rows = rows_of(held_out, ports, "held_out")
    if len(rows) < 2 * MIN_ROWS:
        raise BadInput(
            "too few rows held out to choose by and to report on", where="held_out", got=len(rows),
            wanted=f"at least {2 * MIN_ROWS}, better thousands",
        )  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(rows))
    half = len(rows) // 2
    return Samples(taught, rows.take(np.sort(order[:half])), rows.take(np.sort(order[half:])))


def rows_of(data: Data, ports: Sequence[Port], where: str) -> Rows:
    """`data` with the inputs' names, and their numbers in the types, that `ports` say; () says nothing.

    Raises BadInput for what is not (inputs, truth), for inputs that do not fit the ports, for truth that is no finite
    numbers, and for a bare array where the model has several inputs. Numbers change their type only where they keep
    their meaning: integers never come of fractions.
    """
    if isinstance(data, Rows):
        return data
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise BadInput("not inputs and truth", where=where, got=type(data).__name__, wanted="(inputs, truth)")
    inputs, truth = data
    wanted = {port.name: port.dtype for port in ports}
    if isinstance(inputs, Mapping):
        feeds = {str(name): array_of(values, f"{where}: {name}") for name, values in inputs.items()}
    elif len(wanted) > 1:
        raise BadInput(
            "one array for a model of several inputs", where=where, got="an array", wanted=", ".join(wanted),
            next="Give a dict of arrays by these names.",
        )  # fmt: skip
    else:
        feeds = {next(iter(wanted), INPUT): array_of(inputs, where)}
    feeds = {name: _typed(values, wanted.get(name, "")) for name, values in feeds.items()}
    for name, values in feeds.items():
        if values.ndim == 0:
            raise BadInput("an input without rows", where=f"{where}: {name}", wanted="(n, …)")
    if ports:
        check_feeds(ports, feeds, where)
    return Rows(feeds, _truth(truth, where))


def array_of(values: Any, where: str) -> Array:
    """A numpy array of an array, a tensor or a frame. Raises BadInput for what holds objects."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    try:
        found = np.asarray(values)
    except ValueError as error:
        raise BadInput(f"not an array ({error})", where=where, wanted="rows of one length") from error
    if found.dtype == object:
        try:
            found = found.astype(np.float32)
        except (TypeError, ValueError) as error:
            raise BadInput(
                "columns that are no numbers",
                where=where,
                wanted="numbers",
                next="Encode text as numbers first.",
            ) from error
    return found


def _typed(values: Array, wanted: str) -> Array:
    if not wanted:
        return values.astype(np.float32) if values.dtype == np.float64 else values
    if values.dtype.name == wanted or wanted == "str" or values.dtype.kind not in "fiub":
        return values
    target = np.dtype(wanted)
    if target.kind == "f" and values.dtype.kind in "fiub":
        return values.astype(target)
    if target.kind in "iu" and values.dtype.kind in "iub":
        fresh = values.astype(target)
        return fresh if (fresh == values).all() else values
    return values


def _truth(values: Any, where: str) -> Array:
    found = array_of(values, f"{where}: truth")
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1 or found.dtype.kind not in "fiub":
        raise BadInput(
            "the truth is not one number per row", where=where, got=f"{found.dtype}{found.shape}",
            wanted="(n,) class indices from 0 on, or numbers",
        )  # fmt: skip
    if wrong := int((~np.isfinite(found)).sum()):
        raise BadInput(
            "truth that is no number", where=where, got=f"{wrong} of {len(found)} NaN or infinite",
            next="Drop rows without a truth.",
        )  # fmt: skip
    return found.astype(np.int64) if found.dtype.kind == "b" else found
