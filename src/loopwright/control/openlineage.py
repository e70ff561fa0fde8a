"""Keeps a home's OpenLineage events: writes them to a file as they happen, and posts them to a server if one is named.

    HOME/lineage/openlineage.jsonl   one event a line, made from the audit log in its order
    HOME/lineage/told.json           how far the audit log has been told, and how long the file was then
    HOME/lineage/posted              how many bytes of the file the server has
    HOME/lineage/refused.jsonl       events that the server would not take, with its word

Nothing waits for it: writing is a read and an append, posting has a thread of its own, and a server that is away is
tried again later, from where it stopped. The folder may be deleted; `loopwright lineage export` makes every event anew.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from loopwright.kernel.errors import BadInput, LoopwrightError
from loopwright.kernel.files import lock, write_atomic
from loopwright.kernel.home import Home
from loopwright.ledger.engine import Ledger
from loopwright.registry.lineage import store
from loopwright.registry.lineage.openlineage import NAMESPACE, Act, Event, events

log = logging.getLogger("loopwright.lineage")

ENDPOINT = "api/v1/lineage"
TIMEOUT = 5.0
ATTEMPTS = 3
LONGEST_PAUSE = 60.0
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Settings:
    """Where events go. `url` is "" when no server is named."""

    url: str = ""
    api_key: str = ""

    @classmethod
    def of(cls, home: Home) -> "Settings":
        """What OPENLINEAGE_URL, _ENDPOINT and _API_KEY say, else home.json's `openlineage`.

        The key itself never stands in home.json: `api_key_env` names the variable that holds it. Raises BadInput.
        """
        named = home.openlineage
        url = os.environ.get("OPENLINEAGE_URL") or str(named.get("url") or "")
        if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise BadInput(
                "not the URL of an OpenLineage server", where=str(home.config), got=url, wanted="http(s)://…"
            )
        endpoint = os.environ.get("OPENLINEAGE_ENDPOINT") or str(named.get("endpoint") or ENDPOINT)
        key = os.environ.get("OPENLINEAGE_API_KEY") or os.environ.get(str(named.get("api_key_env") or ""), "")
        return cls(f"{url.rstrip('/')}/{endpoint.lstrip('/')}" if url else "", key)


def namespace_of(home: Home) -> str:
    """The namespace of jobs and datasets: OPENLINEAGE_NAMESPACE, else home.json's `openlineage`, else "loopwright"."""
    return os.environ.get("OPENLINEAGE_NAMESPACE") or str(home.openlineage.get("namespace") or NAMESPACE)


def told(
    ledger: Ledger,
    *,
    namespace: str = NAMESPACE,
    after: int = 0,
    until: int | None = None,
    since: datetime | None = None,
    limit: int = _PAGE,
) -> tuple[list[Event], int | None]:
    """The events of the next `limit` acts after audit row `after`, up to row `until`, and the row to go on from.

    That is None at the end.
    """
    with ledger.read() as conn:
        rows = store.acts(conn, after=after, until=until, since=since, limit=limit)
        facts = store.Facts(conn)
        found = [event for row in rows for event in events(Act(*row), facts, namespace=namespace)]
    return found, rows[-1][0] if len(rows) == limit else None


class Emitter:
    """Tells one home's events. Safe to use from several processes and threads at once."""

    def __init__(self, home: Home, ledger: Ledger) -> None:
        self.home, self.ledger = home, ledger
        self.folder = home.root / "lineage"
        self.file = self.folder / "openlineage.jsonl"
        self._seen = -1
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._pause = 0.0
        self._not_before = 0.0

    def catch_up(self) -> int:
        """Append the events of all acts since the last time; returns how many. One read when there are none.

        Killed half-way, the next call cuts off what was half written and goes on: no event is lost or there twice.
        """
        with self.ledger.read() as conn:
            newest = store.last_act(conn)
        if newest == self._seen:
            return 0
        namespace = namespace_of(self.home)
        written = 0
        with lock(self.folder / ".lock"):
            seq, size = self._told()
            with self.ledger.read() as conn:  # again: another process may have told more since
                newest = store.last_act(conn)
            self.file.touch()
            with self.file.open("r+b") as stream:
                # Shorter than it was: somebody made room. What was told stays told.
                stream.truncate(min(size, stream.seek(0, os.SEEK_END)))
                stream.seek(0, os.SEEK_END)
                going: int | None = seq
                while going is not None:
                    found, going = told(self.ledger, namespace=namespace, after=going, until=newest)
                    for event in found:
                        stream.write(
                            json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
                        )
                    written += len(found)
                stream.flush()
                os.fsync(stream.fileno())
                size = stream.tell()
            write_atomic(self.folder / "told.json", json.dumps({"seq": newest, "size": size}).encode())
        self._seen = newest
        return written

    def post(self) -> None:
        """Begin to post what the server does not have yet, in the background; nothing when that is going on.

        A setting that cannot be used is logged, once a minute.
        """
        with self._starting:
            standing = self._thread is not None and self._thread.is_alive()
            if standing or time.monotonic() < self._not_before or not self._waiting():
                return
            try:
                settings = Settings.of(self.home)
            except BadInput as error:
                self._not_before = time.monotonic() + LONGEST_PAUSE
                log.warning("OpenLineage: %s", error)
                return
            if settings.url:
                self._thread = threading.Thread(
                    target=self._work, args=(settings,), name="openlineage", daemon=True
                )
                self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until posting has stopped; whether the server has everything."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self._waiting()

    def _told(self) -> tuple[int, int]:
        try:
            known = json.loads((self.folder / "told.json").read_bytes())
            return int(known["seq"]), int(known["size"])
        except (OSError, ValueError, KeyError):
            return 0, 0

    def _posted(self) -> int:
        size = self.file.stat().st_size if self.file.exists() else 0
        try:
            done = int((self.folder / "posted").read_text())
        except (OSError, ValueError):
            done = 0
        return done if done <= size else 0  # the file began anew

    def _waiting(self) -> bool:
        return self.file.exists() and self._posted() < self._told()[1]

    def _work(self, settings: Settings) -> None:
        """Post line by line until all is there or the server is not; never raises."""
        try:
            with lock(self.folder / ".posting"):
                self._post_all(settings)
            self._pause = 0.0
        except Exception as error:  # noqa: BLE001 - whatever the network does, nobody who trains or serves may notice
            self._pause = min(LONGEST_PAUSE, max(1.0, 2 * self._pause))
            self._not_before = time.monotonic() + self._pause
            log.warning("OpenLineage: %s; trying again in %.0f s", error, self._pause)

    def _post_all(self, settings: Settings) -> None:
        import httpx

        headers = {"Content-Type": "application/json"}
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        with httpx.Client(timeout=TIMEOUT, headers=headers) as client, self.file.open("rb") as stream:
            stream.seek(self._posted())
            while stream.tell() < self._told()[1]:  # more may be told while this is posted
                line = stream.readline()
                if not line:  # the folder was deleted meanwhile, and its file began anew
                    return
                self._post_one(client, settings.url, line)
                write_atomic(self.folder / "posted", str(stream.tell()).encode())

    def _post_one(self, client: Any, url: str, line: bytes) -> None:
        import httpx
        import stamina

        # A server's hiccup is waited out here; one that stays away is left to the next round.
        for attempt in stamina.retry_context(
            on=httpx.TransportError, attempts=ATTEMPTS, timeout=2 * TIMEOUT, wait_initial=0.1, wait_max=1.0
        ):
            with attempt:
                answer = client.post(url, content=line)
        if answer.status_code in (400, 413, 422):  # it will not like it better tomorrow
            log.warning(
                "OpenLineage: the server refuses an event (%s): %s", answer.status_code, answer.text[:200]
            )
            with (self.folder / "refused.jsonl").open("ab") as refused:
                word = {"status": answer.status_code, "answer": answer.text[:500], "event": json.loads(line)}
                refused.write(json.dumps(word).encode() + b"\n")
            return
        answer.raise_for_status()


@contextmanager
def following(home: Home, ledger: Ledger, *, every: float = 1.0, patience: float = 3.0) -> Iterator[None]:
    """Tell events while the body works on a bare folder, and what is left at its end.

    Never raises and never holds the body up; at the end it waits `patience` seconds for the server at most.
    """
    emitter = Emitter(home, ledger)
    done = threading.Event()

    def follow() -> None:
        while not done.wait(every):
            _quietly(emitter)

    thread = threading.Thread(target=follow, name="openlineage-follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(patience)
        _quietly(emitter)
        with suppress(LoopwrightError, OSError):
            emitter.wait(patience)


def _quietly(emitter: Emitter) -> None:
    try:
        emitter.catch_up()
        emitter.post()
    except Exception as error:  # noqa: BLE001 - bookkeeping never fails what it is about
        log.warning("OpenLineage: %s", error)
