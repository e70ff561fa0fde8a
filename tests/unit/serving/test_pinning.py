"""Whom a server believes: it follows its control plane's keys, and nobody else's."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keyring import Keyring
from loopwright.bundle.keys import PublicKey, SigningKey
from loopwright.bundle.routes import Arm, sign_routes
from loopwright.bundle.testing import route_for, table_of, tiny_bundle
from loopwright.kernel.errors import Refused, Tampered, Unavailable
from loopwright.serving.cache import Cache
from loopwright.serving.complaints import Complaints
from loopwright.serving.following import Following
from loopwright.serving.options import ServeOptions
from loopwright.serving.pinning import trusted_keys
from loopwright.serving.profiles import Profiles
from loopwright.serving.upstream import Upstream

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
STABLE = [Arm("stable", 1, 1.0)]


class Control(Upstream):
    """A control plane in this process."""

    def __init__(self, folder: Path) -> None:
        super().__init__("http://127.0.0.1:1", None)
        self.keyring = Keyring.open(folder / "keys")
        self.depot = BundleDepot(folder / "bundles")
        self.digest = self.depot.add(tiny_bundle(folder / "one", self.keyring.signing).path)
        self.serial, self.away = 0, False
        self.document = b""

    def publish(self, key: SigningKey | None = None) -> None:
        self.serial += 1
        signing = key or self.keyring.signing
        self.document = sign_routes(
            table_of(self.serial, route_for(signing, {1: self.digest}, STABLE)), signing
        )

    def _answer(self, what: Any) -> Any:
        if self.away:
            raise Unavailable("away")
        return what

    def keys(self) -> tuple[list[PublicKey], bytes]:
        return self._answer((list(self.keyring.public), self.keyring.document))  # type: ignore[no-any-return]

    def routes(self) -> bytes:
        return self._answer(self.document)  # type: ignore[no-any-return]

    def bundle_file(self, digest: str, name: str) -> bytes:
        return self._answer(self.depot.file(digest, name).read_bytes())  # type: ignore[no-any-return]


class Wire:
    """Stands for the channels to the workers."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


@pytest.fixture
def control(tmp_path: Path) -> Control:
    made = Control(tmp_path / "control")
    made.publish()
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path / "serving")
    made.create()
    return made


Start = Callable[..., tuple[Following, Wire]]


@pytest.fixture
def start(cache: Cache, control: Control) -> Start:
    """Starts a server on the same folder, as far as trust and the first table."""

    def begin(**options: Any) -> tuple[Following, Wire]:
        asked = ServeOptions(
            control=control.url, home=cache.folder, keys_every=0.0, say=lambda _: None, wait=0.0, **options
        )
        keys = trusted_keys(asked, cache, control)
        wire, profiles = Wire(), Profiles(cache, asked.say)
        made = Following(asked, cache, control, keys, profiles, Complaints(asked.say), wire.send)
        asyncio.run(made.begin())
        return made, wire

    return begin


def poll(server: Following) -> int:
    return asyncio.run(server.poll())


def test_the_newest_key_is_pinned_and_speaks_for_those_before_it(
    start: Start, control: Control, cache: Cache
) -> None:
    control.keyring.rotate(NOON)
    control.publish()
    server, _ = start()
    assert server.keys == list(control.keyring.public)
    assert cache.pinned() == server.keys
    assert control.keyring.signing.public.to_text() in (cache.folder / "control.key").read_text()


def test_a_rotation_reaches_a_pinned_server_and_its_workers(start: Start, control: Control) -> None:
    server, wire = start()
    control.keyring.rotate(NOON)
    control.publish()
    assert poll(server) == 2
    texts = [key.to_text() for key in control.keyring.public]
    assert wire.sent[-2:] == [{"keys": texts}, {"apply": {}}]
    assert len(texts) == 2


def test_two_rotations_between_two_looks_are_followed(start: Start, control: Control) -> None:
    server, _ = start()
    for _ in range(2):
        control.keyring.rotate(NOON)
    control.publish()
    assert poll(server) == 2
    assert len(server.keys) == 3


def test_after_a_restart_without_the_control_plane_the_followed_keys_count(
    start: Start, control: Control, cache: Cache
) -> None:
    server, _ = start()
    control.keyring.rotate(NOON)
    control.publish()
    poll(server)
    control.away = True
    again, _ = start()
    assert again.keys == list(control.keyring.public)
    assert again.table is not None and again.table.serial == 2


def test_a_key_given_on_the_command_line_leads_to_its_successors(
    start: Start, control: Control, tmp_path: Path
) -> None:
    given = tmp_path / "key"
    given.write_text(control.keyring.signing.public.to_text())
    control.keyring.rotate(NOON)
    control.publish()
    server, _ = start(public_key=given)
    assert server.table is not None
    assert server.keys == list(control.keyring.public)
    assert start(public_key=given)[0].keys == list(control.keyring.public)


def test_a_revoked_key_is_dropped_and_what_only_it_sealed_is_refused_until_it_is_sealed_anew(
    start: Start, control: Control, cache: Cache
) -> None:
    server, _ = start()
    old = control.keyring.signing.public
    control.keyring.rotate(NOON)
    control.keyring.revoke(old.key_id, NOON, "stolen")
    control.publish()
    poll(server)
    assert old not in server.keys
    assert control.digest in server.unfetched
    assert not cache.depot.has(control.digest)
    control.depot.reseal(control.digest, control.keyring.signing)
    poll(server)
    assert server.unfetched == {}
    assert cache.depot.sealed_by(control.digest) == control.keyring.signing.public.key_id


def test_a_table_signed_by_a_revoked_key_is_not_followed(
    start: Start, control: Control, cache: Cache
) -> None:
    server, _ = start()
    old = control.keyring.signing
    control.keyring.rotate(NOON)
    control.keyring.revoke(old.public.key_id, NOON, "stolen")
    control.publish(old)
    with pytest.raises(Tampered, match="does not trust"):
        poll(server)
    control.away = True
    with pytest.raises(Unavailable, match="away"):
        start()  # nor is the table that was kept from before: there is none to begin with


def test_a_table_signed_by_a_retired_key_is_not_followed(start: Start, control: Control) -> None:
    """Whoever copied a key before it was rotated could else send traffic where they like, revoked or not."""
    server, wire = start()
    old = control.keyring.signing
    control.keyring.rotate(NOON)
    control.publish()
    assert poll(server) == 2
    said = len(wire.sent)
    control.publish(old)
    with pytest.raises(Tampered, match="retired"):
        poll(server)
    assert (server.table.serial if server.table else None, len(wire.sent)) == (2, said)
    control.publish()
    assert poll(server) == 4


def test_a_stranger_is_not_followed(start: Start, control: Control, cache: Cache, tmp_path: Path) -> None:
    server, _ = start()
    told: list[str] = []
    trusted = list(server.keys)
    server._complain = Complaints(told.append)
    control.keyring = Keyring.open(tmp_path / "stranger")
    control.publish()
    with pytest.raises(Refused, match="two lists of keys with one serial"):
        poll(server)
    assert server.keys == trusted == cache.pinned()
    assert any("are not followed" in text for text in told)


def test_an_older_list_of_keys_is_not_taken_back(start: Start, control: Control, cache: Cache) -> None:
    before = control.keyring.document
    server, _ = start()
    control.keyring.rotate(NOON)
    control.publish()
    poll(server)
    with pytest.raises(Refused, match="older list"):
        cache.follow(before)
    assert len(cache.pinned()) == 2


def test_a_kept_list_that_was_changed_is_not_believed(start: Start, control: Control, cache: Cache) -> None:
    start()
    path = cache.folder / "keyring.json"
    path.write_bytes(path.read_bytes().replace(b"current", b"currant").replace(b"serial", b"sirial"))
    with pytest.raises(Tampered):
        cache.pinned()


def test_keys_that_cannot_be_asked_for_keep_nobody_from_following_routes(
    start: Start, control: Control
) -> None:
    server, _ = start()

    def away() -> Any:
        raise Unavailable("away")

    control.keys = away  # type: ignore[method-assign]
    control.publish()
    assert poll(server) == 2


def test_a_control_plane_set_up_anew_is_followed_after_the_pin_is_deleted(
    start: Start, control: Control, cache: Cache, tmp_path: Path
) -> None:
    start()
    control.keyring = Keyring.open(tmp_path / "anew")
    control.digest = control.depot.add(tiny_bundle(tmp_path / "two", control.keyring.signing, bias=1.0).path)
    control.publish()
    (cache.folder / "control.key").unlink()
    server, _ = start()
    assert server.keys == list(control.keyring.public)
