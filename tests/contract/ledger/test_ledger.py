"""What every engine of the ledger promises."""

import re
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import CheckConstraint, Connection, event, inspect, select, text
from sqlalchemy.exc import DatabaseError, IntegrityError

from loopwright.bundle.keys import SigningKey
from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.ledger import store
from loopwright.ledger.anchor import judge, make_anchor
from loopwright.ledger.audit import next_row
from loopwright.ledger.engine import VERSION_TABLE, Ledger
from loopwright.ledger.schema import (
    REVISION,
    audit,
    metadata,
    promotions,
    rollout_events,
    versions,
)

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


def write_rows(ledger: Ledger, count: int) -> None:
    with ledger.write() as conn:
        for number in range(count):
            store.append(
                conn,
                at=NOON,
                actor="ada",
                action="note",
                subject=f"thing/{number % 2}",
                payload={"n": number},
            )


class TestMigrations:
    def test_they_make_exactly_the_schema(self, any_ledger: Ledger) -> None:
        with any_ledger.read() as conn:
            context = MigrationContext.configure(conn, opts={"version_table": VERSION_TABLE})
            assert compare_metadata(context, metadata) == []

    def test_they_write_every_constraint_and_index_by_name(self, any_ledger: Ledger) -> None:
        found = inspect(any_ledger.engine)
        for table in metadata.sorted_tables:
            checks = {constraint["name"] for constraint in found.get_check_constraints(table.name)}
            wanted = {str(c.name) for c in table.constraints if isinstance(c, CheckConstraint)}
            assert checks == wanted
            indexes = {index["name"] for index in found.get_indexes(table.name)}
            assert {str(index.name) for index in table.indexes} <= indexes

    def test_migrating_again_changes_nothing(self, any_ledger: Ledger) -> None:
        write_rows(any_ledger, 2)
        any_ledger.migrate()
        with any_ledger.read() as conn:
            assert len(store.rows(conn)) == 2

    def test_processes_that_start_together_migrate_once(self, ledger_url: str) -> None:
        ledgers = [Ledger.open(ledger_url) for _ in range(4)]
        failures: list[Exception] = []

        def start(ledger: Ledger) -> None:
            try:
                ledger.migrate()
            except Exception as error:  # noqa: BLE001  # whatever it is, the test shows it
                failures.append(error)

        threads = [threading.Thread(target=start, args=[ledger]) for ledger in ledgers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for ledger in ledgers:
            ledger.dispose()
        assert failures == []

    def test_a_database_of_a_newer_release_is_left_alone(self, any_ledger: Ledger) -> None:
        with any_ledger.write() as conn:
            conn.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
        with pytest.raises(Unavailable, match=f"got revision 9999, wanted revision {REVISION}"):
            any_ledger.migrate()

    def test_other_peoples_tables_are_left_alone(self, ledger_url: str) -> None:
        ledger = Ledger.open(ledger_url)
        with ledger.write() as conn:
            conn.execute(text("CREATE TABLE runs (run_uuid TEXT)"))
        ledger.migrate()
        assert {column["name"] for column in inspect(ledger.engine).get_columns("runs")} == {"run_uuid"}
        ledger.dispose()


class TestTransactions:
    def test_an_act_and_its_audit_row_commit_together_or_not_at_all(self, any_ledger: Ledger) -> None:
        with pytest.raises(ZeroDivisionError), any_ledger.write() as conn:
            store.put_meta(conn, "colour", "blue")
            store.append(conn, at=NOON, actor="ada", action="paint", subject="door", payload={})
            raise ZeroDivisionError
        with any_ledger.read() as conn:
            assert store.get_meta(conn, "colour") is None
            assert store.rows(conn) == []
            assert store.verify(conn).ok

    def test_writers_wait_for_each_other(self, any_ledger: Ledger) -> None:
        """Check-then-write by eight threads loses no update."""
        with any_ledger.write() as conn:
            store.put_meta(conn, "count", "0")

        def add() -> None:
            for _ in range(5):
                with any_ledger.write() as conn:
                    store.put_meta(conn, "count", str(int(store.get_meta(conn, "count") or "0") + 1))
                    store.append(conn, at=NOON, actor="ada", action="add", subject="count", payload={})

        threads = [threading.Thread(target=add) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with any_ledger.read() as conn:
            assert store.get_meta(conn, "count") == "40"
            assert store.verify(conn).rows == 40
            assert store.verify(conn).ok

    def test_a_writer_that_would_wait_for_itself_is_told(self, any_ledger: Ledger) -> None:
        with any_ledger.write(), pytest.raises(RuntimeError, match="pass that connection on"):
            any_ledger.write().__enter__()
        with any_ledger.write() as conn:
            store.put_meta(conn, "colour", "blue")

    def test_a_writer_does_not_wait_for_ever(self, ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("loopwright.ledger.engine.BUSY_TIMEOUT_MS", 200)
        ledger = Ledger.open(ledger_url)
        ledger.migrate()
        outcome: list[BaseException] = []

        def wait() -> None:
            try:
                with ledger.write():
                    pass
            except Unavailable as error:
                outcome.append(error)

        with ledger.write():
            other = threading.Thread(target=wait)
            other.start()
            other.join(20)
        ledger.dispose()
        assert "Another process has held the write lock" in str(outcome[0])

    def test_while_another_process_writes_reads_go_on_and_a_write_fails_whole(
        self, ledger_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("loopwright.ledger.engine.BUSY_TIMEOUT_MS", 300)
        ledger = Ledger.open(ledger_url)
        ledger.migrate()
        write_rows(ledger, 3)
        busy = f"""
import sys
from loopwright.ledger import store
from loopwright.ledger.engine import Ledger
with Ledger.open({ledger_url!r}).write() as conn:
    store.put_meta(conn, "theirs", "x")
    print("holding", flush=True)
    sys.stdin.readline()
"""
        other = subprocess.Popen(
            [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdin is not None and other.stdout is not None
        try:
            assert other.stdout.readline() == "holding\n"
            with ledger.read() as conn:
                assert store.verify(conn).rows == 3
                assert store.get_meta(conn, "theirs") is None
            with (
                pytest.raises(Unavailable, match="has held the write lock") as raised,
                ledger.write() as conn,
            ):
                store.put_meta(conn, "ours", "x")
                store.append(conn, at=NOON, actor="ada", action="note", subject="x", payload={})
            assert "loopwright doctor" in str(raised.value)
            with ledger.read() as conn:
                assert store.get_meta(conn, "ours") is None
                assert store.verify(conn).rows == 3
        finally:
            other.communicate("\n")
        write_rows(ledger, 1)
        with ledger.read() as conn:
            assert store.get_meta(conn, "theirs") == "x"
            report = store.verify(conn)
        ledger.dispose()
        assert (report.ok, report.rows) == (True, 4)

    def test_reading_leaves_no_trace(self, any_ledger: Ledger) -> None:
        with any_ledger.read() as conn:
            store.put_meta(conn, "colour", "blue")
        with any_ledger.read() as conn:
            assert store.get_meta(conn, "colour") is None

    def test_a_promotion_of_a_version_that_does_not_exist_is_refused_by_the_database(
        self, any_ledger: Ledger
    ) -> None:
        with pytest.raises(IntegrityError), any_ledger.write() as conn:
            conn.execute(
                promotions.insert().values(
                    id="pr_1", model="m", version=1, stage="Production", bundle="b", requested_by="ada",
                    requested_at=0, reason="", state="pending", policy="{}", policy_digest="d",
                )
            )  # fmt: skip

    def test_a_word_that_is_no_stage_is_refused_by_the_database(self, any_ledger: Ledger) -> None:
        with pytest.raises(IntegrityError), any_ledger.write() as conn:
            conn.execute(versions.insert().values(**version(stage="production")))

    def test_events_of_a_rollout_need_the_rollout(self, any_ledger: Ledger) -> None:
        with pytest.raises(IntegrityError), any_ledger.write() as conn:
            conn.execute(rollout_events.insert().values(rollout_id="ro_x", at=0, kind="step", payload="{}"))


def version(stage: str = "None") -> dict[str, object]:
    return {
        "model": "m", "version": 1, "bundle": "b", "run_id": "r", "snapshot": "s", "semver": "1.0.0",
        "stage": stage, "author": "ada", "created_at": 0, "metrics": "{}", "annotations": "{}",
    }  # fmt: skip


def open_up(conn: Connection) -> None:
    """Take the guards of the log away, as somebody could who owns the database."""
    if conn.dialect.name == "sqlite":
        conn.execute(text("DROP TRIGGER lw_audit_no_update"))
        conn.execute(text("DROP TRIGGER lw_audit_no_delete"))
    else:
        conn.execute(text("ALTER TABLE lw_audit DISABLE TRIGGER ALL"))


_ROW = "INSERT INTO lw_audit (seq, at, actor, action, subject, payload, prev_hash, hash)"
MUTATIONS = {
    "time": ["UPDATE lw_audit SET at = at + 1 WHERE seq = :seq"],
    "actor": ["UPDATE lw_audit SET actor = 'eve' WHERE seq = :seq"],
    "action": ["UPDATE lw_audit SET action = 'Note' WHERE seq = :seq"],
    "subject": ["UPDATE lw_audit SET subject = 'x ' WHERE seq = :seq"],
    "payload": ["""UPDATE lw_audit SET payload = '{"n"\\:9}' WHERE seq = :seq"""],
    "payload spelled otherwise": ["""UPDATE lw_audit SET payload = replace(payload, '\\:', '\\: ') WHERE seq = :seq"""],
    "hash": ["UPDATE lw_audit SET hash = prev_hash WHERE seq = :seq"],
    "hash before": ["UPDATE lw_audit SET prev_hash = hash WHERE seq = :seq"],
    "removed": ["DELETE FROM lw_audit WHERE seq = :seq"],
    "removed and renumbered": [
        "DELETE FROM lw_audit WHERE seq = :seq",
        "UPDATE lw_audit SET seq = -(seq - 1) WHERE seq > :seq", "UPDATE lw_audit SET seq = -seq WHERE seq < 0",
    ],
    "cut": ["DELETE FROM lw_audit WHERE seq >= :seq"],
    "insert a copy": [
        _ROW + " SELECT 7, at, actor, action, subject, payload, prev_hash, hash FROM lw_audit WHERE seq = :seq"
    ],
    "swap times": [
        "UPDATE lw_audit SET at = CASE seq WHEN :seq THEN (SELECT o.at FROM lw_audit o WHERE o.seq = :next) "
        "ELSE (SELECT o.at FROM lw_audit o WHERE o.seq = :seq) END WHERE seq IN (:seq, :next)",
    ],
    "swap rows": [
        "UPDATE lw_audit SET seq = -:seq WHERE seq = :seq", "UPDATE lw_audit SET seq = :seq WHERE seq = :next",
        "UPDATE lw_audit SET seq = :next WHERE seq = -:seq",
    ],
}  # fmt: skip


class TestAudit:
    def test_rows_come_back_as_they_were_written(self, any_ledger: Ledger) -> None:
        moment = datetime(2013, 7, 1, 12, 0, 0, 123456, tzinfo=UTC)
        payload = {"why": "naïve – “quotes”", "figures": (1, 2.5, None, True), "nested": {"b": 1, "a": [2]}}
        with any_ledger.write() as conn:
            written = store.append(
                conn, at=moment, actor="ada", action="note", subject="thing", payload=payload
            )
        with any_ledger.read() as conn:
            assert store.rows(conn) == [written]
            assert store.verify(conn).ok
        assert written.at == moment
        assert written.payload["figures"] == [1, 2.5, None, True]

    def test_a_payload_that_is_no_json_is_refused(self, any_ledger: Ledger) -> None:
        with pytest.raises(BadInput), any_ledger.write() as conn:
            store.append(conn, at=NOON, actor="ada", action="note", subject="x", payload={"n": float("nan")})

    @pytest.mark.parametrize(
        "statement", ["UPDATE lw_audit SET actor = 'eve'", "DELETE FROM lw_audit WHERE seq = 2"]
    )
    def test_the_database_refuses_to_change_it(self, any_ledger: Ledger, statement: str) -> None:
        write_rows(any_ledger, 3)
        with pytest.raises(DatabaseError, match="append-only"), any_ledger.write() as conn:
            conn.execute(text(statement))

    def test_rows_are_found_by_subject_actor_action_and_time(self, any_ledger: Ledger) -> None:
        write_rows(any_ledger, 6)
        with any_ledger.write() as conn:
            store.append(
                conn, at=NOON + timedelta(hours=1), actor="bob", action="look", subject="thing/0", payload={}
            )
        with any_ledger.read() as conn:
            assert [row.seq for row in store.rows(conn, subject="thing/0")] == [1, 3, 5, 7]
            assert [row.seq for row in store.rows(conn, actor="bob")] == [7]
            assert [row.seq for row in store.rows(conn, action="look")] == [7]
            assert [row.seq for row in store.rows(conn, since=NOON + timedelta(minutes=1))] == [7]
            assert [row.seq for row in store.rows(conn, until=NOON + timedelta(minutes=1), limit=2)] == [5, 6]

    def test_a_chain_longer_than_one_fetch_holds(self, any_ledger: Ledger) -> None:
        write_rows(any_ledger, 2_500)
        with any_ledger.read() as conn:
            report = store.verify(conn)
        assert (report.rows, report.ok, report.broken_at) == (2_500, True, None)

    def test_rows_written_while_it_is_walked_do_not_look_like_tampering(
        self, any_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_rows(any_ledger, 6)
        monkeypatch.setattr(store, "PAGE", 2)
        with any_ledger.read() as conn:
            report = store.verify(conn, progress=lambda _: write_rows(any_ledger, 1))
        assert report.ok, report.why
        assert report.rows == 6

    def test_a_walk_in_parts_sees_each_row_once(
        self, any_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "PAGE", 2)
        write_rows(any_ledger, 7)
        told: list[int] = []
        with any_ledger.read() as conn:
            part = store.verify(conn, limit=3, progress=told.append)
            assert (part.ok, part.done, part.rows) == (True, False, 3)
        write_rows(any_ledger, 2)
        with any_ledger.read() as conn:
            whole = store.verify(conn, since=part.reached, progress=told.append)
            assert (whole.ok, whole.done, whole.rows) == (True, True, 9)
            assert store.verify(conn).head == whole.head
        assert told == [2, 3, 5, 7, 9]

    def test_tampering_around_the_triggers_is_found(self, any_ledger: Ledger) -> None:
        write_rows(any_ledger, 5)
        with any_ledger.write() as conn:
            open_up(conn)
            conn.execute(audit.update().where(audit.c.seq == 3).values(payload='{"n":99}'))
        with any_ledger.read() as conn:
            report = store.verify(conn)
        assert (report.ok, report.broken_at) == (False, 3)

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_single_change_is_found_where_it_is(self, any_ledger: Ledger, data: st.DataObject) -> None:
        with any_ledger.write() as conn:
            if store.head(conn) is None:
                for number in range(6):
                    store.append(
                        conn, at=NOON + timedelta(seconds=number), actor="ada", action="note", subject="x",
                        payload={"n": number},
                    )  # fmt: skip
                open_up(conn)
        seq = data.draw(st.integers(1, 6))
        mutation = data.draw(st.sampled_from(sorted(MUTATIONS)))
        with any_ledger.read() as conn:  # undone at its end
            for statement in MUTATIONS[mutation]:
                conn.execute(text(statement), {"seq": seq, "next": seq % 6 + 1, "low": min(seq, seq % 6 + 1)})
            report = store.verify(conn)
        assert not report.ok
        first = {"swap": min(seq, seq % 6 + 1), "cut": seq, "insert": 7}.get(mutation.split()[0], seq)
        assert report.broken_at == first

    def test_bytes_that_are_no_text_do_not_stop_the_walk(self, ledger_url: str) -> None:
        if not ledger_url.startswith("sqlite"):
            return  # PostgreSQL keeps nothing but text in a column of text
        ledger = Ledger.open(ledger_url)
        ledger.migrate()
        write_rows(ledger, 5)
        with ledger.write() as conn:
            open_up(conn)
            conn.execute(text("UPDATE lw_audit SET actor = CAST(x'ff41' AS TEXT) WHERE seq = 3"))
        with ledger.read() as conn:
            report = store.verify(conn)
        ledger.dispose()
        assert (report.ok, report.broken_at) == (False, 3)
        assert "no text" in report.why

    def test_a_clock_that_went_backwards_is_a_remark(self, any_ledger: Ledger) -> None:
        with any_ledger.write() as conn:
            for minutes in (0, 30, 10, 40):
                store.append(
                    conn,
                    at=NOON + timedelta(minutes=minutes),
                    actor="ada",
                    action="note",
                    subject="x",
                    payload={},
                )
        with any_ledger.read() as conn:
            report = store.verify(conn)
            early = store.rows(conn, until=NOON + timedelta(minutes=20))
            late = list(store.iterate(conn, since=NOON + timedelta(minutes=20)))
        assert report.ok
        assert "once" in report.remarks[0] and "0:20:00" in report.remarks[0]
        assert [row.seq for row in early] == [1, 3]
        assert [row.seq for row in late] == [2, 4]

    def test_the_last_row_cannot_vanish_unseen(self, any_ledger: Ledger) -> None:
        write_rows(any_ledger, 5)
        with any_ledger.write() as conn:
            open_up(conn)
            conn.execute(audit.delete().where(audit.c.seq == 5))
        with any_ledger.read() as conn:
            report = store.verify(conn)
        assert (report.ok, report.broken_at) == (False, 5)

    def test_a_chain_written_anew_passes_alone_and_fails_against_an_anchor(self, any_ledger: Ledger) -> None:
        key = SigningKey.generate()
        write_rows(any_ledger, 5)
        with any_ledger.read() as conn:
            head = store.head(conn)
        assert head is not None
        anchor = make_anchor(head, home="h", at=NOON, key_id=key.public.key_id, sign=key.sign)
        write_rows(any_ledger, 2)
        last: tuple[int, str] | None = None
        with any_ledger.write() as conn:
            open_up(conn)
            for row in store.rows(conn):
                actor = "eve" if row.seq == 2 else row.actor
                new = next_row(
                    last, at=row.at, actor=actor, action=row.action, subject=row.subject, payload=row.payload
                )
                values = {"actor": actor, "prev_hash": new.prev_hash, "hash": new.hash}
                conn.execute(audit.update().where(audit.c.seq == row.seq).values(**values))
                last = (new.seq, new.hash)
            assert last is not None
            store.put_meta(conn, "audit.head", f"{last[0]} {last[1]}")
        with any_ledger.read() as conn:
            assert store.verify(conn).ok
            found = store.hashes_at(conn, {5, 99})
        assert set(found) == {5}
        finding = judge(anchor, "the safe", found.get(5), "h", {key.public.key_id: key.public.verify})
        assert not finding.ok
        assert finding.where == "the safe"

    @pytest.mark.parametrize(
        ("asked", "index"),
        [
            ({"subject": "thing/1"}, "ix_lw_audit_subject_seq"),
            ({"actor": "ada"}, "ix_lw_audit_actor_seq"),
            ({"action": "note"}, "ix_lw_audit_action_seq"),
            ({"since": NOON}, "ix_lw_audit_at_seq"),
            ({}, "pk_lw_audit|PRIMARY KEY"),
        ],
    )
    def test_a_filter_is_answered_by_its_index(
        self, any_ledger: Ledger, asked: dict[str, Any], index: str
    ) -> None:
        write_rows(any_ledger, 50)
        plans = []
        with any_ledger.read() as conn:
            if conn.dialect.name == "postgresql":
                # With fifty rows, reading them all is cheaper than any index.
                conn.execute(text("SET LOCAL enable_seqscan = off"))
                conn.execute(text("SET LOCAL enable_sort = off"))
            how = "EXPLAIN QUERY PLAN" if conn.dialect.name == "sqlite" else "EXPLAIN"

            def explain(at: Connection, _c: object, sql: str, given: Any, *_: object) -> None:
                if sql.startswith("SELECT") and "lw_audit" in sql:
                    cursor = at.connection.cursor()
                    cursor.execute(f"{how} {sql}", given)
                    plans.append(str(cursor.fetchall()))

            event.listen(any_ledger.engine, "before_cursor_execute", explain)
            assert store.rows(conn, **asked, limit=5)
            event.remove(any_ledger.engine, "before_cursor_execute", explain)
        assert re.search(index, "\n".join(plans)), plans

    def test_rows_come_page_by_page_in_order(
        self, any_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "PAGE", 3)
        write_rows(any_ledger, 10)
        with any_ledger.write() as conn:
            store.append(
                conn, at=NOON, actor="ada", action="run", subject="run 1", payload={"model": "thing"}
            )
        with any_ledger.read() as conn:
            assert [row.seq for row in store.iterate(conn)] == list(range(1, 12))
            assert [row.seq for row in store.iterate(conn, subject="thing/1")] == [2, 4, 6, 8, 10]
            assert [row.seq for row in store.iterate(conn, model="thing")] == list(range(1, 12))
            assert [row.seq for row in store.iterate(conn, model="thin")] == []
            assert [row.seq for row in store.rows(conn, model="thing", limit=3)] == [8, 9, 10]
            assert [row.seq for row in store.rows(conn, model="thing")] == list(range(1, 11))

    def test_the_newest_rows_of_a_model_are_found_however_long_ago(
        self, any_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "PAGE", 1)  # ten pages are what is looked at first
        with any_ledger.write() as conn:
            for subject in ("old", "old/1", "older/1", *["new/1"] * 20, "old/2"):
                store.append(conn, at=NOON, actor="ada", action="note", subject=subject, payload={})
        with any_ledger.read() as conn:
            assert [row.seq for row in store.rows(conn, model="old", limit=2)] == [2, 24]
            assert [row.seq for row in store.rows(conn, model="old", limit=9)] == [1, 2, 24]

    def test_anchors_are_remembered_with_where_they_went(self, any_ledger: Ledger) -> None:
        write_rows(any_ledger, 3)
        with any_ledger.write() as conn:
            assert store.last_anchor(conn) is None
            assert store.unanchored_since(conn, 0, but="x") is not None
            store.add_anchor(conn, seq=2, head="a", at=NOON, document="{}", places={"/a": ""})
            store.add_anchor(conn, seq=3, head="b", at=NOON, document='{"b":1}', places={"/a": "full"})
            store.add_anchor(conn, seq=3, head="b", at=NOON, document='{"b":1}', places={"/a": ""})
        with any_ledger.read() as conn:
            assert store.last_anchor(conn) == ('{"b":1}', {"/a": ""})
            assert store.anchor_documents(conn) == ["{}", '{"b":1}']
            assert store.unanchored_since(conn, 3, but="x") is None
            assert store.unanchored_since(conn, 2, but="note") is None

    def test_the_numbers_have_no_gaps(self, any_ledger: Ledger) -> None:
        write_rows(any_ledger, 2)
        with pytest.raises(ZeroDivisionError), any_ledger.write() as conn:
            store.append(conn, at=NOON, actor="ada", action="note", subject="x", payload={})
            raise ZeroDivisionError
        write_rows(any_ledger, 2)
        with any_ledger.read() as conn:
            assert list(conn.scalars(select(audit.c.seq).order_by(audit.c.seq))) == [1, 2, 3, 4]


class TestLeases:
    HOUR = timedelta(hours=1)

    def take(self, ledger: Ledger, holder: str, at: datetime) -> bool:
        with ledger.write() as conn:
            return store.acquire(conn, "leader", holder, self.HOUR, at)

    def test_one_holder_at_a_time(self, any_ledger: Ledger) -> None:
        assert self.take(any_ledger, "a", NOON)
        assert not self.take(any_ledger, "b", NOON + timedelta(minutes=59))

    def test_the_holder_renews_it(self, any_ledger: Ledger) -> None:
        assert self.take(any_ledger, "a", NOON)
        assert self.take(any_ledger, "a", NOON + timedelta(minutes=59))
        assert not self.take(any_ledger, "b", NOON + timedelta(minutes=61))

    def test_a_lease_that_ran_out_goes_to_who_asks(self, any_ledger: Ledger) -> None:
        assert self.take(any_ledger, "a", NOON)
        assert self.take(any_ledger, "b", NOON + self.HOUR)
        with any_ledger.read() as conn:
            assert store.holder_of(conn, "leader", NOON + self.HOUR) == "b"

    def test_only_the_holder_gives_it_back(self, any_ledger: Ledger) -> None:
        assert self.take(any_ledger, "a", NOON)
        with any_ledger.write() as conn:
            store.release(conn, "leader", "b")
            assert store.holder_of(conn, "leader", NOON) == "a"
            store.release(conn, "leader", "a")
            assert store.holder_of(conn, "leader", NOON) is None
