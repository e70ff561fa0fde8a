"""A Delta table's log as this project reads it: which version took files in, and which put them out.

One pass over the log tells of every version at once; opening each of some thousand versions would take minutes.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from loopwright.data.lake import Lake, Layer
from loopwright.kernel.errors import Conflict

_COMMIT = re.compile(r"(\d{20})\.json")


@dataclass(frozen=True, slots=True)
class Log:
    """`at`: when each version was committed. `spans`: per file, the versions [from, until) that hold it.

    `until` is one past the newest version for a file that is still in use.
    """

    at: Mapping[int, datetime]
    spans: Mapping[str, Sequence[tuple[int, int]]]

    @property
    def newest(self) -> int:
        return max(self.at)

    def replaced_at(self, version: int) -> datetime | None:
        """When another version took this one's place; None for the newest."""
        return self.at.get(version + 1)

    def holds(self, file: str, versions: Sequence[int]) -> bool:
        """Whether any of `versions` (ascending) holds the file."""
        for start, until in self.spans.get(file, ()):
            place = bisect_left(versions, start)
            if place < len(versions) and versions[place] < until:
                return True
        return False


def read_log(lake: Lake, layer: Layer, model: str, table: str) -> Log:
    """Read a table's log; raises Conflict when it is not whole, so that nobody deletes by half of it."""
    from pyarrow import fs

    files, root = lake.storage.filesystem(), lake.storage.inner(lake.path(layer, model, table))
    listed = files.get_file_info(fs.FileSelector(f"{root}/_delta_log"))
    commits = sorted(
        (int(match[1]), one.path) for one in listed if (match := _COMMIT.fullmatch(one.base_name))
    )
    where = f"{layer}/{model}/{table}"
    if not commits or [version for version, _ in commits] != list(
        range(commits[0][0], commits[0][0] + len(commits))
    ):
        raise Conflict(
            "the log of the table has gaps", where=where, got=f"{len(commits)} commits",
            wanted="every commit", next="Bring `_delta_log` back from a backup of the lake; nothing was deleted",
        )  # fmt: skip
    first = commits[0][0]
    at: dict[int, datetime] = {}
    held: dict[str, int] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    if first:
        # Somebody cleaned the log up to a checkpoint; what the oldest version holds was taken in before it.
        root_uri = lake.path(layer, model, table)
        known = lake.open(layer, model, table, first).file_uris()
        held = {uri.removeprefix(root_uri).lstrip("/"): first for uri in known}
    for version, path in commits:
        with files.open_input_stream(path) as stream:
            moment = _apply(stream.read().splitlines(), version, held, spans, where)
        at[version] = moment
    end = commits[-1][0] + 1
    for name, start in held.items():
        spans.setdefault(name, []).append((start, end))
    return Log(at, spans)


def _apply(
    lines: Iterable[bytes],
    version: int,
    held: dict[str, int],
    spans: dict[str, list[tuple[int, int]]],
    where: str,
) -> datetime:
    moment = None
    actions: list[dict[str, Any]] = []
    for line in lines:
        try:
            actions.append(json.loads(line))
        except ValueError:
            raise Conflict(
                "a commit of the table's log is no JSON", where=where, got=f"version {version}",
                next="Bring `_delta_log` back from a backup of the lake; nothing was deleted",
            ) from None  # fmt: skip
    for action in actions:
        if "commitInfo" in action and "timestamp" in action["commitInfo"]:
            moment = datetime.fromtimestamp(action["commitInfo"]["timestamp"] / 1000, UTC)
        elif "remove" in action:
            name = unquote(action["remove"]["path"])
            if name in held:
                spans.setdefault(name, []).append((held.pop(name), version))
    for action in actions:
        if "add" in action:
            held.setdefault(unquote(action["add"]["path"]), version)
    if moment is None:
        raise Conflict(
            "a commit of the table's log has no time", where=where, got=f"version {version}",
            next="Nothing was deleted; the table was written by something else than Loopwright",
        )  # fmt: skip
    return moment
