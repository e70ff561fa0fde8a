"""audit show|verify|anchor|export|report."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.output import check_place
from loopwright.cli.progress import Lines, watch
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, table, text
from loopwright.kernel.clock import iso, month
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.kernel.files import written_whole

if TYPE_CHECKING:
    from loopwright.ledger.anchor import Anchor, Keys

_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
PART = 200_000
"""Rows walked in one call: two seconds or so, between which progress is shown."""


@subcommands()
def audit() -> None:
    """Show, verify, anchor, export the audit log; report on a month."""


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed((
        click.option("--model", help="Only what was done to this model, or names it."),
        click.option("--subject", help="Only what was done to this, like flight-late/2."),
        click.option("--actor", help="Only what this actor did."),
        click.option("--action", help="Only this kind of act, like promotion.effective."),
        click.option("--since", metavar="TIME", help="From this time on (ISO 8601 with a zone)."),
        click.option("--until", metavar="TIME", help="Before this time."),
        click.option("--month", metavar="YYYY-MM", help="Only this month (UTC)."),
    )):  # fmt: skip
        function = option(function)
    return function


@command("show", audit)
@_filters
@click.option("--limit", type=int, default=50, show_default=True, help="At most so many, the newest.")
def show(session: Session, **filters: Any) -> None:
    """Show who did what to what, when, on which evidence."""
    columns: list[Column] = [("#", "seq"), ("at", "at"), ("who", "actor"), ("did", "action"), ("to", "subject"),
               ("with", lambda row: _brief(row["payload"]))]  # fmt: skip
    rows = session.call("audit.show", **_period(filters))
    session.show(rows, lambda rows: table(rows, columns))
    if not rows:
        _note_unknown(session, filters)


@command("verify", audit)
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Also hold the log against the anchors in this file or folder; may be repeated.",
)
@click.option(
    "--file",
    "export",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Verify this file of exported rows instead, without any home.",
)
@click.option("--selection", is_flag=True, help="The file holds single rows: check each by itself.")
@click.option("--key", "keys", multiple=True, metavar="KEY",
              help="With --file: trust anchors of this public key (ed25519:…); default: the home's keys.")  # fmt: skip
def verify(
    session: Session, anchors: tuple[Path, ...], export: Path | None, selection: bool, keys: tuple[str, ...]
) -> int:
    """Walk the whole chain; exit code 1 when a row was changed, removed or inserted."""
    if export is None and (selection or keys):
        raise BadInput(
            "--selection and --key are about a file of exported rows", wanted="--file EXPORT.jsonl"
        )
    given = _given(anchors)
    answer = _walked(session) if export is None else _walked_file(session, export, given, selection, keys)
    if export is None and given:
        documents = [anchor.to_json() for _, anchor in given]
        told = session.call("audit.check_anchors", documents=documents)
        _hold(answer, [{**one, "where": where} for one, (where, _) in zip(told, given, strict=True)])
    session.show(answer, _verdict)
    return 0 if answer["ok"] else 1


@command("anchor", audit)
@click.option("--to", "places", multiple=True, type=click.Path(path_type=Path),
              help="Also keep a copy here: a folder, or a file *.jsonl that grows; may be repeated.")  # fmt: skip
def anchor(session: Session, places: tuple[Path, ...]) -> int:
    """Sign where the log stands now and keep that elsewhere."""
    from loopwright.ledger.anchor import Anchor, write_anchor

    answer = session.call("audit.anchor")
    made = Anchor.from_json(answer["anchor"], session.where)
    for place in places:
        write_anchor(made, place.absolute())
        answer["places"][str(place.absolute())] = ""
    session.show(answer, _anchored)
    return 1 if any(answer["places"].values()) else 0


@command("export", audit)
@_filters
@click.option(
    "--format",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="jsonl can be verified by others; csv is for spreadsheets.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file; default: standard output.")  # fmt: skip
def export(session: Session, output: Path | None, **filters: Any) -> None:
    """Write every row that fits, with its hashes, oldest first."""
    check_place(output)
    given = {name: value for name, value in _period(filters).items() if value is not None}
    chunks = session.client().stream("audit.export", **given)
    if output is None:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    lines = size = 0
    with _watched(session) as watcher, written_whole(output) as file:
        watcher.step("exporting the audit log")
        for chunk in chunks:
            file.write(chunk)
            lines, size = lines + chunk.count(b"\n"), size + len(chunk)
            watcher.update(0.0, f"{lines:,} rows, {size / 1e6:,.0f} MB")
    rows = lines - (filters["format"] == "csv")
    session.show({"rows": rows, "path": str(output)}, lambda a: f"{a['rows']:,} rows written to {a['path']}")


@command("report", audit)
@click.option("--month", "of", metavar="YYYY-MM", required=True, help="The month to report on (UTC).")
@click.option("--model", help="Only what concerns this model.")
@click.option(
    "--format",
    type=click.Choice(["md", "html", "json"]),
    default="md",
    show_default=True,
    help="How it is written.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file; default: standard output.")  # fmt: skip
def report(session: Session, of: str, model: str | None, format: str, output: Path | None) -> None:
    """Report what was governed in a month: promotions, exceptions, refusals, changes of policy and access."""
    from loopwright.control.audit_page import PAGES
    from loopwright.kernel.files import write_atomic

    check_place(output)
    answer = session.call("audit.report", month=of, model=model)
    page = PAGES["json" if session.as_json else format](answer)
    if output is None:
        click.echo(page, nl=False)
        return
    write_atomic(output, page.encode())
    session.show({"path": str(output)}, lambda a: f"the report is in {a['path']}")


def _note_unknown(session: Session, filters: dict[str, Any]) -> None:
    """Say so when nobody ever did what was asked for: the empty answer may be a slip of the keys."""
    asked = {name: filters[name] for name in ("action", "actor") if filters.get(name)}
    if not asked:
        return
    known = session.call("audit.known")
    for name, value in asked.items():
        if value not in known[f"{name}s"]:
            near = did_you_mean(value, known[f"{name}s"])
            session.note(
                f"note: the whole log has no row with the {name} {value}" + (f"; {near}" if near else "")
            )


def _walked(session: Session) -> dict[str, Any]:
    """Walk part by part: a long log shows how far it is, and no request takes too long."""
    with _watched(session) as watcher:
        answer = session.call("audit.verify", rows=PART)
        if answer["ok"] and not answer["done"]:
            watcher.step("walking the audit log")
        while answer["ok"] and not answer["done"]:
            watcher.update(
                answer["rows"] / answer["total"], f"{answer['rows']:,} of {answer['total']:,} rows"
            )
            answer = session.call("audit.verify", rows=PART, after=answer["reached"])
    return dict(answer)


def _walked_file(
    session: Session, path: Path, given: list[tuple[str, "Anchor"]], selection: bool, keys: tuple[str, ...]
) -> dict[str, Any]:
    from loopwright.ledger.anchor import judge
    from loopwright.ledger.export import check_export

    _check_exported(path)
    size = path.stat().st_size
    with path.open("rb") as stream, _watched(session) as watcher:
        if size > 50_000_000:
            watcher.step("walking the file")
        wanted = {anchor.seq for _, anchor in given}
        report = check_export(_seen(stream, size, watcher), selection=selection, wanted=wanted)
    answer = report.to_json()
    trusted = _trusted(session, keys) if given else {}
    found = []
    for where, anchor in given:
        if report.first <= anchor.seq <= report.last:
            found.append(judge(anchor, where, report.hashes.get(anchor.seq), None, trusted).to_json())
        else:
            why = f"row {anchor.seq} is not in the file"
            found.append({"where": where, "seq": anchor.seq, "ok": True, "why": why, "counts": False})
    answer["anchors"] = {"checked": 0, "newest": None, "wrong": [], "ignored": []}
    _hold(answer, found)
    return answer


def _check_exported(path: Path) -> None:
    """Raise BadInput for a file that was never an export: that is no finding about the log."""
    with path.open("rb") as stream:
        start = stream.read(4096).lstrip()
    if start and not start.startswith(b"{"):
        csv = start.startswith(b"seq,at,actor,")
        raise BadInput(
            "rows exported as CSV cannot be verified" if csv else "no rows of an audit log", where=str(path),
            wanted="what this writes: loopwright audit export -o FILE.jsonl",
        )  # fmt: skip


def _seen(lines: Iterable[bytes], size: int, watcher: Lines) -> Iterator[bytes]:
    read = 0
    for number, line in enumerate(lines):
        read += len(line)
        if number % 20_000 == 0:
            watcher.update(read / max(size, 1), f"{number:,} rows")
        yield line


def _given(places: Iterable[Path]) -> list[tuple[str, "Anchor"]]:
    from loopwright.ledger.anchor import distinct, read_anchors

    found = distinct(pair for place in places for pair in read_anchors(place))
    if places and not found:
        raise BadInput(
            "no anchors there", got=", ".join(map(str, places)), wanted="*.json or *.jsonl files of anchors"
        )
    return found


def _trusted(session: Session, keys: tuple[str, ...]) -> "Keys":
    from loopwright.bundle.keyring import Keyring
    from loopwright.bundle.keys import PublicKey
    from loopwright.kernel.home import Home

    if keys:
        named = [PublicKey.from_text(key) for key in keys]
    elif Home.at(session.home).exists() and not session.url:
        named = list(Keyring.open(Home.at(session.home).keys).public)
    else:
        raise BadInput(
            "no key to check the anchors with", wanted="--key ed25519:… (loopwright keys list shows it)"
        )
    return {key.key_id: key.verify for key in named}


def _hold(answer: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """Add what named anchors say: one that is not trusted, or is about another home, is an answer no."""
    told = answer.setdefault("anchors", {"checked": 0, "newest": None, "wrong": [], "ignored": []})
    right = [one["seq"] for one in found if one["ok"] and one["counts"]]
    wrong = [one for one in found if not one["ok"]]
    told["checked"] += len(right) + len(wrong)
    told["ignored"] += [one for one in found if one["ok"] and not one["counts"]]
    told["newest"] = max([*right, *([told["newest"]] if told["newest"] else [])], default=None)
    told["wrong"] += wrong
    if wrong and answer["ok"]:
        answer["ok"], answer["broken_at"] = False, wrong[0]["seq"]
        answer["why"] = (
            f"the chain is whole, but not the one that was anchored ({wrong[0]['where']}): {wrong[0]['why']}"
        )


def _verdict(answer: dict[str, Any]) -> str:
    if answer["ok"]:
        what = "the file is as it was exported" if "kind" in answer else "the audit log is whole"
        lines = [f"{what}: {answer['why']}; head {answer['head'][:16]}…"]
    else:
        lines = [f"BROKEN: {answer['why']}"]
    lines += [f"note: {remark}" for remark in answer.get("remarks", [])]
    told = answer.get("anchors")
    if told is None:
        return "\n".join(lines)
    agreed = told["checked"] - len(told["wrong"])
    if agreed and not answer["ok"] and not told["wrong"]:
        # An anchor is held against the hash that stands in its row, which whoever changed a row may have left alone.
        what = "1 anchor has" if agreed == 1 else f"{agreed} anchors have"
        where = f"the newest at row {told['newest']}"
        lines.append(f"{what} the hash that stands in the log ({where}): no proof of what its rows say")
    elif agreed:
        plural = "anchor agrees" if agreed == 1 else "anchors agree"
        lines.append(f"{agreed} {plural}, the newest at row {told['newest']}")
    elif not told["wrong"] and "kind" not in answer:
        lines.append(
            "no anchor yet to hold it against; make one and keep it elsewhere: loopwright audit anchor --to DIR"
        )
    lines += [f"WRONG: {one['where']}: {one['why']}" for one in told["wrong"]]
    lines += [f"not counted: {one['where']}: {one['why']}" for one in told["ignored"]]
    return "\n".join(lines)


def _anchored(answer: dict[str, Any]) -> str:
    made = answer["anchor"]
    lines = [f"row {made['seq']} with hash {made['hash'][:16]}… is signed by key {made['key_id']}, kept at:"]
    lines += [
        f"  {place}" + (f"  NOT WRITTEN: {why}" if why else "") for place, why in answer["places"].items()
    ]
    return "\n".join(lines)


def _period(filters: dict[str, Any]) -> dict[str, Any]:
    """Turn --month into its first moment and the next month's."""
    of = filters.pop("month", None)
    if of is None:
        return filters
    if filters.get("since") or filters.get("until"):
        raise BadInput("both --month and a period are given", wanted="one of them")
    first, end = month(of)
    return filters | {"since": iso(first), "until": iso(end)}


def _watched(session: Session) -> AbstractContextManager[Lines]:
    return nullcontext(_Silent()) if session.as_json else watch()


class _Silent(Lines):
    @staticmethod
    def _print(text: str) -> None:
        pass


def _brief(payload: dict[str, Any], limit: int = 80) -> str:
    flat = ", ".join(
        f"{k}={text(v)}" for k, v in payload.items() if not isinstance(v, dict | list) and v is not None
    )
    flat = _DIGEST.sub(r"\1", flat)
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
