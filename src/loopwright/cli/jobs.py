"""jobs submit|list|show|cancel|retry|results, worker."""

import json
import time
from pathlib import Path
from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.progress import watch
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, pairs, table, text
from loopwright.kernel.clock import parse_duration
from loopwright.kernel.errors import BadInput, NotFound
from loopwright.kernel.files import written_whole

ENDED = ("succeeded", "dead", "cancelled")
PAGE = 5000


@subcommands(default="list")
def jobs() -> None:
    """Have rows answered in the background; fetch the results."""


@command("submit", jobs)
@click.argument("model")
@click.option(
    "--row", "rows", multiple=True, metavar="JSON", help='A row: {"input": value}; may be given again.'
)
@click.option(
    "--rows",
    "rows_file",
    type=click.Path(path_type=Path),
    help="A file of at most 1,000 rows, one JSON each.",
)
@click.option(
    "--input",
    "input_",
    metavar="URI",
    help="A file (path, s3://, http(s)://): CSV, JSON lines, Parquet.",
)
@click.option(
    "--output", metavar="URI", help="Where results go: a folder or s3:// prefix; default: the home."
)
@click.option("--version", "version", type=int, help="A version that is served; default: the stable one.")
@click.option(
    "--format", "format_", metavar="NAME", help="csv, jsonl or parquet, where the name does not say it."
)
@click.option("--id-column", metavar="NAME", help="The column that names a row; default: _id.")
@click.option("--unit-column", metavar="NAME", help="The column of the unit (user, machine); default: _unit.")
@click.option("--event-time-column", metavar="NAME", help="The column of event times; default: _event_time.")
@click.option(
    "--bad-rows",
    type=click.Choice(["fail", "report"]),
    help="At rows without an answer: fail (default), or report and go on.",
)
@click.option("--key", metavar="TEXT", help="Idempotency key: the same request again is the same job.")
@click.option("--webhook", metavar="URL", help="Called, signed, when the job has ended.")
@click.option("--secret", metavar="NAME", help="What the webhook is signed with: a name in home.json.")
@click.option("--priority", type=int, help="-100 to 100; higher goes first.")
@click.option("--wait", is_flag=True, help="Wait for the end; exit code 1 unless the job succeeds.")
def submit(
    session: Session, model: str, rows: tuple[str, ...], rows_file: Path | None, input_: str | None,
    webhook: str | None, secret: str | None, key: str | None, format_: str | None, wait: bool, **more: Any,
) -> int:  # fmt: skip
    """Have rows answered by a worker: a few here, or any number in a file."""
    if (webhook is None) != (secret is None):
        raise BadInput("--webhook and --secret go together", wanted="--webhook URL --secret NAME")
    given = _rows(rows, rows_file)
    answer = session.call(
        "jobs.submit", model=model, rows=given or None, input=_absolute(session, input_),
        webhook={"url": webhook, "secret": secret} if webhook else None, idempotency_key=key, format=format_,
        **{**more, "output": _absolute(session, more["output"])},
    )  # fmt: skip
    if not wait:
        session.show(answer, _submitted)
        return 0
    ended = _wait(session, answer["id"])
    session.show(ended, _whole)
    return 0 if ended["state"] == "succeeded" else 1


@command("list", jobs)
@click.argument("model", required=False)
@click.option("--state", metavar="STATE", help="Only these: queued, running, succeeded, dead, cancelled.")
@click.option("--limit", type=int, default=50, show_default=True, help="At most so many.")
def list_jobs(session: Session, model: str | None, state: str | None, limit: int) -> None:
    """List jobs, the newest first."""
    columns: list[Column] = [
        ("job", "id"), ("model", "model"), ("version", "version"), ("state", "state"), ("rows", _progress),
        ("failed", "failed_rows"), ("by", "submitted_by"), ("submitted", "submitted_at"), ("ended", "ended_at"),
    ]  # fmt: skip
    session.show(
        session.call("jobs.list", model=model, state=state, limit=limit),
        lambda found: table(found, columns, empty="no job yet; see: loopwright jobs submit"),
    )


@command("show", jobs)
@click.argument("job")
def show(session: Session, job: str) -> None:
    """Show a job: how far it is, who worked on it, whom it told."""
    session.show(session.call("jobs.show", job=job), _whole)


@command("cancel", jobs)
@click.argument("job")
def cancel(session: Session, job: str) -> None:
    """Cancel a job."""
    model = session.call("jobs.show", job=job)["model"]
    session.show(
        session.call("jobs.cancel", model=model, job=job),
        lambda answer: f"{answer['id']}: " + ("cancelled" if answer["state"] == "cancelled" else "its worker is told"),
    )  # fmt: skip


@command("retry", jobs)
@click.argument("job")
@click.option("--anew", is_flag=True, help="From the first row, with the version that is stable now.")
def retry(session: Session, job: str, anew: bool) -> None:
    """Give a dead or cancelled job another life."""
    model = session.call("jobs.show", job=job)["model"]
    session.show(session.call("jobs.retry", model=model, job=job, anew=anew), _submitted)


@command("results", jobs)
@click.argument("job")
@click.option("--after", type=int, default=0, help="Pass over so many rows.")
@click.option("--limit", type=int, default=20, show_default=True, help="At most so many rows.")
@click.option(
    "--to", type=click.Path(path_type=Path), help="Write all rows to this file, a row of JSON on each line."
)
def results(session: Session, job: str, after: int, limit: int, to: Path | None) -> None:
    """Show a job's answers, or write all of them to a file."""
    if to is None:
        session.show(session.call("jobs.results", job=job, after=after, limit=limit), _answers)
        return
    written, at = 0, after
    with written_whole(to.absolute()) as stream, watch() as progress:
        progress.step(f"Write {to}")
        while True:
            page = session.call("jobs.results", job=job, after=at, limit=PAGE)
            for row in page["rows"]:
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            written += len(page["rows"])
            progress.update(written / max(page["total"], 1), f"{written:,} rows")
            if page["after"] is None:
                break
            at = page["after"]
        progress.done(f"{written:,} rows")
    session.show(
        {"file": str(to), "rows": written}, lambda answer: f"{answer['rows']:,} rows in {answer['file']}"
    )


@command("worker")
@click.option("--once", is_flag=True, help="End when no job is due: for cron. Exit code 1 when a job died.")
@click.option(
    "--model", "models", multiple=True, metavar="MODEL", help="Only jobs of this model; may be given again."
)
@click.option(
    "--lease",
    default="30s",
    show_default=True,
    metavar="SPAN",
    help="How long a killed worker keeps its job.",
)
@click.option(
    "--poll", default="500ms", show_default=True, metavar="SPAN", help="How often to look for jobs."
)
@click.option(
    "--chunk-rows", type=click.IntRange(1, 1_000_000), default=20_000, show_default=True,
    help="Rows published at once, at most; fewer: less is done again after a kill.",
)  # fmt: skip
def worker(
    session: Session, once: bool, models: tuple[str, ...], lease: str, poll: str, chunk_rows: int
) -> int:  # fmt: skip
    """Answer jobs in the background, several workers side by side.

    Takes them from the home's ledger, the most urgent first. On SIGTERM it publishes what is answered and gives its job
    back; killed, another worker goes on behind the last rows that were published.
    """
    if session.url:
        raise BadInput(
            "a worker works on a folder",
            got=session.url,
            wanted="--home DIR",
        )
    span, pause = parse_duration(lease), parse_duration(poll).total_seconds()
    if not 1 <= span.total_seconds() <= 3600 or not 0.01 <= pause <= 60:
        raise BadInput(
            "--lease or --poll is out of range", got=f"{lease}, {poll}", wanted="1s to 1h, 10ms to 1m"
        )
    from loopwright.control.work import work
    from loopwright.jobs.worker import as_line

    def say(told: dict[str, Any]) -> None:
        click.echo(as_line(told) if session.as_json else _line(told), err=not session.as_json)

    return work(session.home, say, once=once, models=models, lease=span, poll=pause, chunk_rows=chunk_rows)


def _rows(rows: tuple[str, ...], file: Path | None) -> list[dict[str, Any]]:
    found: list[tuple[str, str]] = [(f"--row {number}", row) for number, row in enumerate(rows, 1)]
    if file is not None:
        if not file.is_file():
            raise NotFound("no such file", got=str(file))
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"cannot be read ({error})", where=str(file)) from None
        found += [(f"{file}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    read = []
    for where, line in found:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"not JSON ({error})", where=where, got=line) from None
        if not isinstance(row, dict):
            raise BadInput("not a row", where=where, got=line, wanted='{"input": value, …}')
        read.append(row)
    return read


def _absolute(session: Session, uri: str | None) -> str | None:
    """A path of this machine, whole, where the home is a folder of this machine too."""
    return uri if uri is None or "://" in uri or session.url else str(Path(uri).expanduser().absolute())


def _wait(session: Session, job: str) -> dict[str, Any]:
    with watch() as progress:
        progress.step(job)
        pause = 0.1
        while (found := session.call("jobs.show", job=job))["state"] not in ENDED:
            progress.update(
                found["done"] / max(found["total"] or 0, 1), f"{found['state']}, {_progress(found)} rows"
            )
            time.sleep(pause)
            pause = min(2.0, pause * 1.3)
        progress.done(f"{found['state']}, {_progress(found)} rows")
    return dict(found)


def _progress(job: dict[str, Any]) -> str:
    return f"{job['done']:,} of {'?' if job['total'] is None else format(job['total'], ',')}"


def _submitted(answer: dict[str, Any]) -> str:
    told = f"{answer['id']}: {answer['state']}"
    if answer.get("already"):
        return f"{told} (asked for before under this key)"
    return f"{told}; follow it with: loopwright jobs show {answer['id']}"


def _whole(job: dict[str, Any]) -> str:
    error, result, hook = job["error"] or {}, job["result"] or {}, job["webhook"]
    lines = [pairs({
        "job": job["id"], "model": job["model"], "version": job["version"], "state": job["state"],
        "rows": _progress(job), "failed rows": job["failed_rows"], "input": job["request"].get("input"),
        "results": result.get("uri") or (f"loopwright jobs results {job['id']}" if result else None),
        "submitted": f"{text(job['submitted_at'])} by {job['submitted_by']}", "started": job["started_at"],
        "ended": job["ended_at"], "error": error.get("message") or error.get("where"), "next try": job["due_at"],
    })]  # fmt: skip
    if job["attempts"]:
        tries: list[Column] = [
            ("attempt", "number"), ("worker", "worker"), ("from", "started_at"), ("to", "ended_at"),
            ("ended", "outcome"), ("first", "done_from"), ("last", "done_to"),
        ]  # fmt: skip
        lines.append(table(job["attempts"], tries))
    if hook:
        calls: list[Column] = [("call", "number"), ("at", "at"), ("problem", "problem")]
        lines.append(table(hook["calls"], calls, empty="the webhook was not called yet"))
    return "\n\n".join(lines)


def _answers(answer: dict[str, Any]) -> str:
    rows = answer["rows"]
    shown = table(rows, [(name, name) for name in rows[0]] if rows else [], empty="no rows beyond")
    if answer["after"] is None:
        return shown
    where = f" in {answer['uri']}" if answer["uri"] else ""
    return f"{shown}\n{answer['after']:,} of {answer['total']:,} rows{where}; go on with --after {answer['after']}"


def _line(told: dict[str, Any]) -> str:
    """A line of a worker's log: the event, the job, then the rest as name=value."""
    rest = {name: value for name, value in told.items() if name not in ("event", "job")}
    words = [f"{name}={json.dumps(value, ensure_ascii=False) if isinstance(value, str) and ' ' in value else value}"
             for name, value in rest.items()]  # fmt: skip
    return " ".join(
        [time.strftime("%H:%M:%S"), str(told["event"]), *([told["job"]] if "job" in told else []), *words]
    )
