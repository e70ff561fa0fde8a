"""Which version answers a job, and the version itself: loaded as a server loads it, once per worker."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from loopwright.bundle.approval import SignedRecord
from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.folder import MAX_MANIFEST
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.manifest import MANIFEST, parse_manifest
from loopwright.bundle.routes import Arm, ModelRoute, RouteTable, VersionRoute
from loopwright.bundle.signature import Schema
from loopwright.kernel.errors import BadInput, NotFound, Refused, Unavailable
from loopwright.registry.promotion import returnable
from loopwright.serving.fold import Profiler
from loopwright.serving.loading import load_version
from loopwright.serving.logrule import LogRule
from loopwright.serving.models import Served
from loopwright.stats.profile import Reference

LOADED = 4
"""Versions kept in memory between jobs."""


def pick(table: RouteTable, model: str, version: int | None) -> tuple[ModelRoute, int]:
    """The route and the version that answers: the asked one, else the stable one. Raises NotFound naming what is."""
    route = table.models.get(model)
    if route is None:
        served = ", ".join(sorted(table.models)) or "no model yet"
        raise NotFound(
            f"no version of `{model}` is served", wanted=served,
            next=f"Promote one: loopwright promote {model} VERSION --to production",
        )  # fmt: skip
    if version is None:
        return route, next(arm.version for arm in route.arms if arm.name == "stable")
    if str(version) not in route.versions:
        raise NotFound(
            f"version {version} of {model} is not served", wanted=", ".join(sorted(route.versions, key=int)),
            next="Leave the version out for the stable one.",
        )  # fmt: skip
    return route, version


def schema_of(depot: BundleDepot, route: ModelRoute, version: int) -> Schema:
    """What the version takes and gives, from its manifest alone: nothing of it is loaded."""
    digest = route.versions[str(version)].bundle
    if not depot.has(digest):
        raise Unavailable(
            "the version's bundle is not here", where=f"{route.model}/{version}", got=digest[:12]
        )
    file = depot.file(digest, MANIFEST)
    return parse_manifest(file.read_bytes()[:MAX_MANIFEST], where=str(file)).schema


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers a job. `rule`: what of its answers the prediction log may hold; `profiler`: counts them."""

    served: Served
    route: ModelRoute
    version: int
    rule: LogRule
    profiler: Profiler

    def pinned(self, digest: str | None) -> dict[str, Any]:
        """What the job keeps, so that all its rows are answered by one version; digest: of its input."""
        entry = self.route.versions[str(self.version)]
        return {"version": self.version, "route": msgspec.to_builtins(entry), "input": digest}


class Versions:
    """Loads and keeps versions. routes, keys: the newest signed table (checked) and whom to trust, asked anew."""

    def __init__(
        self,
        depot: BundleDepot,
        routes: Callable[[], RouteTable],
        keys: Callable[[], Sequence[PublicKey]],
    ) -> None:
        self._depot, self._routes, self._keys = depot, routes, keys
        self._loaded: OrderedDict[tuple[str, int, str], Served] = OrderedDict()

    def answering(
        self, conn: Connection, model: str, asked: int | None, pinned: Mapping[str, Any] | None
    ) -> Answering:
        """Who answers a job that wants `asked`, or goes on with what it `pinned`.

        Raises NotFound for what is not served, Refused for what may not be served (any more), Tampered for bytes that
        changed, Unavailable for what is not here.
        """
        table = self._routes()
        if pinned is None:
            route, version = pick(table, model, asked)
        else:
            route, version = self._again(conn, table, model, pinned)
        digest = route.versions[str(version)].bundle
        key = (model, version, digest)
        served = self._loaded.get(key)
        if (
            served is not None
            and served.loaded.pickled is not None
            and served.loaded.pickled not in table.trusted
        ):
            del self._loaded[key]
            served = None
        if served is None:
            served = load_version(route, version, self._keys(), self._depot, table.trusted)
            self._loaded[key] = served
        self._loaded.move_to_end(key)
        while len(self._loaded) > LOADED:
            self._loaded.popitem(last=False)
        rule = LogRule.of(route.serving.log, served.schema)
        return Answering(served, route, version, rule, _profiler(served))

    def check(self, conn: Connection, answering: Answering) -> None:
        """Raise Refused when the version may answer no further row: its approval was reverted or revoked."""
        entry = answering.route.versions[str(answering.version)]
        self._standing(conn, self._routes(), answering.route.model, answering.version, entry)

    def _again(
        self, conn: Connection, table: RouteTable, model: str, pinned: Mapping[str, Any]
    ) -> tuple[ModelRoute, int]:
        version = int(pinned["version"])
        entry = VersionRoute(
            str(pinned["route"]["bundle"]), msgspec.convert(pinned["route"]["approval"], SignedRecord)
        )
        found = self._standing(conn, table, model, version, entry)
        if found is not None:
            return found, version
        served = table.models.get(model)
        arms, versions = (Arm("stable", version, 1.0),), {str(version): entry}
        if served is None:
            return ModelRoute(model, "", arms, versions), version
        return ModelRoute(model, served.salt, arms, versions, served.serving), version

    @staticmethod
    def _standing(
        conn: Connection, table: RouteTable, model: str, version: int, entry: VersionRoute
    ) -> ModelRoute | None:
        """The model's route while it still names these bytes; None when they left it and are approved all the same."""
        route = table.models.get(model)
        named = route.versions.get(str(version)) if route is not None else None
        if named is not None and named.bundle == entry.bundle:
            return route
        if any(each.version == version and each.bundle == entry.bundle for each in returnable(conn, model)):
            return None  # a newer version took its place meanwhile, which is no reason to stop
        raise Refused(
            "the version that answered the job's first rows may answer no more", where=f"{model}/{version}",
            wanted="a version that is served, or may come back",
            next="Begin anew with the version that is stable now: loopwright jobs retry JOB --anew",
        )  # fmt: skip


def _profiler(served: Served) -> Profiler:
    """Counts on the bundle's reference; without a usable one answers are counted and not profiled."""
    document = served.loaded.reference
    try:
        return Profiler(served.schema, Reference.from_json(document) if document else None)
    except BadInput:
        return Profiler(served.schema, None)
