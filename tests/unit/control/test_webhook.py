"""The webhook: signed, at least once, in order, patient with a receiver that fails, never in anybody's way."""

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from loopwright.control.context import Context
from loopwright.control.controllers.incidents import IncidentsController
from loopwright.control.operation import find
from loopwright.control.webhook import Settings, Webhook
from loopwright.data.incidents import store
from loopwright.data.incidents.model import Incident
from loopwright.data.incidents.record import record_incident
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.errors import BadInput
from loopwright.kernel.webhook import signature, verify
from loopwright.ledger import store as ledger_store
from loopwright.monitoring import store as monitoring_store

SECRET = b"between us"


@dataclass
class Receiver:
    """A real server that answers `answers` first, then 200."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)
    """It answers nobody until this is set; it is, to begin with."""

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    known = Receiver()
    known.free.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            known.free.wait(30)
            known.got.append((dict(self.headers), body))
            code = known.answers.pop(0) if known.answers else 200
            self.send_response(code)
            if code == 302:
                self.send_header("Location", known.url + "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield known
    known.free.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def told(ctx: Context, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("HOOK_SECRET", SECRET.decode())
    ctx.home.config.write_text(
        json.dumps({"notify": {"webhook": receiver.url + "/hook?team=ops", "secret_env": "HOOK_SECRET"}})
    )
    return ctx


def open_one(ctx: Context, cause: str = "blocked: x") -> Incident:
    triage = {
        "kind": "blocked", "count": 1, "first_seen": "a", "last_seen": "b", "last_good": None, "changes": [],
        "deliveries": [{"uri": "f.csv", "batch": "b", "rows": 5, "bad": 4}],
        "rules": [{"name": "x <= 1", "column": "x", "examples": [{"row": 1, "x": "a patient's name"}]}],
    }  # fmt: skip
    with ctx.ledger.write() as conn:
        return record_incident(
            conn,
            table="late/flights",
            cause=cause,
            title="late/flights: x",
            triage=triage,
            actor=SYSTEM,
            now=ctx.now,
        )


def until(done: Callable[[], bool], work: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        work()
        time.sleep(0.02)


def test_events_come_signed_and_in_order_after_a_receiver_that_fails_at_first(
    told: Context, receiver: Receiver
) -> None:
    receiver.answers = [500, 302]
    incident = open_one(told)
    find("incidents.ack")(told, incident=incident.id)
    find("incidents.resolve")(told, incident=incident.id, reason="mended")
    controller = IncidentsController(Webhook(pause=0.01))
    until(lambda: len(receiver.got) >= 5, lambda: controller.tick(told))
    names = [body["event"] for body in receiver.bodies()]
    assert names == ["incident.opened"] * 3 + ["incident.acknowledged", "incident.resolved"]
    headers, body = receiver.got[-1]
    assert verify(SECRET, body, headers["Loopwright-Signature"], now=int(time.time()))
    assert not verify(b"another", body, headers["Loopwright-Signature"], now=int(time.time()))
    assert not verify(SECRET, body + b" ", headers["Loopwright-Signature"], now=int(time.time()))
    assert not verify(SECRET, body, headers["Loopwright-Signature"], now=int(time.time()) + 3600)
    assert json.loads(body)["incident"]["id"] == incident.id
    assert all(b"patient" not in body for _, body in receiver.got)
    for _ in range(5):
        controller.tick(told)
        time.sleep(0.02)
    assert len(receiver.got) == 5


def test_what_was_told_is_remembered_by_another_process(told: Context, receiver: Receiver) -> None:
    open_one(told)
    first = Webhook(pause=0.01)
    until(lambda: len(receiver.got) == 1, lambda: first.catch_up(told))
    first.wait(5)
    second = Webhook(pause=0.01)
    open_one(told, "blocked: y")
    until(lambda: len(receiver.got) == 2, lambda: second.catch_up(told))
    second.wait(5)
    assert len({body["id"] for body in receiver.bodies()}) == 2


def test_an_event_that_nobody_takes_is_given_up_and_the_next_one_told(
    told: Context, receiver: Receiver
) -> None:
    receiver.answers = [503, 503, 503]
    open_one(told)
    open_one(told, "blocked: y")
    webhook = Webhook(pause=0.001, tries=3)
    until(lambda: len(receiver.got) == 4, lambda: webhook.catch_up(told))
    webhook.wait(5)
    with told.ledger.read() as conn:
        (row,) = ledger_store.rows(conn, action="incident.untold")
    assert (row.payload["tries"], row.payload["why"]) == (3, "the receiver answers 503")
    assert row.payload["to"].startswith(receiver.url)


def test_an_event_whose_pause_has_passed_before_anybody_looks_is_tried_again(
    told: Context, receiver: Receiver
) -> None:
    receiver.answers = [503]
    open_one(told)
    webhook = Webhook(pause=0.0)
    webhook.catch_up(told)
    webhook.wait(5)
    assert len(receiver.got) == 1
    until(lambda: len(receiver.got) == 2, lambda: webhook.catch_up(told))
    webhook.wait(5)
    webhook.catch_up(told)
    webhook.wait(5)
    assert len(receiver.got) == 2


def test_a_slow_receiver_holds_nobody_up(told: Context, receiver: Receiver) -> None:
    receiver.free.clear()
    open_one(told)
    controller = IncidentsController(Webhook(timeout=60))
    for _ in range(3):
        controller.tick(told)
    assert receiver.got == []
    receiver.free.set()
    until(lambda: len(receiver.got) == 1, lambda: None)


def test_without_a_setting_nothing_is_told(ctx: Context) -> None:
    open_one(ctx)
    assert Settings.of(ctx.home) is None
    IncidentsController().tick(ctx)


@pytest.mark.parametrize(
    ("notify", "why"),
    [
        ({"webhook": "ftp://x/", "secret_env": "HOOK_SECRET"}, "not the address"),
        ({"webhook": "https://x/"}, "nothing to sign with"),
        ({"webhook": "https://x/", "secret_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE is empty"),
        ({"url": "https://x/"}, "names no webhook"),
        ({"webhook": "https://x/", "secret": "s", "secret_env": "HOOK_SECRET"}, "not understood"),
    ],
)
def test_settings_that_cannot_be_used_say_so(
    ctx: Context, monkeypatch: pytest.MonkeyPatch, notify: dict[str, str], why: str
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "s")
    ctx.home.config.write_text(json.dumps({"notify": notify}))
    with pytest.raises(BadInput, match=why):
        Settings.of(ctx.home)
    open_one(ctx)
    IncidentsController().tick(ctx)  # the loop goes on


def test_a_signature_is_of_the_moment_and_the_body() -> None:
    # echo -n '7.{}' | openssl dgst -sha256 -hmac k
    expected = hmac.new(b"k", b"7.{}", hashlib.sha256).hexdigest()
    assert signature(b"k", b"{}", 7) == f"t=7,v1={expected}"
    assert signature(b"k", b"{}", 7) != signature(b"k", b"{}", 8)


def test_consuming_models_get_one_alert_until_the_incident_is_over(
    ctx: Context, register: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    register("late")
    hit = {"features": [], "models": ["late"], "versions": ["late/1"], "live": ["late/1"], "runs": 1}
    monkeypatch.setattr("loopwright.control.incidents.consumers_of", lambda conn, incident: hit)
    incident = open_one(ctx)
    controller = IncidentsController()
    assert [one["incident"] for one in controller.tick(ctx)] == [incident.id]
    assert controller.tick(ctx) == []

    def alerts() -> list[tuple[str, str, str]]:
        with ctx.ledger.read() as conn:
            return [
                (a.kind.value, a.tier.value, a.state.value)
                for a in monitoring_store.list_alerts(conn, "late")
            ]

    assert alerts() == [("data", "P1", "open")]
    find("incidents.resolve")(ctx, incident=incident.id, reason="mended")
    assert alerts() == [("data", "P1", "resolved")]
    refused = pytest.raises(Exception, match="not closed without a post-mortem")
    with ctx.ledger.write() as conn:
        store.save_incident(conn, store.get_incident(conn, incident.id))
    with refused:
        find("incidents.close")(ctx, incident=incident.id)
    assert find("incidents.close")(ctx, incident=incident.id, text="learnt")["state"] == "closed"  # type: ignore[index,call-overload]


def test_viewers_see_no_values_and_move_nothing(people: dict[str, Context]) -> None:
    incident = open_one(people["dora"])
    told = find("incidents.show")(people["vera"], incident=incident.id)
    assert "patient" not in json.dumps(told)
    assert "patient" in json.dumps(find("incidents.show")(people["dora"], incident=incident.id))
    with pytest.raises(Exception, match="vera may not"):
        find("incidents.ack")(people["vera"], incident=incident.id)
    with pytest.raises(Exception, match="vera may not"):
        find("incidents.post_mortem")(people["vera"], incident=incident.id)
    with pytest.raises(Exception, match="vera may not"):
        find("incidents.release")(people["vera"], model="late", table="flights")
