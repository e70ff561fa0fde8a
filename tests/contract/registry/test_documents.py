"""Cards and semantic versions on every engine."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, text

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import Conflict
from loopwright.ledger import store as audit
from loopwright.ledger.engine import Ledger
from loopwright.registry import evidence, versions
from loopwright.registry.documents.card import build_card
from loopwright.registry.documents.facts import Facts
from loopwright.registry.documents.sections import parse_card
from loopwright.registry.semver import Bump, Change, Proposal, propose
from loopwright.registry.store import semvers

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
ANA = Actor("ana", Role.DEVELOPER)
SAID = "Planners hold gates and crews with it, an hour before the departure."


def register(conn: Connection, number: int, proposal: Proposal | None = None) -> versions.Version:
    return versions.register_version(
        conn, model="late", bundle=f"{number:064x}", run_id=None, snapshot=None, author=ANA, metrics={}, now=NOON,
        proposal=proposal,
    )  # fmt: skip


def test_the_proposed_number_is_registered_with_its_reason(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn, 1, propose([], {}))
        changes = {"version 1 (1.0.0)": Change(Bump.PATCH, "the same recipe; another snapshot")}
        second = register(conn, 2, propose(semvers(conn, "late"), changes))
        tag = conn.execute(
            text("SELECT value FROM model_version_tags WHERE key = 'loopwright.semver' AND version = 2")
        ).scalar_one()
        row = audit.rows(conn, subject="late/2", action="version.registered")[0]
    assert (second.semver, tag, row.payload["semver"]) == ("1.0.1", "1.0.1", "1.0.1")
    assert (
        second.annotations["semver_reason"]
        == "patch over version 1 (1.0.0): the same recipe; another snapshot"
    )


def test_a_number_is_never_used_twice_not_even_a_deleted_versions(ledger: Ledger) -> None:
    with ledger.write() as conn:
        register(conn, 1, propose([], {}))
        register(conn, 2, Proposal("2.0.0", Bump.MAJOR, "asked for"))
        conn.execute(text("UPDATE lw_versions SET deleted_at = 1 WHERE version = 2"))
    with ledger.write() as conn:
        assert sorted(semvers(conn, "late")) == ["1.0.0", "2.0.0"]
        assert register(conn, 3).semver == "2.1.0"
        for taken in ("2.0.0", "1.0.1", "2.1.0"):
            with pytest.raises(Conflict, match=r"above 2\.1\.0"):
                register(conn, 4, Proposal(taken, Bump.MINOR, "asked for"))


def test_the_same_bundle_keeps_its_number(ledger: Ledger) -> None:
    with ledger.write() as conn:
        first = register(conn, 1, propose([], {}))
        assert register(conn, 1, Proposal("9.0.0", Bump.MAJOR, "asked for")) == first


def test_of_two_texts_the_later_recorded_one_counts_whatever_the_clock_says(ledger: Ledger) -> None:
    with ledger.write() as conn:
        one = register(conn, 1)
        for said, at in ((SAID, NOON), (f"{SAID} And crews.", NOON - timedelta(hours=1))):
            written = parse_card(f"## Risks\n\n{said}\n", file="card.md")
            evidence.record_evidence(
                conn, kind="card", model="late", version=1, bundle=one.bundle, verdict=written.verdict,
                payload=written.payload(by="ana"), at=at, actor=ANA,
            )  # fmt: skip
        card = build_card(Facts(one, NOON, evidence=evidence.evidence_of(conn, model="late", version=1)))
    risks = next(section for section in card["written"]["sections"] if section["name"] == "risks")
    assert risks["text"] == f"{SAID} And crews." and risks["filled"]
    assert card["written"]["revision"] == 2 and len(card["evidence"]) == 2
