"""status, doctor."""

from typing import Any

import click

from loopwright.cli.session import Session, command
from loopwright.cli.show import share, table, text


@command("status")
@click.argument("model", required=False)
def status(session: Session, model: str | None) -> None:
    """One line per model: stage, traffic, health, drift, alerts."""
    session.show(
        session.call("system.status", model=model),
        lambda rows: table(
            rows,
            [("model", "model"), ("production", "production"), ("traffic", _traffic), ("health", "health"),
             ("drift", "drift"), ("quality", _quality), ("alerts", "alerts"), ("waiting for", _waiting),
             ("event time", "event_time")],
            empty="no models yet; train one: loopwright run DIR",
        ),
    )  # fmt: skip


@command("doctor")
def doctor(session: Session) -> int:
    """Check this machine and the home, and say what to mend."""
    findings = session.call("system.doctor")
    session.show(
        findings,
        lambda rows: table(
            rows,
            [
                ("check", "check"),
                ("", lambda row: "ok" if row["ok"] else "bad"),
                ("found", "found"),
                ("do", "next"),
            ],
        ),
    )
    return 0 if all(finding["ok"] for finding in findings) else 1


def _traffic(row: dict[str, Any]) -> str:
    if row["stable"] is None:
        return "none"
    canary = row["canary"]
    if canary is None:
        return f"{row['stable']}: 100 %"
    if canary["weight"] == 0:
        return f"{row['stable']}: 100 %, {canary['version']}: {canary['at']}"
    return f"{row['stable']}: {share(1 - canary['weight'])}, {canary['version']}: {share(canary['weight'])}"


def _quality(row: dict[str, Any]) -> str | None:
    window = row["quality"]
    if window is None:
        return None
    value = window["payload"].get("value")
    metric = window["payload"].get("metric", "")
    return f"{metric} {value:.3f}" if value is not None else str(window["verdict"])


def _waiting(row: dict[str, Any]) -> str:
    asked = [f"approval of {one['version']} for {one['stage']}" for one in row["waiting"]]
    reviews = [
        f"{'OVERDUE ' if one['overdue'] else ''}review of broken glass: {one['version']}, due {text(one['due_at'])}"
        for one in row["reviews"]
    ]
    return ", ".join(asked + reviews)
