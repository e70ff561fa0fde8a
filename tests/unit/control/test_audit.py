"""The audit log as people meet it: anchored, verified, exported, reported on."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from loopwright.control import anchors
from loopwright.control.app import create_app
from loopwright.control.audit_page import PAGES
from loopwright.control.context import Context
from loopwright.control.controllers import anchoring
from loopwright.control.controllers.anchoring import AnchoringController
from loopwright.control.controllers.loop import Controllers
from loopwright.control.folder import FolderClient
from loopwright.control.health import examine
from loopwright.control.operation import find
from loopwright.kernel.errors import BadInput, NotFound, Refused, Tampered
from loopwright.ledger import store as ledger_store
from loopwright.ledger.anchor import read_anchors, write_anchor
from loopwright.ledger.audit import AuditRow, next_row
from loopwright.ledger.export import check_export
from tests.unit.control.conftest import FakeClock

HOUR = timedelta(hours=1)
People = dict[str, Context]


def ask(ctx: Context, operation: str, **arguments: object) -> Any:
    return find(operation)(ctx, **arguments)


def write(ctx: Context, count: int, **more: Any) -> None:
    fields = {"actor": "ada", "action": "note", "subject": "late/1", "payload": {"why": "it is"}, **more}
    with ctx.ledger.write() as conn:
        for _ in range(count):
            ledger_store.append(conn, at=ctx.now, **fields)


def rewrite(ctx: Context, change: Callable[[AuditRow], AuditRow]) -> None:
    """Write the whole chain anew with a new head, as somebody could who owns the database."""
    database = sqlite3.connect(str(ctx.ledger.engine.url.database), isolation_level=None)
    database.execute("DROP TRIGGER lw_audit_no_update")
    last: tuple[int, str] | None = None
    for stored in database.execute("SELECT * FROM lw_audit ORDER BY seq").fetchall():
        row = change(AuditRow.of(stored))
        new = next_row(
            last, at=row.at, actor=row.actor, action=row.action, subject=row.subject, payload=row.payload
        )
        assert new.seq == row.seq
        values = (*new.stored[1:], new.seq)
        database.execute(
            "UPDATE lw_audit SET at=?, actor=?, action=?, subject=?, payload=?, prev_hash=?, hash=? WHERE seq=?",
            values,
        )
        last = (new.seq, new.hash)
    assert last is not None
    database.execute("UPDATE lw_meta SET value=? WHERE key='audit.head'", [f"{last[0]} {last[1]}"])
    database.close()


def blame_eve(row: AuditRow) -> AuditRow:
    return replace(row, actor="eve") if row.seq == 2 else row


# Anchors


def test_a_chain_written_anew_is_found_by_an_anchor_kept_elsewhere(ctx: Context, tmp_path: Path) -> None:
    write(ctx, 5)
    kept = tmp_path / "elsewhere"
    write_anchor(anchors.anchor_now(ctx), kept)
    write(ctx, 3)
    rewrite(ctx, blame_eve)
    for file in ctx.home.anchors.iterdir():
        file.unlink()
    with ctx.ledger.write() as conn:
        conn.exec_driver_sql("DELETE FROM lw_anchors")
    assert ask(ctx, "audit.verify")["ok"]
    documents = [anchor.to_json() for _, anchor in read_anchors(kept)]
    told = ask(ctx, "audit.check_anchors", documents=documents)
    assert not any(one["ok"] for one in told)
    assert "row 5 had another hash" in told[0]["why"]


def test_it_is_found_by_the_homes_own_anchors_too(ctx: Context) -> None:
    write(ctx, 5)
    anchors.anchor_now(ctx)
    rewrite(ctx, blame_eve)
    answer = ask(ctx, "audit.verify")
    assert not answer["ok"]
    assert "the chain is whole, but not the one that was anchored" in answer["why"]
    assert str(ctx.home.anchors) in answer["why"]
    assert answer["broken_at"] == 5
    assert next(one for one in examine(ctx) if one["check"] == "anchors")["ok"] is False


def test_a_log_that_does_not_hold_gets_no_signature(ctx: Context) -> None:
    write(ctx, 3)
    anchors.anchor_now(ctx)
    write(ctx, 3)
    rewrite(ctx, blame_eve)
    with pytest.raises(Tampered, match="nothing was anchored"):
        anchors.anchor_now(ctx)


def test_a_log_that_has_not_grown_keeps_its_anchor(ctx: Context) -> None:
    write(ctx, 3)
    made = anchors.anchor_now(ctx)
    assert anchors.anchor_now(ctx) == made
    write(ctx, 1)
    assert anchors.anchor_now(ctx).seq == 5


def test_an_empty_log_has_nothing_to_anchor(ctx: Context) -> None:
    with pytest.raises(NotFound, match="empty"):
        ask(ctx, "audit.anchor")


def test_every_place_named_in_home_json_gets_it_and_one_that_cannot_is_told(
    ctx: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("")
    named = [str(tmp_path / "a file" / "below"), str(tmp_path / "vault"), str(tmp_path / "all.jsonl")]
    ctx.home.config.write_text(json.dumps({"anchors": {"every": "30m", "to": named}}))
    write(ctx, 2)
    answer = ask(ctx, "audit.anchor")
    assert {place for place, why in answer["places"].items() if why} == {named[0]}
    assert set(answer["places"]) == {str(ctx.home.anchors), *named}
    assert len(read_anchors(tmp_path / "all.jsonl")) == 1
    assert "could not be written everywhere" in caplog.text
    finding = next(one for one in examine(ctx) if one["check"] == "anchors")
    assert not finding["ok"]
    assert named[0] in finding["found"]


@pytest.mark.parametrize("said", ['"1h"', '{"each": "1h"}', '{"every": 5}', '{"to": "x"}', '{"every": "0s"}'])
def test_a_setting_that_makes_no_sense_is_refused(ctx: Context, said: str) -> None:
    ctx.home.config.write_text(f'{{"anchors": {said}}}')
    with pytest.raises(BadInput, match=r"home\.json"):
        anchors.schedule_of(ctx.home)


def test_no_row_waits_longer_for_an_anchor_than_the_schedule_says(ctx: Context, clock: FakeClock) -> None:
    controller = AnchoringController()
    assert controller.tick(ctx) == []
    write(ctx, 2)
    assert controller.tick(ctx) == []
    clock.move(HOUR)
    assert [did["anchor"] for did in controller.tick(ctx)] == [2]
    clock.move(24 * HOUR)
    assert controller.tick(ctx) == []  # the row that the anchoring left asks for no other
    write(ctx, 1)
    clock.move(HOUR)
    assert [did["anchor"] for did in controller.tick(ctx)] == [4]


def test_a_clock_set_back_does_not_put_an_anchor_off(ctx: Context, clock: FakeClock) -> None:
    write(ctx, 2)
    clock.move(-24 * HOUR)
    assert [did["anchor"] for did in AnchoringController().tick(ctx)] == [2]


def test_a_long_log_is_walked_a_little_in_each_round(
    ctx: Context, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchoring, "ROWS_A_ROUND", 2)
    write(ctx, 5)
    clock.move(HOUR)
    controller = AnchoringController()
    assert controller.tick(ctx) == []
    assert controller.tick(ctx) == []
    assert [did["anchor"] for did in controller.tick(ctx)] == [5]


def test_the_controller_signs_no_log_that_does_not_hold(ctx: Context, clock: FakeClock) -> None:
    controller = AnchoringController()
    write(ctx, 2)
    clock.move(HOUR)
    controller.tick(ctx)
    write(ctx, 2)
    clock.move(HOUR)
    rewrite(ctx, blame_eve)
    with pytest.raises(Tampered, match="nothing was anchored"):
        controller.tick(ctx)


# Looking and exporting


def test_a_walk_in_parts_says_how_much_there_is(ctx: Context) -> None:
    write(ctx, 5)
    part = ask(ctx, "audit.verify", rows=3)
    assert (part["ok"], part["done"], part["rows"], part["total"]) == (True, False, 3, 5)
    rest = ask(ctx, "audit.verify", rows=3, after=part["reached"])
    assert (rest["ok"], rest["done"], rest["rows"]) == (True, True, 5)


def test_a_whole_export_wants_an_approver(people: People) -> None:
    with pytest.raises(Refused, match="vera may not"):
        ask(people["vera"], "audit.export")
    assert ask(people["ada"], "audit.export")


def test_an_export_by_model_has_what_was_done_to_it_and_what_names_it(ctx: Context) -> None:
    for subject, payload in (
        ("late", {}), ("late/2", {}), ("later/1", {}), ("run 7", {"model": "late"}), ("LATE/1", {}),
        ("run 8", {"deep": {"model": "late"}}), ("la_e/1", {"model": 'la"te'}),
    ):  # fmt: skip
        write(ctx, 1, subject=subject, payload=payload)
    rows = [json.loads(line) for line in ask(ctx, "audit.export", model="late")]
    assert [row["subject"] for row in rows] == ["late", "late/2", "run 7"]
    assert [row["subject"] for row in ask(ctx, "audit.show", model="late")] == ["late", "late/2"]


@pytest.fixture
def browser(ctx: Context) -> Iterator[TestClient]:
    app = create_app(ctx, local=True, make_mlflow=lambda: app, controllers=Controllers(ctx, []))
    with TestClient(app, base_url="http://127.0.0.1:8080", client=("127.0.0.1", 5000)) as client:
        yield client


def test_an_export_streams_over_http_and_verifies_offline(
    ctx: Context, browser: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_store, "PAGE", 3)
    write(ctx, 10)
    with browser.stream("GET", "/api/v1/audit/export") as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert "content-length" not in answer.headers
        lines = list(answer.iter_lines())
    report = check_export(line.encode() for line in lines)
    assert (report.ok, report.kind, report.rows) == (True, "whole", 10)
    sheet = browser.get("/api/v1/audit/export", params={"format": "csv", "actor": "ada"})
    assert sheet.headers["content-disposition"] == 'attachment; filename="audit.csv"'
    assert len(sheet.text.splitlines()) == 11
    assert browser.get("/api/v1/audit/export", params={"format": "xls"}).status_code == 422


def test_rows_written_during_an_export_are_not_in_it(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_store, "PAGE", 2)
    write(ctx, 5)
    chunks = FolderClient(ctx).stream("audit.export")
    first = next(chunks)
    write(ctx, 5)
    assert check_export((first + b"".join(chunks)).splitlines()).rows == 5


# The monthly report


def to_production(people: People, version: int) -> None:
    ask(people["dora"], "models.promote", model="late", version=version, reason="better")
    ask(people["ada"], "models.approve", model="late", version=version, comment="looked at the gates")
    ask(people["bob"], "models.approve", model="late", version=version)


def test_the_report_names_who_let_what_through_and_when(
    ctx: Context, people: People, register: Callable[..., int]
) -> None:
    register()
    to_production(people, 1)
    register()
    ask(people["dora"], "models.promote", model="late", version=2)
    ask(people["ada"], "models.reject", model="late", version=2, comment="no | not <yet>")
    answer = ask(ctx, "audit.report", month="2013-07", model="late")
    one, two = answer["promotions"]
    assert (one["requested"]["by"], one["outcome"]["state"]) == ("dora", "effective")
    assert [(yes["by"], yes["why"]) for yes in one["approvals"]] == [
        ("ada", "looked at the gates"),
        ("bob", ""),
    ]
    assert one["approved_by"] == ["ada", "bob"]
    assert (two["outcome"]["state"], two["outcome"]["by"]) == ("rejected", "ada")
    assert [entry["what"] for entry in answer["versions"]] == ["registered", "registered"]
    assert answer["chain"]["ok"]
    page = PAGES["md"](answer)
    assert (
        "| late/1 | Production | dora, 2013-07-01 12:00 | ada, 2013-07-01 12:00; bob, 2013-07-01 12:00 |"
        in page
    )
    html = PAGES["html"](answer)
    assert "<td>late/2</td>" in html
    assert json.loads(PAGES["json"](answer))["rows"] == answer["rows"]


def test_broken_glass_stands_in_the_report_until_and_after_its_review(
    ctx: Context, people: People, register: Callable[..., int]
) -> None:
    register()
    with ctx.ledger.write() as conn:
        for action, actor, payload in (
            ("promotion.break_glass", "ada",
             {"promotion": "pr_1", "stage": "Production", "reason": "payroll is down", "policy": "p" * 64,
              "passed_over": ["2 approvals"], "review_due": "2013-07-08T12:00:00Z"}),
            ("promotion.effective", "ada", {"promotion": "pr_1", "stage": "Production", "approved_by": [],
                                            "requested_by": "ada", "policy": "p" * 64}),
        ):  # fmt: skip
            ledger_store.append(
                conn, at=ctx.now, actor=actor, action=action, subject="late/1", payload=payload
            )
    open_one = ask(ctx, "audit.report", month="2013-07")
    assert open_one["emergencies"][0]["review"] is None
    assert "OPEN, due 2013-07-08 12:00" in PAGES["md"](open_one)
    assert "(broken glass)" in PAGES["md"](open_one)
    write(ctx, 1, actor="bob", action="review.upheld", subject="late/1",
          payload={"promotion": "pr_1", "broken_by": "ada", "comment": "was right", "overdue": False})  # fmt: skip
    reviewed = ask(ctx, "audit.report", month="2013-07")["emergencies"][0]
    assert (reviewed["review"]["state"], reviewed["review"]["by"], reviewed["by"]) == ("upheld", "bob", "ada")


def test_refusals_are_counted_by_actor(ctx: Context) -> None:
    write(
        ctx,
        2,
        actor="eve",
        action="registry.refused",
        payload={"act": "stage.transition", "why": "missing gates"},
    )
    write(
        ctx,
        1,
        actor="eve",
        action="access.denied",
        payload={"act": "audit.export", "why": "a viewer", "count": 40},
    )
    write(
        ctx,
        1,
        actor="bob",
        action="access.denied",
        payload={"act": "audit.export", "why": "a viewer", "count": 1},
    )
    found = ask(ctx, "audit.report", month="2013-07")["refusals"]
    assert [(one["actor"], one["count"]) for one in found] == [("eve", 42), ("bob", 1)]
    assert found[0]["acts"] == {"stage.transition": 2, "audit.export": 40}


def test_changes_of_policy_keys_and_access_each_have_their_place(ctx: Context) -> None:
    for action in (
        "policy.set",
        "policy.waived",
        "key.rotated",
        "trust.approved",
        "user.changed",
        "token.revoked",
    ):
        write(ctx, 1, action=action, payload={"reason": "asked for", "points": ["tier", "approvals"]})
    answer = ask(ctx, "audit.report", month="2013-07")
    named = {part: [one["what"] for one in answer[part]] for part in ("policy", "keys", "access")}
    assert named == {
        "policy": ["policy.set", "policy.waived"], "keys": ["key.rotated", "trust.approved"],
        "access": ["user.changed", "token.revoked"],
    }  # fmt: skip
    assert answer["policy"][0]["why"] == "points tier, approvals; reason asked for"


def test_a_month_without_acts_says_so(ctx: Context) -> None:
    write(ctx, 1)
    answer = ask(ctx, "audit.report", month="2031-02")
    assert answer["rows"] == 0
    page = PAGES["md"](answer)
    assert "Nothing was written to the audit log in this month." in page
    assert "Nobody broke the glass." in page
    assert "Nobody broke the glass." in PAGES["html"](answer)


def test_a_month_ends_where_the_next_begins(ctx: Context, clock: FakeClock) -> None:
    for moment in (datetime(2013, 6, 30, 23, 59, tzinfo=UTC), datetime(2013, 7, 1, tzinfo=UTC),
                   datetime(2013, 7, 31, 23, 59, tzinfo=UTC), datetime(2013, 8, 1, tzinfo=UTC)):  # fmt: skip
        clock.time = moment
        write(ctx, 1)
    assert ask(ctx, "audit.report", month="2013-07")["rows"] == 2
    assert ask(ctx, "audit.report", month="2013-12")["rows"] == 0
    with pytest.raises(BadInput, match="not a month"):
        ask(ctx, "audit.report", month="2013-13")


def test_a_clock_that_went_backwards_is_mentioned(ctx: Context, clock: FakeClock) -> None:
    write(ctx, 1)
    clock.move(-HOUR)
    write(ctx, 1)
    answer = ask(ctx, "audit.report", month="2013-07")
    assert answer["clock_backwards"] == {"rows": 1, "most_seconds": 3600.0}
    assert "The clock went backwards between rows 1 times" in PAGES["md"](answer)
