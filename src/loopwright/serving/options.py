"""What `loopwright serve` was asked for."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loopwright.kernel.errors import BadInput
from loopwright.kernel.sizes import said_size
from loopwright.serving.access_log import AccessLog
from loopwright.serving.callers import Callers
from loopwright.serving.lookups import Lookups
from loopwright.serving.ports import listen
from loopwright.serving.sinks.address import parse_sink
from loopwright.serving.tracing import Tracing

LEAST_MEMORY = 64_000_000
"""Below this no worker comes up at all."""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What `loopwright serve` was asked for.

    home: this server's own folder (cache and log). public_key: file with the control plane's public key; without it the
    key is pinned at the first contact. wait: seconds to wait for the control plane when nothing is cached. port 0: any.
    verify_every: seconds between two looks at the bundles on disk; 0: never. callers: a file with those who may ask.
    hang_seconds: a worker that is silent for so long is killed. start_seconds: so is one that does not come up.
    max_memory: bytes a worker may take before it is replaced, at the earliest after rest_seconds; 0: any.
    drain_seconds: after SIGTERM, how long to go on answering while saying not ready. max_connections: open at once to
    one worker, idle ones included. log_to: sinks of the prediction log besides the control plane. log_keep: bytes of it
    that stay for the sake of a sink that lags. access_log: a file for a line a request, or "-"; otlp: where traces go,
    trace_share: of requests nobody traces yet, how many (0 to 1). model_memory: bytes that a worker's models may take
    together, 0: any; idle_unload: seconds after which a model nobody asks for leaves memory, 0: never. With either,
    models are loaded when they are asked for. online: URL of the online store that requests may leave inputs to; it may
    hold a password, so workers are not told by their command line.
    """

    control: str
    home: Path
    port: int = 8080
    host: str = "127.0.0.1"
    workers: int = 1
    grpc_port: int = 0
    token: str | None = None
    public_key: Path | None = None
    wait: float = 10.0
    poll: float = 0.5
    ship: float = 0.5
    timeout: float = 2.0
    max_body: int = 8 << 20
    max_rows: int = 10_000
    durable: bool = False
    verify_every: float = 600.0
    keys_every: float = 5.0
    callers: Path | None = None
    hang_seconds: float = 10.0
    start_seconds: float = 300.0
    max_memory: int = 0
    rest_seconds: float = 60.0
    drain_seconds: float = 0.0
    max_connections: int = 10_000
    log_to: tuple[str, ...] = ()
    log_keep: int = 4 << 30
    access_log: str = ""
    otlp: str = ""
    trace_share: float = 1.0
    model_memory: int = 0
    idle_unload: float = 0.0
    online: str = ""
    say: Callable[[str], None] = field(default=_say)

    def check(self) -> None:
        """Raise BadInput for what cannot be meant, before anything is opened."""
        if not 1 <= self.workers <= 256:
            raise BadInput("not a number of workers", where="--workers", got=self.workers, wanted="1 to 256")
        if self.callers is not None:
            Callers.read(self.callers)
        if self.online:
            Lookups.open(self.online).close()
        if self.model_memory < 0 or not 0 <= self.idle_unload <= 10 * 86400:
            raise BadInput(
                "models cannot be unloaded like this", where="--model-memory, --idle-unload",
                got=f"{self.model_memory} bytes, {self.idle_unload:g} s", wanted="an amount, and at most 10 days",
            )  # fmt: skip
        if self.verify_every < 0:
            raise BadInput(
                "not a span of time", where="--verify-every", got=self.verify_every, wanted="0 or more"
            )
        for name, seconds, least, most in (
            ("--hang-seconds", self.hang_seconds, 0.5, 3600.0),
            ("--start-seconds", self.start_seconds, 1.0, 86400.0),
            ("--drain-seconds", self.drain_seconds, 0.0, 3600.0),
        ):
            if not least <= seconds <= most:
                raise BadInput("not a span of time", where=name, got=seconds, wanted=f"{least:g} to {most:g}")
        if self.max_memory and self.max_memory < LEAST_MEMORY:
            raise BadInput(
                "no worker fits", where="--max-memory", got=said_size(self.max_memory),
                wanted=f"at least {said_size(LEAST_MEMORY)}, or 0 for no ceiling",
            )  # fmt: skip
        if not 16 <= self.max_connections <= 1_000_000:
            raise BadInput(
                "not a number of connections", where="--max-connections", got=self.max_connections,
                wanted="16 to 1000000",
            )  # fmt: skip
        for name, amount, most in (
            ("--timeout", self.timeout, 3600), ("--max-body", self.max_body, 1 << 30),
            ("--max-rows", self.max_rows, 10_000_000),
        ):  # fmt: skip
            if not 0 < amount <= most:
                raise BadInput("not a bound", where=name, got=amount, wanted=f"above 0, at most {most}")
        self._check_sinks()
        if self.access_log:
            AccessLog(self.access_log).close()
        if self.otlp:
            Tracing(self.otlp, share=self.trace_share).close()
        for name, port in (("--port", self.port), ("--grpc-port", self.grpc_port)):
            if not 0 <= port <= 65535:
                raise BadInput("not a port", where=name, got=port, wanted="0 to 65535")
        if self.grpc_port:
            try:
                import grpc  # noqa: F401 - only asks whether the extra is installed
            except ImportError:
                raise BadInput(
                    "gRPC is not installed", where="--grpc-port", next="Run: pip install 'loopwright[grpc]'"
                ) from None
            listen(self.host, self.grpc_port, 1)[0].close()

    def _check_sinks(self) -> None:
        if self.log_keep < 0:
            raise BadInput(
                "not an amount of bytes", where="--log-keep", got=self.log_keep, wanted="0 or more"
            )
        names = [parse_sink(url).name for url in self.log_to]
        if twice := {name for name in names if names.count(name) > 1}:
            raise BadInput("a sink named twice", where="--log-to", got=", ".join(sorted(twice)))
