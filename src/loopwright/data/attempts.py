"""Landings of an incremental source, that may read more rows when they are tried again after a kill.

The batch is named in the ledger before it writes (`begun`). When another batch follows that was read from the same
cursor, what the first one wrote is taken back: it never landed, and the second holds its rows too.
"""

from datetime import datetime

from loopwright.data import store
from loopwright.data.contract import Contract
from loopwright.data.lake import Lake, Layer
from loopwright.data.staged import Staged
from loopwright.kernel.errors import BadInput


def begin(lake: Lake, model: str, table: str, contract: Contract, staged: Staged, now: datetime) -> None:
    """Name the landing of `staged` before it writes, and take back one that was begun and killed.

    Does nothing for a source without a cursor. Is idempotent. Raises BadInput where the contract replaces the table by
    each delivery: an increment is not the whole.
    """
    if staged.cursor is None:
        return
    if contract.loading == "full":
        raise BadInput(
            "a cursor reads what is new, and the contract replaces the table by it", where=staged.uri,
            got="load: full with `cursor`", wanted="load: append or upsert",
            next="Remove `cursor` in loop.yaml, or mend `load` in the contract",
        )  # fmt: skip
    name = f"{model}/{table}"
    with lake.ledger.read() as conn:
        state = dict(store.find_cursor(conn, name, staged.uri) or {})
        begun = state.get("begun")
        unknown = begun is not None and store.find_batch(conn, name, begun) is None
    if begun == staged.batch_id:
        return
    if unknown:
        _take_back(lake, model, table, contract, str(begun))
        # The names of what was taken back are used up: equal rows get another name from now on.
        state["undone"] = int(state.get("undone", 0)) + 1
    with lake.ledger.write() as conn:
        state["begun"] = staged.batch_id
        store.save_cursor(conn, table=name, uri=staged.uri, value=state, batch_id=staged.batch_id, at=now)


def withdraw(lake: Lake, model: str, table: str, staged: Staged, now: datetime) -> None:
    """Let a batch that its contract kept out be: bronze keeps it, as it keeps every refused batch."""
    if staged.cursor is None:
        return
    name = f"{model}/{table}"
    with lake.ledger.write() as conn:
        state = dict(store.find_cursor(conn, name, staged.uri) or {})
        state.pop("begun", None)
        store.save_cursor(conn, table=name, uri=staged.uri, value=state, batch_id=staged.batch_id, at=now)


def _take_back(lake: Lake, model: str, table: str, contract: Contract, batch: str) -> None:
    # An upsert finds its rows by their keys: what was merged is merged again.
    layers: tuple[Layer, ...] = (
        ("bronze", "silver", "quarantine") if contract.loading == "append" else ("bronze", "quarantine")
    )
    for layer in layers:
        if lake.exists(layer, model, table):
            none = lake.files(layer, model, table).schema.empty_table()
            lake.write(layer, model, table, none, once=f"{batch}:undone", replace=batch)
