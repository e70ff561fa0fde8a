"""A home's keys change hands without a moment in which nobody can sign or nothing can be checked."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loopwright.bundle.keyring import (
    NEXT,
    SIGNING,
    KeyEntry,
    Keyring,
    Ring,
    follow,
    open_ring,
    sign_ring,
)
from loopwright.bundle.keys import SigningKey
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, Tampered

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
replace = msgspec.structs.replace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def keyring(folder: Path) -> Keyring:
    return Keyring.open(folder, now=lambda: NOON)


def test_a_new_home_has_one_key_that_only_its_owner_may_read(keyring: Keyring, folder: Path) -> None:
    assert [entry.state for entry in keyring.ring.keys] == ["current"]
    assert keyring.public == (keyring.signing.public,)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / SIGNING).stat().st_mode & 0o777 == 0o600
    assert Keyring.open(folder).signing.public == keyring.signing.public


def test_a_home_from_before_there_were_lists_keeps_its_key(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    old = SigningKey.load_or_create(folder / SIGNING)
    assert Keyring.open(folder, create=False).signing.public == old.public
    assert Keyring.open(folder).ring.serial == 1


def test_after_a_rotation_the_new_key_signs_and_the_old_ones_signatures_still_count(keyring: Keyring) -> None:
    old = keyring.signing
    entry = keyring.rotate(NOON)
    assert keyring.signing.public.key_id == entry.key_id != old.public.key_id
    assert keyring.public == (keyring.signing.public, old.public)
    old.public.verify(entry.statement(), entry.endorsement)


def test_a_revoked_keys_signatures_count_no_more(keyring: Keyring, folder: Path) -> None:
    old = keyring.signing.public
    keyring.rotate(NOON)
    gone = keyring.revoke(old.key_id, NOON + timedelta(hours=1), "a laptop was stolen")
    assert (gone.state, gone.reason) == ("revoked", "a laptop was stolen")
    assert old not in keyring.public
    assert old not in Keyring.open(folder).public
    assert keyring.revoke(old.key_id, NOON + timedelta(days=1), "again") == gone


def test_what_cannot_be_revoked_is_said(keyring: Keyring) -> None:
    with pytest.raises(Refused, match="keys rotate"):
        keyring.revoke(keyring.signing.public.key_id, NOON, "why not")
    with pytest.raises(NotFound, match="no such key"):
        keyring.revoke("0" * 16, NOON, "why not")
    with pytest.raises(BadInput, match="for a reason"):
        keyring.revoke(keyring.signing.public.key_id, NOON, " ")


def test_another_processs_rotation_is_seen_by_the_next_signature(keyring: Keyring, folder: Path) -> None:
    Keyring.open(folder).rotate(NOON)
    assert keyring.signing.public == Keyring.open(folder).signing.public
    assert len(keyring.public) == 2


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(3))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_instant_of_a_rotation_the_folder_opens(
    keyring: Keyring, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, moment: str
) -> None:
    first, real, calls = keyring.signing.public, Path.replace, []

    def dying(self: Path, target: Any) -> Path:
        calls.append(target)
        if len(calls) - 1 == step and moment == "before":
            raise Killed
        moved = real(self, target)
        if len(calls) - 1 == step:
            raise Killed
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            keyring.rotate(NOON)
    opened = Keyring.open(folder)
    assert first in opened.public
    assert opened.signing.public.to_text() == opened.ring.head.public
    assert not (folder / NEXT).exists()
    assert keyring.signing.public == opened.signing.public, "the process that saw it go wrong goes on too"
    opened.rotate(NOON)
    assert Keyring.open(folder).signing.public == opened.signing.public


def test_a_missing_private_key_is_never_replaced_by_a_new_one(keyring: Keyring, folder: Path) -> None:
    gone = keyring.ring.head.key_id
    (folder / SIGNING).unlink()
    for create in (True, False):
        with pytest.raises(NotFound, match=rf"{gone} is missing.*backup"):
            Keyring.open(folder, create=create)
    assert not (folder / SIGNING).exists()


def test_keys_that_others_may_read_are_not_used(keyring: Keyring, folder: Path) -> None:
    (folder / SIGNING).chmod(0o644)
    with pytest.raises(Refused, match="chmod 600"):
        Keyring.open(folder)
    (folder / SIGNING).chmod(0o600)
    folder.chmod(0o755)
    with pytest.raises(Refused, match="chmod 700"):
        Keyring.open(folder)


def test_a_key_of_another_backup_is_noticed(keyring: Keyring, folder: Path) -> None:
    SigningKey.generate().save(folder / SIGNING)
    with pytest.raises(Conflict, match="one backup"):
        Keyring.open(folder)


# What a server believes.


def grown(*keys: SigningKey, revoked: tuple[int, ...] = ()) -> Ring:
    """A list of `keys` as a home that rotated through them would have it."""
    entries: list[KeyEntry] = []
    for serial, key in enumerate(keys, start=1):
        entry = KeyEntry(key_id=key.public.key_id, public=key.public.to_text(), serial=serial, created_at="t")
        if entries:
            entries[-1] = replace(entries[-1], retired_at="t")
            entry = replace(entry, endorsement=keys[serial - 2].sign(entry.statement()))
        entries.append(entry)
    entries = [replace(entry, revoked_at="t") if i in revoked else entry for i, entry in enumerate(entries)]
    return Ring(kind="loopwright-keyring/1", serial=len(keys) + len(revoked), keys=tuple(entries))


A, B, C, EVIL = (SigningKey.generate() for _ in range(4))


def test_a_list_survives_its_journey() -> None:
    ring = grown(A, B, C)
    assert open_ring(sign_ring(ring, C)) == ring


@pytest.mark.parametrize(
    ("spoil", "signer"),
    [
        (lambda ring: ring, EVIL),
        (lambda ring: ring, A),
        (
            lambda r: replace(
                r, keys=(r.keys[0], replace(r.keys[1], endorsement=EVIL.sign(r.keys[1].statement())))
            ),
            B,
        ),
        (lambda r: replace(r, keys=(r.keys[0], replace(r.keys[1], endorsement=""))), B),
        (lambda r: replace(r, keys=(r.keys[0], replace(r.keys[1], created_at="later"))), B),
        (lambda r: replace(r, keys=(r.keys[0], replace(r.keys[1], serial=7))), B),
        (lambda r: replace(r, keys=(replace(r.keys[0], key_id="0" * 16), r.keys[1])), B),
        (lambda r: replace(r, keys=(replace(r.keys[0], retired_at=""), r.keys[1])), B),
        (lambda r: replace(r, keys=(r.keys[0], replace(r.keys[1], revoked_at="t"))), B),
        (lambda r: replace(r, kind="loopwright-keyring/0"), B),
        (lambda r: replace(r, keys=()), B),
    ],
)
def test_a_forged_list_is_noticed(spoil: Callable[[Ring], Ring], signer: SigningKey) -> None:
    with pytest.raises(Tampered):
        open_ring(sign_ring(spoil(grown(A, B)), signer))


@pytest.mark.parametrize("document", [b"", b"{}", b"[]", b'{"ring": "{}", "signature": ""}', b"\xff"])
def test_what_is_no_list_is_refused(document: bytes) -> None:
    with pytest.raises(Tampered, match="not a list of keys"):
        open_ring(document)


def test_a_pinned_key_leads_to_the_newest_through_endorsements() -> None:
    follow(grown(A, B, C), known=None, anchors=[A.public], where="pin")
    follow(grown(A, B, C), known=grown(A, B), anchors=[], where="pin")
    follow(grown(A, B, revoked=(0,)), known=grown(A, B), anchors=[], where="pin")


@pytest.mark.parametrize(
    ("offered", "known", "message"),
    [
        (grown(EVIL), None, "not the one this server trusts"),
        (grown(EVIL, B), None, "not the one this server trusts"),
        (grown(EVIL), grown(A), "two lists"),
        (grown(EVIL, B), grown(A), "do not continue"),
        (grown(A), grown(A, B), "older list"),
        (grown(A, B), grown(A, B, revoked=(0,)), "older list"),
        (grown(A, C), grown(A, B), "two lists"),
        # Who stole the retired key starts a line of their own from it.
        (grown(A, EVIL, C), grown(A, B), "do not continue"),
        (grown(A, B, C), grown(A, B, revoked=(0,)), "to be trusted again|two lists"),
    ],
)
def test_a_stranger_a_fork_and_an_older_list_are_not_followed(
    offered: Ring, known: Ring | None, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        follow(offered, known=known, anchors=[A.public], where="pin")


def test_a_revoked_key_stays_revoked() -> None:
    longer = replace(grown(A, B, C), serial=9)
    with pytest.raises(Refused, match="to be trusted again"):
        follow(longer, known=grown(A, B, revoked=(0,)), anchors=[], where="pin")
