"""Tables and their versions: snapshots, differences, what may be vacuumed, pages about the data."""

from datetime import timedelta
from typing import Any

from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.control.projects import lies_in
from loopwright.control.stream import Stream
from loopwright.data.docs.difference_page import difference_page
from loopwright.data.docs.facts import Summary, TableFacts, gather, summaries
from loopwright.data.docs.index_page import index_page
from loopwright.data.docs.table_page import table_page
from loopwright.data.lake import Lake
from loopwright.data.versions import store as versions_store
from loopwright.data.versions.difference import compare, unchanged
from loopwright.data.versions.sides import Side, is_file, open_side
from loopwright.data.versions.vacuum import Announce, tables_in, vacuum
from loopwright.kernel.actor import Role, require
from loopwright.kernel.clock import format_duration, iso, parse_duration
from loopwright.kernel.errors import BadInput, NotFound, Refused, did_you_mean
from loopwright.registry.authority import require_on
from loopwright.registry.policies import policy_of


@operation("tables.snapshots", "GET", "/snapshots")
def snapshots(ctx: Context, model: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """List snapshots, newest first, with the runs and versions that rest on each."""
    if not 1 <= limit <= 10_000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 10000")
    with ctx.ledger.read() as conn:
        if model is not None:
            _known_model(model, {name for name, _ in versions_store.tables_of(conn)})
        return versions_store.list_snapshots(conn, model, limit)


@operation("tables.vacuum", "POST", "/data/vacuum", role=Role.DEVELOPER)
def vacuum_tables(
    ctx: Context, model: str | None = None, older_than: str | None = None, delete: bool = False
) -> dict[str, Any]:
    """List the files that no kept version of a table needs; with `delete`, delete them.

    Kept is what a registered version, a run or an online store rests on, the newest version, and every version that
    was in force within `older_than` (default: the policy's `retain`). Less than the policy says is an admin's to ask.
    """
    lake = Lake.of(ctx.home, ctx.ledger)
    listed = tables_in(lake)
    known = {name for _, name, _ in listed}
    if model is not None:
        _known_model(model, known)
    plans = []
    for name in sorted(known) if model is None else [model]:
        with ctx.ledger.read() as conn:
            retain = policy_of(conn, name).retain
            asked = retain if older_than is None else parse_duration(older_than)
            below = f" below its retention of {format_duration(retain)}" if asked < retain else ""
            if delete:
                least = Role.ADMIN if below else Role.DEVELOPER
                require_on(conn, ctx.actor, least, f"vacuum {name}{below}", model=name)
        if asked < timedelta():
            raise BadInput("a retention cannot be negative", got=older_than)
        announce = Announce(lake, actor=ctx.actor.name, now=ctx.now, retain=format_duration(asked))
        done = vacuum(
            lake,
            model=name,
            now=ctx.now,
            retain=asked,
            runs_for=retain,
            announce=announce if delete else None,
        )
        plans += [{**plan.to_json(), "retain": format_duration(asked)} for plan in done]
    return {
        "deleted": delete, "tables": plans, "files": sum(one["files"] for one in plans),
        "bytes": sum(one["bytes"] for one in plans),
    }  # fmt: skip


@operation("tables.diff", "GET", "/data/diff")
def diff(
    ctx: Context,
    before: str,
    after: str,
    table: str | None = None,
    key: list[str] | None = None,
    html: bool = False,
) -> dict[str, Any]:
    """Compare two snapshots, versions of a table (MODEL/TABLE@VERSION) or files of this machine, `before` to `after`.

    Rows are told by `key` (default: the contract's), else compared whole. Rows and values are for developers of the
    model. With `html` the answer has the page that shows it.
    """
    lake = Lake.of(ctx.home, ctx.ledger)
    for word in (before, after):
        if is_file(word, lake):
            require(ctx.actor, Role.DEVELOPER, "read a file of this machine")
            _require_outside(ctx, word)
    with lake.workspace() as folder:
        one, other = (
            open_side(word, lake, into=folder / name) for word, name in ((before, "a"), (after, "b"))
        )
        values = all(_may_see(ctx, side.model) for side in (one, other))
        pairs = _pairs(one, other, table)
        found = {}
        for name, (left, right) in pairs.items():
            digest = one.contents.get(left)
            same = digest is not None and digest == other.contents.get(right)
            keys = tuple(key or one.keys.get(left) or other.keys.get(right) or ())
            if not key and any(
                column not in side.tables[name_].schema.names
                for column in keys
                for side, name_ in ((one, left), (other, right))
            ):
                keys = ()
            found[name] = (
                unchanged(one.tables[left], keys)
                if same and one.tables[left].schema == other.tables[right].schema
                else compare(
                    one.tables[left],
                    other.tables[right],
                    key=keys,
                    words=(one.words, other.words),
                    spill=folder,
                )
            )
    answer = {
        "before": one.label, "after": other.label, "same": all(each.same for each in found.values()),
        "tables": {name: each.to_json(values=values) for name, each in found.items()},
        "only_before": sorted(set(one.tables) - {left for left, _ in pairs.values()}) if table is None else [],
        "only_after": sorted(set(other.tables) - {right for _, right in pairs.values()}) if table is None else [],
    }  # fmt: skip
    if html:
        made = f"Made {iso(ctx.now)[:16].replace('T', ' ')} UTC."
        answer["html"] = difference_page(one.label, other.label, found, values=values, footer=made)
    return answer


@operation("tables.overview", "GET", "/data/docs")
def overview(ctx: Context, model: str | None = None) -> dict[str, Any]:
    """Say how every table is, and make the overview's page for a folder of pages."""
    listed = _summaries(ctx, model)
    return {
        "tables": [{"model": one.model, "table": one.table, "file": page_name(f"{one.model}/{one.table}")}
                   for one in listed],
        "name": page_name(None), "content": index_page(listed, now=ctx.now, link=page_name),
    }  # fmt: skip


@operation("tables.page", "GET", "/data/{model}/{table}/docs")
def one_page(ctx: Context, model: str, table: str) -> dict[str, Any]:
    """Make the page of one table for a folder of pages: contract, checks, columns, trends, snapshots."""
    told = _gathered(ctx, model, table)
    return {
        "model": model, "table": table, "name": page_name(f"{model}/{table}"),
        "content": table_page(told, link=page_name, values=_may_see(ctx, model)),
    }  # fmt: skip


@operation("tables.overview_html", "GET", "/data/docs.html")
def overview_html(ctx: Context, model: str | None = None) -> Stream:
    """The overview of tables as a page to look at."""
    content = index_page(_summaries(ctx, model), now=ctx.now, link=_address)
    return Stream("text/html; charset=utf-8", page_name(None), iter((content.encode(),)))


@operation("tables.page_html", "GET", "/data/{model}/{table}/docs.html")
def one_page_html(ctx: Context, model: str, table: str) -> Stream:
    """The page of one table to look at."""
    content = table_page(_gathered(ctx, model, table), link=_address, values=_may_see(ctx, model))
    return Stream("text/html; charset=utf-8", page_name(f"{model}/{table}"), iter((content.encode(),)))


def page_name(subject: str | None) -> str:
    """The file of a table's page; of None, the overview's."""
    return "index.html" if subject is None else f"{subject.replace('/', '.')}.html"


def _address(subject: str | None) -> str:
    return "/api/v1/data/docs.html" if subject is None else f"/api/v1/data/{subject}/docs.html"


def _summaries(ctx: Context, model: str | None) -> list[Summary]:
    lake = Lake.of(ctx.home, ctx.ledger)
    if model is not None:
        with ctx.ledger.read() as conn:
            _known_model(model, {name for name, _ in versions_store.tables_of(conn)})
    return summaries(lake, model)


def _gathered(ctx: Context, model: str, table: str) -> TableFacts:
    with ctx.ledger.read() as conn:
        known = versions_store.tables_of(conn)
    _known_model(model, {name for name, _ in known})
    tables = [name for owner, name in known if owner == model]
    if table not in tables:
        raise NotFound(
            f"{model} has no table of this name", got=table, wanted=", ".join(tables),
            next=did_you_mean(table, tables),
        )  # fmt: skip
    return gather(Lake.of(ctx.home, ctx.ledger), model, table, now=ctx.now)


def _pairs(one: Side, other: Side, table: str | None) -> dict[str, tuple[str, str]]:
    """name → the tables of both sides that belong together."""
    for side in (one, other):
        if table is not None and len(side.tables) > 1 and table not in side.tables:
            raise NotFound(
                f"{side.label} holds no such table", got=table, wanted=", ".join(side.tables),
                next=did_you_mean(table, side.tables),
            )  # fmt: skip
    if len(one.tables) == len(other.tables) == 1:
        (left,), (right,) = one.tables, other.tables
        return {left if left == right else f"{left} → {right}": (left, right)}
    if len(one.tables) == 1 or len(other.tables) == 1:
        few, many = (one, other) if len(one.tables) == 1 else (other, one)
        (only,) = few.tables
        wanted = table or only
        if wanted not in many.tables:
            raise BadInput(
                f"{many.label} holds several tables", where="data diff", wanted=", ".join(many.tables),
                next="Name one: --table",
            )  # fmt: skip
        return {wanted: (only, wanted) if few is one else (wanted, only)}
    shared = [name for name in one.tables if name in other.tables and table in (None, name)]
    if not shared:
        raise BadInput(
            "the two have no table in common", where="data diff", got=", ".join(other.tables),
            wanted=", ".join(one.tables),
        )  # fmt: skip
    return {name: (name, name) for name in shared}


def _may_see(ctx: Context, model: str | None) -> bool:
    """Whether rows of the model's tables may be shown to whoever asks."""
    if model is None:
        return ctx.actor.role_on() >= Role.DEVELOPER
    try:
        with ctx.ledger.read() as conn:
            require_on(conn, ctx.actor, Role.DEVELOPER, "see rows of data", model=model)
    except Refused:
        return False
    return True


def _require_outside(ctx: Context, word: str) -> None:
    """Refuse files of the home itself: they hold other models' rows and keys, and what MLflow's clients uploaded."""
    if lies_in(ctx.home.root, word):
        raise Refused(
            "the home's own files are not compared", where=word, wanted="a file outside the home",
            next="A table is named MODEL/TABLE or MODEL/TABLE@VERSION",
        )  # fmt: skip


def _known_model(model: str, known: set[str]) -> None:
    if model not in known:
        raise NotFound(
            "no tables of this model", got=model, wanted=", ".join(sorted(known)) or "none yet",
            next=did_you_mean(model, known),
        )  # fmt: skip
