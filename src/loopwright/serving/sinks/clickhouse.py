"""Predictions as rows of a ClickHouse table, one insert for each stretch of the log."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError

from loopwright.kernel.errors import LoopwrightError, Unavailable
from loopwright.serving.sinks.address import SinkAddress
from loopwright.serving.sinks.base import SCHEMA, Rejected, Row

COLUMNS = {
    "uid": "String",
    "schema": "UInt8",
    "source": "LowCardinality(String)",
    "model": "LowCardinality(String)",
    "version": "Int32",
    "arm": "LowCardinality(String)",
    "id": "String",
    "unit": "String",
    "event_time": "DateTime64(6, 'UTC')",
    "at": "DateTime64(6, 'UTC')",
    "latency_us": "Int64",
    "status": "LowCardinality(String)",
    "error": "String",
    "inputs": "String",
    "redacted": "Array(LowCardinality(String))",
    "outputs": "Array(Float64)",
}
"""`inputs` is JSON text, for JSONExtract."""

_TABLE = """
CREATE TABLE IF NOT EXISTS {table}
({columns})
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (model, event_time, uid)
SETTINGS non_replicated_deduplication_window = 1000
"""
# By `at`, our own clock: event times come from clients, and a block may span a hundred partitions at most.


def clickhouse_sink(address: SinkAddress, password: str) -> "ClickHouseSink":
    """The sink at `address`; connects with the first rows."""
    where = urlsplit(f"//{address.hosts}")
    secure = address.options.get("secure", "0").lower() in ("1", "true", "yes")
    timeout = address.seconds("timeout", 30.0)

    def connect() -> Any:
        return clickhouse_connect.get_client(
            host=where.hostname, port=where.port or (8443 if secure else 8123), username=address.user or "default",
            password=password, database=address.target[0], secure=secure, ca_cert=address.options.get("ca_cert"),
            connect_timeout=min(10, timeout), send_receive_timeout=timeout, query_retries=0,
            client_name="loopwright", autogenerate_session_id=False,
        )  # fmt: skip

    database, table = address.target
    return ClickHouseSink(connect, database, table, name=address.name, every=address.seconds("every", 1.0))


class ClickHouseSink:
    """Writes to one table, which is made when it is missing. connect: returns a client of clickhouse-connect.

    The server drops an insert whose token it has seen of late; what slips through (a stretch that was cut differently
    the second time) is the same row by model, event_time and uid, and merged away: read with FINAL, or by uid.
    """

    def __init__(
        self, connect: Callable[[], Any], database: str, table: str, *, name: str, every: float = 1.0
    ) -> None:
        self.name = name
        self.every = every
        self._connect = connect
        self._database, self._table = database, table
        self._client: Any = None

    def deliver(self, rows: Sequence[Row], token: str) -> list[Rejected]:
        """See `Sink`. Every column takes any row, so none is rejected."""
        try:
            client = self._client = self._client or self._opened()
            client.insert(
                self._table, _columns(rows), database=self._database, column_names=list(COLUMNS),
                column_type_names=list(COLUMNS.values()), column_oriented=True,
                settings={"insert_deduplication_token": token},
            )  # fmt: skip
        except LoopwrightError:
            self.close()
            raise
        except (ClickHouseError, OSError) as error:
            self.close()
            raise Unavailable(
                f"ClickHouse does not take the rows ({type(error).__name__}: {str(error)[:300]})", where=self.name,
                next="Check that it runs, that the database exists, and that the user may create and insert.",
            ) from None  # fmt: skip
        return []

    def close(self) -> None:
        """See `Sink`."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _opened(self) -> Any:
        client = self._connect()
        try:
            table = f"`{self._database}`.`{self._table}`"
            columns = ", ".join(f"`{name}` {kind}" for name, kind in COLUMNS.items())
            client.command(_TABLE.format(table=table, columns=columns))
            there = {row[0] for row in client.query(f"DESCRIBE TABLE {table}").result_rows}
            if missing := [name for name in COLUMNS if name not in there]:
                raise Unavailable(
                    "the table has other columns", where=self.name, got=f"no {', '.join(missing)}",
                    next="Name another table, or add them: ALTER TABLE … ADD COLUMN "
                    + ", ".join(f"{name} {COLUMNS[name]}" for name in missing),
                )  # fmt: skip
        except BaseException:
            client.close()
            raise
        return client


def _columns(rows: Sequence[Row]) -> list[list[Any]]:
    events = [row.event for row in rows]
    return [
        [row.uid for row in rows],
        [SCHEMA] * len(rows),
        [row.source for row in rows],
        [event.model for event in events],
        [event.version for event in events],
        [event.arm for event in events],
        [event.id for event in events],
        [event.unit for event in events],
        # Integers of the column's own unit are taken as they are.
        [event.event_time for event in events],
        [event.at for event in events],
        [event.latency_us for event in events],
        [event.status for event in events],
        [event.error for event in events],
        [row.inputs_json().decode() for row in rows],
        [list(row.redacted) for row in rows],
        [event.outputs for event in events],
    ]
