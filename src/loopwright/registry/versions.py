"""Registers sealed bundles as versions and answers which versions there are."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, did_you_mean
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as ledger
from loopwright.registry import store
from loopwright.registry.authority import require_on
from loopwright.registry.records import Version
from loopwright.registry.semver import Proposal, check_free, propose
from loopwright.registry.store import Overview

__all__ = [
    "Overview",
    "Version",
    "annotate",
    "current",
    "get_version",
    "list_models",
    "list_versions",
    "overviews",
    "register_version",
]

MAX_NOTES = 200
_OURS = frozenset(("reason", "trained_until", "semver_reason", "compression"))
"""Notes that a run writes about itself; documents show them as such."""
TAG_PREFIX = "loopwright."
"""Tags under this prefix on MLflow's rows are ours; no client may set or delete them."""


def register_version(
    conn: Connection,
    *,
    model: str,
    bundle: str,
    run_id: str | None,
    snapshot: str | None,
    author: Actor,
    metrics: Mapping[str, float],
    now: datetime,
    parent: int | None = None,
    card: str = "",
    annotations: Mapping[str, str] | None = None,
    proposal: Proposal | None = None,
) -> Version:
    """Register the sealed bundle with digest `bundle` under `model`, in stage None, here and in MLflow's registry.

    The bundle must lie in the depot already. Is idempotent: the same bundle under the same model is one version.
    `proposal` is its semantic version and why; without one, nobody compared bundles and it is the next minor one.
    Raises BadInput for a name MLflow cannot hold, Refused without the role developer, Conflict for a semantic version
    that is not higher than all before it.
    """
    require_on(conn, author, Role.DEVELOPER, f"register a version of {model}", model=model)
    check_name(model)
    if len(bundle) != 64 or set(bundle) - set("0123456789abcdef"):
        raise BadInput("not a bundle digest", where="registry", got=bundle, wanted="64 hex digits")
    standing = store.version_of_bundle(conn, model, bundle)
    if standing is not None:
        return standing
    if store.is_prompt(conn, model):
        raise Conflict(
            "a prompt has this name in MLflow", where=model, next="Give the model another name in loop.yaml."
        )
    number = store.next_version(conn, model)
    taken = store.semvers(conn, model)
    notes = dict(annotations or {})
    if proposal is None:
        proposal = propose(taken, {})
    else:
        check_free(proposal.version, taken)
        notes["semver_reason"] = proposal.why
    version = Version(
        model, number, bundle, run_id, snapshot, proposal.version, Stage.NONE, author.name, now, parent,
        dict(metrics), notes,
    )  # fmt: skip
    tags = {f"{TAG_PREFIX}bundle": bundle, f"{TAG_PREFIX}semver": version.semver or ""}
    tags |= {
        f"{TAG_PREFIX}{name}": value for name, value in (("run", run_id), ("snapshot", snapshot)) if value
    }
    store.put_ml_model(conn, model, now)
    store.insert_version(conn, version)
    store.insert_ml_version(conn, version, description=card, tags=tags)
    ledger.append(
        conn, at=now, actor=author.name, action="version.registered", subject=version.subject,
        payload={"bundle": bundle, "run_id": run_id, "snapshot": snapshot, "semver": version.semver, "parent": parent},
    )  # fmt: skip
    return version


def get_version(conn: Connection, *, model: str, version: int) -> Version:
    """Return the version; raises NotFound naming what there is."""
    return store.get_version(conn, model, version)


def list_versions(
    conn: Connection,
    *,
    model: str,
    stage: Stage | None = None,
    before: int | None = None,
    limit: int | None = None,
) -> list[Version]:
    """Versions of `model`, oldest first: those in `stage`, numbered under `before`, the newest `limit` of them."""
    return store.list_versions(conn, model, stage=stage, before=before, limit=limit)


def list_models(conn: Connection) -> list[str]:
    """The names of all models that have a version."""
    return store.list_models(conn)


def overviews(conn: Connection, *, model: str | None = None) -> dict[str, Overview]:
    """Every model that has a version (or only `model`), with the numbers of those that matter now, by name."""
    return store.overviews(conn, model)


def check_model(conn: Connection, model: str) -> None:
    """Raise NotFound, with the nearest known name, unless `model` has a version."""
    if not store.list_versions(conn, model, limit=1):
        known = list_models(conn)
        raise NotFound(f"no such model: {model}", next=did_you_mean(model, known) or "loopwright models list")


def current(conn: Connection, *, model: str, stage: Stage = Stage.PRODUCTION) -> Version | None:
    """The version that governance wants in `stage`: of several, the one promoted last.

    While a rollout runs its baseline is in Production too; this names the new one.
    """
    return store.current_version(conn, model, stage)


def annotate(
    conn: Connection, *, model: str, version: int, key: str, value: str, actor: Actor, now: datetime
) -> Version:
    """Note something on a version ("passed A/B"); it shows as a tag in MLflow. An empty value removes it."""
    require_on(conn, actor, Role.DEVELOPER, f"annotate {model}/{version}", model=model)
    if not key or len(key) > 100 or len(value) > 4000:
        raise BadInput("an annotation that is empty or too long", where=f"{model}/{version}", got=key)
    if key in _OURS:
        raise Refused("this note is the run's own", where=f"{model}/{version}", got=key, wanted="another key")
    found = store.get_version(conn, model, version)
    if key not in found.annotations and len(found.annotations) >= MAX_NOTES:
        raise BadInput(
            "too many notes on one version", where=f"{model}/{version}", wanted=f"at most {MAX_NOTES}"
        )
    notes = {name: note for name, note in {**found.annotations, key: value}.items() if note}
    store.set_annotations(conn, model, version, notes)
    store.put_ml_tag(conn, model, version, f"{TAG_PREFIX}note.{key}", value)
    ledger.append(
        conn, at=now, actor=actor.name, action="version.annotated", subject=found.subject,
        payload={"key": key, "value": value},
    )  # fmt: skip
    return replace(found, annotations=notes)


def check_name(model: str) -> None:
    """Raise BadInput for a name that MLflow's registry cannot hold, or that shows as another."""
    if (
        not model.strip()
        or len(model) > 256
        or any(sign in model for sign in "/:")
        or not model.isprintable()
    ):
        raise BadInput(
            "not a model name",
            where="registry",
            got=model,
            wanted="1 to 256 signs that show, without / and :",
        )
