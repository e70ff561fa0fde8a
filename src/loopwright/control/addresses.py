"""Where operations live under /api/v1, read from their source: a client need not import what it only asks for.

Importing an operation imports the room it works on, which takes a second; a command sent to a control plane must not.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loopwright.kernel.errors import NotFound, did_you_mean

_FOLDER = Path(__file__).parent / "operations"


@dataclass(frozen=True, slots=True)
class Address:
    """An operation's HTTP method and its path, like /models/{model}/rollback."""

    method: str
    path: str

    @property
    def in_path(self) -> tuple[str, ...]:
        """Arguments that stand in the path, e.g. ("model",)."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))


def address_of(name: str) -> Address:
    """Return where the operation `name` lives; raises NotFound with the nearest name."""
    file = _FOLDER / f"{name.partition('.')[0]}.py"
    listed = _listed(file) if file.parent == _FOLDER and file.is_file() else {}
    if name not in listed:
        known = list(listed) or [each for path in _FOLDER.glob("[a-z]*.py") for each in _listed(path)]
        raise NotFound("no such operation", got=name, next=did_you_mean(name, known))
    return listed[name]


@cache
def _listed(file: Path) -> dict[str, Address]:
    """Every `@operation(name, method, path, …)` of a module; their first three arguments are literals."""
    found = {}
    for function in ast.parse(file.read_bytes()).body:
        for mark in getattr(function, "decorator_list", ()):
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "operation":
                name, method, path = (ast.literal_eval(argument) for argument in mark.args[:3])
                found[name] = Address(method, path)
    return found
