"""What the shipping side knows of the versions that answered: their inputs, their references, their log policies."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from loopwright.bundle.folder import MAX_MANIFEST
from loopwright.bundle.manifest import MANIFEST, parse_manifest
from loopwright.bundle.routes import RouteTable
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, LoopwrightError
from loopwright.kernel.files import write_atomic
from loopwright.serving.cache import Cache
from loopwright.serving.complaints import in_words
from loopwright.serving.fold import Profiler
from loopwright.serving.logrule import LogRules
from loopwright.stats.profile import Reference


class Profiles:
    """Profilers by model and version, also for versions that left the routes while their events still wait."""

    def __init__(self, cache: Cache, say: Callable[[str], None]) -> None:
        self._cache = cache
        self._say = say
        self._path = cache.folder / "versions.json"
        self._digests: dict[str, str] = {}
        self._loaded: dict[str, Profiler] = {}
        self._inputs: dict[str, tuple[str, ...]] = {}
        self._told: set[str] = set()
        self.rules = LogRules(cache.folder / "log-rules.json")
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            self._digests = msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])

    def remember(self, table: RouteTable) -> None:
        """Note which bundle each version of the table is, and what of its answers is to be kept."""
        self.rules.follow(table)
        known = {
            f"{name}:{version}": entry.bundle
            for name, route in table.models.items()
            for version, entry in route.versions.items()
        }
        if not known.items() <= self._digests.items():
            grown = {**self._digests, **known}
            write_atomic(self._path, canonical_json(grown))
            self._digests = grown

    def profiler(self, model: str, version: int) -> Profiler | None:
        """Return the version's profiler, or None when its bundle is not here."""
        digest = self._digest(model, version)
        return None if digest is None else self._loaded[digest]

    def inputs(self, model: str, version: int) -> tuple[str, ...] | None:
        """Return the names of the version's inputs in logged order, or None when its bundle is not here."""
        digest = self._digest(model, version)
        return None if digest is None else self._inputs[digest]

    def _digest(self, model: str, version: int) -> str | None:
        """The version's bundle, loaded; None when it is not here."""
        digest = self._digests.get(f"{model}:{version}")
        if digest is None:
            return None
        if digest not in self._loaded:
            if not self._cache.depot.has(digest):
                return None
            try:
                self._load(digest)
            except (OSError, LoopwrightError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                # Pruned just now, or damaged: its rows are counted and sent all the same, without what it would tell.
                if digest not in self._told:
                    self._told.add(digest)
                    self._say(
                        f"bundle {digest[:12]} cannot be read, so it is not profiled: {in_words(error)}"
                    )
                return None
        return digest

    def _load(self, digest: str) -> None:
        path = self._cache.depot.path(digest)
        raw = (path / MANIFEST).read_bytes()[:MAX_MANIFEST]
        schema = parse_manifest(raw, where=str(path)).schema
        document: Mapping[str, Any] = msgspec.json.decode((path / "reference.json").read_bytes())
        try:
            reference = Reference.from_json(document) if document else None
        except BadInput as error:
            self._say(f"bundle {digest[:12]} is not profiled: {error}")
            reference = None
        # In this order: other threads ask for the inputs of what is loaded.
        self._inputs[digest] = tuple(field.name for field in schema.inputs)
        self._loaded[digest] = Profiler(schema, reference)
