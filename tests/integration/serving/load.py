"""Constant load from a thread of its own: requests leave when they are due, whatever became of the ones before."""

import asyncio
import json
import threading
import time
from dataclasses import dataclass
from statistics import quantiles
from typing import Self

from .conftest import request


@dataclass(frozen=True, slots=True)
class Sent:
    """One request. at: seconds since the load began. took: seconds from when it was due to its answer."""

    at: float
    took: float
    why: str
    unit: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.why)


class Load:
    """`per_second` predictions over kept connections, until stopped. A failure is anything but a 200."""

    def __init__(self, port: int, *, per_second: float, host: str = "127.0.0.1", units: int = 0) -> None:
        self._at = (host, port)
        self._every = 1 / per_second
        self._units = units
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._began = 0.0
        self.sent: list[Sent] = []

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def failures(self) -> list[Sent]:
        return [each for each in self.sent if each.failed]

    def p(self, percent: int) -> float:
        """The latency in seconds that `percent` of 100 answers do not exceed."""
        return quantiles([each.took for each in self.sent], n=100, method="inclusive")[percent - 1]

    def now(self) -> float:
        return time.monotonic() - self._began

    def report(self, what: str, since: float = 0.0) -> str:
        rows = [each for each in self.sent if each.at >= since]
        took = sorted(each.took for each in rows)
        failed = sum(each.failed for each in rows)
        return (
            f"{what}: {len(rows)} requests, {failed} failed, availability "
            f"{1 - failed / max(1, len(rows)):.4%}, p50 {took[len(took) // 2] * 1e3:.1f} ms, "
            f"p99 {took[int(len(took) * 0.99)] * 1e3:.0f} ms, longest {took[-1] * 1e3:.0f} ms"
        )

    async def _run(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        number, due = 0, time.monotonic()
        while not self._stop.is_set():
            task = asyncio.create_task(self._send(number, due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            number, due = number + 1, due + self._every
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*under_way)
        for _, writer in self._idle:
            writer.close()

    async def _send(self, number: int, due: float) -> None:
        unit = f"u{number % self._units}" if self._units else ""
        body = json.dumps(request(id=f"r{number}")).encode()
        extra = f"X-Loopwright-Unit: {unit}\r\n" if unit else ""
        head = f"POST /v2/models/late/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        why = ""
        try:
            async with asyncio.timeout(20):
                status, answer = await self._exchange(head.encode() + body)
            if status != 200:
                why = f"{status} {answer[:200]!r}"
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
        self.sent.append(Sent(due - self._began, time.monotonic() - due, why, unit))

    async def _exchange(self, message: bytes) -> tuple[int, bytes]:
        while self._idle and self._idle[-1][0].at_eof():
            self._idle.pop()[1].close()
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(*self._at)
        try:
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status = int(head.split(" ", 2)[1])
            length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
            answer = await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if "connection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return status, answer
