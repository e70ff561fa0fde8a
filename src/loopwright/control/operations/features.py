"""Feature views: definitions and lineage, what is online and how old, materialisation, reads."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.bundle.signature import Field
from loopwright.control.context import Context
from loopwright.control.explaining import columns_of
from loopwright.control.operation import operation
from loopwright.data.lake import Lake
from loopwright.delivery.routes import stable_version
from loopwright.features import store as feature_store
from loopwright.features.online import Head, OnlineFeatures, OnlineStore, Reading, open_store
from loopwright.features.spark import training_set_on
from loopwright.features.store import Definition
from loopwright.features.view import FeatureView
from loopwright.kernel.actor import Role
from loopwright.kernel.clock import from_us
from loopwright.kernel.errors import BadInput, NotFound, Refused, did_you_mean
from loopwright.kernel.progress import Progress, watching
from loopwright.pipeline import store as pipeline_store
from loopwright.pipeline.online import materialize_project
from loopwright.project.spec import Project, Spec, load_project
from loopwright.registry import versions
from loopwright.registry.trust.store import approved
from loopwright.registry.versions import Version

MOST_ENTITIES = 10_000
_TEXTS = {"true": True, "1": True, "false": False, "0": False}


@operation("features.list", "GET", "/features")
def list_views(ctx: Context, model: str | None = None) -> list[dict[str, Any]]:
    """List feature views: whose they are, what they give, and what of them is online."""
    with ctx.ledger.read() as conn:
        found = _in_force(conn, model)
    listed = []
    with _online(ctx) as store:
        heads = {name: store.heads(name) for name in {one.model for one in found}}
        for one in found:
            head = heads[one.model].get(one.name)
            listed.append(
                {
                    "model": one.model, "view": one.name, "number": one.number, "kind": one.document["kind"],
                    "entity": _entity(one.document), "gives": _gives(one.document),
                    "ttl": one.document.get("ttl"), "owner": one.document.get("owner", ""),
                    "rows_online": head.rows if head else None, "as_of": from_us(head.as_of) if head else None,
                }
            )  # fmt: skip
    return listed


@operation("features.show", "GET", "/features/{model}/views/{view}")
def show(ctx: Context, model: str, view: str) -> dict[str, Any]:
    """Show a feature view: its definition and earlier ones, what it is made of, who uses it, how fresh it is."""
    with ctx.ledger.read() as conn:
        found = _view(conn, model, view)
        past = feature_store.definitions(conn, model, view)
        runs = feature_store.history(conn, model, view, limit=10)
        users, lineage = _users(conn, model, view)
    with _online(ctx) as store:
        status = _status(ctx, store.heads(model).get(view), found, None)
    return {
        "model": model, "view": view, "number": found.number, "digest": found.digest,
        "definition": dict(found.document),
        "definitions": [
            {"number": one.number, "digest": one.digest, "actor": one.actor, "at": one.at} for one in past
        ],
        "lineage": lineage, "used_by": users, "online": status,
        "materializations": [_told(one) for one in runs],
    }  # fmt: skip


@operation("features.status", "GET", "/features/{model}/status")
def status(ctx: Context, model: str) -> dict[str, Any]:
    """Say of each view what is online, up to when, how old that is, and whether it should be brought up to date."""
    with ctx.ledger.read() as conn:
        found = _in_force(conn, model)
        project = pipeline_store.find_project(conn, model)
    spec = Spec.from_json(project["spec"]) if project else None
    every = spec.online.every if spec and spec.online else None
    with _online(ctx) as store:
        heads, url = store.heads(model), store.url
        with ctx.ledger.read() as conn:  # what another store was given is not here
            last = {one.name: feature_store.last(conn, model, one.name, url) for one in found}
        views = [
            {**_status(ctx, heads.get(one.name), one, every), "last": _told(ran) if (ran := last[one.name]) else None}
            for one in found
        ]  # fmt: skip
    return {"model": model, "store": url, "every": every, "views": views}


@operation("features.materialize", "POST", "/features/{model}/materialize", role=Role.DEVELOPER)
def materialize(
    ctx: Context,
    model: str,
    project: str | None = None,
    views: list[str] | None = None,
    as_of: datetime | None = None,
    since: datetime | None = None,
    entities: list[dict[str, Any]] | None = None,
    full: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Bring the online store up to what is known at `as_of` (now): what can have changed, or everything (`full`).

    Is idempotent; goes on where one was cut short. `project`: the folder, where the model has not been trained yet.
    """
    opened = _project(ctx, model, project)
    _few(entities)
    for name, moment in (("as_of", as_of), ("since", since)):
        if moment is not None and moment.tzinfo is None:
            raise BadInput(
                f"`{name}` has no zone", got=moment.isoformat(), wanted="a time like 2013-04-01T05:00:00Z"
            )
    done = materialize_project(
        opened, ctx.home, ctx.ledger, ctx.actor.on(model=model, team=opened.spec.team), ctx.clock,
        watch=_watch(), as_of=as_of, views=views, full=full, since=since, entities=entities, dry_run=dry_run,
    )  # fmt: skip
    return {"model": model, "dry_run": dry_run, "views": [one.to_json() for one in done]}


@operation("features.get", "POST", "/features/{model}/get", role=Role.DEVELOPER)
def get(
    ctx: Context,
    model: str,
    entities: list[dict[str, Any]],
    views: list[str] | None = None,
    at: datetime | None = None,
    version: int | None = None,
) -> dict[str, Any]:
    """Read what is online about entities, with ages and statuses, and make a version's features of it.

    An entity names the parts of the views' keys and what a request would bring. Views whose key it does not name are
    told in `unasked`, inputs of the version that nothing gives in `missing`; its features are made where none is.
    `version`: the one that answers as stable, else the newest. Rows of data are for those who work on the model.
    """
    _few(entities)
    if at is not None and at.tzinfo is None:
        raise BadInput("`at` has no zone", got=at.isoformat(), wanted="a time like 2013-04-01T05:00:00Z")
    bundle = _bundle(ctx, model, version)
    with _online(ctx) as store:
        heads = store.heads(model)
        for name in views or ():
            if name not in heads:
                raise NotFound(f"nothing is online for this view of {model}", where=store.url, got=name,
                               wanted=", ".join(heads), next=did_you_mean(name, heads)
                               or f"loopwright features materialize {model}")  # fmt: skip
        wanted = {name: heads[name] for name in (views or heads)}
        if not wanted and bundle is None:
            raise NotFound(
                f"nothing is online for {model}, and it has no version", where=store.url,
                next=f"loopwright features materialize {model}",
            )  # fmt: skip
        rows = _rows(OnlineFeatures(store, ctx.clock), model, entities, wanted, at)
    named = None if bundle is None else bundle[0].version
    return {
        "model": model, "version": named, "at": at or ctx.now,
        "rows": [_answered(entity, found, wanted, bundle) for entity, found in zip(entities, rows, strict=True)],
    }  # fmt: skip


@operation("features.docs", "GET", "/features/{model}/docs")
def docs(ctx: Context, model: str) -> dict[str, Any]:
    """Return all there is to say about a model's views, as the page of `features docs` shows it."""
    with ctx.ledger.read() as conn:
        names = [one.name for one in _in_force(conn, model)]
        project = pipeline_store.find_project(conn, model)
    return {
        "model": model, "at": ctx.now, "owner": project["spec"].get("owner", "") if project else "",
        "views": [show(ctx, model, name) for name in names],
    }  # fmt: skip


@operation("features.training_set", "POST", "/features/{model}/training-set", role=Role.DEVELOPER)
def training_set(
    ctx: Context,
    model: str,
    entities: str,
    out: str,
    timestamp: str = "event_time",
    project: str | None = None,
    views: list[str] | None = None,
    status: bool = True,
) -> dict[str, Any]:
    """Write each row of the file `entities` with what the views knew at its `timestamp` to the Parquet file `out`.

    Both are files of the machine that does the work.
    """
    import pyarrow.parquet as pq

    opened = _project(ctx, model, project)
    target = Path(out)
    for path in (Path(entities).resolve(), target.resolve()):
        if path.is_relative_to(ctx.home.root.resolve()):
            raise Refused(
                "the home's own files are no place for rows", where=str(path), wanted="another folder"
            )
    if target.suffix != ".parquet":
        raise BadInput(
            "a training set is written as Parquet", where=out, got=target.suffix, wanted=".parquet"
        )
    if not target.absolute().parent.is_dir():
        raise BadInput(
            "no such folder", where=out, got=str(target.parent), next="Make it first, or name another."
        )
    from loopwright.features.module import load_features

    known = {view.name: view for view in load_features(opened).views if isinstance(view, FeatureView)}
    for name in views or ():
        if name not in known:
            raise NotFound(f"{model} has no feature view of this name", got=name, wanted=", ".join(known),
                           next=did_you_mean(name, known))  # fmt: skip
    chosen = [known[name] for name in (views or known)]
    lake = Lake.of(ctx.home, ctx.ledger)
    tables = {
        name: lake.files("silver", model, name) for name in dict.fromkeys(t for view in chosen for t in view.tables())
    }  # fmt: skip
    made = training_set_on(ctx.home.data_engine, Path(entities), chosen, tables, timestamp, status=status)
    partial = target.with_name(f".{target.name}.partial")
    pq.write_table(made, partial)
    partial.replace(target)
    return {
        "model": model, "out": str(target), "rows": made.num_rows, "columns": made.column_names,
        "statuses": {
            name: {str(word): int(count) for word, count in _counts(made.column(f"{name}_status"))}
            for name in (view.name for view in chosen)
            if status
        },
    }  # fmt: skip


def _counts(column: Any) -> list[tuple[Any, int]]:
    return [(one["values"], one["counts"]) for one in column.value_counts().to_pylist()]


def _watch() -> Progress | None:
    return watching.get()


class _online:  # noqa: N801 - reads as a word at its call site: with _online(ctx)
    """The home's online store, closed at the end."""

    def __init__(self, ctx: Context) -> None:
        self._url = ctx.home.online_url

    def __enter__(self) -> OnlineStore:
        self._store = open_store(self._url)
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()


def _few(entities: list[dict[str, Any]] | None) -> None:
    if entities is not None and not 1 <= len(entities) <= MOST_ENTITIES:
        raise BadInput("so many entities at once", got=len(entities), wanted=f"1 to {MOST_ENTITIES:,}")
    for entity in entities or ():
        for name, value in entity.items():
            if isinstance(value, dict | list):
                raise BadInput("not a single value", where=name, got=value, wanted="a text, a number or null")


def _project(ctx: Context, model: str, folder: str | None) -> Project:
    """The model's project; raises NotFound when nobody said where it lies, BadInput when it is another model's."""
    if folder is None:
        with ctx.ledger.read() as conn:
            folder = str(pipeline_store.load_project_row(conn, model)["path"])
    if Path(folder).resolve().is_relative_to(ctx.home.artifacts.resolve()):
        raise Refused(
            "uploaded files are no project", where=folder, wanted="a folder outside the home's artifacts"
        )
    opened = load_project(Path(folder))
    if opened.spec.model != model:
        raise BadInput("the project is for another model", where=folder, got=opened.spec.model, wanted=model)
    return opened


def _in_force(conn: Connection, model: str | None) -> list[Definition]:
    """The newest definition of each view; raises NotFound for a model that has none."""
    newest = {(one.model, one.name): one for one in feature_store.definitions(conn, model)}
    if model is not None and not newest:
        known = {one.model for one in feature_store.definitions(conn)}
        raise NotFound(
            "no feature views are known", where="features", got=model, wanted=", ".join(sorted(known)),
            next=did_you_mean(model, known) or f"loopwright run DIR, or: loopwright features materialize {model}",
        )  # fmt: skip
    return list(newest.values())


def _view(conn: Connection, model: str, view: str) -> Definition:
    found = {one.name: one for one in _in_force(conn, model)}
    if view not in found:
        raise NotFound(f"{model} has no view of this name", got=view, wanted=", ".join(found),
                       next=did_you_mean(view, found))  # fmt: skip
    return found[view]


def _entity(document: Mapping[str, Any]) -> list[str]:
    return [pair[0] for pair in document.get("entity", document.get("on", ()))]


def _gives(document: Mapping[str, Any]) -> list[str]:
    """Names of what a view gives, from its document."""
    if document["kind"] == "windowed rate":
        return [document["name"], *([document["count"]] if document.get("count") else [])]
    return [pair[0] for pair in (*document.get("columns", ()), *document.get("aggregations", ()))]


def _status(ctx: Context, head: Head | None, one: Definition, every: timedelta | None) -> dict[str, Any]:
    told: dict[str, Any] = {"view": one.name, "number": one.number, "online": head is not None, "stale": []}
    if head is None:
        # What the model takes nothing from need not be online.
        stale = ["it was never materialised"] if one.document.get("inputs") else []
        return told | {"rows": None, "as_of": None, "age": None, "stale": stale}
    age = (ctx.now - from_us(head.as_of)).total_seconds()
    stale = []
    if head.view != one.digest:
        stale.append(f"definition {one.number} is in force, another is online")
    lake = Lake.of(ctx.home, ctx.ledger)
    for table, version in head.tables.items():
        now = lake.version("silver", one.model, table)
        if now != version:
            stale.append(f"{table} was read at version {version} and is at {now}")
    if every is not None and age > 2 * every.total_seconds():
        stale.append(f"it should be brought up to date every {every}")
    return told | {
        "rows": head.rows, "as_of": from_us(head.as_of), "age": age, "generation": head.generation, "stale": stale,
        "columns": list(head.columns), "tables": dict(head.tables), "written_at": from_us(head.written_at),
    }  # fmt: skip


def _told(one: feature_store.Materialization) -> dict[str, Any]:
    return {
        "id": one.id, "kind": one.kind, "state": one.state, "rows": one.rows, "of": one.progress.get("of"),
        "why": one.progress.get("why", ""), "error": one.progress.get("error"), "as_of": one.as_of,
        "started_at": one.started_at, "ended_at": one.ended_at, "store": one.store,
    }  # fmt: skip


def _users(conn: Connection, model: str, view: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Versions whose training read the view, and what its values are made of by the newest such run."""
    users: list[dict[str, Any]] = []
    lineage: list[dict[str, Any]] = []
    for version in sorted(versions.list_versions(conn, model=model), key=lambda v: -v.version):
        if version.run_id is None:
            continue
        try:
            run = pipeline_store.find_run(conn, version.run_id)
        except NotFound:
            continue  # a version that another MLflow client registered
        inputs = [one for one in run["context"].get("lineage", {}).get("inputs", ()) if one["view"] == view]
        if inputs:
            lineage = lineage or inputs
            users.append({"model": model, "version": version.version, "stage": version.stage.value,
                          "inputs": [one["name"] for one in inputs]})  # fmt: skip
    return users, lineage


def _bundle(ctx: Context, model: str, number: int | None) -> tuple[Version, Bundle] | None:
    """The version asked for, else the one that answers as stable, else the newest; None where there is none."""
    with ctx.ledger.read() as conn:
        if number is None:
            number = stable_version(conn, model)
        if number is not None:
            version: Version | None = versions.get_version(conn, model=model, version=number)
        else:
            sealed = [one for one in versions.list_versions(conn, model=model) if one.bundle]
            version = max(sealed, key=lambda one: one.version, default=None)
        trusted = approved(conn)
    if version is None:
        return None
    depot = BundleDepot(ctx.home.bundles)
    if version.bundle is None or not depot.has(version.bundle):
        raise NotFound(
            "the version has no sealed bundle here", where=f"{model}/{version.version}",
            next="Name one that `loopwright run` sealed: --version N",
        )  # fmt: skip
    return version, open_bundle(depot.path(version.bundle), ctx.keyring.public, trusted=trusted)


def _rows(
    reader: OnlineFeatures,
    model: str,
    entities: list[dict[str, Any]],
    wanted: Mapping[str, Head],
    at: datetime | None,
) -> list[dict[str, Reading]]:
    """View → reading of each entity; entities that name the same keys are read together."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, entity in enumerate(entities):
        views = tuple(name for name, head in wanted.items() if all(part in entity for part in head.entity))
        groups.setdefault(views, []).append(place)
    out: list[dict[str, Reading]] = [{} for _ in entities]
    for views, places in groups.items():
        if not views:
            continue
        found = reader.read_many(model, [entities[place] for place in places], views, at=at)
        for place, readings in zip(places, found, strict=True):
            out[place] = readings
    return out


def _answered(
    entity: Mapping[str, Any],
    readings: Mapping[str, Reading],
    wanted: Mapping[str, Head],
    bundle: tuple[Version, Bundle] | None,
) -> dict[str, Any]:
    unasked = {
        name: [part for part in head.entity if part not in entity]
        for name, head in wanted.items()
        if name not in readings
    }
    told: dict[str, Any] = {
        "entity": dict(entity), "views": [reading.to_json() for reading in readings.values()], "unasked": unasked,
    }  # fmt: skip
    if bundle is None:
        return told | {"inputs": None, "missing": [], "features": None}
    stored = {name: value for reading in readings.values() for name, value in reading.values.items()}
    fields = bundle[1].schema.inputs
    inputs = {
        field.name: stored[field.name] if field.name in stored else _typed(entity[field.name], field)
        for field in fields
        if field.name in stored or field.name in entity
    }
    missing = [field.name for field in fields if field.name not in inputs]
    features = None
    if not missing:
        row = bundle[1].features(columns_of([[inputs[field.name] for field in fields]], fields))[0]
        names = bundle[1].schema.features
        features = {
            name: None if value != value else float(value) for name, value in zip(names, row, strict=True)
        }
    return told | {"inputs": inputs, "missing": missing, "features": features}


def _typed(value: Any, field: Field) -> Any:
    """What a request brings, as the input's type; text is read as a number where that is wanted."""
    if value is None or (field.dtype == "string" and isinstance(value, str)):
        return value
    try:
        if field.dtype == "bool":
            return _TEXTS[str(value).lower()]
        if field.dtype in ("float64", "int64") and not isinstance(value, bool):
            return float(value) if field.dtype == "float64" else int(value)
    except (ValueError, KeyError, OverflowError):
        pass
    raise BadInput("not a value for this input", where=field.name, got=value, wanted=f"{field.dtype} or null")
