"""How much in how short a time: wrong credentials per address, requests per actor, bytes per request.

The `limits` library counts; what it counts in is ours, because its own memory grows with every address that calls.
"""

import hashlib
import ipaddress
import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from limits import parse
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import BadInput, TooMany, did_you_mean

API_BODY = 32 * 2**20
"""The largest body of an operation: 200,000 labels with their times, say."""
EVENTS_BODY = 64 * 2**20
SIGN_IN_BODY = 64 * 2**10

_KEPT = 10_000
_TRUSTED_FOR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Settings:
    """What home.json says under "limits", as `limits` writes them: "10/minute", "2000/10 seconds".

    at_once: how many requests of one actor may be under way. Some take seconds, and a crowd of them all our threads.
    """

    failures: str = "10/minute"
    requests: str = "2000/10 seconds"
    at_once: int = 32

    @classmethod
    def read(cls, document: object, *, where: str = "") -> "Settings":
        """Read the section; raises BadInput naming what does not fit."""
        known = tuple(cls.__dataclass_fields__)
        if not isinstance(document, Mapping):
            raise BadInput(
                "not an object", where=where, got=document, wanted='{"requests": "2000/10 seconds"}'
            )
        for name, text in document.items():
            if name not in known:
                raise BadInput("no such limit", where=where, got=name, next=did_you_mean(str(name), known))
            if name == "at_once":
                if type(text) is not int or text < 1:
                    raise BadInput(
                        "`at_once` is not a number of requests", where=where, got=text, wanted="1 or more"
                    )
                continue
            try:
                fits = parse(text).amount > 0
            except (ValueError, TypeError):
                fits = False
            if not fits:
                raise BadInput(
                    f"`{name}` is not a rate", where=where, got=text, wanted='"200/second" or "10/minute"'
                )
        return cls(**document)


class Limits:
    """Counts, and raises TooMany. In memory of this process, bounded however many call; one thread's only."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._failures, self._requests = parse(settings.failures), parse(settings.requests)
        self._clock = clock
        # Apart, so that no number of strangers makes us forget whom we know.
        self._strangers = FixedWindowRateLimiter(_Counts(clock))
        self._known = FixedWindowRateLimiter(_Counts(clock))
        self._good: OrderedDict[bytes, float] = OrderedDict()
        self._at_once, self._under_way = settings.at_once, Counter[str]()

    def check_address(self, address: str, credential: str) -> None:
        """Raise TooMany for an address with too many wrong credentials of late.

        Credentials that were right within the last hour still pass: one broken program behind a shared address must
        not lock out everybody behind it.
        """
        seen = self._good.get(_mark(credential))
        if seen is not None and self._clock().timestamp() - seen < _TRUSTED_FOR.total_seconds():
            return
        group = group_of(address)
        if not self._strangers.test(self._failures, group):
            ends, _ = self._strangers.get_window_stats(self._failures, group)
            raise TooMany("too many wrong credentials from this address", retry_after=self._until(ends))

    def note_failure(self, address: str) -> None:
        """Count a wrong credential."""
        self._strangers.hit(self._failures, group_of(address))

    def note_success(self, credential: str) -> None:
        """Remember a right one, by its hash."""
        self._good[_mark(credential)] = self._clock().timestamp()
        self._good.move_to_end(_mark(credential))
        if len(self._good) > _KEPT:
            self._good.popitem(last=False)

    def count_request(self, actor: str) -> None:
        """Count a request; raises TooMany when the actor sends more than they may."""
        if not self._known.hit(self._requests, actor):
            ends, _ = self._known.get_window_stats(self._requests, actor)
            raise TooMany(
                f"{actor} sends more than {self._requests}", retry_after=self._until(ends),
                next='An admin can raise it: "limits" in home.json.',
            )  # fmt: skip

    def begin(self, actor: str) -> None:
        """Count a request as under way until `end`; raises TooMany when as many as may be are."""
        if self._under_way[actor] >= self._at_once:
            raise TooMany(
                f"{actor} has {self._at_once} requests under way", retry_after=1.0,
                next='An admin can raise it: "limits" in home.json.',
            )  # fmt: skip
        self._under_way[actor] += 1

    def end(self, actor: str) -> None:
        """A request that was begun is answered."""
        self._under_way[actor] -= 1
        if not self._under_way[actor]:
            del self._under_way[actor]

    def _until(self, moment: float) -> float:
        return max(1.0, math.ceil(moment - self._clock().timestamp()))


def group_of(address: str) -> str:
    """The address itself; for IPv6 its /64, since one subscriber holds that many."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if found.version == 6 and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)  # else all of them would be one subscriber's
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


def _mark(credential: str) -> bytes:
    return hashlib.sha256(credential.encode()).digest()


class _Counts(Storage):
    """Counters by key, on our clock, forgetting the longest unused beyond `_KEPT`."""

    STORAGE_SCHEME = None

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._kept: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @property
    def base_exceptions(self) -> type[Exception]:
        return LookupError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        now = self._clock().timestamp()
        count, ends = self._kept.get(key, (0, 0.0))
        if ends <= now or ends - now > expiry:  # over; or the clock went back
            count, ends = 0, now + expiry
        self._kept[key] = (count + amount, ends)
        self._kept.move_to_end(key)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return count + amount

    def get(self, key: str) -> int:
        count, ends = self._kept.get(key, (0, 0.0))
        return count if ends > self._clock().timestamp() else 0

    def get_expiry(self, key: str) -> float:
        return self._kept.get(key, (0, self._clock().timestamp()))[1]

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        held = len(self._kept)
        self._kept.clear()
        return held

    def clear(self, key: str) -> None:
        self._kept.pop(key, None)
