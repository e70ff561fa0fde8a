"""YAML read with care: bounded, no duplicate keys, and every value knows its line."""

from pathlib import Path
from typing import Any

import yaml

from loopwright.kernel.errors import BadInput, NotFound

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 40


class Document:
    """A YAML file as plain values; `line(path)` says where a value stands.

    A path is a tuple of keys and indexes: `("schema", 0, "name")`.
    """

    def __init__(self, source: str, value: Any, lines: dict[tuple[Any, ...], int]) -> None:
        self.source = source
        self.value = value
        self._lines = lines

    def at(self, path: tuple[Any, ...]) -> Any:
        """The value that stands there; None when nothing does."""
        found = self.value
        for part in path:
            inside = isinstance(found, dict) and part in found
            if not inside and not (isinstance(found, list) and isinstance(part, int) and part < len(found)):
                return None
            found = found[part]
        return found

    def where(self, path: tuple[Any, ...]) -> str:
        """Return "file:line: a.b[0]" of the nearest ancestor of `path` that the file holds."""
        known = path
        while known and known not in self._lines:
            known = known[:-1]
        shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        return f"{self.source}:{self._lines.get(known, 1)}" + (f": {shown}" if shown else "")


def read_document(path: Path) -> Document:
    """Read one YAML mapping from `path`; raises NotFound or BadInput with file, line and column."""
    return parse_document(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The file's bytes; raises NotFound, or BadInput with the reason."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound("no such file", where=str(path), wanted="a file", next="Check the path") from None
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def parse_document(data: bytes, source: str) -> Document:
    """Parse YAML bytes; `source` is what errors name."""
    if len(data) > MAX_BYTES:
        raise BadInput(
            "file too large", where=source, got=f"{len(data)} bytes", wanted=f"at most {MAX_BYTES}"
        )
    try:
        node = yaml.compose(data.decode("utf-8-sig"), Loader=yaml.CSafeLoader)
    except UnicodeDecodeError as error:
        raise BadInput(
            "not UTF-8 text", where=source, got=f"byte {error.start}", next="Save the file as UTF-8"
        ) from None
    except RecursionError:
        raise BadInput("nested too deep", where=source, wanted=f"depth {MAX_DEPTH} at most") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise BadInput(
            "not valid YAML", where=at, got=getattr(error, "problem", str(error)), next="Mend that line"
        ) from None
    if not isinstance(node, yaml.MappingNode):
        raise BadInput(
            "not a mapping", where=source, wanted="`key: value` lines at the top", next="Mend the file"
        )
    reader = _Reader(source)
    return Document(source, reader.value(node, ()), reader.lines)


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[tuple[Any, ...], int] = {}
        self.left = MAX_NODES
        self.scalars = yaml.SafeLoader("")

    def value(self, node: yaml.Node, path: tuple[Any, ...]) -> Any:
        self.left -= 1
        at = f"{self.source}:{node.start_mark.line + 1}"
        if self.left < 0 or len(path) > MAX_DEPTH:
            raise BadInput(
                "nested too deep or too many values",
                where=at,
                wanted=f"depth {MAX_DEPTH}, {MAX_NODES} values at most",
            )
        self.lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            merged: dict[str, Any] = {}
            for key_node, item in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    merged |= self.merged(item, path, at)
                    continue
                if not isinstance(key_node, yaml.ScalarNode):
                    raise BadInput("a key that is no text", where=at, next="Mend that line")
                key = key_node.value
                if key in found:
                    line = key_node.start_mark.line + 1
                    raise BadInput(
                        "key given twice", where=f"{self.source}:{line}", got=key, next="Keep one of the two"
                    )
                found[key] = self.value(item, (*path, key))
            return merged | found
        try:
            return self.scalars.construct_object(node, deep=True)
        except (ValueError, yaml.YAMLError) as error:
            raise BadInput("not a value YAML knows", where=at, got=node.value) from error

    def merged(self, node: yaml.Node, path: tuple[Any, ...], at: str) -> dict[str, Any]:
        """What `<<: *anchor` (or a list of them, the first wins) brings in."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for one in reversed(nodes):
            value = self.value(one, path)
            if not isinstance(value, dict):
                raise BadInput("only mappings can be merged", where=at, got=value, next="Mend the `<<` line")
            found |= value
        return found
