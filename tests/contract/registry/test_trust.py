"""Trust in pickled models as both engines keep it."""

from datetime import UTC, datetime, timedelta

import pytest

from loopwright.kernel.errors import NotFound
from loopwright.ledger.engine import Ledger
from loopwright.registry.trust import store

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
ONE, TWO = "ab" * 32, "ab" * 4 + "cd" * 28


def ask(ledger: Ledger, digest: str, at: datetime = NOON) -> store.Trust:
    with ledger.write() as conn:
        return store.put_request(
            conn, digest, name="model.pkl", allowed=["b.C", "a.B"], by="dora", reason="no converter", now=at
        )


def test_a_request_a_decision_and_a_new_request_keep_the_record(ledger: Ledger) -> None:
    asked = ask(ledger, ONE)
    assert (asked.state, asked.globals, asked.record, asked.requested_at) == (
        "pending",
        ("a.B", "b.C"),
        None,
        NOON,
    )
    record = {"record_json": "{}", "signature": "s", "key_id": "k"}
    with ledger.write() as conn:
        given = store.decide(conn, ONE, "approved", by="ada", now=NOON, record=record)
        assert (given.record, given.decided_by, given.decided_at) == (record, "ada", NOON)
        assert store.approved(conn) == [ONE]
        assert store.decide(conn, ONE, "revoked", by="bob", now=NOON).record == record
        assert store.approved(conn) == []
    again = ask(ledger, ONE, NOON + timedelta(days=1))
    assert (again.state, again.decided_by, again.record) == ("pending", None, record)


def test_a_digest_is_found_by_a_beginning_that_is_long_enough_and_clear(ledger: Ledger) -> None:
    ask(ledger, ONE)
    ask(ledger, TWO, NOON + timedelta(hours=1))
    with ledger.read() as conn:
        assert store.get_trust(conn, ONE[:10]).digest == ONE
        assert [trust.digest for trust in store.list_trusts(conn)] == [TWO, ONE]
        assert store.list_trusts(conn, "approved") == []
        assert store.find_trust(conn, "0" * 64) is None
        for text, message in ((ONE[:8], "several"), (ONE[:7], "nobody asked"), ("%" * 8, "nobody asked")):
            with pytest.raises(NotFound, match=message):
                store.get_trust(conn, text)
