"""Tells whoever asked for it that a job has ended: its webhook is called, signed, at least once, with growing pauses.

The event's id is the job's. Workers do it, in a thread beside their work: a slow receiver keeps no row waiting.
"""

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from loopwright.data.sources.reading import public_uri
from loopwright.jobs import store
from loopwright.jobs.job import Job
from loopwright.jobs.request import Request
from loopwright.jobs.settings import Settings
from loopwright.kernel.clock import Clock, iso
from loopwright.kernel.errors import LoopwrightError
from loopwright.kernel.webhook import TIMEOUT, TRIES, guard, pause, post
from loopwright.ledger.engine import Ledger

VISIBLE = timedelta(seconds=60)
"""So long nobody else calls the same webhook; longer than a call takes."""

TROUBLE = 5.0
"""Seconds without a call after the ledger, or something that nobody thought of, was in the way."""

Say = Callable[[dict[str, Any]], None]


def message(job: Job) -> dict[str, Any]:
    """The body. No values of data are in it but for the job's own figures and where its results lie."""
    result = {name: value for name, value in (job.result or {}).items() if name not in ("answers", "columns")}
    error = job.error or {}
    return {
        "event": f"job.{job.state.value}",
        "id": job.id,
        "at": iso(job.ended_at) if job.ended_at else None,
        "job": {
            "id": job.id,
            "model": job.model,
            "key": job.key,
            "state": job.state.value,
            "rows": job.total,
            "done": job.done,
            "failed_rows": job.failed_rows,
            "submitted_at": iso(job.submitted_at),
            "submitted_by": job.submitted_by,
            "result": result or None,
            "error": {name: error[name] for name in ("error", "what", "where") if name in error} or None,
        },
    }


class Teller:
    """Calls webhooks that are due. `timeout`: seconds for one call; `first_pause`: after the first that failed."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Callable[[], Settings],
        clock: Clock,
        say: Say,
        *,
        timeout: float = TIMEOUT,
        first_pause: float = 1.0,
        tries: int = TRIES,
    ) -> None:
        self._ledger, self._settings, self._clock, self._say = ledger, settings, clock, say
        self._timeout, self._first_pause, self._tries = timeout, first_pause, tries

    def run(self, stop: threading.Event, poll: float = 0.5) -> None:
        """Call what is due until `stop` is set; outlasts a ledger that is away for a while."""
        while not stop.is_set():
            try:
                while not stop.is_set() and self.one():
                    pass
            except Exception as error:  # noqa: BLE001 - without this thread nobody would be told any more
                why = str(error) if isinstance(error, LoopwrightError) else f"{type(error).__name__}: {error}"
                self._say({"event": "webhooks waiting", "why": why})
                stop.wait(TROUBLE)
            stop.wait(poll)

    def all_due(self) -> int:
        """Call everything that is due now; returns how many calls that were."""
        calls = 0
        while self.one():
            calls += 1
        return calls

    def one(self) -> bool:
        """Call the next webhook that is due; False when none is."""
        now = self._clock()
        with self._ledger.read() as conn:
            if not store.any_untold(conn, now):
                return False
        with self._ledger.beside() as conn:
            found = store.claim_untold(conn, now, VISIBLE)
        if found is None:
            return False
        job, tells = found
        hook = Request.from_json(job.request).webhook or {}
        problem, hopeless = self._call(job, str(hook.get("url", "")), str(hook.get("secret", "")))
        again = None
        if problem is not None and not hopeless and tells + 1 < self._tries:
            again = self._clock() + timedelta(seconds=pause(tells + 1, self._first_pause))
        with self._ledger.beside() as conn:
            store.record_delivery(conn, job.id, self._clock(), problem, again)
        told: dict[str, Any] = {"event": "told", "job": job.id, "to": public_uri(str(hook.get("url", "")))}
        if problem is not None:
            told |= {"event": "untold", "why": problem, "again_at": iso(again) if again else None}
        self._say(told)
        return True

    def _call(self, job: Job, url: str, secret_name: str) -> tuple[str | None, bool]:
        """(why it was not taken or None, whether trying again would change nothing)."""
        settings = self._settings()
        secret = settings.secret(secret_name)
        if secret is None:
            return f"this worker has no secret `{secret_name}` to sign with: set its variable", False
        body = json.dumps(message(job), ensure_ascii=False, sort_keys=True).encode()
        try:
            check = guard(settings.allow, "webhook")
            return post(url, secret, body, job.id, timeout=self._timeout, check=check), False
        except LoopwrightError as error:
            return str(error), True
