"""log replay: the prediction log, sent elsewhere."""

from datetime import UTC, datetime
from functools import partial
from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.progress import watch
from loopwright.cli.session import Session, command
from loopwright.kernel.clock import parse_time
from loopwright.kernel.errors import BadInput

_EARLIEST, _LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


@subcommands()
def log() -> None:
    """Send logged predictions to Kafka or ClickHouse."""


@command("replay", log)
@click.argument("model")
@click.option(
    "--to", required=True, metavar="URL",
    help="kafka://BROKER:9092/TOPIC or clickhouse://USER@HOST:8123/DATABASE/TABLE; passwords come from "
    "LOOPWRIGHT_KAFKA_PASSWORD and LOOPWRIGHT_CLICKHOUSE_PASSWORD.",
)  # fmt: skip
@click.option(
    "--since", metavar="TIME", help="From this event time on, like 2013-04-01; left out: from the first."
)
@click.option("--until", metavar="TIME", help="Up to this event time, not included; left out: to the last.")
def replay(session: Session, model: str, to: str, since: str | None, until: str | None) -> int:
    """Send MODEL's logged predictions to Kafka or ClickHouse.

    Each has the uid it had when `serve --log-to` sent it, so a receiver that knows a uid has the row already. Works on
    the folder of the control plane (--home), and is audited. After a failure, run it again.
    """
    from loopwright.control.client import HttpClient
    from loopwright.control.folder import FolderClient
    from loopwright.control.replaying import replay_log

    client = session.client()
    if isinstance(client, HttpClient) or not isinstance(client, FolderClient):
        raise BadInput(
            "the log is replayed where it lies", got=session.url, wanted="--home DIR of the control plane"
        )
    start, end = _time(since, _EARLIEST), _time(until, _LATEST)
    asked = partial(replay_log, client.context, model=model, to=to, start=start, end=end)
    if session.as_json:
        answer = asked()
    else:
        with watch() as progress:
            progress.step(f"Send predictions of {model}")
            answer = asked(
                watch=lambda done, files: progress.update(done / files, f"{done} of {files} files")
            )
            progress.done(f"{answer.rows:,} rows confirmed by {answer.sink}")
    session.show(answer.to_json(), _replayed)
    return 1 if answer.rejected else 0


def _time(given: str | None, otherwise: datetime) -> datetime:
    if given is None:
        return otherwise
    return parse_time(given if "T" in given or " " in given else f"{given}T00:00:00Z")


def _replayed(answer: dict[str, Any]) -> str:
    lines = [f"{answer['rows']} predictions of {answer['model']} are in {answer['sink']}."]
    lines += [f"  never taken: {each['uid']} ({each['why']})" for each in answer["rejected"]]
    return "\n".join(lines)
