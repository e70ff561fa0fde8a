"""Data contracts: what tables were judged by, what changed between two, linting, expectation suites."""

import json
from typing import Any

from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.data import store
from loopwright.data.compatibility import classify
from loopwright.data.contract import Contract
from loopwright.data.described import described
from loopwright.data.expectations.exporting import export_suite
from loopwright.data.expectations.importing import import_suite
from loopwright.data.expectations.suite import read_suite
from loopwright.data.inferred import to_yaml
from loopwright.data.lint.findings import lint_text
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.ledger.engine import Ledger


@operation("contracts.list", "GET", "/contracts")
def list_contracts(ctx: Context, model: str | None = None) -> list[dict[str, Any]]:
    """List the contracts that tables were judged by, the newest of each table last."""
    found = []
    for each, table in _tables(ctx.ledger, model):
        with ctx.ledger.read() as conn:
            history = store.contract_history(conn, f"{each}/{table}")
        found += [_line(each, table, one) for one in history]
    return found


@operation("contracts.show", "GET", "/contracts/{model}/{table}")
def show(ctx: Context, model: str, table: str, number: int | None = None) -> dict[str, Any]:
    """Show a contract that the table was judged by (the newest, or by its number): promises, people, changes."""
    one = _registered(ctx.ledger, model, table, number)
    return {**described(_contract(one, model, table)), **_line(model, table, one)}


@operation("contracts.diff", "POST", "/contracts/{model}/{table}/diff")
def diff(
    ctx: Context,
    model: str,
    table: str,
    old: int | None = None,
    new: int | None = None,
    text: str | None = None,
) -> dict[str, Any]:
    """Compare two contracts of a table by their numbers, or the newest (or `old`) with the contract in `text`.

    Without numbers: the newest with the one before it.
    """
    if text is not None:
        if new is not None:
            raise BadInput("both `new` and `text` are given", where="contracts.diff", wanted="one of them")
        before = _registered(ctx.ledger, model, table, old)
        after = _of_table(Contract.parse_all(text, "the new contract"), table)
    else:
        newest = _registered(ctx.ledger, model, table, new)
        before = _registered(ctx.ledger, model, table, old if old is not None else max(1, newest.number - 1))
        after = _contract(newest, model, table)
    change = classify(_contract(before, model, table), after)
    return {"model": model, "table": table, "old": before.version, "new": after.version, **change.to_json()}


@operation("contracts.lint", "POST", "/contracts/lint")
def lint(ctx: Context, text: str, source: str = "contract") -> dict[str, Any]:
    """Lint a contract's YAML: what keeps it from being read, and advice on what it says."""
    findings = [finding.to_json() for finding in lint_text(text, source)]
    return {"ok": not any(one["level"] == "error" for one in findings), "findings": findings}


@operation("contracts.import_suite", "POST", "/contracts/import-suite")
def bring_suite(ctx: Context, document: dict[str, Any], table: str) -> dict[str, Any]:
    """Make a contract of an expectation suite (Great Expectations' JSON); nothing is stored."""
    found = import_suite(read_suite(json.dumps(document).encode(), "document"), table=table)
    return {
        "contract": to_yaml(found.document) if found.document else None,
        "untyped": list(found.untyped),
        "expectations": [one.to_json() for one in found.expectations],
    }


@operation("contracts.export_suite", "POST", "/contracts/export-suite")
def write_suite(ctx: Context, text: str, table: str | None = None) -> dict[str, Any]:
    """Write a contract's YAML as an expectation suite that Great Expectations 1 reads."""
    found = export_suite(Contract.parse(text, "contract", table))
    return {"suite": found.suite, "left": [{"rule": rule, "why": why} for rule, why in found.left]}


def _line(model: str, table: str, one: store.Registered) -> dict[str, Any]:
    return {
        "model": model, "table": table, "number": one.number, "version": one.version, "digest": one.digest,
        "change": one.change, "differences": list(one.differences), "actor": one.actor, "at": one.at,
    }  # fmt: skip


def _tables(ledger: Ledger, model: str | None) -> list[tuple[str, str]]:
    """(model, table) of what was ever judged; an unknown model names the nearest."""
    with ledger.read() as conn:
        names = [name.partition("/")[::2] for name in store.contract_tables(conn)]
    found = [(each, table) for each, table in names if model in (None, each)]
    if model is not None and not found:
        known = sorted({each for each, _ in names})
        raise NotFound("no table of this model was judged by a contract", got=model, wanted=", ".join(known),
                       next=did_you_mean(model, known) or "Land its tables: loopwright data snapshot DIR")  # fmt: skip
    return found


def _registered(ledger: Ledger, model: str, table: str, number: int | None) -> store.Registered:
    with ledger.read() as conn:
        history = store.contract_history(conn, f"{model}/{table}")
    if not history:
        known = [name for _, name in _tables(ledger, model)]
        raise NotFound(
            f"{model} has no contract of this table", got=table, wanted=", ".join(known),
            next=did_you_mean(table, known) or "Ingest it first: loopwright data snapshot DIR",
        )  # fmt: skip
    found = history[-1] if number is None else next((one for one in history if one.number == number), None)
    if found is None:
        raise NotFound(
            f"{model}/{table} has no contract of this number", got=number,
            wanted=", ".join(str(one.number) for one in history),
        )  # fmt: skip
    return found


def _contract(one: store.Registered, model: str, table: str) -> Contract:
    """The contract as it was; in a file of several tables it is the one of the digest that was written down."""
    source = f"{model}/{table}@{one.number}"
    for entry in one.document.get("schema", ()):
        found = Contract.from_json(one.document, source, entry.get("name"))
        if found.digest == one.digest:
            return found
    return Contract.from_json(one.document, source, table)


def _of_table(contracts: tuple[Contract, ...], table: str) -> Contract:
    if len(contracts) == 1:
        return contracts[0]
    found = next((one for one in contracts if one.name == table), None)
    if found is None:
        names = ", ".join(one.name for one in contracts)
        raise NotFound("the new contract has no such table", got=table, wanted=names)
    return found
