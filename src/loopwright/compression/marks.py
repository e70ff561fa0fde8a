"""A mark of a function of the user's: another one for what may compute something else, so that work is told apart."""

import functools
import hashlib
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

_DEEPEST = 8


def mark_of(value: Any) -> str:
    """12 hex digits of what a function is compiled to, of what it was bound to, and of the constants, arrays and
    functions that it names; of an object that can be called its class, its attributes and its call.

    Equal in every process of one version of Python. What is read elsewhere (files, inside other modules) is not seen.
    """
    return _Marker().told(value, 0)[:12]


class _Marker:
    """One walk over a function and what hangs on it."""

    def __init__(self) -> None:
        # Held, so that no two values of one walk have one identity.
        self._known: dict[int, tuple[Any, str]] = {}

    def told(self, value: Any, depth: int) -> str:
        """A digest; of what is met within itself, or too deep, the type's name."""
        if isinstance(value, str | bytes | int | float | complex | type | ModuleType | None):
            plain = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__qualname__", value)
            return hashlib.sha256(f"{type(value).__name__}:{plain!r}".encode()).hexdigest()
        if id(value) in self._known:
            return self._known[id(value)][1]
        self._known[id(value)] = value, type(value).__qualname__
        if depth <= _DEEPEST:
            made = hashlib.sha256(repr(self._parts(value, depth + 1)).encode()).hexdigest()
            self._known[id(value)] = value, made
        return self._known[id(value)][1]

    def _parts(self, value: Any, depth: int) -> list[Any]:
        def each(values: Any) -> list[str]:
            return [self.told(one, depth) for one in values]

        if hasattr(value, "detach") and hasattr(value, "cpu"):  # a tensor
            value = value.detach().cpu().numpy()
        if isinstance(value, np.ndarray | np.generic):
            data = np.ascontiguousarray(value)
            told = repr(data.tolist()).encode() if data.dtype.hasobject else data.tobytes()
            return ["array", str(data.dtype), data.shape, hashlib.sha256(told).hexdigest()]
        if isinstance(value, list | tuple):
            return [type(value).__name__, each(value)]
        if isinstance(value, set | frozenset):
            return [type(value).__name__, sorted(each(value))]
        if isinstance(value, dict):
            return ["dict", each(value), each(value.values())]
        if isinstance(value, functools.partial):
            return ["partial", each((value.func, value.args, value.keywords))]
        if isinstance(value, MethodType):
            return ["method", each((value.__func__, value.__self__))]
        if isinstance(value, BuiltinFunctionType):
            return ["builtin", value.__module__, value.__qualname__]
        if isinstance(value, CodeType):
            return ["code", value.co_code, each(value.co_consts), value.co_names]
        if isinstance(value, FunctionType):
            named = {name: value.__globals__.get(name) for name in sorted(_names(value.__code__))}
            bound = [_content(cell) for cell in value.__closure__ or ()]
            return [
                "function",
                each((value.__code__, value.__defaults__, value.__kwdefaults__, bound, named)),
            ]
        kind = type(value)
        call = next(
            (one.__dict__[name] for one in kind.__mro__ for name in ("forward", "__call__") if name in one.__dict__),
            None,
        )  # fmt: skip
        return [kind.__module__, kind.__qualname__, each((getattr(value, "__dict__", None), call))]


def _names(code: CodeType) -> set[str]:
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None
