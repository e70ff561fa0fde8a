"""Online features in Redis: a hash of packed rows per generation, and a hash of heads per model.

Keys: `lw:{MODEL}:heads` (view → head), `lw:{MODEL}:VIEW:gN` (packed key → packed row), `lw:{MODEL}:VIEW:build` (who is
writing), `lw:{MODEL}:number`. The braces keep a model on one node of a cluster. A generation goes with one UNLINK.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec

from loopwright.features.online import Answer, Ask, Head
from loopwright.kernel.errors import BadInput, Conflict, Unavailable

try:
    import redis
    from redis import exceptions as faults
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError:
    redis = None  # type: ignore[assignment]  # told when a store is opened

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 10.0
_MARK = b""
"""A field of every generation: where it is missing, Redis has thrown the rows away."""

_decode_head = msgspec.msgpack.Decoder(Head).decode


class RedisStore:
    """An `OnlineStore` at a redis:// or rediss:// URL. Safe for several threads: connections come from a pool."""

    def __init__(self, url: str, *, seconds: float | None = None) -> None:
        self.url = _public(url)
        if redis is None:
            raise Unavailable(
                "Redis's client is not installed",
                where=self.url,
                next="Install it: pip install 'loopwright[redis]'",
            )
        try:
            self._redis = redis.Redis.from_url(
                url,
                socket_connect_timeout=min(CONNECT_SECONDS, seconds or CONNECT_SECONDS),
                socket_timeout=seconds or ANSWER_SECONDS,
                **({} if seconds is None else {"retry": Retry(NoBackoff(), 1)}),
                health_check_interval=30,
            )
        except ValueError:
            raise BadInput(
                "not a Redis URL", where="online_url", got=self.url, wanted="redis://user@host:6379/0"
            ) from None
        self._heads: dict[tuple[str, str], Head] = {}

    def heads(self, model: str) -> dict[str, Head]:
        with self._explained():
            found: dict[bytes, bytes] = self._redis.hgetall(_heads(model))  # type: ignore[assignment]
        return {view.decode(): _decode_head(body) for view, body in sorted(found.items())}

    def fetch(self, model: str, asks: Sequence[Ask]) -> list[Answer]:
        known = [self._heads.get((model, view)) for view, _ in asks]
        with self._explained():
            while True:
                pipe = self._redis.pipeline(transaction=False)
                for (view, keys), head in zip(asks, known, strict=True):
                    if head is not None:
                        pipe.hmget(_rows(model, view, head.generation), [_MARK, *keys])
                # Asked last: a head that still stands stood all the while, since no generation comes back.
                pipe.hmget(_heads(model), [view for view, _ in asks])
                *found, bodies = pipe.execute()
                standing = [None if body is None else _decode_head(body) for body in bodies]
                rows = iter(found)
                answers: list[Answer] = []
                stale = False
                for (view, _), old, new in zip(asks, known, standing, strict=True):
                    held = next(rows) if old is not None else None
                    if new is None:
                        self._heads.pop((model, view), None)
                        answers.append((None, ()))
                        continue
                    self._heads[model, view] = new
                    if held is None or old is None or old.generation != new.generation:
                        stale = True
                    elif held[0] is None:
                        raise Unavailable(
                            f"the rows of {view} are gone", where=self.url,
                            next="Redis evicted or flushed them: set maxmemory-policy noeviction and more memory, then "
                            f"run: loopwright features materialize {model} --full",
                        )  # fmt: skip
                    else:
                        answers.append((new, held[1:]))
                if not stale:
                    return answers
                known = standing

    def begin(self, model: str, view: str, build: str, *, onto: int | None = None) -> "RedisWriting":
        place = _build(model, view)
        with self._explained():
            number = int(self._redis.incr(_number(model)))
            with self._redis.pipeline() as pipe:
                pipe.watch(place, _heads(model))  # type: ignore[no-untyped-call]
                left: dict[bytes, bytes] = pipe.hgetall(place)  # type: ignore[assignment]
                body: bytes | None = pipe.hget(_heads(model), view)  # type: ignore[assignment]
                current = _decode_head(body).generation if body else None
                unfinished = int(left[b"generation"]) if left else None
                if left and left[b"build"] == build.encode():
                    generation, position = int(left[b"generation"]), int(left[b"position"])
                else:
                    generation, position = number if onto is None else onto, 0
                pipe.multi()
                pipe.hset(
                    place,
                    mapping={"token": number, "build": build, "generation": generation, "position": position},
                )
                if onto is None:
                    pipe.hset(_rows(model, view, generation), _MARK, b"1")
                if unfinished not in (None, current, generation):
                    pipe.unlink(_rows(model, view, int(unfinished or 0)))
                pipe.execute()
        return RedisWriting(self, model, view, number, generation, position)

    def close(self) -> None:
        self._redis.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except faults.WatchError:
            raise Conflict(
                "another materialisation has taken over", where=self.url, next="Let that one finish."
            ) from None
        except faults.RedisError as error:
            raise Unavailable(
                f"Redis does not answer ({_said(error)})", where=self.url, next=_remedy(error)
            ) from error


class RedisWriting:
    """A `Writing` in Redis: each put is one transaction that holds only while the pen is ours."""

    def __init__(
        self, store: RedisStore, model: str, view: str, token: int, generation: int, position: int
    ) -> None:
        self.generation, self.position = generation, position
        self._store, self._model, self._view, self._token = store, model, view, token
        self._place, self._rows = _build(model, view), _rows(model, view, generation)

    def put(self, rows: Sequence[tuple[bytes, bytes]], gone: Sequence[bytes], position: int) -> None:
        with self._held() as pipe:
            pipe.multi()
            if rows:
                pipe.hset(self._rows, items=[part for row in rows for part in row])
            if gone:
                pipe.hdel(self._rows, *gone)
            pipe.hset(self._place, "position", str(position))
            pipe.execute()
        self.position = position

    def publish(self, head: Head) -> None:
        with self._held() as pipe:
            rows = int(pipe.hlen(self._rows)) - 1
            body: bytes | None = pipe.hget(_heads(self._model), self._view)
            old = _decode_head(body).generation if body else self.generation
            whole = msgspec.structs.replace(head, generation=self.generation, change=self._token, rows=rows)
            pipe.multi()
            pipe.hset(_heads(self._model), self._view, msgspec.msgpack.encode(whole))
            pipe.delete(self._place)
            if old != self.generation:
                pipe.unlink(_rows(self._model, self._view, old))
            pipe.execute()

    @contextmanager
    def _held(self) -> Iterator[Any]:
        """A pipeline that comes to nothing if somebody else takes the pen before it is executed."""
        with self._store._explained(), self._store._redis.pipeline() as pipe:
            pipe.watch(self._place)  # type: ignore[no-untyped-call]
            self._check(pipe.hget(self._place, "token"))
            yield pipe

    def _check(self, token: Any) -> None:
        if token is None or int(token) != self._token:
            raise Conflict(
                "another materialisation has taken over", where=f"{self._store.url}: {self._model}/{self._view}",
                next="Let that one finish; this one changed nothing since.",
            )  # fmt: skip


def _heads(model: str) -> str:
    return f"lw:{{{model}}}:heads"


def _number(model: str) -> str:
    return f"lw:{{{model}}}:number"


def _build(model: str, view: str) -> str:
    return f"lw:{{{model}}}:{quote(view, safe='')}:build"


def _rows(model: str, view: str, generation: int) -> str:
    return f"lw:{{{model}}}:{quote(view, safe='')}:g{generation}"


def _public(url: str) -> str:
    parts = urlsplit(url)
    user = (parts.username or "") + "@" if parts.username else ""
    return urlunsplit((parts.scheme, user + parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _said(error: Exception) -> str:
    """What Redis said, without the command it was about: keys and rows are nobody's business in a log."""
    text = str(error).strip().partition("of pipeline caused error: ")[2] or str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _remedy(error: Exception) -> str:
    said = str(error)
    if isinstance(error, faults.AuthenticationError) or "NOAUTH" in said or "WRONGPASS" in said:
        return "Check user and password in `online_url` of home.json."
    if "OOM" in said or "maxmemory" in said:
        return "Redis is out of memory: give it more (maxmemory), with maxmemory-policy noeviction."
    if "READONLY" in said:
        return "This is a replica: name the primary in `online_url` of home.json."
    if isinstance(error, faults.TimeoutError):
        return "It is too busy or too far away; try again, or look at its slow log."
    return "Check that it runs and that `online_url` in home.json names it."
