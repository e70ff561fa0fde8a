"""Gives a new bundle its semantic version: reads the bundles it follows, and lets `registry.semver` decide."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import MANIFEST, Manifest, parse_manifest
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.digest import sha256_file
from loopwright.project.spec import Project
from loopwright.registry import semver, store
from loopwright.registry.authority import role_on
from loopwright.registry.records import Version


def recipe(project: Project) -> dict[str, Any]:
    """How a model is made, as sealed into its bundle: what a retrain on other data leaves as it is.

    {"label", "entry", "search", "files": {name: SHA-256}}: the files that training may read, tests left out.
    """
    spec = project.spec
    return {
        "label": spec.data.label.name,
        "entry": spec.train.entry,
        "search": spec.search.model_dump(mode="json") if spec.search else None,
        "files": {name: sha256_file(path) for name, path in sorted(set(_sources(project)))},
    }


def number_for(
    conn: Connection,
    depot: BundleDepot,
    manifest: Manifest,
    *,
    parent: int | None,
    asked: str | None,
    actor: Actor,
) -> semver.Proposal:
    """The semantic version of the bundle with `manifest`; `asked` is what a person wants instead.

    `parent` is the version in Production it was measured against. Raises BadInput, Conflict or Refused for a number
    that cannot be had; see `registry.semver`.
    """
    model = manifest.model
    taken = store.semvers(conn, model)
    changes = dict(_changes(depot, manifest, _followed(conn, model, parent)))
    proposal = semver.propose(taken, changes)
    if asked is None:
        return proposal
    is_admin = role_on(conn, actor, model=model) >= Role.ADMIN
    return semver.choose(asked, proposal, taken, actor=actor, admin=is_admin)


def _followed(conn: Connection, model: str, parent: int | None) -> list[Version]:
    """The version in Production, and the one with the highest number."""
    numbered = [v for v in store.list_versions(conn, model) if v.semver]
    highest = max(numbered, key=lambda v: semver.parse(v.semver or ""), default=None)
    return [v for v in numbered if v.version == parent or v is highest]


def _changes(
    depot: BundleDepot, new: Manifest, followed: list[Version]
) -> Iterator[tuple[str, semver.Change]]:
    for version in followed:
        if version.bundle is None or not depot.has(version.bundle):
            continue
        file = depot.path(version.bundle) / MANIFEST
        earlier = parse_manifest(file.read_bytes(), where=str(file))
        yield f"version {version.version} ({version.semver})", semver.compare(earlier, new)


def _sources(project: Project) -> Iterator[tuple[str, Path]]:
    root = project.dir.resolve()
    named = [project.spec.features, project.spec.train.file, project.spec.train.conf or ""]
    for path in [*root.rglob("*.py"), *(project.path(name) for name in named if name)]:
        inside = path.relative_to(root)
        is_aside = any(
            part in ("tests", "data") or part.startswith((".", "__")) for part in inside.parts[:-1]
        )
        if not is_aside and path.is_file():
            yield inside.as_posix(), path
