"""models card|sbom|document|documents: what is written about a version, to look at and to take away."""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from loopwright.cli.output import check_folder, check_place
from loopwright.cli.session import Session, command
from loopwright.cli.show import table, text
from loopwright.kernel.errors import BadInput, Conflict, Unavailable

_CARDS = ("md", "html", "json")
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every entry of a .zip: the same documents give the same bytes."""


@command("card")
@click.argument("model")
@click.argument("version", type=int)
@click.option(
    "--format",
    "format_",
    type=click.Choice(_CARDS),
    help="Default: by the file's ending, else md.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it to this file.")
def card(session: Session, model: str, version: int, format_: str | None, output: Path | None) -> None:
    """Show or write the model card, made from what is recorded now."""
    check_place(output)
    chosen = format_ or _by_ending(output)
    answer = session.call("documents.card", model=model, version=version, format=chosen)
    _give(session, answer, output)


@command("sbom")
@click.argument("model")
@click.argument("version", type=int)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it to this file.")
def sbom(session: Session, model: str, version: int, output: Path | None) -> None:
    """Show or write the software bill of materials (CycloneDX 1.6)."""
    check_place(output)
    _give(session, session.call("documents.sbom", model=model, version=version), output)


@command("document")
@click.argument("model")
@click.argument("version", type=int)
@click.argument("file", type=click.Path(path_type=Path))
def document(session: Session, model: str, version: int, file: Path) -> int:
    """Record what people write about a version, without training again.

    FILE is Markdown with headings like `## Intended use`; the newest one counts. Exit code 1 when the policy still
    misses sections, or one that was filled before is no longer.
    """
    from loopwright.registry.documents.sections import read_card

    written = read_card(file, name=file.name)
    answer = session.call("documents.record", model=model, version=version, text=written.text, file=file.name)
    session.show(answer, _recorded)
    return 1 if answer["policy_misses"] or answer["lost"] else 0


@command("documents")
@click.argument("model")
@click.argument("version", type=int)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="A new folder, or a .zip file."
)
def documents(session: Session, model: str, version: int, output: Path) -> None:
    """Write every document of a version for an auditor, with an index of digests.

    The folder can be checked with: sha256sum -c SHA256SUMS
    """
    check_folder(output)
    _check_free(output)
    answer = session.call("documents.all", model=model, version=version)
    files = {str(each["name"]): str(each["content"]).encode() for each in answer["files"]}
    _write(output, files.items())
    listed = [{name: value for name, value in each.items() if name != "content"} for each in answer["files"]]
    session.show({**answer, "files": listed, "path": str(output)}, _taken)


def _by_ending(output: Path | None) -> str:
    ending = output.suffix.lstrip(".").lower() if output else ""
    if ending not in ("", *_CARDS):
        raise BadInput(
            "a card is not written in this format", where=str(output), got=f".{ending}",
            wanted=", ".join(f".{each}" for each in _CARDS),
        )  # fmt: skip
    return ending or "md"


def _give(session: Session, answer: dict[str, Any], output: Path | None) -> None:
    """Print the document, or write it where it was asked for."""
    if output is None:
        session.show(answer, lambda a: str(a["content"]).rstrip("\n"))
        return
    _write_file(output, str(answer["content"]).encode())
    told = {name: value for name, value in answer.items() if name != "content"}
    session.show({**told, "path": str(output)}, lambda a: f"{a['path']}  sha256 {a['sha256']}")


def _recorded(answer: dict[str, Any]) -> str:
    what = "recorded" if answer["recorded"] else "unchanged: this text is recorded already"
    lines = [f"{answer['model']} version {answer['version']}: {what}", f"filled: {text(answer['filled'])}"]
    if answer["not_filled"]:
        lines.append(f"not filled: {text(answer['not_filled'])}")
    if answer["lost"]:
        lines.append(f"NO LONGER filled, and were in the text before: {text(answer['lost'])}")
    if answer["policy_misses"]:
        lines.append(f"the policy still misses: {text(answer['policy_misses'])}")
    return "\n".join(lines)


def _taken(answer: dict[str, Any]) -> str:
    shown = table(
        answer["files"],
        [("file", "name"), ("bytes", "bytes"), ("sha256", lambda f: f["sha256"][:16]), ("", "about")],
    )
    return f"{shown}\n\n{answer['path']}: {len(answer['files'])} documents"


def _check_free(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise Conflict("is there already", where=str(output), wanted="a new folder or a new .zip file")


def _write(output: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write all files into the folder or the .zip file; raises Unavailable when the disk does not let us."""
    if output.suffix.lower() == ".zip":
        import io

        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                entry = zipfile.ZipInfo(_plain(name), _EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
        _write_file(output, packed.getvalue())
        return
    for name, content in files:
        _write_file(output / _plain(name), content)


def _plain(name: str) -> str:
    # They come from a control plane: its answer must not choose where on this machine something is written.
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        raise BadInput("a document with a path for a name", got=name, wanted="a plain file name")
    return name


def _write_file(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise Unavailable(f"cannot write ({error.strerror or error})", where=str(path)) from error
