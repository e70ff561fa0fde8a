"""Sends history to a serving port as if it were live: one request per row, or rows in batches.

A plain asyncio protocol over keep-alive connections: the client must cost less than the server it exercises.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from loopwright.kernel.clock import iso, to_us
from loopwright.kernel.errors import Unavailable


class _Parameters(msgspec.Struct):
    arm: str = ""
    fallback: bool | str = False


class _Output(msgspec.Struct):
    name: str
    data: list[Any]


class _Answer(msgspec.Struct):
    model_version: str = ""
    parameters: _Parameters = msgspec.field(default_factory=_Parameters)
    outputs: list[_Output] = msgspec.field(default_factory=list)


_decoder = msgspec.json.Decoder(_Answer)
_encoder = msgspec.json.Encoder()


@dataclass
class Answered:
    """What came back. Counts are rows, not requests; `seconds` is wall time of the whole replay."""

    rows: int = 0
    requests: int = 0
    failed: int = 0
    fallbacks: int = 0
    by_version: Counter[str] = field(default_factory=Counter)
    by_arm: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    latencies_us: list[float] = field(default_factory=list)
    first_error: str = ""

    def __iadd__(self, other: "Answered") -> "Answered":
        self.rows += other.rows
        self.requests += other.requests
        self.failed += other.failed
        self.fallbacks += other.fallbacks
        self.by_version.update(other.by_version)
        self.by_arm.update(other.by_arm)
        self.seconds += other.seconds
        self.latencies_us.extend(other.latencies_us)
        self.first_error = self.first_error or other.first_error
        return self

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0

    def latency_ms(self, quantile: float) -> float:
        """Quantile of the time from send to answer, in milliseconds; NaN with no request."""
        return float(np.quantile(self.latencies_us, quantile)) / 1000 if self.latencies_us else float("nan")


def _plain(column: np.ndarray[Any, Any]) -> list[Any]:
    """Values as JSON has them: NaN and None become null."""
    if column.dtype.kind == "f":
        return [None if value != value else value for value in column.tolist()]
    return list(column.tolist())


def _datatype(column: np.ndarray[Any, Any]) -> str:
    return {"f": "FP64", "i": "INT64", "b": "BOOL"}.get(column.dtype.kind, "BYTES")


def requests(
    inputs: Mapping[str, np.ndarray[Any, Any]],
    *,
    ids: Sequence[str],
    units: Sequence[str],
    event_times: Sequence[datetime],
    rows_per_request: int = 1,
) -> Iterator[bytes]:
    """Bodies of Open Inference V2 requests for the rows of `inputs`, in order."""
    columns = [(name, _datatype(values), _plain(values)) for name, values in inputs.items()]
    total = len(ids)
    if rows_per_request == 1:
        for i in range(total):
            tensors = [{"name": n, "shape": [1], "datatype": d, "data": [v[i]]} for n, d, v in columns]
            yield _encoder.encode(
                {
                    "id": ids[i],
                    "parameters": {"unit": units[i], "event_time": iso(event_times[i])},
                    "inputs": tensors,
                }
            )
        return
    for start in range(0, total, rows_per_request):
        rows = slice(start, min(start + rows_per_request, total))
        count = rows.stop - rows.start
        tensors = [{"name": n, "shape": [count], "datatype": d, "data": v[rows]} for n, d, v in columns]
        tensors += [
            {"name": "_id", "shape": [count], "datatype": "BYTES", "data": list(ids[rows])},
            {"name": "_unit", "shape": [count], "datatype": "BYTES", "data": list(units[rows])},
            {
                "name": "_event_time",
                "shape": [count],
                "datatype": "INT64",
                "data": [to_us(moment) for moment in event_times[rows]],
            },
        ]
        yield _encoder.encode({"inputs": tensors})


class _Connection(asyncio.Protocol):
    """Sends the next body as soon as the answer to the last one is whole."""

    def __init__(self, bodies: Iterator[bytes], head: bytes, tally: Answered) -> None:
        self.bodies = bodies
        self.head = head
        self.tally = tally
        self.buffer = b""
        self.sent_at = 0.0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._next()

    def _next(self) -> None:
        body = next(self.bodies, None)
        if body is None:
            if not self.finished.done():
                self.finished.set_result(None)
            self.transport.close()
            return
        self.sent_at = time.perf_counter()
        self.transport.write(b"%s%d\r\n\r\n%s" % (self.head, len(body), body))

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.buffer) < end + 4 + length:
            return
        body = self.buffer[end + 4 : end + 4 + length]
        self.buffer = b""
        self._count(head, body)
        self._next()

    def _count(self, head: bytes, body: bytes) -> None:
        tally = self.tally
        tally.requests += 1
        tally.latencies_us.append((time.perf_counter() - self.sent_at) * 1e6)
        if head.split(b" ", 2)[1] != b"200":
            tally.failed += 1
            tally.rows += 1
            tally.first_error = tally.first_error or body[:300].decode(errors="replace")
            return
        answer = _decoder.decode(body)
        named = {output.name: output.data for output in answer.outputs}
        rows = len(answer.outputs[0].data) if answer.outputs else 0
        tally.rows += rows
        tally.fallbacks += bool(answer.parameters.fallback)
        tally.by_version.update(named.get("_version", {answer.model_version: rows}))
        tally.by_arm.update(named.get("_arm", {answer.parameters.arm: rows}))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_exception(exc or ConnectionResetError("the server closed the connection"))


async def _run(host: str, port: int, path: str, bodies: Iterator[bytes], connections: int) -> Answered:
    loop = asyncio.get_running_loop()
    tally = Answered()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: "
    ).encode()
    started = time.perf_counter()
    opened = await asyncio.gather(
        *(
            loop.create_connection(lambda: _Connection(bodies, head, tally), host, port)
            for _ in range(connections)
        )
    )
    await asyncio.gather(*(protocol.finished for _, protocol in opened))
    tally.seconds = time.perf_counter() - started
    return tally


def send(host: str, port: int, model: str, bodies: Iterable[bytes], *, connections: int = 16) -> Answered:
    """POST every body to `model`'s V2 infer path over `connections` keep-alive connections.

    Raises Unavailable when the port does not answer or drops a connection.
    """
    path = f"/v2/models/{model}/infer"
    try:
        return asyncio.run(_run(host, port, path, iter(bodies), connections))
    except OSError as error:
        raise Unavailable(
            "the serving port dropped the replay",
            where=f"http://{host}:{port}{path}",
            got=f"{type(error).__name__}: {error}",
            wanted="a running `loopwright serve`",
            next="Look at the serving log in the home's `logs` folder.",
        ) from error
