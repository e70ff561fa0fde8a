"""An anchor says what a row's hash was, and can be neither changed nor made by others."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from loopwright.bundle.keys import SigningKey
from loopwright.kernel.errors import Tampered, Unavailable
from loopwright.ledger.anchor import (
    Anchor,
    Keys,
    distinct,
    judge,
    make_anchor,
    parse_anchor,
    read_anchors,
    tell,
    write_anchor,
)

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
KEY = SigningKey.generate()
KEYS: Keys = {KEY.public.key_id: KEY.public.verify}
HASH = "a" * 64


def anchor(seq: int = 7, digest: str = HASH) -> Anchor:
    return make_anchor((seq, digest), home="home_1", at=NOON, key_id=KEY.public.key_id, sign=KEY.sign)


def test_a_log_that_is_as_it_was_agrees() -> None:
    found = judge(anchor(), "x.json", HASH, "home_1", KEYS)
    assert found.ok and found.counts
    assert found.why == "row 7 is as it was on 2026-11-01T12:00:00Z"


def test_another_hash_or_no_row_is_found_with_where_it_is_known_from() -> None:
    other = judge(anchor(), "vault/x.json", "b" * 64, "home_1", KEYS)
    gone = judge(anchor(), "vault/x.json", None, "home_1", KEYS)
    assert not other.ok and "row 7 had another hash" in other.why and other.where == "vault/x.json"
    assert not gone.ok and "it is gone" in gone.why


def test_an_anchor_that_was_changed_is_found() -> None:
    document = anchor().to_json() | {"hash": "b" * 64}
    found = judge(Anchor.from_json(document, "x"), "x", "b" * 64, "home_1", KEYS)
    assert not found.ok and found.counts
    assert "it was changed" in found.why


def test_what_an_unknown_key_signed_counts_for_nothing() -> None:
    found = judge(anchor(), "x", "b" * 64, "home_1", {})
    assert not found.counts
    assert "not trusted" in found.why


def test_another_homes_anchor_says_so() -> None:
    assert "another home" in judge(anchor(), "x", HASH, "home_2", KEYS).why


def test_a_folder_gets_a_file_of_each_and_all_in_one(tmp_path: Path) -> None:
    for one in (anchor(7), anchor(9)):
        write_anchor(one, tmp_path / "vault")
    names = sorted(path.name for path in (tmp_path / "vault").iterdir())
    assert names == ["000000000007-aaaaaaaaaaaa.json", "000000000009-aaaaaaaaaaaa.json", "anchors.jsonl"]
    assert len(read_anchors(tmp_path / "vault")) == 4
    assert [one.seq for _, one in distinct(read_anchors(tmp_path / "vault"))] == [7, 9]


def test_a_file_grows_line_by_line_also_after_a_crash_cut_one_short(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "anchors.jsonl"
    write_anchor(anchor(7), path)
    with path.open("ab") as stream:
        stream.write(b'{"kind":"loop')
    write_anchor(anchor(9), path)
    assert json.loads(path.read_text().splitlines()[-1])["seq"] == 9
    with pytest.raises(Tampered, match="not an anchor") as raised:
        read_anchors(path)
    assert "anchors.jsonl:2" in raised.value.where


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot write"):
        write_anchor(anchor(), tmp_path / "file" / "below")
    assert tell({"a": "", "b": "cannot write"}) == "b: cannot write"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind":"loopwright-anchor/1","seq":"7"}', "[" * 10_000])
def test_what_is_no_anchor_is_refused(text: str) -> None:
    with pytest.raises(Tampered, match="not an anchor"):
        parse_anchor(text, "x")


def test_an_anchor_is_read_as_it_was_written() -> None:
    assert parse_anchor(json.dumps(anchor().to_json()), "x") == anchor()
