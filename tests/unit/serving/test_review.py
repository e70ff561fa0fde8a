"""What clients, clocks and changes of routes must not do to a worker: each of these once went wrong."""

from pathlib import Path

import pytest

from loopwright.bundle.open import Bundle
from loopwright.serving.app import Bounds
from loopwright.serving.connections import Limits
from tests.unit.serving.inside import Inside, model_of, tiny
from tests.unit.serving.wire import Wire, run


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny(tmp_path_factory.mktemp("late") / "bundle")


def test_a_body_of_which_nothing_comes_is_given_up_on_every_path(tmp_path: Path, late: Bundle) -> None:
    site = Inside(tmp_path, model_of("late", {1: late}), bounds=Bounds(body_seconds=0.2))

    async def ask() -> int:
        client = await Wire(site.app, Limits(body_seconds=0.2)).open()
        head = "POST /models/late/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9"
        await client.send(head.encode() + b"\r\n\r\n")
        return (await client.answer()).status

    assert run(ask()) == 408
    site.close()
