"""Signed documents: approvals and route tables."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.approval import ApprovalRecord, SignedRecord, sign_record, verify_record
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.routes import Arm, ModelRoute, open_routes, sign_routes
from loopwright.bundle.testing import approval_for, route_for, table_of
from loopwright.kernel.errors import BadInput, Tampered

KEY = SigningKey.generate()
DIGEST = "a" * 64
RECORD = ApprovalRecord(
    model="late",
    version=2,
    bundle=DIGEST,
    stage="Production",
    promotion_id="pr_1",
    policy_digest="b" * 64,
    requested_by="ana",
    approvals=(("bo", "2013-04-01T00:00:00Z"),),
)


def test_a_signed_record_comes_back_as_it_was() -> None:
    assert verify_record(sign_record(RECORD, KEY), [SigningKey.generate().public, KEY.public]) == RECORD


def test_a_changed_record_is_noticed() -> None:
    signed = sign_record(RECORD, KEY)
    forged = SignedRecord(
        signed.record_json.replace('"version":2', '"version":3'), signed.signature, signed.key_id
    )
    with pytest.raises(Tampered):
        verify_record(forged, [KEY.public])
    with pytest.raises(Tampered, match="does not trust"):
        verify_record(signed, [SigningKey.generate().public])


def test_a_route_table_comes_back_as_it_was_and_signs_the_same_way_twice() -> None:
    table = table_of(
        7, route_for(KEY, {1: DIGEST, 2: "b" * 64}, [Arm("stable", 1, 0.95), Arm("canary", 2, 0.05)])
    )
    assert open_routes(sign_routes(table, KEY), [KEY.public]) == table
    assert sign_routes(table, KEY) == sign_routes(table, KEY)


@given(position=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_no_flipped_bit_gives_another_table(position: int, bit: int) -> None:
    table = table_of(7, route_for(KEY, {1: DIGEST}, [Arm("stable", 1, 1.0)]))
    document = bytearray(sign_routes(table, KEY))
    document[position % len(document)] ^= 1 << bit
    try:
        opened = open_routes(bytes(document), [KEY.public])
    except Tampered:
        return
    assert opened == table


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"\xff", b"[" * 100_000, json.dumps({"table": "{}"}).encode()]
)
def test_what_is_no_table_is_refused(document: bytes) -> None:
    with pytest.raises(Tampered):
        open_routes(document, [KEY.public])


def test_routes_that_make_no_sense_cannot_be_written() -> None:
    versions = route_for(KEY, {1: DIGEST}, [Arm("stable", 1, 1.0)]).versions
    with pytest.raises(BadInput, match="one stable arm"):
        ModelRoute("late", "s", (Arm("canary", 1, 1.0),), versions)
    with pytest.raises(BadInput, match="no bundle"):
        ModelRoute("late", "s", (Arm("stable", 2, 1.0),), versions)
    with pytest.raises(BadInput, match="between 0 and 1"):
        Arm("canary", 1, 1.5)


def test_an_approval_names_who_approved() -> None:
    record = verify_record(approval_for(KEY, "late", 1, DIGEST), [KEY.public])
    assert [reviewer for reviewer, _ in record.approvals] == ["bo", "cy"]
