"""Predictions as messages of a Kafka topic: keyed by unit, so that a unit's stay in order."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.serving.sinks.address import KAFKA_OPTIONS, SinkAddress
from loopwright.serving.sinks.base import SCHEMA, Rejected, Row, encoded

# The library's own lines go nowhere: what matters in them comes back as errors of deliveries.
_log = logging.getLogger("loopwright.kafka")
_log.addHandler(logging.NullHandler())
_log.propagate = False

_NEVER = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD)


def kafka_sink(address: SinkAddress, password: str) -> "KafkaSink":
    """The sink at `address`. Raises BadInput for settings that librdkafka does not take."""
    settings: dict[str, Any] = {
        "bootstrap.servers": address.hosts,
        **{name: value for name, value in address.options.items() if name in KAFKA_OPTIONS},
    }
    if address.user:
        settings.setdefault("sasl.username", address.user)
    if password:
        settings["sasl.password"] = password
    if "sasl.username" in settings and "security.protocol" not in settings:
        raise BadInput(
            "a user without a way to sign in", where=address.name, got=settings["sasl.username"],
            wanted="security.protocol=SASL_SSL (or SASL_PLAINTEXT) and sasl.mechanism",
        )  # fmt: skip
    return KafkaSink(
        settings, address.target[0], name=address.name, every=address.seconds("every", 0.5),
        timeout=address.seconds("timeout", 30.0),
    )  # fmt: skip


class KafkaSink:
    """Writes to one topic. settings: librdkafka's, without those that make delivery sure, which are set here.

    timeout: seconds after which what is not confirmed counts as not delivered. Key: the unit. Value: `document` as
    JSON. Headers: uid, schema, model, version. Timestamp: when it was answered. Keys go to the partition that Java's
    client would choose.
    """

    def __init__(
        self, settings: Mapping[str, Any], topic: str, *, name: str, every: float = 0.5, timeout: float = 30.0
    ) -> None:
        self.name = name
        self.every = every
        self._topic = topic
        self._timeout = timeout
        self._settings: dict[str, Any] = {
            "compression.type": "lz4",
            "linger.ms": 5,
            "partitioner": "murmur2_random",
            "client.id": "loopwright",
            **settings,
            "enable.idempotence": True,
            "acks": "all",
            "delivery.timeout.ms": max(1000, int(timeout * 1000)),
            "socket.timeout.ms": max(1000, min(10_000, int(timeout * 1000))),
            "error_cb": self._note,
        }
        self._last = ""
        self._producer: Producer | None = self._made()

    def deliver(self, rows: Sequence[Row], token: str) -> list[Rejected]:
        """See `Sink`. A producer that failed is thrown away with what it holds, so that nothing overtakes the retry."""
        failed: list[str] = []
        rejected: list[Rejected] = []
        confirmed = 0
        until = time.monotonic() + self._timeout

        def settle(row: Row, error: KafkaError | None) -> None:
            nonlocal confirmed
            if error is None:
                confirmed += 1
            elif error.code() in _NEVER:
                rejected.append(Rejected(row, error.str()))
            else:
                failed.append(error.str())

        try:
            producer = self._producer = self._producer or self._made()
            for row in rows:
                self._produce(producer, row, settle, until)
                producer.poll(0)
                if failed:
                    break
            left = 0 if failed else producer.flush(max(0.1, until + 1 - time.monotonic()))
        except (KafkaException, BufferError) as error:
            self.close()
            raise self._unavailable(str(error)) from None
        if failed or left or confirmed + len(rejected) != len(rows):
            self.close()
            raise self._unavailable(failed[0] if failed else f"{left} messages were not confirmed")
        self._last = ""
        return rejected

    def close(self) -> None:
        """See `Sink`."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()

    def _produce(self, producer: Producer, row: Row, settle: Any, until: float) -> None:
        event = row.event

        def settled(error: KafkaError | None, _: Message) -> None:
            settle(row, error)

        headers: list[tuple[str, str | bytes | None]] = [
            ("uid", row.uid.encode()), ("schema", str(SCHEMA).encode()), ("model", event.model.encode()),
            ("version", str(event.version).encode()),
        ]  # fmt: skip
        value = encoded(row)
        while True:
            try:
                producer.produce(
                    self._topic, key=event.unit.encode(), value=value, headers=headers,
                    timestamp=max(0, event.at // 1000), on_delivery=settled,
                )  # fmt: skip
                return
            except BufferError:
                if time.monotonic() > until:
                    raise
                producer.poll(0.1)  # the queue is full: wait for confirmations
            except KafkaException as error:
                found = error.args[0]
                if found.code() not in _NEVER:
                    raise
                settle(row, found)
                return

    def _made(self) -> Producer:
        try:
            return Producer(self._settings, logger=_log)
        except KafkaException as error:
            raise BadInput(
                f"librdkafka does not take this ({error.args[0].str()})", where=self.name
            ) from None

    def _note(self, error: KafkaError) -> None:
        self._last = error.str()

    def _unavailable(self, why: str) -> Unavailable:
        also = f"; {self._last}" if self._last and self._last not in why else ""
        return Unavailable(
            f"the brokers do not confirm ({why}{also})", where=self.name,
            next="Check that the brokers run, that the topic exists and may be written to.",
        )  # fmt: skip
