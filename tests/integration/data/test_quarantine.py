"""Rows that were set aside: let in, waived by an approver, dropped, and never lost or doubled."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from loopwright.data.contract import Contract
from loopwright.data.incidents import store
from loopwright.data.ingest import ingest
from loopwright.data.lake import Lake
from loopwright.data.quarantine import Choice, Outcome, drop, look, release, summary
from loopwright.data.source import Source
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Refused
from loopwright.ledger import store as ledger_store
from tests.integration.data.conftest import contract

ADA, APPROVER = Actor("ada", Role.DEVELOPER), Actor("vera", Role.APPROVER)
NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)
COLUMNS = ("{name: id, logicalType: integer, primaryKey: true}", "{name: city, logicalType: string}")


def under(most: int, *more: str) -> Contract:
    """Readings of at most `most`."""
    reading = f"{{name: x, logicalType: number, logicalTypeOptions: {{maximum: {most}}}}}"
    return contract(*COLUMNS, reading, *more, custom="{property: maxBadShare, value: 1}")


def land(lake: Lake, source: Source, terms: Contract) -> None:
    ingest(lake, model="m", table="t", source=source, contract=terms, actor=ADA, now=NOW)


def let_in(lake: Lake, terms: Contract, actor: Actor = ADA, **named: Any) -> Outcome:
    choice = Choice(**{k: named.pop(k) for k in ("batches", "rules", "rows") if k in named})
    return release(lake, model="m", table="t", contract=terms, choice=choice, actor=actor, now=NOW, **named)


def silver(lake: Lake) -> list[tuple[int, float, int]]:
    return [(r["id"], r["x"], r["_row"]) for r in lake.read("silver", "m", "t").to_pylist()]


def held(lake: Lake) -> dict[Any, list[str]]:
    return {r["id"]: r["_reasons"] for r in lake.read("quarantine", "m", "t").to_pylist()}


@pytest.fixture
def landed(lake: Lake, csv: Callable[[str], Source]) -> Lake:
    """Five rows: 2 and 4 are too large, 5 is of another type."""
    land(lake, csv("id,city,x\n1,Oslo,1\n2,Oslo,20\n3,Rome,3\n4,Rome,400\n5,Rome,much\n"), under(10))
    return lake


def test_after_a_change_of_the_contract_rows_that_keep_it_go_in_and_the_others_stay_with_what_they_break_now(
    landed: Lake,
) -> None:
    told = let_in(landed, under(100))
    assert (told.chosen, told.released, told.kept, told.malformed) == (3, 1, 2, 0)
    assert silver(landed) == [(1, 1, 1), (2, 20, 2), (3, 3, 3)]
    assert held(landed) == {"4": ["x <= 100"], "5": ["x is a number"]}
    with landed.ledger.read() as conn:
        (batch,) = store.deliveries(conn, "m/t")
        assert (batch.good, batch.bad) == (3, 2)
        assert (batch.report["good_rows"], batch.report["bad_rows"]) == (3, 2)
        assert sum(batch.report["reasons"].values()) == 2
        assert ledger_store.rows(conn, action="data.released")[-1].payload["released"] == 1


def test_a_release_twice_lets_a_row_in_once(landed: Lake) -> None:
    let_in(landed, under(100))
    version = landed.version("silver", "m", "t")
    again = let_in(landed, under(100))
    assert (again.chosen, again.released) == (2, 0)
    assert landed.version("silver", "m", "t") == version
    assert len(silver(landed)) == 3


def test_a_dry_run_says_the_same_and_changes_nothing(landed: Lake) -> None:
    before = silver(landed), held(landed)
    told = let_in(landed, under(100), dry_run=True)
    assert (told.released, told.kept, told.dry_run) == (1, 2, True)
    assert (silver(landed), held(landed)) == before
    with landed.ledger.read() as conn:
        assert store.decisions(conn, "m/t") == []


def test_rows_are_chosen_by_number_by_rule_and_by_batch(landed: Lake) -> None:
    rule = held(landed)["4"][0]
    assert let_in(landed, under(1000), rows=(4,), dry_run=True).released == 1
    assert let_in(landed, under(1000), rules=(rule,), dry_run=True).chosen == 2
    assert let_in(landed, under(1000), batches=("0000000",), dry_run=True).chosen == 0
    batch = summary(landed, "m", "t")["batches"][0]["batch"]
    assert let_in(landed, under(1000), batches=(batch[:10],), dry_run=True).released == 2


def test_an_approver_may_waive_a_named_rule_with_a_reason(landed: Lake) -> None:
    rule = held(landed)["4"][0]
    with pytest.raises(Refused, match="may not release rows that break their contract"):
        let_in(landed, under(10), rules=(rule,), force=True, reason="measured twice")
    with pytest.raises(BadInput, match="no reason"):
        let_in(landed, under(10), APPROVER, rules=(rule,), force=True, reason="  ")
    with pytest.raises(BadInput, match="names no rule"):
        let_in(landed, under(10), APPROVER, force=True, reason="measured twice")
    told = let_in(landed, under(10), APPROVER, rules=(rule,), force=True, reason="measured twice")
    assert (told.released, told.waived) == (2, 2)
    assert [x for _, x, _ in silver(landed)] == [1, 20, 3, 400]
    with landed.ledger.read() as conn:
        row = ledger_store.rows(conn, action="data.released")[-1]
    assert (row.actor, row.payload["forced"], row.payload["reason"]) == ("vera", True, "measured twice")


def test_types_keys_and_blocking_rules_are_waived_for_nobody(
    lake: Lake, csv: Callable[[str], Source]
) -> None:
    terms = under(10)
    land(lake, csv("id,city,x\n1,Oslo,1\n1,Oslo,2\n2,Oslo,much\n"), terms)
    for reasons in held(lake).values():
        with pytest.raises(Refused, match="waived for anybody"):
            let_in(lake, terms, APPROVER, rules=(reasons[0],), force=True, reason="please")
    assert len(silver(lake)) == 1


def test_a_row_whose_key_has_come_meanwhile_stays(lake: Lake, csv: Callable[[str], Source]) -> None:
    land(lake, csv("id,city,x\n1,Oslo,1\n2,Oslo,20\n"), under(10))
    land(lake, csv("id,city,x\n2,Oslo,2\n"), under(10))
    told = let_in(lake, under(100))
    assert (told.released, told.kept) == (0, 1)
    assert sorted(x for _, x, _ in silver(lake)) == [1, 2]


def test_dropped_rows_leave_quarantine_with_a_reason_and_stay_in_bronze(landed: Lake) -> None:
    with pytest.raises(BadInput, match="no reason"):
        drop(landed, model="m", table="t", choice=Choice(), actor=ADA, now=NOW, reason="")
    before = landed.version("quarantine", "m", "t")
    told = drop(landed, model="m", table="t", choice=Choice(rows=(5,)), actor=ADA, now=NOW, reason="a typo")
    assert (told.dropped, told.held) == (1, 2)
    assert set(held(landed)) == {"2", "4"}
    assert landed.read("bronze", "m", "t").num_rows == 5
    assert landed.read("quarantine", "m", "t", version=before).num_rows == 3
    with landed.ledger.read() as conn:
        (decision,) = store.decisions(conn, "m/t")
        assert (decision.reason, decision.actor, decision.rows) == ("a typo", "ada", 1)
        assert store.deliveries(conn, "m/t")[0].bad == 2


def test_all_can_be_dropped_and_the_next_delivery_goes_on(landed: Lake, csv: Callable[[str], Source]) -> None:
    drop(landed, model="m", table="t", choice=Choice(), actor=ADA, now=NOW, reason="a test feed")
    assert held(landed) == {}
    assert summary(landed, "m", "t")["rows"] == 0
    land(landed, csv("id,city,x\n9,Oslo,90\n"), under(10))
    assert set(held(landed)) == {"9"}


def test_malformed_lines_can_be_dropped_but_are_no_rows_to_let_in(
    lake: Lake, csv: Callable[[str], Source]
) -> None:
    land(lake, csv("id,city,x\n1,Oslo,1\n2,Oslo,3,4,5\n3,Oslo,20\n"), under(10))
    assert summary(lake, "m", "t")["reasons"]["malformed line"] == 1
    told = let_in(lake, under(100))
    assert (told.chosen, told.released, told.malformed) == (2, 1, 1)
    gone = drop(
        lake, model="m", table="t", choice=Choice(rules=("malformed line",)), actor=ADA, now=NOW, reason="cut"
    )
    assert (gone.dropped, gone.held) == (1, 0)


def test_looking_counts_and_shows(landed: Lake) -> None:
    count, rows = look(landed, "m", "t", Choice(rows=(4, 5)), 1)
    assert (count, [row["id"] for row in rows]) == (2, ["4"])
