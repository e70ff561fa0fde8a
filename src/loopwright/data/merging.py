"""How good rows meet the silver table: beside the other batches, in their place, or row by row through the key."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from loopwright.data import landing
from loopwright.data.check_report import CheckReport, RuleResult
from loopwright.data.checking import Examination
from loopwright.data.contract import Contract, Severity
from loopwright.data.lake import Lake
from loopwright.data.parts import Told
from loopwright.data.staged import Staged
from loopwright.data.upsert import Upserted, judged_later, upsert

Admit = Callable[[CheckReport], None]
"""Raises when a report keeps the batch out."""


@dataclass(frozen=True, slots=True)
class Place:
    """A silver table, the contract it is written under, and a folder for what is on its way."""

    lake: Lake
    model: str
    table: str
    contract: Contract
    folder: Path


@dataclass(frozen=True, slots=True)
class Merged:
    """`check`: with the rules that only the outcome could show. `set_aside`: rows these broke, by `_row`."""

    version: int
    check: CheckReport
    inserted: int | None = None
    updated: int | None = None
    ignored: int | None = None
    set_aside: Mapping[int, tuple[str, ...]] | None = None


def without_unique(contract: Contract) -> Contract:
    """The contract as rows of an upsert are judged before they meet the table."""
    later = {rule.name for rule in judged_later(contract)}
    return replace(contract, rules=tuple(rule for rule in contract.rules if rule.name not in later))


def merge(
    place: Place,
    staged: Staged,
    found: Examination,
    times: landing.Times,
    *,
    once: str,
    admit: Admit,
    told: Told | None = None,
) -> Merged:
    """Bring the good rows into silver in one commit; `admit` may still keep the batch out before it."""
    lake, model, table = place.lake, place.model, place.table
    good = landing.good(found, staged.batch_id, times)
    if place.contract.loading != "full":
        lake.widen("silver", model, table, good.schema)
    if place.contract.loading != "upsert":
        full = place.contract.loading == "full"
        replaced = None if full else staged.batch_id
        version = lake.write("silver", model, table, good, once=once, replace=replaced, whole=full, told=told)
        return Merged(version, found.report)
    schema = good.schema
    if lake.exists("silver", model, table):
        schema = lake.fitting("silver", model, table, schema)
    new = landing.on_disk(place.folder, "good", good)
    # After a kill the rows may be there already; what became of them is told by what stood before.
    current = lake.files_before("silver", model, table, once)
    writer = lake.writer("silver", model, table, schema, told)
    try:
        done = upsert(current, new, place.contract, writer, place.folder)
        check = with_outcome(found.report, place.contract, done)
        admit(check)
        parts = writer.close()
    except BaseException:
        writer.drop()
        raise
    version = lake.commit("silver", model, table, schema, parts, once=once, remove=done.gone)
    return Merged(version, check, done.inserted, done.updated, done.ignored, done.set_aside)


def with_outcome(check: CheckReport, contract: Contract, done: Upserted) -> CheckReport:
    """`check` with what an upsert found: its rules in the contract's order, its rows among the bad ones."""
    found = {result.name: result for result in (*check.rules, *done.rules)}
    order = [rule.name for rule in contract.rules]
    rules = [found.pop(name) for name in order if name in found] + list(found.values())
    bad = check.bad_rows + len(done.set_aside)
    if done.set_aside:
        share = 100.0 * bad / check.input_rows
        rules = [
            _too_many(result, share, contract)
            if result.name == "share of bad rows" and result.state == "PASS"
            else result
            for result in rules
        ]
    reasons = dict(check.reasons)
    for broken in done.set_aside.values():
        for name in broken:
            reasons[name] = reasons.get(name, 0) + 1
    states = {result.state for result in rules}
    state: Literal["PASS", "FAIL", "ERROR"] = (
        "ERROR" if "ERROR" in states else "FAIL" if "FAIL" in states else "PASS"
    )
    return replace(
        check, state=state, bad_rows=bad, good_rows=check.good_rows - len(done.set_aside),
        rules=tuple(rules), reasons=reasons,
    )  # fmt: skip


def _too_many(result: RuleResult, share: float, contract: Contract) -> RuleResult:
    allowed = 100.0 * contract.max_bad_share
    if share <= allowed or result.severity is not Severity.BLOCK:
        return result
    return replace(result, state="FAIL", why=f"{share:.1f} % of the rows are bad, wanted <= {allowed:g} %")
