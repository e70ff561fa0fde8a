"""Many rows in one request, read and answered in parts: JSON lines or an Arrow stream in, either of them out.

A row that cannot be read, or that no version answers, is an error in its place; the others are answered. Rows come back
in the order they were sent, and memory holds one part of either side, however large the request is.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Protocol

from loopwright.kernel.errors import LoopwrightError
from loopwright.serving.engine import Answer, Call
from loopwright.serving.front import Front, Target
from loopwright.serving.http import ClientGone, HttpError, Reply, Request, Route
from loopwright.serving.lanes import Overloaded
from loopwright.serving.protocols.lines import LineReader, LineWriter
from loopwright.serving.protocols.parts import Part
from loopwright.serving.protocols.spool import Spool

LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
_KNOWN = {
    LINES: LINES,
    "application/ndjson": LINES,
    "application/jsonl": LINES,
    "application/jsonlines": LINES,
    ARROW: ARROW,
}

AT_ONCE = 8
"""Bulk requests that one worker takes at a time."""

TRIES = 20
"""How often a part is sent again to a lane that is full, before its rows get that as their error."""


class PartReader(Protocol):
    """Turns a body into parts."""

    def parts(self, body: AsyncIterator[bytes]) -> AsyncGenerator[Part, None]: ...


class PartWriter(Protocol):
    """Turns parts and what was answered to them into a body."""

    def head(self) -> bytes: ...

    def part(self, part: Part, answer: Answer | None) -> bytes: ...

    def end(self, failure: str, position: int) -> bytes: ...


class Bulk:
    """The protocol's addresses."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._running = 0

    def routes(self) -> Iterable[Route]:
        """Where it answers."""
        yield Route("POST", "/models/{model}/bulk", self.bulk)
        yield Route("POST", "/models/{model}/versions/{version}/bulk", self.bulk)

    async def bulk(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Answer a stream of rows with a stream of rows. What is wrong with the request itself is found before."""
        target = self._front.find(names["model"], names.get("version"))
        call = self._front.call(target, request.headers, request.client)
        given = _media_type(request)
        wanted = _accepted(request.header(b"accept"), given)
        if self._running >= AT_ONCE:
            raise Overloaded(f"{self._running} bulk requests are under way", retry_after=5.0)
        self._running += 1
        try:
            parts = _reader(given, target).parts(request.chunks())
            # Nothing is said before the beginning could be read: a wrong body is a status, not a line.
            first = await anext(parts, None)
            writer = _writer(wanted, target)
        except BaseException:
            self._running -= 1
            raise
        spool = Spool()
        working = asyncio.create_task(self._work(target, call, first, parts, writer, spool))
        working.add_done_callback(self._done)
        return Reply(200, _answered(spool, working), wanted)

    def _done(self, working: asyncio.Task[None]) -> None:
        self._running -= 1

    async def _work(
        self,
        target: Target,
        call: Call,
        first: Part | None,
        parts: AsyncGenerator[Part, None],
        writer: PartWriter,
        spool: Spool,
    ) -> None:
        """Read, answer and write until the body ends, or until something does that no further row can be read after."""
        failure, position = "", 0
        try:
            await spool.put(writer.head())
            async with aclosing(parts):
                part = first
                while part is not None:
                    position = part.last
                    await spool.put(writer.part(part, await self._answer(target, call, part)))
                    part = await anext(parts, None)
        except ClientGone:
            pass
        except LoopwrightError as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - raised where the answer is sent, which ends with it
            await spool.close(error)
            return
        with suppress(LoopwrightError):  # the disk that has no room for answers has none for this
            await spool.put(writer.end(failure, position + 1))
        await spool.close()

    async def _answer(self, target: Target, call: Call, part: Part) -> Answer | None:
        """Ask the engine; what it says of a part as a whole becomes the error of each of its rows."""
        if part.rows is None:
            return None
        if call.request_id:
            # Parts would otherwise all begin to number their rows anew.
            part.name(call.request_id)
            call = replace(call, request_id="")
        tries = 0
        while True:
            try:
                return await self._front.engine.infer(target.model, part.rows, call)
            except Overloaded as error:
                # Those who wait for one answer go first.
                tries += 1
                if tries >= TRIES or asyncio.get_running_loop().time() + error.retry_after > call.until:
                    part.refuse(str(error))
                    return None
                await asyncio.sleep(min(error.retry_after, 1.0))
            except LoopwrightError as error:
                part.refuse(str(error))
                return None


async def _answered(spool: Spool, working: asyncio.Task[None]) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in spool.parts():
            yield piece
    finally:
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        spool.drop()


def _media_type(request: Request) -> str:
    found = _KNOWN.get(request.content_type)
    if found is None:
        raise HttpError(
            415, "a body of another type", where="content-type", got=request.content_type or "none",
            wanted=f"{LINES} or {ARROW}",
        )  # fmt: skip
    return found


def _accepted(header: str | None, given: str) -> str:
    """The type of the answer: what the client likes best of what there is; the request's own where any will do."""
    liked: list[tuple[float, str]] = []
    for each in (header or "*/*").lower().split(","):
        media_type, *parameters = (piece.strip() for piece in each.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        found = given if media_type in ("*/*", "application/*") else _KNOWN.get(media_type)
        if found is not None and quality > 0.0:
            liked.append((quality, found))
    if not liked:
        raise HttpError(
            406, "no answer of that type", where="accept", got=header, wanted=f"{LINES} or {ARROW}"
        )
    return max(liked, key=lambda one: one[0])[1]


def _reader(media_type: str, target: Target) -> PartReader:
    if media_type == LINES:
        return LineReader(target.served.reader)
    # Only workers that are asked for Arrow load it.
    from loopwright.serving.protocols.arrow import ArrowReader

    return ArrowReader(target.served.reader)


def _writer(media_type: str, target: Target) -> PartWriter:
    if media_type == LINES:
        return LineWriter(target.served.schema)
    from loopwright.serving.protocols.arrow import ArrowWriter

    return ArrowWriter(target.served.schema)
