"""models list|show|card|…, promote, approve, reject, withdraw, rollback, annotate: versions and the acts on them."""

from typing import Any

import click

from loopwright.cli.documents import card, document, documents, sbom
from loopwright.cli.importing import import_model
from loopwright.cli.lazy import subcommands
from loopwright.cli.lineage import version_text
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, pairs, table, text
from loopwright.kernel.errors import BadInput

_STAGES = click.Choice(["staging", "production"], case_sensitive=False)
_WHICH = "Which request, when one to each stage waits."


@subcommands()
def models() -> None:
    """List models, show versions and their lineage."""


for each in (card, sbom, document, documents, import_model):
    models.add_command(each)


@command("list", models)
def list_models(session: Session) -> None:
    """List models with the versions in each stage."""
    session.show(
        session.call("models.list"),
        lambda rows: table(
            rows,
            [("model", "model"), ("versions", "versions"), ("newest", "newest"), ("staging", "staging"),
             ("production", "production"), ("serving", "serving")],
            empty="no models yet; train one: loopwright run DIR",
        ),
    )  # fmt: skip


@command("show", models)
@click.argument("model")
@click.argument("version", type=int, required=False)
@click.option(
    "--limit", type=int, default=50, show_default=True, help="At most so many versions, the newest."
)
@click.option("--before", type=int, metavar="N", help="Only versions with a number under N: the page after.")
def show(session: Session, model: str, version: int | None, limit: int, before: int | None) -> None:
    """Show a model's versions, or one VERSION with approvals and evidence."""
    answer = session.call("models.show", model=model, version=version, limit=limit, before=before)
    session.show(answer, _versions if version is None else _version)


@command("verify", models)
@click.argument("model")
@click.argument("version", type=int)
def verify(session: Session, model: str, version: int) -> int:
    """Check a version's bytes, seal, approval, route and MLflow's source."""
    answer = session.call("models.verify", model=model, version=version)
    marks = {True: "ok", False: "bad", None: "–"}
    columns: list[Column] = [
        ("check", "check"),
        ("", lambda row: marks[row["ok"]]),
        ("found", "found"),
    ]
    session.show(answer, lambda a: table(a["checks"], columns))
    return 0 if answer["ok"] else 1


@command("lineage", models)
@click.argument("model")
@click.argument("version", type=int)
def lineage(session: Session, model: str, version: int) -> None:
    """Show what a version came from: run, code, data, parent, people."""
    session.show(session.call("models.lineage", model=model, version=version), version_text)


@command("retention", models)
@click.argument("model", required=False)
def retention(session: Session, model: str | None) -> None:
    """Show until when versions are kept, and which may go."""
    session.show(
        session.call("models.retention", model=model),
        lambda rows: table(
            rows,
            [("model", "model"), ("version", "version"), ("stage", "stage"),
             ("kept until", lambda v: v["kept_until"][:10]), ("may go", lambda v: "yes" if v["may_go"] else "no"),
             ("needed", lambda v: "; ".join(v["needed_by"]))],
            empty="no models yet; train one: loopwright run DIR",
        ),
    )  # fmt: skip


@command("delete", models)
@click.argument("model")
@click.argument("version", type=int)
@click.option("--reason", required=True, help="Why; it stays in the audit log.")
@click.option("--dry-run", is_flag=True, help="Only say whether it may go.")
def delete(session: Session, model: str, version: int, reason: str, dry_run: bool) -> None:
    """Delete a version whose retention is over."""
    answer = session.call("models.delete", model=model, version=version, reason=reason, dry_run=dry_run)
    session.show(answer, _deletion)


@command("promote")
@click.argument("model")
@click.argument("version", type=int)
@click.option("--to", default="Production", show_default=True, help="The stage: staging or production.")
@click.option("--reason", default="", help="Why; it stays in the audit log.")
@click.option(
    "--break-glass",
    "emergency",
    is_flag=True,
    help="An emergency: to Production without approvals. Raises an alert; somebody else must review it later.",
)
def promote(session: Session, model: str, version: int, to: str, reason: str, emergency: bool) -> None:
    """Ask for a version to be moved to a stage."""
    if emergency and to.lower() != "production":
        raise BadInput("the glass is broken for Production only", got=f"--to {to}")
    if emergency:
        answer = session.call("models.break_glass", model=model, version=version, reason=reason)
    else:
        answer = session.call("models.promote", model=model, version=version, to=to, reason=reason)
    session.show(answer, _promotion)


@command("approve")
@click.argument("model")
@click.argument("version", type=int)
@click.option("--comment", default="", help="What you looked at.")
@click.option("--to", type=_STAGES, help=_WHICH)
def approve(session: Session, model: str, version: int, comment: str, to: str | None) -> None:
    """Say yes to a promotion."""
    answer = session.call("models.approve", model=model, version=version, comment=comment, to=to)
    session.show(answer, _promotion)


@command("reject")
@click.argument("model")
@click.argument("version", type=int)
@click.option("--comment", default="", help="Why not.")
@click.option("--to", type=_STAGES, help=_WHICH)
def reject(session: Session, model: str, version: int, comment: str, to: str | None) -> None:
    """Say no to a promotion."""
    answer = session.call("models.reject", model=model, version=version, comment=comment, to=to)
    session.show(answer, _promotion)


@command("withdraw")
@click.argument("model")
@click.argument("version", type=int)
@click.option("--reason", default="", help="Why; it stays in the audit log.")
@click.option("--to", type=_STAGES, help=_WHICH)
def withdraw(session: Session, model: str, version: int, reason: str, to: str | None) -> None:
    """Take back a request for a promotion."""
    answer = session.call("models.withdraw", model=model, version=version, reason=reason, to=to)
    session.show(answer, _promotion)


@command("annotate")
@click.argument("model")
@click.argument("version", type=int)
@click.argument("key")
@click.argument("value")
def annotate(session: Session, model: str, version: int, key: str, value: str) -> None:
    """Pin a note to a version; an empty VALUE takes it away."""
    answer = session.call("models.annotate", model=model, version=version, key=key, value=value)
    session.show(answer, lambda a: f"{a['model']} version {a['version']}: {text(a['annotations'])}")


@command("rollback")
@click.argument("model")
@click.option("--to-version", type=int, help="The version to go back to; default: the one before.")
@click.option("--reason", default="", help="Why; it stays in the audit log.")
def rollback(session: Session, model: str, to_version: int | None, reason: str) -> None:
    """Bring back the version that was in production before."""
    answer = session.call("models.rollback", model=model, to_version=to_version, reason=reason)
    session.show(
        answer,
        lambda a: (
            f"{a['model']}: version {a['to_version']} answers all traffic again; "
            f"version {a['from_version']} is out."
        ),
    )


def _promotion(answer: dict[str, Any]) -> str:
    what = f"{answer['model']} version {answer['version']} to {answer['stage']}: {answer['state']}"
    if answer.get("emergency"):
        what += f"; the glass was broken: {answer['emergency']}"
    if answer["missing"]:
        what += "\nstill missing:" + "".join(f"\n  {each}" for each in answer["missing"])
    if answer.get("reviewers"):
        what += f"\nmay approve: {', '.join(answer['reviewers'])}"
    if answer.get("next"):
        what += f"\nnext: {answer['next']['next']} ({answer['next']['cost']})"
    if answer.get("review"):
        review = answer["review"]
        what += f"\na review must follow until {text(review['due_at'])}, by somebody other than {review['broken_by']}: "
        what += (
            f"loopwright review {answer['model']} {answer['version']} --uphold --comment TEXT (or --revoke)"
        )
    if answer.get("rollout"):
        what += f"\nrollout: {answer['rollout']['at']} ({answer['rollout']['strategy']})"
    return what


def _deletion(answer: dict[str, Any]) -> str:
    what = f"{answer['model']} version {answer['version']}"
    if not answer["deleted"]:
        why = [*answer["needed_by"], f"it is under retention until {answer['kept_until'][:10]}"]
        return f"{what} may go." if answer["may_go"] else f"{what} is kept: {'; '.join(why)}."
    freed = f"; its bundle {answer['dropped'][0][:12]} too" if answer["dropped"] else ""
    return f"{what} is deleted{freed}. What was decided about it stays in the audit log."


def _versions(answer: dict[str, Any]) -> str:
    newest_first = answer["versions"][::-1]
    metrics = sorted({name for version in newest_first for name in version["metrics"]})[:3]
    shown = table(
        newest_first,
        [("version", "version"), ("semver", "semver"), ("stage", "stage"),
         ("serving", lambda v: v["version"] == answer["serving"] or None),
         ("author", "author"), ("created", "created_at"),
         *[(name, lambda v, name=name: v["metrics"].get(name)) for name in metrics],
         ("bundle", lambda v: (v["bundle"] or "")[:12])],
    )  # fmt: skip
    if not newest_first or len(newest_first) == answer["total"]:
        return shown
    model, last = answer["model"], newest_first[-1]["version"]
    more = f"\nolder ones: loopwright models show {model} --before {last}" if last > 1 else ""
    return f"{shown}\n{len(newest_first)} of {answer['total']:,} versions, newest first{more}"


def _version(answer: dict[str, Any]) -> str:
    head = pairs({
        "model": answer["model"], "version": answer["version"], "semver": answer["semver"],
        "stage": answer["stage"], "author": answer["author"], "created": answer["created_at"],
        "run": answer["run_id"], "snapshot": answer["snapshot"], "bundle": answer["bundle"],
        "parent": answer["parent"], "metrics": answer["metrics"], "annotations": answer["annotations"],
    })  # fmt: skip
    parts = [head]
    for promotion in answer["promotions"]:
        yes = [f"{a['reviewer']} {a['decision']}" for a in promotion["approvals"]]
        parts.append(
            f"promotion to {promotion['stage']} by {promotion['requested_by']}: {promotion['state']}"
            + (f" ({', '.join(yes)})" if yes else "")
            + (f"; THE GLASS WAS BROKEN: {promotion['emergency']}" if promotion["emergency"] else "")
        )
    missing = answer["missing"].get("Production")
    if missing and answer["stage"] != "Production":
        parts.append("for Production it lacks: " + "; ".join(missing))
    if answer["evidence"]:
        parts.append("")
        parts.append(table(answer["evidence"], [
            ("evidence", "kind"), ("verdict", "verdict"), ("at", "at"), ("digest", lambda e: e["digest"][:12]),
        ]))  # fmt: skip
    return "\n".join(parts)
