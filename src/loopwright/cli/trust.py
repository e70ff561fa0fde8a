"""trust scan|request|approve|revoke|list."""

from pathlib import Path
from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, table, text
from loopwright.kernel.errors import Refused

_FILE = click.Path(path_type=Path)


@subcommands()
def trust() -> None:
    """Say which pickled models may be loaded."""


@command("scan", trust)
@click.argument("file", type=_FILE)
def scan(session: Session, file: Path) -> int:
    """Say what a pickled FILE would import, without loading it."""
    found = _scanned_file(file)
    session.show(found.to_json(), _scanned)
    return 1 if found.objections else 0


@command("request", trust)
@click.argument("file", type=_FILE)
@click.option("--reason", required=True, help="Why it cannot be ONNX; the approver reads it.")
def request(session: Session, file: Path, reason: str) -> None:
    """Ask that a pickled FILE may be loaded."""
    found = _scanned_file(file)
    if found.objections:
        raise Refused(
            "nobody can be trusted with this file", where=str(file), got="; ".join(found.objections[:3]),
            next="loopwright trust scan says everything; export the model to ONNX.",
        )  # fmt: skip
    answer = session.call(
        "trust.request", digest=found.digest, name=file.name, globals=list(found.globals), reason=reason
    )
    session.show(
        answer,
        lambda a: (
            f"{a['name']}: pending, importing {text(a['globals'])}\n"
            f"next, by another person: loopwright trust approve {a['digest'][:12]}"
        ),
    )


@command("approve", trust)
@click.argument("digest")
def approve(session: Session, digest: str) -> None:
    """Say yes to a request; not one's own."""
    session.show(
        session.call("trust.approve", digest=digest),
        lambda a: f"{a['name']} ({a['digest'][:12]}): may be loaded, importing {text(a['globals'])}",
    )


@command("revoke", trust)
@click.argument("digest")
@click.option("--reason", required=True, help="Why; it stays in the audit log.")
def revoke(session: Session, digest: str, reason: str) -> None:
    """Withdraw trust, or turn a request down."""
    session.show(session.call("trust.revoke", digest=digest, reason=reason), _revoked)


@command("list", trust)
@click.option("--state", help="Only: pending, approved, rejected or revoked.")
def list_trusts(session: Session, state: str | None) -> None:
    """List requests and who decided them."""
    columns: list[Column] = [("digest", lambda row: row["digest"][:12]), ("file", "name"), ("state", "state"),
               ("asked by", "requested_by"), ("why", "reason"), ("decided by", "decided_by"),
               ("imports", lambda row: len(row["globals"]))]  # fmt: skip
    empty = "nobody asked for trust in a pickled model"
    session.show(session.call("trust.list", state=state), lambda rows: table(rows, columns, empty=empty))


def _scanned_file(file: Path) -> Any:
    """The scan of pickled objects, or of a model that MLflow saved and a bundle holds as an archive."""
    from loopwright.bundle.archive import scan_archive
    from loopwright.bundle.forms import PYFUNC
    from loopwright.bundle.pickles import read_bounded, scan_bytes

    data = read_bounded(file)
    return scan_archive(data) if file.name == PYFUNC else scan_bytes(data)


def _scanned(answer: dict[str, Any]) -> str:
    lines = [
        f"{answer['format']}, {answer['size']:,} bytes, digest {answer['digest']}",
        *(f"imports  {name}" for name in answer["globals"]),
        *(f"never    {why}" for why in answer["objections"]),
        "a person may say yes to it: loopwright trust request FILE --reason …"
        if answer["trustable"]
        else "nobody can be trusted with it; export the model to ONNX",
    ]
    return "\n".join(lines)


def _revoked(answer: dict[str, Any]) -> str:
    line = f"{answer['name']} ({answer['digest'][:12]}): {answer['state']}"
    if answer["stops"]:
        line += f"\nservers no longer answer from: {', '.join(answer['stops'])}"
    return line
