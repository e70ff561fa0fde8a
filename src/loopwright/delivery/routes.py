"""Writes the route table from what is recorded: who is stable, and where the running rollout stands."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection

from loopwright.bundle.approval import sign_record
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.routes import (
    Arm,
    ModelRoute,
    RouteTable,
    ServingPolicy,
    VersionRoute,
    sign_routes,
)
from loopwright.delivery.plan import Plan
from loopwright.delivery.rollout import Canary, Paused, Shadow, Smoke, State
from loopwright.delivery.serving import policy_of
from loopwright.delivery.store import (
    Experiment,
    Rollout,
    active_experiment,
    active_rollout,
    add_routes,
    completions,
    last_routes,
    models_with_rollouts,
    standing_versions,
)
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, LoopwrightError
from loopwright.monitoring.store import load_spec
from loopwright.registry.approval import approval_record
from loopwright.registry.promotion import returnable
from loopwright.registry.trust.store import approved


def arms(plan: Plan, state: State, *, version: int, baseline: int) -> tuple[Arm, ...]:
    """The arms of a rollout that has not ended; `stable` and `canary` together always answer everything.

    A canary of weight 0 (blue-green before its smoke test) is there so that servers load it. A shadow's
    weight is the share of requests copied to it and takes nothing from stable.
    """
    match state:
        case Paused():
            return arms(plan, state.inner, version=version, baseline=baseline)
        case Shadow():
            return (Arm("stable", baseline, 1.0), Arm("shadow", version, plan.shadow_share))
        case Smoke():
            return (Arm("stable", baseline, 1.0), Arm("canary", version, 0.0))
        case Canary(weight=weight):
            return (Arm("stable", baseline, 1.0 - weight), Arm("canary", version, weight))
        case _:
            return (Arm("stable", baseline, 1.0),)


def previous_versions(history: Sequence[tuple[int, bool]]) -> list[int]:
    """Versions that traffic can go back to, nearest first, from (version, was a rollback) in order of
    completion.

    A rollback to v undoes everything after v, so rolling back twice goes further back, never to what was
    left.
    """
    standing: list[int] = []
    for version, rollback in history:
        if rollback and version in standing:
            del standing[standing.index(version) + 1 :]
            continue
        if version in standing:
            standing.remove(version)
        standing.append(version)
    return standing[-2::-1]


def stable_version(conn: Connection, model: str) -> int | None:
    """The version that answers by default: the last one brought to all traffic. None before the first."""
    return standing_versions(conn, model).get(model)


def rollback_targets(conn: Connection, model: str) -> list[int]:
    """Versions `rollback_now` can go to, nearest first: those that have answered before and are approved still."""
    done = [(rollout.version, rollback) for rollout, rollback in completions(conn, model)]
    approved = {promotion.version for promotion in returnable(conn, model)}
    return [version for version in previous_versions(done) if version in approved]


def route_table(conn: Connection, key: SigningKey, now: datetime) -> tuple[int, bytes]:
    """Return the current signed route table and its serial; records a new one exactly when its content
    changed.

    Needs a write transaction. Every version in it carries its approval, signed by `key`; a version without
    one raises Refused (from the registry) and no table is written.
    """
    models = {}
    for model in models_with_rollouts(conn):
        route = _model_route(conn, model, key)
        if route is not None:
            models[model] = route
    trusted = approved(conn)
    content = digest_json([key.public.key_id, msgspec.to_builtins(models), trusted])
    standing = last_routes(conn)
    if standing is not None and standing[2] == content:
        return standing[0], standing[1].encode()
    serial = standing[0] + 1 if standing else 1
    signed = sign_routes(RouteTable(serial, iso(now), models, tuple(trusted)), key)
    add_routes(conn, serial, signed.decode(), content, msgspec.json.decode(signed)["signature"], now)
    return serial, signed


def current_routes(conn: Connection) -> tuple[int, bytes] | None:
    """The newest route table as recorded; reads only. None before the first."""
    standing = last_routes(conn)
    return (standing[0], standing[1].encode()) if standing else None


def _model_route(conn: Connection, model: str, key: SigningKey) -> ModelRoute | None:
    done = completions(conn, model)
    if not done:
        return None
    standing = done[-1][0]
    running: Rollout | None = active_rollout(conn, model)
    split: tuple[Arm, ...] = (Arm("stable", standing.version, 1.0),)
    if running is not None and running.baseline is not None:
        split = arms(running.plan, running.state, version=running.version, baseline=running.baseline)
    # One salt for a whole rollout keeps a user on the canary as it grows; another for the next spreads the
    # risk.
    salt = (running or standing).id
    versions = {str(arm.version): _version(conn, model, arm.version, key) for arm in split}
    tried = active_experiment(conn, model) if running is None else None
    if tried is not None:
        salt = tried.salt
        split, versions = _experiment(conn, tried, split[0], versions, key)
    return ModelRoute(model, salt, split, versions, _policy(conn, model))


def _policy(conn: Connection, model: str) -> ServingPolicy:
    """How the model is answered for. A spec that cannot be read (any more) leaves it as it stands: traffic of this and
    of all other models must be movable all the same."""
    try:
        return policy_of(load_spec(conn, model))
    except BadInput:
        standing = last_routes(conn)
        if standing is None:
            return ServingPolicy()
        table = msgspec.json.decode(msgspec.json.decode(standing[1])["table"], type=RouteTable)
        return table.models[model].serving if model in table.models else ServingPolicy()


def _experiment(
    conn: Connection,
    tried: Experiment,
    stable: Arm,
    versions: dict[str, VersionRoute],
    key: SigningKey,
) -> tuple[tuple[Arm, ...], dict[str, VersionRoute]]:
    """The arms of an experiment. A variant that has lost its approval gives its units to stable; others keep theirs."""
    split: list[Arm] = []
    versions = dict(versions)
    for arm in tried.variants:
        try:
            record = approval_record(conn, model=tried.model, version=arm.version, back=True)
        except LoopwrightError:
            # It stays in its place, so that no unit of another variant moves.
            split.append(Arm(arm.name, stable.version, arm.weight))
            continue
        versions[str(arm.version)] = VersionRoute(record.bundle, sign_record(record, key))
        split.append(arm)
    rest = max(0.0, 1.0 - sum(arm.weight for arm in split))
    return (Arm("stable", stable.version, rest), *split), versions


def _version(conn: Connection, model: str, version: int, key: SigningKey) -> VersionRoute:
    record = approval_record(conn, model=model, version=version)
    return VersionRoute(record.bundle, sign_record(record, key))
