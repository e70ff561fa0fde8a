"""up, serve."""

from pathlib import Path

import click

from loopwright.cli.session import Session, command
from loopwright.kernel.clock import parse_duration
from loopwright.kernel.errors import BadInput
from loopwright.kernel.home import Home
from loopwright.kernel.sizes import parse_size


@command("up")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=int, default=8080, show_default=True, help="The port; 0 takes a free one.")
@click.option(
    "--require-token", is_flag=True,
    help="Ask for a token also from this machine, where you are `local`, an admin, without it.",
)  # fmt: skip
@click.option(
    "--behind-proxy", metavar="ADDRESS", multiple=True,
    help="A proxy that ends TLS in front: its X-Forwarded-For, -Proto and -Host count. Tokens are required.",
)  # fmt: skip
def up(session: Session, host: str, port: int, require_token: bool, behind_proxy: tuple[str, ...]) -> int:
    """Start the control plane: API, MLflow, controllers."""
    if session.url:
        raise BadInput("a control plane works on a folder", got=session.url, wanted="--home DIR")
    from loopwright.control.server import up as run

    return run(
        session.home, host, port, require_token=require_token, behind_proxy=behind_proxy, say=session.note
    )


@command("serve")
@click.option("--control", metavar="URL", help="The control plane to follow; default: LOOPWRIGHT_URL.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=int, default=8081, show_default=True, help="The port for HTTP.")
@click.option("--grpc-port", type=int, default=0, help="The port for gRPC; 0: none.")
@click.option("--workers", type=int, default=1, show_default=True, help="Worker processes.")
@click.option(
    "--verify-every",
    default="10m",
    show_default=True,
    metavar="SPAN",
    help="How often to look at the bundles on disk again; 0: never.",
)
@click.option(
    "--callers", type=click.Path(path_type=Path), metavar="FILE",
    help="A JSON list of who may ask: name, token_sha256, may (predict, override, admin), per_second.",
)  # fmt: skip
@click.option(
    "--hang-seconds", type=float, default=10.0, show_default=True, metavar="N",
    help="Replace a worker that has been silent for so long.",
)  # fmt: skip
@click.option(
    "--start-seconds", type=float, default=300.0, show_default=True, metavar="N",
    help="Replace a worker that has not come up within so long.",
)  # fmt: skip
@click.option(
    "--max-memory", default="0", metavar="SIZE",
    help="Replace a worker that takes more, such as 1GB, its model processes included; 0: never.",
)  # fmt: skip
@click.option(
    "--drain-seconds", type=float, default=0.0, show_default=True, metavar="N",
    help="When told to stop, first say not ready on /readyz for so long and go on answering.",
)  # fmt: skip
@click.option(
    "--max-connections", type=int, default=10_000, show_default=True, metavar="N",
    help="Connections that one worker holds at once, idle ones included.",
)  # fmt: skip
@click.option(
    "--log-to", multiple=True, metavar="URL",
    help="Send predictions there too: kafka://BROKER:9092/TOPIC or clickhouse://USER@HOST:8123/DATABASE/TABLE. "
    "Passwords come from LOOPWRIGHT_KAFKA_PASSWORD and LOOPWRIGHT_CLICKHOUSE_PASSWORD. May be given several times.",
)  # fmt: skip
@click.option(
    "--log-keep", default="4GiB", show_default=True, metavar="SIZE",
    help="Predictions that stay on this disk for the sake of such a receiver while it is away.",
)  # fmt: skip
@click.option(
    "--timeout", type=float, default=2.0, show_default=True, metavar="N",
    help="Seconds that one prediction may take at most; a model's serving.timeout_ms may be less.",
)  # fmt: skip
@click.option(
    "--max-body", default="8MiB", show_default=True, metavar="SIZE", help="Bytes that one request may bring.",
)  # fmt: skip
@click.option(
    "--max-rows", type=int, default=10_000, show_default=True, metavar="N", help="Rows that one request may bring.",
)  # fmt: skip
@click.option(
    "--durable", is_flag=True,
    help="Write each prediction through to the disk before it is answered, so that no crash of the machine loses it.",
)  # fmt: skip
@click.option(
    "--access-log", default="", metavar="FILE",
    help="Write a line of JSON for every request there; - is standard output. Without it: none.",
)  # fmt: skip
@click.option(
    "--otlp", default="", metavar="URL",
    help="Send OpenTelemetry traces there, like http://collector:4318/v1/traces (extra: otel).",
)  # fmt: skip
@click.option(
    "--trace-share", type=float, default=1.0, show_default=True, metavar="N",
    help="Of requests that no caller traces, how many are traced, from 0 to 1.",
)  # fmt: skip
@click.option(
    "--model-memory", default="0", metavar="SIZE",
    help="Load models when they are asked for and keep so many bytes of them in a worker, like 500MB; 0: all at once.",
)  # fmt: skip
@click.option(
    "--idle-unload", default="0", metavar="SPAN",
    help="Take a model out of memory that nobody has asked for so long, such as 30m; 0: never.",
)  # fmt: skip
@click.option(
    "--online", metavar="URL", envvar="LOOPWRIGHT_ONLINE",
    help="The online store for requests that name entities, or none; default: the home's, where this machine has it.",
)  # fmt: skip
@click.option(
    "--public-key", type=click.Path(path_type=Path), help="The control plane's public key, to pin it."
)
def serve(
    session: Session,
    control: str | None,
    host: str,
    port: int,
    grpc_port: int,
    workers: int,
    verify_every: str,
    callers: Path | None,
    hang_seconds: float,
    start_seconds: float,
    max_memory: str,
    drain_seconds: float,
    max_connections: int,
    log_to: tuple[str, ...],
    log_keep: str,
    timeout: float,
    max_body: str,
    max_rows: int,
    durable: bool,
    access_log: str,
    otlp: str,
    trace_share: float,
    model_memory: str,
    idle_unload: str,
    online: str | None,
    public_key: Path | None,
) -> int:
    """Start the data plane: V2 serving on worker processes."""
    from loopwright.serving.options import ServeOptions
    from loopwright.serving.supervisor import serve as run

    followed = control or session.url
    if not followed:
        raise BadInput(
            "no control plane is named", wanted="--control URL", next="loopwright up prints its URL."
        )
    home = Home.at(session.home)
    if online is None:
        online = home.online_url if home.exists() else ""
    return run(
        ServeOptions(
            control=followed, host=host, port=port, grpc_port=grpc_port, workers=workers,
            home=home.serving / str(port), online="" if online == "none" else online,
            public_key=public_key, token=session.token, say=session.note, callers=callers,
            hang_seconds=hang_seconds, start_seconds=start_seconds, drain_seconds=drain_seconds,
            max_memory=parse_size(max_memory, where="--max-memory"), max_connections=max_connections,
            timeout=timeout, max_body=parse_size(max_body, where="--max-body"), max_rows=max_rows, durable=durable,
            access_log=access_log, otlp=otlp, trace_share=trace_share,
            log_to=log_to, log_keep=parse_size(log_keep, where="--log-keep"),
            model_memory=parse_size(model_memory, where="--model-memory"),
            idle_unload=0.0 if idle_unload.strip() == "0" else parse_duration(idle_unload).total_seconds(),
            verify_every=0.0 if verify_every.strip() == "0" else parse_duration(verify_every).total_seconds(),
        )
    )  # fmt: skip
