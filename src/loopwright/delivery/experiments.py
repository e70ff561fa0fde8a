"""Splits a model's traffic between approved versions under names of their own, and ends the split; see `conduct`.

Units are split by the experiment's salt, so a unit stays with its variant until the end; stable takes the rest. While
an experiment runs no rollout begins, and none may run when it begins. Every function needs a write transaction.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.routes import Arm
from loopwright.delivery.conduct import refuse_while_rolling
from loopwright.delivery.routes import route_table, stable_version
from loopwright.delivery.store import (
    Experiment,
    active_experiment,
    add_experiment,
    end_experiment,
)
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, NotFound
from loopwright.kernel.ids import new_id
from loopwright.ledger.engine import become_writer
from loopwright.ledger.store import append
from loopwright.registry.approval import approval_record
from loopwright.registry.authority import require_on

MOST_VARIANTS = 8
_TAKEN = ("stable", "canary", "shadow")
_SPELLED = re.compile(r"([^=\s]+)=(\d{1,9}):(\d+(?:\.\d+)?)%")


def read_variants(spelled: Iterable[str]) -> tuple[Arm, ...]:
    """Variants as people write them: "b=7:30%" is version 7 under the name b for 30 % of units. Raises BadInput."""
    arms = []
    for text in spelled:
        found = _SPELLED.fullmatch(text.strip())
        if found is None:
            raise BadInput(
                "not a variant", where="--variant", got=text, wanted="NAME=VERSION:SHARE%, like b=7:30%"
            )
        name, version, share = found.groups()
        if not 0 < float(share) <= 100:
            raise BadInput(
                "not a share", where=f"variant {name}", got=f"{share}%", wanted="more than 0%, at most 100%"
            )
        arms.append(Arm(name, int(version), float(share) / 100))
    return check_variants(arms)


def check_variants(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Return the variants when they can stand beside stable. Raises BadInput."""
    names = [arm.name for arm in arms]
    if not 1 <= len(arms) <= MOST_VARIANTS:
        raise BadInput("so many variants", where="variants", got=len(arms), wanted=f"1 to {MOST_VARIANTS}")
    if len(set(names)) != len(names):
        raise BadInput("a variant named twice", where="variants", got=", ".join(names))
    if taken := [name for name in names if name in _TAKEN]:
        raise BadInput(
            "an arm of every route is called so", where="variants", got=taken[0], wanted="another name, like b",
            next="stable takes what the variants leave." if taken[0] == "stable" else "",
        )  # fmt: skip
    total = sum(arm.weight for arm in arms)
    if total > 1 + 1e-9 or any(arm.weight <= 0 for arm in arms):
        raise BadInput(
            "shares that do not fit", where="variants", got=f"{100 * total:.6g}% in all",
            wanted="each above 0%, at most 100% in all",
        )  # fmt: skip
    return tuple(arms)


def start_experiment(
    conn: Connection,
    *,
    model: str,
    variants: Sequence[Arm],
    key: SigningKey,
    actor: Actor,
    now: datetime,
    event_time: datetime,
    salt: str = "",
    why: str = "",
) -> Experiment:
    """Split traffic from now on; the salt of an earlier experiment splits units as that one did.

    Raises Refused for a version that is not approved for Production, Conflict while a rollout or another experiment
    runs, NotFound for a model without a version in traffic.
    """
    require_on(conn, actor, Role.APPROVER, f"start an experiment on {model}", model=model)
    become_writer(conn)
    refuse_while_rolling(conn, model)
    stable = stable_version(conn, model)
    if stable is None:
        raise NotFound(
            "nothing answers yet, so there is nothing to compare with", where=model,
            next=f"Promote a version first: loopwright promote {model} VERSION",
        )  # fmt: skip
    arms = check_variants(variants)
    for arm in arms:
        approval_record(conn, model=model, version=arm.version, back=True)
    made = new_id("exp")
    experiment = Experiment(
        made, model, stable, arms, salt or made, "running", now, event_time, None, None, actor.name, why, ""
    )
    add_experiment(conn, experiment)
    append(
        conn, at=now, actor=actor.name, action="experiment.started", subject=model,
        payload={
            "experiment": made, "stable": stable, "salt": experiment.salt, "why": why,
            "variants": [{"name": arm.name, "version": arm.version, "weight": arm.weight} for arm in arms],
        },
    )  # fmt: skip
    route_table(conn, key, now)
    return experiment


def stop_experiment(
    conn: Connection,
    model: str,
    *,
    key: SigningKey,
    actor: Actor,
    now: datetime,
    event_time: datetime,
    why: str,
) -> Experiment:
    """Give all traffic back to stable. Raises NotFound when no experiment runs."""
    require_on(conn, actor, Role.APPROVER, f"stop the experiment on {model}", model=model)
    become_writer(conn)
    running = active_experiment(conn, model)
    if running is None:
        raise NotFound(
            f"no experiment on {model} is running",
            where=model,
            next=f"See: loopwright experiment show {model}",
        )
    ended = end_experiment(conn, running, why=why, now=now, event_time=event_time, actor=actor)
    route_table(conn, key, now)
    return ended
