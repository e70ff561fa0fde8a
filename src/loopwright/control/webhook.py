"""Tells another system what becomes of incidents: JSON posted to one URL, signed, at least once and in order.

home.json: `"notify": {"webhook": "https://…", "secret_env": "NAME"}`. What the request carries says `kernel.webhook`;
its event is the event's number. What is not taken, a redirect included, is tried again with growing pauses; after
`TRIES` times the event is given up, which the audit log keeps. What was told is remembered in the ledger, after it was
told.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

from loopwright.control.context import Context
from loopwright.data.incidents import store
from loopwright.data.incidents.model import Event, Incident
from loopwright.data.source import public_uri
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import BadInput, LoopwrightError
from loopwright.kernel.home import Home
from loopwright.kernel.webhook import LONGEST_PAUSE, TIMEOUT, TRIES, check_url, pause, post
from loopwright.ledger import store as ledger_store

TOLD = ("opened", "repeated", "acknowledged", "resolved", "reopened", "backfilled", "closed")
FIRST = timedelta(days=1)
"""A webhook that is set for the first time hears of so much of the past."""
_META = "notify.webhook"

log = logging.getLogger("loopwright.control")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to post, and what to sign with."""

    url: str
    secret: bytes

    @classmethod
    def of(cls, home: Home) -> "Settings | None":
        """What home.json says; None when nothing. Raises BadInput for what cannot be used."""
        named = home.setting("notify")
        if named is None:
            return None
        where, wanted = str(home.config), '{"webhook": "https://…", "secret_env": "NAME"}'
        if not isinstance(named, dict) or not isinstance(named.get("webhook"), str):
            raise BadInput("`notify` names no webhook", where=where, wanted=wanted)
        if unknown := sorted(set(named) - {"webhook", "secret_env"}):
            raise BadInput("`notify` says what is not understood", where=where, got=unknown, wanted=wanted)
        url = str(named["webhook"])
        check_url(url, where)
        variable = str(named.get("secret_env") or "")
        secret = os.environ.get(variable, "") if variable else ""
        if not secret:
            raise BadInput(
                "nothing to sign with", where=where, got=f"the variable {variable or '(none)'} is empty",
                wanted="a secret that the receiver knows too", next='Set it, and name it: "secret_env": "NAME"',
            )  # fmt: skip
        return cls(url, secret.encode())


def message(event: Event, incident: Incident) -> dict[str, Any]:
    """The body. No values of data are in it: who receives it may not be allowed to see them."""
    consumers = incident.consumers or {}
    return {
        "event": f"incident.{event.event}",
        "id": event.id,
        "at": iso(event.at),
        "by": event.actor,
        "incident": {
            "id": incident.id,
            "model": incident.model,
            "table": incident.table,
            "kind": incident.triage.get("kind"),
            "state": incident.state.value,
            "impact": incident.impact,
            "title": incident.title,
            "owner": incident.owner,
            "count": incident.triage.get("count"),
            "opened_at": iso(incident.opened_at),
        },
        "consumers": {
            "features": [one["name"] for one in consumers.get("features", ())],
            "models": list(consumers.get("models", ())),
            "live": list(consumers.get("live", ())),
        },
        "reason": str(event.payload.get("reason", "")),
    }


class _After(Enum):
    """What comes after an event was looked at."""

    NEXT = "the one after it"
    PAUSE = "it was not taken, and is tried again"
    NOTHING = "all has been told"


class Webhook:
    """Posts what is waiting, in a thread of its own: nobody waits for a receiver."""

    def __init__(self, *, pause: float = 1.0, tries: int = TRIES, timeout: float = TIMEOUT) -> None:
        self._first_pause, self._tries, self._timeout = pause, tries, timeout
        self._not_before = 0.0
        self._thread: threading.Thread | None = None
        self._complained = ""
        self._idle_at = -1

    def catch_up(self, ctx: Context) -> None:
        """Begin to post what has not been told yet; is idempotent, and an idle call costs one read."""
        standing = self._thread is not None and self._thread.is_alive()
        if standing or time.monotonic() < self._not_before:
            return
        with ctx.ledger.read() as conn:
            newest = store.last_event(conn)
        if newest == self._idle_at:
            return
        settings = self._settings(ctx)
        if settings is None:
            return
        self._thread = threading.Thread(
            target=self._work, args=(ctx, settings, newest), name="webhook", daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until the posting at work has stopped."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _settings(self, ctx: Context) -> Settings | None:
        try:
            return Settings.of(ctx.home)
        except LoopwrightError as error:
            if str(error) != self._complained:  # not the same line twice a second
                log.warning("webhook: %s", error)
            self._complained, self._not_before = str(error), time.monotonic() + LONGEST_PAUSE / 10
            return None

    def _work(self, ctx: Context, settings: Settings, newest: int) -> None:
        try:
            while (after := self._one(ctx, settings)) is _After.NEXT:
                pass
            if after is _After.NOTHING:  # not asked of the clock: a pause may have passed by now
                self._idle_at = newest
        except Exception as error:  # noqa: BLE001 - whatever the network or the database does, controllers go on
            self._not_before = time.monotonic() + LONGEST_PAUSE / 10
            log.warning("webhook: %s", error)

    def _one(self, ctx: Context, settings: Settings) -> _After:
        """Post the next event."""
        with ctx.ledger.read() as conn:
            told = _told(ledger_store.get_meta(conn, _META))
            found = store.next_event(conn, told["after"])
            incident = store.get_incident(conn, found[1]) if found else None
        if found is None or incident is None:
            return _After.NOTHING
        event = found[0]
        if event.event not in TOLD or (told["after"] == 0 and event.at < ctx.now - FIRST):
            self._remember(ctx, {"after": event.id, "tries": 0})
            return _After.NEXT
        problem = self._post(settings, message(event, incident), event.id)
        if problem is None:
            self._remember(ctx, {"after": event.id, "tries": 0})
            return _After.NEXT
        tries = told["tries"] + 1
        if tries >= self._tries:
            self._give_up(ctx, event, incident, settings, problem, tries)
            return _After.NEXT
        self._remember(ctx, {"after": told["after"], "tries": tries})
        self._not_before = time.monotonic() + pause(tries, self._first_pause)
        log.warning("webhook: event %d: %s; try %d of %d", event.id, problem, tries, self._tries)
        return _After.PAUSE

    def _post(self, settings: Settings, document: Mapping[str, Any], event: int) -> str | None:
        """Why it was not taken; None when it was. The address is an admin's own: any may be called."""
        body = json.dumps(document, ensure_ascii=False, sort_keys=True).encode()
        return post(settings.url, settings.secret, body, str(event), timeout=self._timeout)

    def _remember(self, ctx: Context, told: Mapping[str, int]) -> None:
        with ctx.ledger.write() as conn:
            ledger_store.put_meta(conn, _META, json.dumps(told))

    def _give_up(
        self, ctx: Context, event: Event, incident: Incident, settings: Settings, problem: str, tries: int
    ) -> None:
        with ctx.ledger.write() as conn:
            ledger_store.put_meta(conn, _META, json.dumps({"after": event.id, "tries": 0}))
            ledger_store.append(
                conn, at=ctx.now, actor=SYSTEM.name, action="incident.untold", subject=incident.table,
                payload={"model": incident.model, "incident": incident.id, "event": event.id, "what": event.event,
                         "to": public_uri(settings.url), "tries": tries, "why": problem},
            )  # fmt: skip
        log.error("webhook: event %d is given up after %d tries: %s", event.id, tries, problem)


def _told(text: str | None) -> dict[str, int]:
    known = json.loads(text) if text else {}
    return {"after": int(known.get("after", 0)), "tries": int(known.get("tries", 0))}
