"""A table's contract over time: every one it was judged by is kept, and a break with landed rows needs a decision."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from loopwright.data import store
from loopwright.data.compatibility import classify
from loopwright.data.contract import Contract
from loopwright.data.lake import Lake
from loopwright.kernel.errors import Refused
from loopwright.ledger import store as ledger_store


@dataclass(frozen=True, slots=True)
class Evolution:
    """`change`: against the contract in force: first, same, compatible, breaking.

    `broken`: what rows that have landed may not keep.
    """

    change: str
    differences: tuple[Mapping[str, Any], ...] = ()
    broken: tuple[str, ...] = ()


def classified(lake: Lake, model: str, table: str, contract: Contract) -> Evolution:
    """How `contract` differs from the one that the newest landing of the table was judged by."""
    with lake.ledger.read() as conn:
        force = store.contract_in_force(conn, f"{model}/{table}")
    if force is None:
        return Evolution("first")
    if force.digest == contract.digest:
        return Evolution("same")
    old = Contract.from_json(force.document, f"contract {force.number} of {model}/{table}", contract.name)
    change = classify(old, contract)
    return Evolution(
        change.kind,
        tuple(each.to_json() for each in change.differences),
        tuple(f"{each.where}: {each.what}" for each in change.landed),
    )


def require_evolution(
    lake: Lake, model: str, table: str, contract: Contract, *, batch: str | None
) -> Evolution:
    """`classified`; raises Refused when rows of other batches that stay in the table may not keep the contract.

    A batch that has landed and comes again is judged anew, alone: that is how one goes back to a file.
    """
    found = classified(lake, model, table, contract)
    if not found.broken or contract.loading == "full":
        return found
    with lake.ledger.read() as conn:
        landed = [each for each, _ in store.landed_batches(conn, f"{model}/{table}")]
    if not landed or batch in landed:
        return found
    raise Refused(
        "the contract breaks with rows that have landed",
        where=f"{model}/{table}",
        got="; ".join(found.broken),
        wanted="a change that the rows of before keep",
        next=(
            f"Judge them anew under it: loopwright data land PROJECT --rebuild {table}; "
            "or give the table a new name, or load it whole (`load: full` in the contract)"
        ),
    )


def record_contract(
    conn: Connection, name: str, contract: Contract, evolution: Evolution, actor: str, at: datetime
) -> None:
    """Write down by which contract the table is judged from now on, and how it is called now."""
    before = store.register_contract(
        conn, table=name, digest=contract.digest, version=contract.version, document=contract.document,
        change=evolution.change, differences=evolution.differences, actor=actor, at=at,
    )  # fmt: skip
    if before is not None:
        told = {"contract": contract.digest, "before": before, "version": contract.version}
        ledger_store.append(
            conn, at=at, actor=actor, action="data.contract_version", subject=name, payload=told
        )
