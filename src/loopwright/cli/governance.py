"""policy test|show|list|set, review."""

import json
from pathlib import Path
from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import pairs, table, text, times
from loopwright.kernel.errors import BadInput


@subcommands()
def policy() -> None:
    """Show, test and set what promotions need."""


@command("test", policy)
@click.argument("model")
@click.argument("version", type=int)
@click.option("--to", default="Production", show_default=True, help="The stage: staging or production.")
@click.option(
    "--policy", "file", type=click.Path(path_type=Path), help="Try this document in the place of the one in force."
)  # fmt: skip
def test(session: Session, model: str, version: int, to: str, file: Path | None) -> int:
    """Say what a version has and lacks, and the next cheapest step.

    Exit code 1 when something is missing.
    """
    document = json.dumps(_read(file)) if file is not None else None
    answer = session.call("policy.test", model=model, version=version, to=to, document=document)
    session.show(answer, _tested)
    return 0 if answer["satisfied"] else 1


@command("show", policy)
@click.argument("tier", required=False)
@click.option("--model", help="All that governs this model: its tier's document and its project.")
def show(session: Session, tier: str | None, model: str | None) -> None:
    """Show the document of a TIER, or what governs a model."""
    session.show(session.call("policy.show", tier=tier, model=model), _document)


@command("list", policy)
@click.argument("tier", required=False)
def list_policies(session: Session, tier: str | None) -> None:
    """List every document the tiers have had."""
    session.show(
        session.call("policy.list", tier=tier),
        lambda rows: table(
            rows,
            [("tier", "tier"), ("number", "number"), ("digest", lambda row: row["digest"][:12]),
             ("set by", lambda row: row["by"] or "built in"), ("at", "at"), ("reason", "reason")],
        ),
    )  # fmt: skip


@command("set", policy)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--reason", default="", help="Why; it stays in the audit log.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
def set_policy(session: Session, file: Path, reason: str, dry_run: bool) -> None:
    """Put a document into force for the tier it names."""
    answer = session.call("policy.set", document=_read(file), reason=reason, dry_run=dry_run)
    session.show(answer, _change)


@subcommands(default="decide")
def review() -> None:
    """List and decide reviews of broken glass."""


@command("list", review)
@click.argument("model", required=False)
@click.option("--all", "everything", is_flag=True, help="Those that were made, too.")
def list_reviews(session: Session, model: str | None, everything: bool) -> None:
    """List the reviews that wait."""
    session.show(
        session.call("reviews.list", model=model, open=not everything),
        lambda rows: table(
            rows,
            [("model", "model"), ("version", "version"), ("broken by", "broken_by"), ("why", "reason"),
             ("due", "due_at"), ("state", lambda row: "OVERDUE" if row["overdue"] else row["state"]),
             ("by", "reviewer"), ("comment", "comment")],
            empty="no review waits",
        ),
    )  # fmt: skip


@command("decide", review)
@click.argument("model")
@click.argument("version", type=int)
@click.option("--uphold", "outcome", flag_value="uphold", type=str, help="It was right; the version stays.")
@click.option(
    "--revoke", "outcome", flag_value="revoke", type=str, help="It was not; the version leaves traffic."
)
@click.option("--comment", default="", help="What you looked at.")
def decide(session: Session, model: str, version: int, outcome: str | None, comment: str) -> None:
    """Decide whether breaking the glass was right."""
    if outcome is None:
        raise BadInput("no decision", wanted="--uphold or --revoke")
    answer = session.call("reviews.decide", model=model, version=version, outcome=outcome, comment=comment)
    session.show(answer, _decided)


def _read(file: Path) -> dict[str, Any]:
    """The document in `file`; read here, so that errors name its lines."""
    from loopwright.project.policy import read_policy

    return read_policy(file).to_json()


def _tested(answer: dict[str, Any]) -> str:
    under = "the document given" if answer["tried"] else f"tier {answer['tier']}"
    head = f"{answer['model']} version {answer['version']} to {answer['to']}, by {under}: "
    head += "nothing is missing" if answer["satisfied"] else f"{len(answer['missing'])} missing"
    rows = table(
        answer["requirements"],
        [("", lambda each: "ok" if each["met"] else "missing"), ("wanted", "what"),
         ("found", lambda each: times(each["found"])), ("takes", "cost"), ("do", "next")],
    )  # fmt: skip
    step = answer["next"]
    told = "".join(f"\n- {times(lack)}" for lack in answer["missing"])
    last = f"\n\nnext cheapest step: {step['next']} ({step['cost']})" if step else ""
    return f"{head}\n\n{rows}" + (f"\n{told}" if told else "") + last


def _document(answer: dict[str, Any]) -> str:
    said = answer["document"]
    whose = (
        "built in"
        if answer["by"] is None
        else f"set by {answer['by']}, {text(answer['at'])}: {answer['reason']}"
    )
    lines: dict[str, Any] = {
        "tier": f"{answer['tier']}, number {answer['number']} ({whose})",
        "digest": answer["digest"],
    }
    for stage in ("staging", "production"):
        lines[f"{stage} approvals"] = f"{said['approvals'][stage]} by role {said['reviewer'][stage]} or above"
        lines[f"{stage} evidence"] = [
            _wanted(kind, wanted) for kind, wanted in said["evidence"][stage].items()
        ]
    emergency = said["emergency"]
    lines |= {
        "author may approve": said["author_may_approve"],
        "requester may approve": said["requester_may_approve"],
        "approvals expire": said["approvals_expire"],
        "freezes": [_freeze(item) for item in said["freeze"]],
        "break glass": f"role {emergency['role']}, review within {emergency['review_within']}"
        + (", also past failed gates" if emergency["failed_gates"] else "") if emergency["allowed"] else "never",
        "kept for": said["retain"],
    }  # fmt: skip
    if "model" in answer:
        lines |= {
            "stricter than its tier": answer["stricter"],
            "waived by an admin": answer["waived"],
            "asked for, not granted": answer["ungranted"],
        }
        lines = {"model": answer["model"], **lines}
    return pairs(lines)


def _change(answer: dict[str, Any]) -> str:
    tier = answer["tier"]
    if not answer["changed"]:
        return f"tier {tier}: this document is in force already (number {answer['before_number']})"
    verb = "would become" if answer["dry_run"] else "is now"
    lines = [f"tier {tier}: number {answer['number']} {verb} the document in force ({answer['digest'][:12]})"]
    lines += [f"- looser: {point}" for point in answer["looser"]]
    # Told from the other side: what the document before would loosen.
    lines += [f"+ stricter than before; before: {point}" for point in answer["stricter"]]
    return "\n".join(lines)


def _decided(answer: dict[str, Any]) -> str:
    head = f"{answer['model']} version {answer['version']}: the broken glass is {answer['state']}"
    if answer["state"] == "upheld":
        return head
    serving = answer["serving"]
    if serving == answer["version"]:
        return f"{head}\nno other version can answer: it keeps serving until a successor is promoted"
    return f"{head}\n" + (f"version {serving} answers all traffic" if serving else "nothing answers")


def _wanted(kind: str, wanted: dict[str, Any]) -> str:
    age = "" if wanted["max_age"] == "never" else f" at most {wanted['max_age']} old"
    where = " on the version's snapshot" if wanted["snapshot"] == "version" else ""
    sections = f" with {' + '.join(wanted['sections'])}" if wanted["sections"] else ""
    return f"{kind}{age}{where}{sections}"


def _freeze(item: dict[str, Any]) -> str:
    days = f"{'/'.join(item['days'])} " if item.get("days") else ""
    zone = f" {item['zone']}" if item.get("days") else ""
    why = f" ({item['why']})" if item["why"] else ""
    return f"{'/'.join(item['stages'])}: {days}{text(item['from'])} to {text(item['until'])}{zone}{why}"
