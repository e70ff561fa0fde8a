"""What an operation works with: the home, its ledger, the actor, the clock and the keys. Wired here only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from loopwright.bundle.keyring import Keyring
from loopwright.bundle.keys import SigningKey
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import Clock, utc_now
from loopwright.kernel.errors import NotFound
from loopwright.kernel.home import Home
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger


class Ticker(Protocol):
    """Runs one round of the controllers now."""

    def tick(self) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Context:
    """One actor at work on one home.

    assumed_by: who acts under another user's name. ticker: the running controllers; None on a bare folder.
    """

    home: Home
    ledger: Ledger
    actor: Actor
    clock: Clock
    keyring: Keyring
    tracking_uri: str
    assumed_by: Actor | None = None
    ticker: Ticker | None = None

    @property
    def key(self) -> SigningKey:
        """The home's key that signs now; whoever verifies uses `keyring.public`."""
        return self.keyring.signing

    @property
    def now(self) -> datetime:
        """The clock's time, aware, in UTC."""
        return self.clock()

    def acting_as(self, actor: Actor, *, assumed_by: Actor | None = None) -> "Context":
        """The same home in another actor's hands."""
        return replace(self, actor=actor, assumed_by=assumed_by)

    def record(
        self, action: str, *, subject: str, payload: Mapping[str, Any], by: Actor | None = None
    ) -> None:
        """Append one audit row in a transaction of its own; acts that write more use their own transaction."""
        with self.ledger.write() as conn:
            ledger_store.append(
                conn,
                at=self.now,
                actor=(by or self.actor).name,
                action=action,
                subject=subject,
                payload=payload,
            )


def open_context(
    folder: Path, actor: Actor, *, clock: Clock = utc_now, create: bool = False, tracking_uri: str = ""
) -> Context:
    """Open the home in `folder` and bring its ledger up to date.

    Without `create` a folder that is no home raises NotFound and nothing is written. Raises Unavailable when the
    disk is full or read-only or the database does not answer.
    """
    home = Home.at(folder)
    if not home.exists():
        if not create:
            raise NotFound(
                "no home here yet",
                where=str(home.root),
                next="Make one by working in it: `loopwright run PROJECT --home DIR`, `loopwright up --home DIR` "
                "or `loopwright demo flights --keep DIR`.",
            )
        home.create()
    ledger = Ledger.open(home.ledger_url)
    ledger.migrate()
    keyring = Keyring.open(home.keys, create=_is_new(home, ledger))
    return Context(home, ledger, actor, clock, keyring, tracking_uri or local_tracking_uri(home))


def _is_new(home: Home, ledger: Ledger) -> bool:
    """Whether nothing was ever done here: only then may a key be made that nobody has seen before."""
    if home.signing_key.exists():
        return True
    with ledger.read() as conn:
        return not ledger_store.rows(conn, limit=1)


def local_tracking_uri(home: Home) -> str:
    """Where commands on a folder track runs: the ledger's own database, through the governed stores."""
    return f"gov+{home.ledger_url}"
