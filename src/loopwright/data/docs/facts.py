"""Gathers what a page about a table tells: from the ledger, and from one look at its silver rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from loopwright.data import store as data_store
from loopwright.data.bounded import bounded
from loopwright.data.contract import Contract
from loopwright.data.docs import store
from loopwright.data.lake import Lake
from loopwright.data.versions import store as versions_store
from loopwright.data.versions.describe import Facts, Spread, count, describe, even_slots
from loopwright.kernel.errors import BadInput, NotFound


@dataclass(frozen=True, slots=True)
class Summary:
    """A table in one line of the overview. `state` is that of the last batch."""

    model: str
    table: str
    state: str
    rows: int
    last: str
    batches: int
    bad_share: float
    open_incidents: int
    owner: str
    bad_shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TableFacts:
    """Everything a table's page tells. `contract` is None when none was written down or it can no longer be read."""

    summary: Summary
    version: int | None
    now: datetime
    contract: Contract | None
    contract_number: int | None
    history: Sequence[Mapping[str, Any]]
    batches: Sequence[Mapping[str, Any]]
    landings: Sequence[Mapping[str, Any]]
    incidents: Sequence[Mapping[str, Any]]
    pins: Sequence[versions_store.Pin]
    columns: Mapping[str, Facts]
    spreads: Mapping[str, Spread]


def summaries(lake: Lake, model: str | None = None) -> list[Summary]:
    """Every table that a batch has landed in; reads no rows."""
    with lake.ledger.read() as conn:
        return [
            _summary(
                name, table, store.newest_batches(conn, f"{name}/{table}"),
                store.count_batches(conn, f"{name}/{table}"), store.table_incidents(conn, f"{name}/{table}"),
                _contract(data_store.contract_in_force(conn, f"{name}/{table}"), table),
            )
            for name, table in versions_store.tables_of(conn, model)
        ]  # fmt: skip


def gather(lake: Lake, model: str, table: str, *, now: datetime) -> TableFacts:
    """The facts of one table, its silver rows looked at in bounded memory; raises NotFound."""
    name = f"{model}/{table}"
    with lake.ledger.read() as conn:
        batches = store.newest_batches(conn, name)
        if not batches:
            raise NotFound("nothing has landed in this table", where=name, next="See: loopwright data tables")
        total = store.count_batches(conn, name)
        force = data_store.contract_in_force(conn, name)
        history = [
            {"number": each.number, "version": each.version, "change": each.change, "at": each.at,
             "differences": list(each.differences), "by": each.actor}
            for each in data_store.contract_history(conn, name)
        ]  # fmt: skip
        landings, found = store.newest_landings(conn, name), store.table_incidents(conn, name)
        pins = [pin for pin in versions_store.pins(conn, model) if pin.table == table]
    contract = _contract(force, table)
    version = lake.version("silver", model, table)
    columns: dict[str, Facts] = {}
    spreads: dict[str, Spread] = {}
    if version is not None:
        files = lake.files("silver", model, table, version=version)
        names = [name for name in files.schema.names if not name.startswith("_")]
        with lake.workspace() as folder, bounded(spill=folder) as engine:
            files.view(engine, "rows")
            columns = describe(engine, "rows", files.schema, names)
            slots = {name: even_slots(one) for name, one in columns.items()}
            spreads = count(engine, "rows", files.schema, slots)
    summary = _summary(model, table, batches, total, found, contract)
    return TableFacts(
        summary, version, now, contract, force.number if force else None, history, batches, landings, found,
        pins, columns, spreads,
    )  # fmt: skip


def _summary(
    model: str,
    table: str,
    batches: Sequence[Mapping[str, Any]],
    total: int,
    incidents: Sequence[Mapping[str, Any]],
    contract: Contract | None,
) -> Summary:
    last = batches[-1]
    shares = [one["bad"] / one["rows"] if one["rows"] else 0.0 for one in batches]
    return Summary(
        model, table, str(last["report"].get("state", "")), int(last["good"]), last["at"], total, shares[-1],
        sum(1 for one in incidents if one["state"] != "closed"), contract.owner if contract else "",
        tuple(shares[-60:]),
    )  # fmt: skip


def _contract(force: data_store.Registered | None, table: str) -> Contract | None:
    if force is None:
        return None
    for name in (table, None):
        try:
            return Contract.from_json(force.document, f"contract {force.number} of {table}", name)
        except (BadInput, NotFound):
            continue  # a file of one table under another name, or words that are no longer read
    return None
