"""Feeds the segments of a folder to a sink once, in a process that may kill itself between confirmation and memory.

argv: folder, sink URL (a `chdb:PATH` for ClickHouse inside this process), "kill" or "go". Prints what a ClickHouse
table holds afterwards.
"""

import json
import os
import signal
import sys
from pathlib import Path

from loopwright.serving.complaints import Complaints
from loopwright.serving.events import Event
from loopwright.serving.sinks.address import open_sink, parse_sink
from loopwright.serving.sinks.base import Sink
from loopwright.serving.sinks.feeding import Feeder

QUERIES = {
    "rows": "SELECT count() FROM default.predictions",
    "final": "SELECT count() FROM default.predictions FINAL",
    "uids": "SELECT uniqExact(uid) FROM default.predictions",
    "types": "SELECT name, type FROM system.columns WHERE table = 'predictions' ORDER BY position",
    "sum": "SELECT sum(JSONExtractFloat(inputs, 'distance')), sum(outputs[1]) FROM default.predictions FINAL",
    "first": "SELECT * FROM default.predictions FINAL ORDER BY event_time, uid LIMIT 1",
    "secret": "SELECT count() FROM default.predictions WHERE position(concat(inputs, error), 'SECRET') > 0",
}


class Known:
    def inputs(self, model: str, version: int) -> tuple[str, ...] | None:
        return ("distance", "carrier") if model == "late" else None

    def keep(self, event: Event) -> bool:
        return True

    def redacted(self, model: str, events: list[Event]) -> frozenset[str]:
        return frozenset({"carrier"})


class Killed(Feeder):
    def _save(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, url: str, how: str) -> None:
    if not url.startswith("chdb:"):
        feed(folder, open_sink(parse_sink(url)), how)
        return
    import clickhouse_connect

    from loopwright.serving.sinks.clickhouse import ClickHouseSink

    path = url.removeprefix("chdb:")
    sink = ClickHouseSink(
        lambda: clickhouse_connect.get_client(interface="chdb", path=path), "default", "predictions", name=url
    )
    feed(folder, sink, how)
    client = clickhouse_connect.get_client(interface="chdb", path=path)
    found = {
        name: [list(map(str, row)) for row in client.query(query).result_rows]
        for name, query in QUERIES.items()
    }
    sys.stdout.write(json.dumps(found) + "\n")


def feed(folder: str, sink: Sink, how: str) -> None:
    kind = Killed if how == "kill" else Feeder
    feeder = kind(sink, Path(folder), "sv_1", Known(), Complaints(sys.stderr.write))
    feeder.feed()


if __name__ == "__main__":
    main(*sys.argv[1:])
