"""YAML that remembers where each key stands, read as YAML 1.2: `on`, `yes` and `no` are text."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from loopwright.kernel.errors import BadInput, NotFound

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_NODES = 20_000

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Located:
    """A document and the line (from 1) of each key path in it."""

    file: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int]
    overridden: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """Return "loop.yaml:12: data.sources.flights"; for an absent key, the line of what would hold it.

        A key that an override set names the override instead.
        """
        for end in range(len(path), 0, -1):
            if path[:end] in self.overridden:
                return f"--set {self.overridden[path[:end]]}: {dotted(path)}"
        near = path
        while near and near not in self.lines:
            near = near[:-1]
        place = f"{self.file}:{self.lines[near]}" if near in self.lines else str(self.file)
        return f"{place}: {dotted(path)}" if path else place


def dotted(path: KeyPath) -> str:
    """Return "delivery.steps[0].weight"."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_yaml(file: Path) -> Located:
    """Read one YAML mapping from `file`.

    Raises NotFound for a missing file, and BadInput with line and column for anything that is not one YAML
    mapping of reasonable size, with text keys, none of them twice.
    """
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise NotFound("no such file", where=str(file)) from None
    except OSError as error:
        raise BadInput(f"cannot read it ({error.strerror or error})", where=str(file)) from None
    if len(raw) > MAX_BYTES:
        raise BadInput("too large", where=str(file), got=f"{len(raw)} bytes", wanted=f"at most {MAX_BYTES}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput("not UTF-8 text", where=str(file), got=f"byte {error.start}: {error.reason}") from None
    return parse_yaml(text, file)


def parse_yaml(text: str, file: Path) -> Located:
    """Read one YAML mapping from `text`; `file` is only what errors name. See `read_yaml`."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise BadInput("the file is empty", where=str(file), wanted="keys and values")
        lines: dict[KeyPath, int] = {}
        _locate(node, (), lines, file, [0])
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise BadInput(f"not YAML ({error.problem or error.context})", where=place) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"not YAML ({str(error).splitlines()[0]})", where=str(file)) from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(data, dict):
        raise BadInput("not a mapping", where=f"{file}:1", got=type(data).__name__, wanted="key: value lines")
    return Located(file, data, lines)


def parse_scalar(text: str) -> Any:
    """Read `text` as YAML, as in `--set key=text`; raises BadInput."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BadInput("not YAML", got=text) from None


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


class _Loader(yaml.SafeLoader):
    """YAML 1.1's surprises taken out: `on: [drift]` is a key, `1e-3` a number, `12:30` text."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "int", "float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
# "010" is ten, not octal eight.
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def _locate(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], file: Path, count: list[int]) -> None:
    count[0] += 1
    line = node.start_mark.line + 1
    if len(path) > MAX_DEPTH:
        raise BadInput(
            "nested too deeply", where=f"{file}:{line}: {dotted(path)}", wanted=f"at most {MAX_DEPTH} levels"
        )
    if count[0] > MAX_NODES:
        raise BadInput("too many values", where=f"{file}:{line}", wanted=f"at most {MAX_NODES}")
    if path:  # what is missing at the top belongs to no line
        lines.setdefault(path, line)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _locate(item, (*path, index), lines, file, count)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            raise BadInput(
                "a key that is not plain text", where=f"{file}:{key.start_mark.line + 1}: {dotted(path)}"
            )
        if key.tag != "tag:yaml.org,2002:str":
            raise BadInput(
                "a key that is not text",
                where=f"{file}:{key.start_mark.line + 1}: {dotted(path)}",
                got=key.value,
                next=f'Write it in quotes: "{key.value}".',
            )
        below = (*path, key.value)
        if key.value in seen:
            first = lines[below]
            raise BadInput(
                "the same key twice",
                where=f"{file}:{key.start_mark.line + 1}: {dotted(below)}",
                next=f"It stands in line {first} already; remove one.",
            )
        seen.add(key.value)
        lines[below] = key.start_mark.line + 1
        _locate(value, below, lines, file, count)
