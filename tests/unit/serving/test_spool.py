"""What waits to be read: in order, bounded, and said so when the disk has no room."""

import asyncio
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.errors import Unavailable
from loopwright.serving.protocols.spool import Spool


@given(
    sizes=st.lists(st.integers(1, 50), max_size=30), memory=st.integers(0, 60), disk=st.integers(1, 200),
    turns=st.lists(st.booleans(), max_size=60),
)  # fmt: skip
def test_everything_comes_back_in_order_whoever_is_faster(
    sizes: list[int], memory: int, disk: int, turns: list[bool]
) -> None:
    parts = [bytes([number % 256]) * size for number, size in enumerate(sizes)]

    async def run() -> bytes:
        spool = Spool(memory=memory, disk=disk)
        waits = iter(turns)

        async def write() -> None:
            for part in parts:
                await spool.put(part)
                if next(waits, False):
                    await asyncio.sleep(0)
            await spool.close()

        writing = asyncio.create_task(write())
        got = bytearray()
        async for part in spool.parts():
            got += part
            if next(waits, False):
                await asyncio.sleep(0)
        await writing
        assert not spool.on_disk
        return bytes(got)

    assert asyncio.run(run()) == b"".join(parts)


def test_a_writer_waits_while_the_file_is_full() -> None:
    async def run() -> tuple[int, bytes]:
        spool = Spool(memory=0, disk=100)
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(10):
                await spool.put(b"x" * 40)
                written += 1
            await spool.close()

        writing = asyncio.create_task(write())
        for _ in range(50):
            await asyncio.sleep(0)
        before = written
        got = b"".join([part async for part in spool.parts()])
        await writing
        return before, got

    assert asyncio.run(run()) == (3, b"x" * 400)


def test_a_disk_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)

    async def run() -> None:
        await Spool(memory=10).put(b"x" * 11)

    with pytest.raises(Unavailable, match=r"cannot be kept until it is read \(No space left on device\)"):
        asyncio.run(run())


def test_a_failure_comes_after_what_was_written() -> None:
    async def run() -> bytes:
        spool = Spool()
        await spool.put(b"first")
        await spool.close(RuntimeError("broken"))
        got = b""
        with pytest.raises(RuntimeError, match="broken"):
            async for part in spool.parts():
                got += part
        return got

    assert asyncio.run(run()) == b"first"
