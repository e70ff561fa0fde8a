"""Request-time transforms: one numpy-only source file, run the same way offline and online."""

import ast
import builtins
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.kernel.errors import BadInput

Columns = dict[str, NDArray[Any]]

MODULES = frozenset(
    (
        "__future__",
        "array",
        "bisect",
        "calendar",
        "collections",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "functools",
        "heapq",
        "itertools",
        "json",
        "math",
        "numbers",
        "numpy",
        "operator",
        "re",
        "statistics",
        "string",
        "typing",
        "unicodedata",
        "zlib",
    )
)


@dataclass(frozen=True, slots=True)
class Transform:
    """`transform(inputs, state) -> features`; `fit(inputs) -> state` when the source defines it."""

    transform: Callable[[Columns, dict[str, Any]], Columns]
    fit: Callable[[Columns], dict[str, Any]] | None


def load_transform(source: str, name: str = "transform.py") -> Transform:
    """Execute `source` in a fresh module and return its functions.

    A worker has numpy and Python's pure modules only, so any other import is refused here, where the author can still
    change it. This keeps bundles portable; it is no sandbox: trust comes from the seal. Raises BadInput.
    """
    try:
        tree = ast.parse(source, filename=name)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise BadInput(f"not Python ({error})", where=name) from None
    _check_imports(tree, name)
    module = ModuleType("loopwright_transform")
    module.__dict__["__builtins__"] = builtins
    try:
        exec(compile(tree, name, "exec"), module.__dict__)  # noqa: S102 - the sealed source is the trusted code
    except Exception as error:
        raise BadInput(f"fails while loading ({type(error).__name__}: {error})", where=name) from error
    transform = getattr(module, "transform", None)
    fit = getattr(module, "fit", None)
    if not callable(transform):
        raise BadInput("defines no function `transform(inputs, state)`", where=name)
    if fit is not None and not callable(fit):
        raise BadInput("`fit` is not a function", where=name, got=type(fit).__name__)
    return Transform(transform=transform, fit=fit)


def identity(inputs: Columns, state: dict[str, Any]) -> Columns:
    """The transform of a bundle without a transform file: features are inputs by the same name."""
    return inputs


def stack(columns: Columns, features: tuple[str, ...], rows: int) -> NDArray[np.float32]:
    """Return float32 (rows, len(features)) in the model's order; raises BadInput for what is missing or misshaped."""
    if rows == 1:
        try:
            # A quarter of the cost of filling columns one by one; anything unusual falls through to the exact messages.
            flat = np.concatenate([columns[name] for name in features], dtype=np.float32, casting="unsafe")
            if len(flat) == len(features):
                return flat.reshape(1, -1)
        except (KeyError, TypeError, ValueError):
            pass
    matrix = np.empty((rows, len(features)), dtype=np.float32)
    for position, name in enumerate(features):
        try:
            matrix[:, position] = columns[name]
        except KeyError:
            raise BadInput("the transform gives no such feature", where=name, got=sorted(columns)) from None
        except (TypeError, ValueError) as error:
            raise BadInput(f"not {rows} numbers ({error})", where=name) from None
    return matrix


def _check_imports(tree: ast.Module, name: str) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        else:
            continue
        for module in modules:
            if module.split(".")[0] not in MODULES:
                raise BadInput(
                    f"imports `{module}`, which serving workers do not have",
                    where=f"{name}:{node.lineno}",
                    wanted="numpy and pure standard modules",
                    next="Compute it in features.py, or pass what it needs through `fit`'s state.",
                )
