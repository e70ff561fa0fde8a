"""Follows a pickle's opcodes with stand-ins for values: every import is known, and nothing is executed.

Enough of the unpickler to see names that come by way of the memo, calls of what is no import, and changes to what was
imported; and to step over the array bytes that joblib puts between opcodes, as its loader would.
"""

import io
import pickletools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any

from loopwright.bundle.gadgets import ARRAY_WRAPPER, canonical

MAX_OPCODES = 20_000_000
MAX_DEPTH = 1_000
MAX_STACK = 1_000_000
MAX_NOTES = 20
MAX_IMPORTS = 10_000


def joined(module: str, name: str) -> str:
    """The one spelling of a global, Python 2's names in Python 3's."""
    module, name = canonical(module, name)
    return f"{module} {name}" if "." in name or " " in name or " " in module else f"{module}.{name}"


@dataclass(slots=True)
class Findings:
    """What has been seen so far. broken: the stream could not be followed to its end."""

    globals: set[str] = field(default_factory=set)
    unresolved: list[str] = field(default_factory=list)
    suspicious: list[str] = field(default_factory=list)
    arrays: list[tuple[int, int]] = field(default_factory=list)
    opcodes: int = 0
    broken: bool = False

    def suspect(self, what: str) -> None:
        """Note a reason why the file can never be trusted."""
        if len(self.suspicious) < MAX_NOTES:
            self.suspicious.append(what)


class _Broken(Exception):
    """The stream cannot be followed further."""


@dataclass(slots=True, eq=False)
class _Global:
    name: str


@dataclass(slots=True, eq=False)
class _Made:
    """What a call returns: by whom, from what, and the state it was given."""

    by: object
    arguments: tuple[Any, ...] = ()
    state: Any = None


_OPAQUE = object()
_MARK = object()
_Step = Callable[["Machine", Any, int], None]
_STEPS: dict[str, _Step] = {}


def _on(*names: str) -> Callable[[_Step], _Step]:
    def register(step: _Step) -> _Step:
        _STEPS.update(dict.fromkeys(names, step))
        return step

    return register


class Machine:
    """Follows one pickle from the file's position to its STOP."""

    def __init__(self, file: io.BytesIO, size: int, found: Findings, depth: int = 0) -> None:
        self.file, self.size, self.found, self.depth = file, size, found, depth
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.marks = 0

    @property
    def position(self) -> int:
        """Where in the file it has come to."""
        return self.file.tell()

    def run(self) -> None:
        """Follow the pickle; whatever is wrong with it is among the findings."""
        try:
            self._follow()
        except _Broken as error:
            self.found.broken = True
            self.found.suspect(str(error))
        except (ValueError, IndexError, OverflowError, EOFError, MemoryError):
            # pickletools' ways to say: not a pickle, or cut short.
            self.found.broken = True
            self.found.suspect(
                f"not a pickle, or one that is cut short or spoiled: it does not read on at byte {self.position:,}"
            )

    def _follow(self) -> None:
        found = self.found
        for opcode, argument, place in pickletools.genops(self.file):
            found.opcodes += 1
            at = place if place is not None else 0
            if found.opcodes > MAX_OPCODES or len(self.stack) > MAX_STACK or self.marks > MAX_DEPTH:
                raise _Broken(f"larger or deeper than any plain model at byte {at}")
            if opcode.name == "STOP":
                if len(self.stack) != 1:
                    found.suspect(f"{len(self.stack)} values at the end instead of one")
                return
            step = _STEPS.get(opcode.name)
            if step is None:
                raise _Broken(f"opcode {opcode.name} at byte {at}")
            step(self, argument, at)
        raise _Broken("no end")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise _Broken("a mark where a value should be")
        return value

    def pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        self.marks -= 1
        return values[::-1]

    def top(self) -> Any:
        value = self.stack[-1]
        if value is _MARK:
            raise _Broken("a mark where a value should be")
        return value

    def call(self, callee: Any, arguments: Any, at: int) -> None:
        if not isinstance(callee, _Global):
            self.found.suspect(f"calls something that is no import, at byte {at}")
        self.stack.append(_Made(callee, arguments if isinstance(arguments, tuple) else ()))

    def change(self, target: Any, at: int) -> None:
        """Note that `target` is changed: what was imported must stay as it is."""
        if isinstance(target, _Global):
            self.found.suspect(f"changes {target.name} itself, at byte {at}")

    def import_(self, module: str, name: str) -> None:
        found = _Global(joined(module, name))
        if len(self.found.globals) > MAX_IMPORTS:
            raise _Broken("imports more than any plain model")
        self.found.globals.add(found.name)
        self.stack.append(found)

    def remember(self, index: int, at: int) -> None:
        # An unpickler makes room for the index it is told: one far beyond the file's size is a bomb.
        if not 0 <= index <= max(self.size, 256):
            raise _Broken(f"memo index {index} at byte {at}")
        self.memo[index] = self.top()

    def skip_array(self, wrapper: _Made, at: int) -> None:
        """Step over the bytes that joblib wrote after an array's stand-in, as its loader will."""
        state = wrapper.state if isinstance(wrapper.state, dict) else {}
        shape, kind = state.get("shape"), _item(state.get("dtype"))
        if kind is None or not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise _Broken(f"an array of unknown size at byte {at}")
        size, objects = kind
        if objects:
            if self.depth >= 3:
                raise _Broken("arrays of objects within each other")
            inner = Machine(self.file, self.size, self.found, self.depth + 1)
            inner._follow()
            return
        alignment = state.get("numpy_array_alignment_bytes")
        if alignment is not None:
            padding = self.file.read(1)
            self.file.seek(padding[0] if padding else 0, io.SEEK_CUR)
        length = prod(shape) * size
        if self.position + length > self.size:
            raise _Broken(f"an array of {length:,} bytes at byte {self.position}, where the file ends before")
        self.found.arrays.append((self.position, length))
        self.file.seek(length, io.SEEK_CUR)


def _item(dtype: Any, depth: int = 0) -> tuple[int, bool] | None:
    """Bytes of one item and whether it holds objects, for a stand-in of numpy.dtype(...); None when it is unclear."""
    if not isinstance(dtype, _Made) or not isinstance(dtype.by, _Global) or dtype.by.name != "numpy.dtype":
        return None
    text = dtype.arguments[0] if dtype.arguments else None
    if not isinstance(text, str) or depth > 5:
        return None
    kind, digits = text[:1], text[1:]
    if kind == "O":
        return 8, True
    if kind not in "biufcmMSUV" or not digits.isdecimal():
        return None
    size = int(digits) * (4 if kind == "U" else 1)
    objects = False
    if kind == "V" and isinstance(dtype.state, tuple) and len(dtype.state) > 4:
        subarray, fields = dtype.state[2], dtype.state[4]
        parts = [subarray] if subarray is not None else []
        parts += list(fields.values()) if isinstance(fields, dict) else []
        for part in parts:
            inner = _item(part[0], depth + 1) if isinstance(part, tuple) and part else None
            if inner is None:
                return None
            objects |= inner[1]
    return size, objects


@_on("PROTO", "FRAME")
def _ignore(machine: Machine, argument: Any, at: int) -> None:
    if isinstance(argument, int) and argument > machine.size and argument > 5:
        raise _Broken(f"a frame of {argument:,} bytes at byte {at}, longer than the file")


@_on(
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING"
)
def _constant(machine: Machine, argument: Any, at: int) -> None:
    machine.stack.append(argument)


_on("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT")(_constant)
for _name, _value in (("NONE", None), ("NEWTRUE", True), ("NEWFALSE", False)):
    _on(_name)(lambda machine, argument, at, value=_value: machine.stack.append(value))  # type: ignore[misc]


@_on("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
def _bytes(machine: Machine, argument: Any, at: int) -> None:
    machine.stack.append(_OPAQUE)
    data = bytes(argument)
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and machine.depth < 3:
        inside = Findings()
        Machine(io.BytesIO(data), len(data), inside, machine.depth + 1).run()
        if not inside.broken and (inside.globals or inside.suspicious):
            machine.found.suspect(
                f"a pickle within bytes at byte {at}, importing {', '.join(sorted(inside.globals))}"
            )


@_on("EMPTY_TUPLE")
def _empty_tuple(machine: Machine, argument: Any, at: int) -> None:
    machine.stack.append(())


@_on("TUPLE")
def _tuple(machine: Machine, argument: Any, at: int) -> None:
    machine.stack.append(tuple(machine.pop_to_mark()))


for _count in (1, 2, 3):

    def _fixed(machine: Machine, argument: Any, at: int, count: int = _count) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(values[::-1]))

    _on(f"TUPLE{_count}")(_fixed)


@_on("EMPTY_LIST", "EMPTY_SET")
def _empty(machine: Machine, argument: Any, at: int) -> None:
    machine.stack.append(_OPAQUE)


@_on("LIST", "FROZENSET")
def _collected(machine: Machine, argument: Any, at: int) -> None:
    machine.pop_to_mark()
    machine.stack.append(_OPAQUE)


@_on("EMPTY_DICT")
def _empty_dict(machine: Machine, argument: Any, at: int) -> None:
    machine.stack.append({})


@_on("DICT")
def _dict(machine: Machine, argument: Any, at: int) -> None:
    items = machine.pop_to_mark()
    machine.stack.append({})
    _put(machine, items, at)


@_on("SETITEM")
def _set_item(machine: Machine, argument: Any, at: int) -> None:
    value, key = machine.pop(), machine.pop()
    _put(machine, [key, value], at)


@_on("SETITEMS")
def _set_items(machine: Machine, argument: Any, at: int) -> None:
    _put(machine, machine.pop_to_mark(), at)


def _put(machine: Machine, items: list[Any], at: int) -> None:
    target = machine.top()
    machine.change(target, at)
    if isinstance(target, dict):
        target |= {
            key: value for key, value in zip(items[::2], items[1::2], strict=False) if type(key) is str
        }


@_on("APPEND")
def _append(machine: Machine, argument: Any, at: int) -> None:
    machine.pop()
    machine.change(machine.top(), at)


@_on("APPENDS", "ADDITEMS")
def _append_all(machine: Machine, argument: Any, at: int) -> None:
    machine.pop_to_mark()
    machine.change(machine.top(), at)


@_on("MARK")
def _mark(machine: Machine, argument: Any, at: int) -> None:
    machine.marks += 1
    machine.stack.append(_MARK)


@_on("POP")
def _pop(machine: Machine, argument: Any, at: int) -> None:
    if machine.stack.pop() is _MARK:
        machine.marks -= 1


@_on("POP_MARK")
def _pop_mark(machine: Machine, argument: Any, at: int) -> None:
    machine.pop_to_mark()


@_on("DUP")
def _dup(machine: Machine, argument: Any, at: int) -> None:
    machine.stack.append(machine.top())


@_on("PUT", "BINPUT", "LONG_BINPUT")
def _put_memo(machine: Machine, argument: Any, at: int) -> None:
    machine.remember(argument, at)


@_on("MEMOIZE")
def _memoize(machine: Machine, argument: Any, at: int) -> None:
    machine.remember(len(machine.memo), at)


@_on("GET", "BINGET", "LONG_BINGET")
def _get_memo(machine: Machine, argument: Any, at: int) -> None:
    if argument not in machine.memo:
        raise _Broken(f"memo {argument} is read before it is written, at byte {at}")
    machine.stack.append(machine.memo[argument])


@_on("GLOBAL")
def _global(machine: Machine, argument: Any, at: int) -> None:
    module, _, name = str(argument).partition(" ")
    machine.import_(module, name)


@_on("STACK_GLOBAL")
def _stack_global(machine: Machine, argument: Any, at: int) -> None:
    name, module = machine.pop(), machine.pop()
    if isinstance(name, str) and isinstance(module, str):
        machine.import_(module, name)
        return
    if len(machine.found.unresolved) < MAX_NOTES:
        machine.found.unresolved.append(f"an import whose name is computed, at byte {at}")
    machine.stack.append(_OPAQUE)


@_on("INST")
def _inst(machine: Machine, argument: Any, at: int) -> None:
    arguments = machine.pop_to_mark()
    module, _, name = str(argument).partition(" ")
    machine.import_(module, name)
    machine.call(machine.pop(), tuple(arguments), at)


@_on("OBJ")
def _obj(machine: Machine, argument: Any, at: int) -> None:
    callee, *arguments = machine.pop_to_mark()
    machine.call(callee, tuple(arguments), at)


@_on("REDUCE", "NEWOBJ")
def _reduce(machine: Machine, argument: Any, at: int) -> None:
    arguments, callee = machine.pop(), machine.pop()
    machine.call(callee, arguments, at)


@_on("NEWOBJ_EX")
def _newobj_ex(machine: Machine, argument: Any, at: int) -> None:
    _, arguments, callee = machine.pop(), machine.pop(), machine.pop()
    machine.call(callee, arguments, at)


@_on("BUILD")
def _build(machine: Machine, argument: Any, at: int) -> None:
    state = machine.pop()
    target = machine.top()
    machine.change(target, at)
    if isinstance(target, _Made):
        target.state = state
        if isinstance(target.by, _Global) and target.by.name == ARRAY_WRAPPER:
            machine.skip_array(target, at)
            machine.stack[-1] = _OPAQUE


@_on("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
def _foreign(machine: Machine, argument: Any, at: int) -> None:
    machine.found.suspect(f"takes something from outside the file, at byte {at}")
    with suppress(IndexError):
        machine.stack.pop()
    machine.stack.append(_OPAQUE)
