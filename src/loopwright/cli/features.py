"""features list|show|status|docs|materialize|get|training-set|test|health|parity."""

from pathlib import Path
from typing import Any

import click

from loopwright.cli.entities import key_values, read_entities, write_rows
from loopwright.cli.feature_health import health, parity
from loopwright.cli.feature_tests import test
from loopwright.cli.lazy import subcommands
from loopwright.cli.output import check_place
from loopwright.cli.progress import watch
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, pairs, table, text

A_CALL = 2_000
"""Entities of a file that are asked for at once."""
LONGEST = 6 * 3600.0
"""Seconds that a materialisation on a control plane is waited for."""


@subcommands()
def features() -> None:
    """Materialise, read and watch features; prove there is no skew."""


features.add_command(health)
features.add_command(parity)
features.add_command(test)


@command("list", features)
@click.argument("model", required=False)
def list_(session: Session, model: str | None) -> None:
    """List feature views: whose they are, what they give, and what of them is online."""
    columns = [("model", "model"), ("view", "view"), ("definition", "number"), ("entity", "entity"), ("gives", "gives"),
               ("ttl", "ttl"), ("owner", "owner"), ("online", "rows_online"), ("as of", "as_of")]  # fmt: skip
    session.show(
        session.call("features.list", model=model),
        lambda rows: table(
            rows, columns, empty="no feature views yet; they are known after: loopwright run DIR"
        ),
    )


@command("show", features)
@click.argument("model")
@click.argument("view")
def show(session: Session, model: str, view: str) -> None:
    """Show a feature view: definition, what it is made of, which versions use it, how fresh it is."""
    session.show(session.call("features.show", model=model, view=view), _shown)


@command("status", features)
@click.argument("model")
def status(session: Session, model: str) -> int:
    """Say of each view what is online, up to when, and whether it is stale.

    Exit code 1 when a view is stale or was never materialised.
    """
    answer = session.call("features.status", model=model)
    session.show(answer, _statuses)
    return 1 if any(view["stale"] for view in answer["views"]) else 0


@command("docs", features)
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="The HTML file; default: MODEL-features.html.",
)
def docs(session: Session, model: str, out: Path | None) -> None:
    """Write a page about a model's feature views that needs nothing else."""
    target = out or Path(f"{model}-features.html")
    check_place(target)
    answer = session.call("features.docs", model=model)
    from loopwright.cli.feature_docs import page
    from loopwright.kernel.files import write_atomic

    write_atomic(target, page(answer).encode())
    session.show({"model": model, "out": str(target), "views": len(answer["views"])},
                 lambda a: f"{a['out']}: {a['views']} feature views of {a['model']}")  # fmt: skip


@command("materialize", features)
@click.argument("model")
@click.option(
    "--project", type=click.Path(path_type=Path), help="The project's folder, before its first run."
)
@click.option("--view", "views", multiple=True, help="Only this view; may be given again.")
@click.option("--as-of", metavar="TIME", help="What was known then; default: now.")
@click.option("--since", metavar="TIME", help="Also entities with rows that happened then or later.")
@click.option("--full", is_flag=True, help="Everything anew, not what can have changed alone.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
def materialize(
    session: Session,
    model: str,
    project: Path | None,
    views: tuple[str, ...],
    as_of: str | None,
    since: str | None,
    full: bool,
    dry_run: bool,
) -> None:
    """Bring the online store up to what is known now: what can have changed, or everything.

    Readers see what stood before until it is whole. What was cut short goes on where it was.
    """
    from loopwright.control.client import HttpClient

    client = session.client(create=project is not None)
    if isinstance(client, HttpClient):
        client.timeout = LONGEST
    arguments: dict[str, Any] = {
        "model": model, "project": str(project.absolute()) if project else None, "views": list(views) or None,
        "as_of": as_of, "since": since, "full": full, "dry_run": dry_run,
    }  # fmt: skip
    if session.as_json or dry_run or isinstance(client, HttpClient):
        answer = session.call("features.materialize", **arguments)
    else:
        from loopwright.kernel.progress import watching

        with watch() as progress:
            token = watching.set(progress)
            try:
                answer = session.call("features.materialize", **arguments)
            finally:
                watching.reset(token)
    session.show(answer, _materialized)


@command("get", features)
@click.argument("model")
@click.option(
    "--entity",
    "pairs_",
    multiple=True,
    metavar="NAME=VALUE",
    help="A part of a key, or what a request brings.",
)
@click.option("--file", type=click.Path(path_type=Path), help="Many entities: .csv, .jsonl or .parquet.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write them: .csv, .jsonl or .parquet.")
@click.option("--view", "views", multiple=True, help="Only this view; may be given again.")
@click.option("--at", metavar="TIME", help="Judge ages as of then; default: now.")
@click.option("--version", type=int, help="Make the features of this version; default: the stable one.")
def get(
    session: Session,
    model: str,
    pairs_: tuple[str, ...],
    file: Path | None,
    out: Path | None,
    views: tuple[str, ...],
    at: str | None,
    version: int | None,
) -> int:
    """Read what is online about entities, and the features that a version makes of it.

    Exit code 1 when an input of the version is missing.
    """
    check_place(out)
    entities = read_entities(file) if file else [key_values(pairs_)]
    if out is None and file is not None and not session.as_json and len(entities) > 20:
        from loopwright.kernel.errors import BadInput

        raise BadInput("so many rows are no reading", got=len(entities), wanted="--out FILE or --json")
    rows: list[dict[str, Any]] = []
    answer: dict[str, Any] = {}
    for start in range(0, len(entities), A_CALL):
        answer = session.call(
            "features.get", model=model, entities=entities[start : start + A_CALL], views=list(views) or None, at=at,
            version=version,
        )  # fmt: skip
        rows += answer["rows"]
    answer["rows"] = rows
    missing = sorted({name for row in rows for name in row["missing"]})
    if out is not None:
        write_rows(out, rows)
        answer = {key: value for key, value in answer.items() if key != "rows"} | {
            "out": str(out), "entities": len(rows), "missing": missing
        }  # fmt: skip
        session.show(
            answer, lambda a: f"{a['out']}: {a['entities']:,} entities" + _lacking(a["missing"], model)
        )
    else:
        session.show(answer, _got)
    return 1 if missing else 0


@command("training-set", features)
@click.argument("model")
@click.option(
    "--entities",
    type=click.Path(path_type=Path),
    required=True,
    help="Rows with keys and a time: .csv, .parquet.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to write it: .parquet.")
@click.option(
    "--timestamp", default="event_time", show_default=True, help="The column with the moment of each row."
)
@click.option(
    "--project", type=click.Path(path_type=Path), help="The project's folder, before its first run."
)
@click.option("--view", "views", multiple=True, help="Only this view; may be given again.")
def training_set(
    session: Session,
    model: str,
    entities: Path,
    out: Path,
    timestamp: str,
    project: Path | None,
    views: tuple[str, ...],
) -> None:
    """Give each row of a file what the feature views knew at its moment."""
    check_place(out)
    answer = session.call(
        "features.training_set", model=model, entities=str(entities.absolute()), out=str(out.absolute()),
        timestamp=timestamp, project=str(project.absolute()) if project else None, views=list(views) or None,
    )  # fmt: skip
    session.show(answer, _made)


def _made(answer: dict[str, Any]) -> str:
    rows = [{"view": view, **counts} for view, counts in answer["statuses"].items()]
    words = list(dict.fromkeys(word for counts in answer["statuses"].values() for word in counts))
    head = f"{answer['out']}: {answer['rows']:,} rows, {len(answer['columns'])} columns"
    return "\n".join([head, "", table(rows, [("view", "view"), *((word, word) for word in words)])])


def _materialized(answer: dict[str, Any]) -> str:
    would = "would be " if answer["dry_run"] else ""
    columns = [("view", "view"), ("kind", "kind"), (f"{would}written", "entities"), ("online", "rows_online"),
               ("as of", "as_of"), ("why", "why")]  # fmt: skip
    return table(answer["views"], columns, empty="no view gives an input of the model")


def _statuses(answer: dict[str, Any]) -> str:
    columns: list[Column] = [("view", "view"), ("rows", "rows"), ("as of", "as_of"), ("age", lambda v: _span(v["age"])),
               ("last", lambda v: v["last"] and f"{v['last']['kind']} {v['last']['state']}, {v['last']['rows']:,}"),
               ("stale", "stale")]  # fmt: skip
    return f"{answer['model']} in {answer['store']}\n\n" + table(answer["views"], columns)


def _shown(answer: dict[str, Any]) -> str:
    told = answer["definition"]
    lines = [
        pairs({
            "view": f"{answer['model']}/{answer['view']}, definition {answer['number']} ({answer['digest'][:12]})",
            "about": told.get("description"), "owner": told.get("owner"), "kind": told["kind"],
            "table": told.get("table"), "entity": [pair[0] for pair in told.get("entity", told.get("on", ()))],
            "event time": told.get("event_time"), "ttl": told.get("ttl"), "window": told.get("window"),
            "online": f"{answer['online']['rows']:,} rows as of {text(answer['online']['as_of'])}"
            if answer["online"]["online"] else "not yet",
            "stale": answer["online"]["stale"],
        }), "",
    ]  # fmt: skip
    made_by = [{"name": name, "by": sql} for name, sql in told.get("columns", ())]
    made_by += [{"name": name, "by": _aggregated(how)} for name, how in told.get("aggregations", ())]
    if made_by:
        lines.append(table(made_by, [("gives", "name"), ("by", "by")]))
    if told.get("tests"):
        tests = [{"name": name, **test} for name, test in told["tests"].items()]
        lines += ["", table(tests, [("test", "name"), ("condition", "condition"), ("severity", "severity")])]
    if answer["lineage"]:
        made = [
            {"input": one["name"], "reads": ", ".join(f"{r['table']}.{r['column']}" for r in one["reads"])}
            for one in answer["lineage"]
        ]
        lines += ["", table(made, [("input", "input"), ("made of", "reads")])]
    used = table(answer["used_by"], [("version", "version"), ("stage", "stage"), ("inputs", "inputs")],
                 empty="no version uses it yet")  # fmt: skip
    past = table(answer["materializations"], [("started", "started_at"), ("kind", "kind"), ("state", "state"),
                 ("rows", "rows"), ("as of", "as_of"), ("why", "why")], empty="never materialised")  # fmt: skip
    return "\n".join([*lines, "", used, "", past])


def _aggregated(how: dict[str, Any]) -> str:
    """An aggregation in words: sum of amount over 7d."""
    words = [how["function"], f"of {how['value']}" if how.get("value") else "of rows"]
    words += [f"where {how['where']}"] if how.get("where") else []
    words += [f"over {how['window']}"] if how.get("window") else []
    words += ["of when it became known"] if how.get("over") == "available_at" else []
    return " ".join(words)


def _got(answer: dict[str, Any]) -> str:
    parts = []
    for row in answer["rows"]:
        parts.append(", ".join(f"{name}={text(value)}" for name, value in row["entity"].items()))
        lines = [
            {"view": view["view"], "name": name, "value": value, "status": view["statuses"][name],
             "age": _span(view["age"])}
            for view in row["views"] for name, value in view["values"].items()
        ]  # fmt: skip
        columns = [
            ("view", "view"),
            ("feature", "name"),
            ("value", "value"),
            ("status", "status"),
            ("age", "age"),
        ]
        parts.append(table(lines, columns, empty="no view is asked by this key"))
        parts += [
            f"not asked: {view}, whose key lacks {', '.join(lacks)}" for view, lacks in row["unasked"].items()
        ]
        if row["features"] is not None:
            made = [{"name": name, "value": value} for name, value in row["features"].items()]
            parts += ["", f"features of version {answer['version']}",
                      table(made, [("feature", "name"), ("value", "value")])]  # fmt: skip
        elif row["missing"]:
            parts.append(_lacking(row["missing"], answer["model"]).removeprefix("; "))
        parts.append("")
    return "\n".join(parts).rstrip()


def _lacking(missing: list[str], model: str) -> str:
    if not missing:
        return ""
    return f"; missing of the inputs of {model}: {', '.join(missing)} (give them: --entity NAME=VALUE)"


def _span(seconds: float | None) -> str | None:
    """A length of time in one unit: 45 s, 12 min, 3.5 h, 8 d."""
    if seconds is None:
        return None
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if abs(seconds) >= 2 * size:
            return (
                f"{seconds / size:,.0f} {unit}"
                if abs(seconds) >= 100 * size
                else f"{seconds / size:.3g} {unit}"
            )
    return f"{seconds:.3g} s"
