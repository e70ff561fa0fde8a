"""Sinks as they are named on the command line: kafka://broker:9092/topic, clickhouse://user@host:8123/db/table.

Secrets are named, never said: `password_env=NAME` is the environment variable that holds the password.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit

from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.serving.sinks.base import Sink

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PORT = re.compile(r":([0-9]+)$")

KAFKA_OPTIONS = (
    "security.protocol", "sasl.mechanism", "sasl.username", "ssl.ca.location", "ssl.certificate.location",
    "ssl.key.location", "compression.type", "linger.ms", "message.max.bytes", "client.id",
)  # fmt: skip
"""What is handed to librdkafka as it is."""
_OURS = ("password_env", "every", "timeout")
_OPTIONS = {"kafka": (*KAFKA_OPTIONS, *_OURS), "clickhouse": ("secure", "ca_cert", *_OURS)}
_MODULES = {"kafka": "confluent_kafka", "clickhouse": "clickhouse_connect"}
_EXAMPLES = "kafka://broker:9092/topic or clickhouse://user@host:8123/database/table"


@dataclass(frozen=True, slots=True)
class SinkAddress:
    """Where a sink is. `target` is the topic, or (database, table). `name` is what people are told."""

    kind: str
    hosts: str
    target: tuple[str, ...]
    user: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kind}://{self.hosts}/{'/'.join(self.target)}"

    @property
    def password_env(self) -> str:
        """The environment variable with the password."""
        return self.options.get("password_env", f"LOOPWRIGHT_{self.kind.upper()}_PASSWORD")

    def seconds(self, option: str, default: float) -> float:
        """An option that is a span of time."""
        text = self.options.get(option)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0.05 <= value <= 3600:
            raise BadInput(f"not seconds: {option}", where=self.name, got=text, wanted="0.05 to 3600")
        return value


def parse_sink(url: str, where: str = "--log-to") -> SinkAddress:
    """Read a sink's URL. Raises BadInput; what it quotes holds no password."""
    kind, found, rest = url.partition("://")
    if not found or kind not in _OPTIONS:
        raise BadInput(
            "not a sink", where=where, got=kind[:20], wanted=_EXAMPLES, next=did_you_mean(kind, _OPTIONS)
        )
    authority, _, tail = rest.partition("/")
    parts = urlsplit(f"//x/{tail}")
    user, _, hosts = authority.rpartition("@")
    if ":" in user:
        raise BadInput(
            "a password has no place on a command line", where=where, got=f"{kind}://…@{hosts}",
            next=f"Leave it out and set LOOPWRIGHT_{kind.upper()}_PASSWORD, or name its variable: ?password_env=NAME",
        )  # fmt: skip
    if parts.fragment or not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        raise BadInput("not a host", where=where, got=hosts[:100], wanted=_EXAMPLES)
    if any(_port(host) > 65535 for host in hosts.split(",")):
        raise BadInput("not a port", where=where, got=hosts[:100], wanted="1 to 65535")
    target = tuple(unquote(part) for part in PurePosixPath(parts.path).parts[1:])
    shape = (_TOPIC,) if kind == "kafka" else (_NAME, _NAME)
    if len(target) != len(shape) or not all(
        pattern.fullmatch(part) for pattern, part in zip(shape, target, strict=True)
    ):
        wanted = "one topic" if kind == "kafka" else "a database and a table"
        raise BadInput(f"does not name {wanted}", where=where, got=parts.path[:100], wanted=_EXAMPLES)
    if kind == "clickhouse" and "," in hosts:
        raise BadInput(
            "more than one host", where=where, got=hosts, wanted="one, or a balancer in front of several"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS[kind]:
            raise BadInput(
                f"no option of {kind}", where=where, got=name[:60], wanted=", ".join(_OPTIONS[kind]),
                next=did_you_mean(name, _OPTIONS[kind]),
            )  # fmt: skip
    address = SinkAddress(kind, hosts, target, unquote(user), options)
    address.seconds("every", 1.0)
    address.seconds("timeout", 30.0)
    return address


def _port(host: str) -> int:
    found = _PORT.search(host)
    return int(found[1]) if found else 0


def open_sink(address: SinkAddress, environ: Mapping[str, str] = os.environ) -> Sink:
    """Make the sink; connects to nothing yet. Raises BadInput: the extra or a secret is missing, an option is wrong."""
    if find_spec(_MODULES[address.kind]) is None:
        raise BadInput(
            f"{address.kind} is not installed", where=address.name,
            next=f"Run: pip install 'loopwright[{address.kind}]'",
        )  # fmt: skip
    password = environ.get(address.password_env, "")
    if not password and "password_env" in address.options:
        raise BadInput(
            "the variable with the password is not set", where=address.name, got=address.password_env
        )
    if address.kind == "kafka":
        from loopwright.serving.sinks.kafka import kafka_sink

        return kafka_sink(address, password)
    from loopwright.serving.sinks.clickhouse import clickhouse_sink

    return clickhouse_sink(address, password)
