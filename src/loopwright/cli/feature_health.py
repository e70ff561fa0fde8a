"""features health|parity"""

from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from loopwright.cli.output import check_place
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, share, table, text
from loopwright.kernel.clock import format_duration


@command("health")
@click.argument("model")
@click.option("--feature", help="Only this one, window by window.")
@click.option("--source", type=click.Choice(["requests", "offline"]), help="As asked with, or as trained on.")
@click.option("--windows", type=int, help="So many windows, the newest.  [default: 1; of one feature 12]")
@click.option("--now", is_flag=True, help="Count afresh, of the span named; nothing is kept.")
@click.option("--version", type=int, help="With --now: this version's features.")
@click.option("--since", metavar="TIME", help="With --now: from this event time on.")
@click.option("--until", metavar="TIME", help="With --now: before this event time.")
@click.option("--html", type=click.Path(path_type=Path), help="Also write a page with pictures.")
def health(
    session: Session,
    model: str,
    feature: str | None,
    source: str | None,
    windows: int | None,
    now: bool,
    version: int | None,
    since: str | None,
    until: str | None,
    html: Path | None,
) -> int:
    """Show how fresh a model's features are, how often null, how many values, in what range.

    Exit code 1 when a rule of `monitoring.features` is broken.
    """
    if not now and (version is not None or since or until):
        raise click.UsageError("--version, --since and --until go with --now")
    check_place(html)
    if now:
        answer = session.call(
            "feature_health.measure", model=model, version=version, since=since, until=until
        )
        answer["statistics"] = [
            one for one in answer["statistics"]
            if one["source"] == (source or one["source"]) and one["feature"] == (feature or one["feature"])
        ]  # fmt: skip
    else:
        many = windows or (12 if feature or html else 1)
        answer = session.call(
            "feature_health.show", model=model, windows=many, feature=feature, source=source
        )
    if html is not None:
        from loopwright.cli.feature_page import page

        html.write_text(page(answer), encoding="utf-8")
        session.note(f"written: {html}")
    session.show(answer, _history if feature else _health)
    return 1 if answer["broken"] else 0


@command("parity")
@click.argument("model")
@click.option(
    "--version", type=int, help="The version whose requests are replayed; default: the one that answers."
)
@click.option("--since", metavar="TIME", help="Requests from this event time on.")
@click.option("--until", metavar="TIME", help="Requests before this event time.")
@click.option(
    "--limit", type=int, default=50_000, show_default=True, help="Of more, a fixed sample is replayed."
)
@click.option(
    "--ulps", type=int, default=4, show_default=True, help="So many float64 may lie between equal floats."
)
def parity(
    session: Session,
    model: str,
    version: int | None,
    since: str | None,
    until: str | None,
    limit: int,
    ulps: int,
) -> int:
    """Replay logged requests through the offline path: train/serve skew as a number.

    Exit code 0 only when every feature and every answer agrees.
    """
    answer = session.call(
        "feature_health.parity", model=model, version=version, since=since, until=until, limit=limit, ulps=ulps
    )  # fmt: skip
    session.show(answer, _parity)
    return 0 if answer["verdict"] == "PASS" else 1


def _health(answer: dict[str, Any]) -> str:
    if not answer["statistics"]:
        return (
            "nothing has been counted yet: windows are counted when event time has completed them "
            "(count now: loopwright features health MODEL --now)"
        )
    newest: dict[str, str] = {}
    for one in answer["statistics"]:
        newest[one["source"]] = max(newest.get(one["source"], ""), one["end"])
    # How old a view is does not depend on where its features were counted; the other rules were judged by source.
    broken = {
        (each["feature"], source)
        for each in answer["broken"]
        for source in (("requests", "offline") if each["rule"] == "freshness" else (each["source"],))
    }
    parts = []
    for source, group in groupby(answer["statistics"], key=lambda one: one["source"]):
        rows = [one for one in group if one["end"] == newest[source]]
        name = "as the model was asked" if source == "requests" else "as the model is trained on (gold/frame)"
        parts.append(
            f"{name}: {text(rows[0]['start'])} to {text(rows[0]['end'])}, {rows[0]['rows']:,} rows\n"
        )
        marked = [
            one | {"broken": bool({(one["feature"], source), (one["view"], source)} & broken)} for one in rows
        ]
        parts.append(table(marked, [
            ("feature", "feature"), ("view", "view"), ("null", lambda o: share(o["null_rate"])), *_VALUES,
            ("rules", lambda o: "BROKEN" if o["broken"] else ""),
        ]) + "\n")  # fmt: skip
    parts.append(_broken(answer))
    return "\n".join(parts)


def _history(answer: dict[str, Any]) -> str:
    if not answer["statistics"]:
        return "nothing has been counted about it yet"
    return (
        table(answer["statistics"], [
            ("of", "source"), ("from", "start"), ("to", "end"), ("rows", "rows"),
            ("null", lambda o: share(o["null_rate"])), *_VALUES,
        ])
        + "\n\n" + _broken(answer)
    )  # fmt: skip


def _broken(answer: dict[str, Any]) -> str:
    if not answer["broken"]:
        return "every rule is kept"
    return table(answer["broken"], [
        ("broken", "feature"), ("of", "source"), ("rule", "rule"), ("found", "found"), ("wanted", "wanted"),
    ])  # fmt: skip


def _range(one: dict[str, Any]) -> str:
    if one["minimum"] is not None:
        return f"{one['minimum']:g} … {one['maximum']:g}"
    return ", ".join(f"{value} ({count:,})" for value, count in one["top"][:3])


def _age(one: dict[str, Any]) -> str | None:
    seconds = one["age_seconds"]
    return None if seconds is None else format_duration(timedelta(seconds=int(seconds)))


_VALUES: list[Column] = [
    ("values", "distinct"), ("mean", "mean"), ("from … to, or the most frequent", _range), ("newest row", _age),
]  # fmt: skip


def _parity(answer: dict[str, Any]) -> str:
    answers = answer["answers"]
    lines = [
        f"{answer['model']}/{answer['version']}: {answer['verdict']}",
        f"  {answer['requests']:,} requests from {text(answer['start'])} to {text(answer['end'])}; "
        f"{answer['replayed']:,} replayed, {answer['matched']:,} found again offline",
        f"  answers: {answers['compared'] - answers['different']:,} of {answers['compared']:,} as the sealed bundle "
        f"gives them (largest difference {text(answers['max_difference'])})",
    ]
    if answer["moved"]:
        lines.append(f"  {answer['moved']:,} came with another event time than their row has")
    if answer["by_key"]:
        lines.append(f"  {answer['by_key']:,} others looked up again by the entities they name")
    if not answer["matched"] and not answer["by_key"]:
        lines.append(
            "  Nothing to compare: a request is found again by its id, the key of a row of the spine's table, "
            "or by the entity columns among its inputs"
        )
        return "\n".join(lines)
    columns: list[Column] = [
        ("feature", "name"), ("from", "source"), ("verdict", "verdict"), ("equal", lambda f: share(f["share"])),
        ("different", "different"), ("only offline", "null_in_request"), ("only in requests", "null_offline"),
        ("most ulps", "max_ulps"), ("largest difference", "max_difference"), ("as float32", "as_float32"),
    ]  # fmt: skip
    lines += ["", table(answer["features"], columns)]
    examples = [
        {"feature": one["name"], **each}
        for one in answer["features"]
        for each in one["examples"][:2]
        if one["different"]
    ]
    if examples:
        lines += ["", table(examples[:20], [
            ("feature", "feature"), ("request", "id"), ("came with", "request"), ("offline", "offline"),
        ])]  # fmt: skip
    return "\n".join(lines)
