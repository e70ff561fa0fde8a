"""Jobs: asynchronous inference, submitted here and answered by `loopwright worker`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.routes import open_routes
from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.control.routes import current_routes
from loopwright.data.sources.reading import public_uri
from loopwright.jobs import job as life
from loopwright.jobs import store
from loopwright.jobs.job import Job, State
from loopwright.jobs.request import MAX_INLINE_BYTES, MAX_INLINE_ROWS, MAX_KEY, PRIORITIES, Request
from loopwright.jobs.results import Results, read_results
from loopwright.jobs.rows import check_rows
from loopwright.jobs.settings import Settings
from loopwright.jobs.versions import pick, schema_of
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, Conflict, NotFound, TooMany, did_you_mean
from loopwright.kernel.ids import new_id
from loopwright.ledger import store as ledger_store
from loopwright.registry import versions
from loopwright.registry.authority import require_on, role_on

RETRY_AFTER = 30.0


class Webhook(BaseModel):
    """Whom to tell when the job has ended; `secret` is a name that home.json knows."""

    model_config = ConfigDict(extra="forbid")

    url: str
    secret: str


@operation("jobs.submit", "POST", "/models/{model}/jobs", role=Role.DEVELOPER)
def submit(
    ctx: Context,
    model: str,
    rows: list[dict[str, Any]] | None = None,
    input: str | None = None,
    output: str | None = None,
    version: int | None = None,
    format: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    id_column: str = "_id",
    unit_column: str = "_unit",
    event_time_column: str = "_event_time",
    bad_rows: Literal["fail", "report"] = "fail",
    idempotency_key: str | None = None,
    webhook: Webhook | None = None,
    priority: int = 0,
) -> dict[str, Any]:
    """Have rows answered by a worker: up to 1,000 `rows` here, or any number in a file that `input` names.

    `input`: CSV, JSON lines or Parquet by path, s3:// or http(s)://. `output`: a folder or s3:// prefix; the results
    lie in one of their own below it. Without one they come with the job when they are few, else lie in the home.
    All rows are answered by one version: `version`, or the one that is stable when the job begins. `bad_rows`: fail the
    job at the first row without an answer, or report such rows in the result. The same request under the same
    `idempotency_key` is the same job; another one under it is a conflict. `webhook` is called when the job has ended.
    """
    settings = Settings.of(ctx.home)
    anywhere = ctx.actor.role_on() >= Role.ADMIN
    if (rows is None) == (input is None):
        raise BadInput(
            "wanted either rows or an input" if rows is None else "both rows and an input are given",
            where="jobs.submit", wanted='"rows": [{…}] or "input": "URI"',
        )  # fmt: skip
    request = Request(
        input=settings.input(input, anywhere=anywhere) if input is not None else None,
        format=format, delimiter=delimiter, encoding=encoding,
        output=settings.output_at(output, anywhere=anywhere) if output is not None else None,
        version=version, id_column=id_column, unit_column=unit_column, event_time_column=event_time_column,
        bad_rows=bad_rows, webhook=webhook.model_dump() if webhook is not None else None, anywhere=anywhere,
    )  # fmt: skip
    _check(request, settings, idempotency_key, priority)
    if rows is not None:
        _check_size(rows)
    digest = request.digest(rows, priority)
    with ctx.ledger.read() as conn:
        versions.check_model(conn, model)
        known = store.by_key(conn, model, idempotency_key) if idempotency_key is not None else None
    if known is None:  # what was taken once is not judged anew
        table = open_routes(current_routes(ctx), ctx.keyring.public)
        route, number = pick(table, model, version)
        if rows is not None:
            _check_rows(rows, schema_of(BundleDepot(ctx.home.bundles), route, number), request)
    job = Job(
        new_id("jb"), model, request.to_json(), ctx.actor.name, ctx.now, priority=priority, key=idempotency_key,
        due_at=ctx.now, total=len(rows) if rows is not None else None,
    )  # fmt: skip
    with ctx.ledger.write() as conn:
        known = store.by_key(conn, model, idempotency_key) if idempotency_key is not None else None
        if known is not None:
            earlier, said = known
            if said != digest:
                raise Conflict(
                    "another request was made under this idempotency key", where=earlier.where, got=idempotency_key,
                    next="Send the same request again, or use another key.",
                )  # fmt: skip
            return {**_brief(earlier), "already": True}
        waiting = store.alive(conn, model)
        if waiting >= settings.max_queued:
            raise TooMany(
                f"{waiting:,} jobs of {model} wait or run already", retry_after=RETRY_AFTER, where=model,
                next="Start more workers (loopwright worker), or submit one job with more rows.",
            )  # fmt: skip
        store.add(conn, job, digest=digest, rows=rows)
        ledger_store.append(
            conn, at=ctx.now, actor=ctx.actor.name, action="job.submitted", subject=model,
            payload={"job": job.id, "input": public_uri(request.input) if request.input else None,
                     "rows": job.total, "output": request.output, "version": version, "request": digest},
        )  # fmt: skip
    return {**_brief(job), "already": False}


@operation("jobs.list", "GET", "/jobs")
def list_jobs(
    ctx: Context, model: str | None = None, state: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """List jobs, the newest first."""
    if not 1 <= limit <= 1000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 1000")
    names = [one.value for one in State]
    if state is not None and state not in names:
        raise BadInput(
            "no such state of a job", got=state, wanted=", ".join(names), next=did_you_mean(state, names)
        )
    with ctx.ledger.read() as conn:
        if model is not None:
            versions.check_model(conn, model)
        found = store.listed(conn, model=model, state=State(state) if state else None, limit=limit)
    return [_brief(job) for job in found]


@operation("jobs.show", "GET", "/jobs/{job}", role=Role.NOBODY)
def show(ctx: Context, job: str) -> dict[str, Any]:
    """Show a job whole: what was asked, how far it is, who worked on it, whom it told.

    What an error says of a row's values is for those who work on the model.
    """
    with ctx.ledger.read() as conn:
        found = store.get(conn, job)
        require_on(conn, ctx.actor, Role.VIEWER, f"look at jobs of {found.model}", model=found.model)
        sees = role_on(conn, ctx.actor, model=found.model) >= Role.DEVELOPER
        tried = [one.to_json() for one in store.attempts(conn, job)]
        told = [one.to_json() for one in store.deliveries(conn, job)]
        tell_at = store.tell_at(conn, job)
    request = {name: value for name, value in found.request.items() if value is not None}
    request.pop("anywhere", None)
    if found.request.get("input"):
        request["input"] = public_uri(str(found.request["input"]))
    hook = found.request.get("webhook")
    if hook:
        request["webhook"] = {"url": public_uri(str(hook["url"])), "secret": hook["secret"]}
    if not sees:
        tried = [{**one, "error": ""} for one in tried]
    result = {
        name: value for name, value in (found.result or {}).items() if name not in ("answers", "columns")
    }
    return {
        **_brief(found, sees=sees),
        "request": request,
        "result": result or None,
        "worker": found.holder,
        "cancelled_by": found.cancelled_by,
        "attempts": tried,
        "webhook": {"calls": told, "next_at": iso(tell_at) if tell_at else None} if hook else None,
    }


@operation("jobs.results", "GET", "/jobs/{job}/results", role=Role.NOBODY)
def results(ctx: Context, job: str, after: int = 0, limit: int = 1000) -> dict[str, Any]:
    """Return rows of a job's result beyond the first `after`: row, id, version, outputs and error of each."""
    if not 1 <= limit <= 10_000 or after < 0:
        raise BadInput(
            "`after` or `limit` is out of range", got=[after, limit], wanted="0 or more, 1 to 10000"
        )
    with ctx.ledger.read() as conn:
        found = store.get(conn, job)
        require_on(conn, ctx.actor, Role.DEVELOPER, f"read answers of {found.model}", model=found.model)
        parts = store.parts(conn, job)
    if found.state is not State.SUCCEEDED or found.result is None:
        raise Conflict(
            "the job has no result" if found.state.ended else "the job has no result yet", where=found.where,
            got=f"{found.state.value}, {found.done:,} of {'?' if found.total is None else f'{found.total:,}'} rows",
            wanted=State.SUCCEEDED.value, next=f"See: loopwright jobs show {job}",
        )  # fmt: skip
    answers = found.result.get("answers")
    if answers is None:
        rows = read_results(parts, after, limit)
    else:
        columns = found.result["columns"]
        rows = [{name: one[name] for name in columns} for one in answers[after : after + limit]]
    end = after + len(rows)
    return {
        "job": job, "model": found.model, "version": found.result["version"], "total": found.done,
        "uri": found.result.get("uri"), "rows": rows, "after": end if end < found.done and rows else None,
    }  # fmt: skip


@operation("jobs.cancel", "POST", "/models/{model}/jobs/{job}/cancel", role=Role.DEVELOPER)
def cancel(ctx: Context, model: str, job: str) -> dict[str, Any]:
    """Cancel a job: a queued one ends now, a running one when its worker hears of it, within seconds."""
    with ctx.ledger.write() as conn:
        _of_model(conn, model, job)
        before, after = store.change(conn, job, ctx.now, lambda at: life.cancel(at, ctx.actor.name, ctx.now))
        if before.cancelled_by is None:
            ledger_store.append(
                conn, at=ctx.now, actor=ctx.actor.name, action="job.cancelled", subject=model,
                payload={"job": job, "done": after.done, "state": before.state.value},
            )  # fmt: skip
    return _brief(after)


@operation("jobs.retry", "POST", "/models/{model}/jobs/{job}/retry", role=Role.DEVELOPER)
def retry(ctx: Context, model: str, job: str, anew: bool = False) -> dict[str, Any]:
    """Give a dead or cancelled job another life: from the rows that are done, or `anew` from its first row.

    Anew, the version that is stable then answers all of it; rows that were answered are counted a second time.
    """
    settings = Settings.of(ctx.home)
    with ctx.ledger.write() as conn:
        _of_model(conn, model, job)
        _, after = store.change(conn, job, ctx.now, lambda at: life.retry(at, ctx.now, anew=anew))
        gone = store.drop_parts(conn, job) if anew else []
        ledger_store.append(
            conn, at=ctx.now, actor=ctx.actor.name, action="job.retried", subject=model,
            payload={"job": job, "anew": anew, "done": after.done},
        )  # fmt: skip
    if gone:
        base = Request.from_json(after.request).output or settings.output
        Results(base, job).discard(part.uri for part in gone)
    return _brief(after)


def _check(request: Request, settings: Settings, key: str | None, priority: int) -> None:
    """Raise BadInput for what could never be done."""
    _ = request.reading  # an unknown format, delimiter or encoding
    names = request.named_columns
    if len(set(names)) != len(names) or not all(names):
        raise BadInput(
            "one column for several things", where="id_column, unit_column, event_time_column", got=names
        )
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise BadInput(
            "not a key", where="idempotency_key", got=key[:80], wanted=f"1 to {MAX_KEY} printable characters"
        )
    if priority not in PRIORITIES:
        raise BadInput("`priority` is out of range", got=priority, wanted="-100 to 100; higher goes first")
    if request.version is not None and request.version < 1:
        raise BadInput("not a version", where="version", got=request.version, wanted="a number from 1 on")
    if request.webhook is not None:
        settings.webhook(request.webhook["url"], request.webhook["secret"])


def _check_size(rows: list[dict[str, Any]]) -> None:
    remedy = "Put them into a file, and name it as `input`."
    if not 1 <= len(rows) <= MAX_INLINE_ROWS:
        raise BadInput(
            "too many rows" if rows else "no rows", where="rows", got=len(rows), wanted=f"1 to {MAX_INLINE_ROWS}",
            next=remedy if rows else "",
        )  # fmt: skip
    if (size := len(canonical_json(rows))) > MAX_INLINE_BYTES:
        raise BadInput(
            "rows too large", where="rows", got=f"{size:,} bytes", wanted=f"at most {MAX_INLINE_BYTES:,}", next=remedy
        )  # fmt: skip


def _check_rows(rows: list[dict[str, Any]], schema: Any, request: Request) -> None:
    checked = check_rows(rows, schema, request)
    if checked.problems and request.bad_rows == "fail":
        position = min(checked.problems)
        column, why = checked.problems[position]
        raise BadInput(
            why, where=f"rows, row {position + 1}, column `{column}`",
            next="Mend the row, or submit with bad_rows: report to go on without it.",
        )  # fmt: skip


def _of_model(conn: Connection, model: str, job: str) -> None:
    """Raise NotFound for another model's job: what may be done was asked for `model`."""
    if store.get(conn, job).model != model:
        raise NotFound(f"{model} has no job with the id {job}", next=f"See: loopwright jobs list {model}")


def _brief(job: Job, *, sees: bool = False) -> dict[str, Any]:
    shown = ("error", "what", "where", "message", "got", "wanted", "next") if sees else ("error", "where")
    return {
        "id": job.id,
        "model": job.model,
        "state": job.state.value,
        "priority": job.priority,
        "key": job.key,
        "version": (job.pinned or {}).get("version", job.request.get("version")),
        "total": job.total,
        "done": job.done,
        "failed_rows": job.failed_rows,
        "failures": job.failures,
        "submitted_by": job.submitted_by,
        "submitted_at": iso(job.submitted_at),
        "started_at": iso(job.started_at) if job.started_at else None,
        "ended_at": iso(job.ended_at) if job.ended_at else None,
        "due_at": iso(job.due_at) if job.state is State.QUEUED and job.due_at else None,
        "error": {name: job.error[name] for name in shown if name in job.error} if job.error else None,
    }
