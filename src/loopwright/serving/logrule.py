"""What of an answer is written down: which inputs never, which rows are shipped, what happens when the disk is full."""

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from loopwright.bundle.routes import LogPolicy, RouteTable
from loopwright.bundle.signature import Schema
from loopwright.kernel.files import write_atomic
from loopwright.serving.events import Event
from loopwright.serving.router import position

V = TypeVar("V")

_SALT = "prediction-log"
APPLY_US = 120_000_000
"""How long a worker may go on by the policy of before, while it loads what a new table asks for."""
FORGET_US = 90 * 86_400_000_000


def in_sample(id: str, share: float) -> bool:
    """Whether the rows of the event id are in a sample of this size; every server says the same of all its events.

    Monotone: what is in a sample is in every larger one.
    """
    return share >= 1.0 or (share > 0.0 and position(_SALT, id) < share)


@dataclass(frozen=True, slots=True)
class LogRule:
    """A version's log policy, prepared for the request path.

    redacted: positions (in the schema's inputs) that are never written. shed: answer when the disk is full and count
    what is lost, instead of refusing. sample: the share of answers whose rows are shipped; all are written and counted.
    """

    sample: float = 1.0
    redacted: tuple[int, ...] = ()
    shed: bool = False

    @classmethod
    def of(cls, policy: LogPolicy, schema: Schema) -> "LogRule":
        """The policy for inputs of `schema`; a name that this version has no input of redacts nothing."""
        hidden = frozenset(policy.redact)
        places = tuple(place for place, field in enumerate(schema.inputs) if field.name in hidden)
        return cls(policy.sample, places, policy.disk_full == "shed")

    def keep(self, id: str) -> bool:
        """Whether rows of this event id are in the sample. Errors and fallbacks are kept whatever this says."""
        return in_sample(id, self.sample)

    def inputs(self, values: list[V]) -> list[V | None]:
        """What may be written of a row's inputs: null in place of a redacted one. `values` itself stays as it is."""
        if not self.redacted:
            return values  # type: ignore[return-value]  # the same list, only read from here on
        shown: list[V | None] = list(values)
        for place in self.redacted:
            shown[place] = None
        return shown

    def error(self, why: str) -> str:
        """What may be written of an error: where inputs are redacted only its kind, because the text may quote one."""
        return why.partition(":")[0] if self.redacted else why


class _Kept(msgspec.Struct):
    """A model's policy as the shipping side remembers it. redacted: input → until when (µs; None: still)."""

    sample: float = 1.0
    redacted: dict[str, int | None] = {}


class LogRules:
    """The policies of all models on the shipping side, by the route tables seen so far. Safe to use from any thread.

    A policy that ended still holds for events written under it: they may wait on disk for days, and a restart comes in
    between. Losing the file loses no more than that.
    """

    def __init__(self, path: Path, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._path = path
        self._now_us = now_us
        self._models: dict[str, _Kept] = {}
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            self._models = msgspec.json.decode(path.read_bytes(), type=dict[str, _Kept])

    def follow(self, table: RouteTable) -> None:
        """Take over the policies of a new table; raises OSError when they cannot be kept on disk."""
        now = self._now_us()
        known = dict(self._models)
        for name, route in table.models.items():
            log, before = route.serving.log, known.get(name, _Kept())
            redacted: dict[str, int | None] = {
                column: now + APPLY_US if until is None else until
                for column, until in before.redacted.items()
                if until is None or until > now - FORGET_US
            }
            redacted.update(dict.fromkeys(log.redact))
            known[name] = _Kept(log.sample, redacted)
        if known != self._models:
            write_atomic(self._path, msgspec.json.encode(known))
            self._models = known

    def keep(self, event: Event) -> bool:
        """Whether the event's row is shipped: always for what is not a plain answer, else when it is in the sample."""
        if event.status != "ok":
            return True
        kept = self._models.get(event.model)
        return kept is None or in_sample(event.id, kept.sample)

    def redacted(self, model: str, events: Iterable[Event]) -> frozenset[str]:
        """The inputs that some of these events of one model were written without."""
        kept = self._models.get(model)
        if kept is None or not kept.redacted:
            return frozenset()
        oldest = min((event.at for event in events), default=0)
        return frozenset(name for name, until in kept.redacted.items() if until is None or oldest <= until)
