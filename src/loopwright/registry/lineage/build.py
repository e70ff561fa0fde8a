"""Makes the graph of one model from what is recorded: source → batch → table → snapshot → features → run → bundle →
version → promotion → rollout → predictions → labels, windows, alerts → retrain → the next run. Pure.

Its size is linear in what happened: a batch is tied to the first pinned version of its table that holds it, and that
one to the next, so a thousand batches and a hundred snapshots are not a hundred thousand edges.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from loopwright.kernel.clock import iso
from loopwright.registry.lineage.graph import COMPRESSED, Graph
from loopwright.registry.lineage.records import Answers, Landing, Records, Registered, Run


def build(records: Records) -> Graph:
    """The whole graph of a model. Edges lead from cause to effect."""
    graph = Graph()
    _tables(graph, records)
    _snapshots(graph, records)
    _runs(graph, records)
    _versions(graph, records)
    _promotions(graph, records)
    _traffic(graph, records)
    _retrains(graph, records)
    return graph


def source_id(model: str, uri: str) -> str:
    """A path in a loop.yaml means something only to its project; a URI names the same thing to all."""
    return f"source:{uri}" if "://" in uri or uri.startswith("/") else f"source:{model}/{uri}"


def batch_id(model: str, table: str, batch: str) -> str:
    return f"batch:{model}/{table}/{batch}"


def table_id(model: str, table: str, version: int) -> str:
    return f"table:{model}/{table}@{version}"


def column_id(model: str, table: str, version: int, column: str) -> str:
    return f"column:{model}/{table}@{version}/{column}"


def _tables(graph: Graph, records: Records) -> None:
    """Sources, batches, and the versions of tables that are pinned, or stand newest."""
    model = records.model
    landed: dict[str, list[Landing]] = defaultdict(list)
    for landing in records.landings:
        landed[landing.table].append(landing)
    pinned: dict[str, set[int]] = defaultdict(set)
    for snapshot in records.snapshots:
        for name, table in snapshot.tables.items():
            pinned[name].add(table.version)
    for name in sorted({*landed, *pinned}):
        history = sorted(landed[name], key=lambda landing: landing.silver)
        versions = sorted(pinned[name] | ({history[-1].silver} if history else set()))
        for version in versions:
            graph.add(table_id(model, name, version), "table", f"{name} @ {version}", model=model, table=name,
                      version=version, pinned=version in pinned[name])  # fmt: skip
        _land(graph, model, name, history, versions)


def _land(graph: Graph, model: str, table: str, history: list[Landing], versions: list[int]) -> None:
    before, done = None, 0
    for version in versions:
        until = bisect_right(history, version, key=lambda landing: landing.silver)
        came, done = history[done:until], until
        whole = max((place for place, landing in enumerate(came) if landing.loading == "full"), default=None)
        here = table_id(model, table, version)
        if before is not None and whole is None:
            graph.link(table_id(model, table, before), here, "carried into")
        for place, landing in enumerate(came):
            batch = graph.add(
                batch_id(model, table, landing.batch), "batch", f"{table} batch {landing.batch[:8]}", model=model,
                table=table, batch=landing.batch, rows=landing.good, quarantined=landing.bad, at=iso(landing.at),
                by=landing.actor, loading=landing.loading, uri=landing.uri, contract=landing.contract,
            )  # fmt: skip
            source = graph.add(source_id(model, landing.uri), "source", _short(landing.uri), uri=landing.uri)
            graph.link(source, batch, "landed as")
            # What was replaced before anybody pinned it went into nothing, nor did a batch without a good row.
            if landing.good and (whole is None or place >= whole):
                graph.link(batch, here, "in")
        before = version


def _snapshots(graph: Graph, records: Records) -> None:
    for snapshot in records.snapshots:
        graph.add(snapshot.digest, "snapshot", f"snapshot {snapshot.digest[:12]}", digest=snapshot.digest,
                  rows=snapshot.rows, at=iso(snapshot.at), model=records.model)  # fmt: skip
        for name, table in snapshot.tables.items():
            here = table_id(records.model, name, table.version)
            graph.nodes[here] |= {"rows": table.rows, "content": table.content}
            graph.link(here, snapshot.digest, "pinned in")


def _runs(graph: Graph, records: Records) -> None:
    pins = {snapshot.digest: snapshot for snapshot in records.snapshots}
    known = {run.id for run in records.runs}
    for run in records.runs:
        _run(graph, records.model, run)
        snapshot = pins.get(run.snapshot or "")
        versions = {name: table.version for name, table in snapshot.tables.items()} if snapshot else {}
        if run.lineage:
            _features(graph, records.model, run, versions)
    for version in records.versions:
        # A run of another home, or one that a plain MLflow client made.
        if version.run and version.run not in known:
            graph.add(version.run, "run", f"run {version.run[:12]}", model=records.model)
            if version.snapshot:
                graph.add(
                    version.snapshot, "snapshot", f"snapshot {version.snapshot[:12]}", model=records.model
                )
                graph.link(version.snapshot, version.run, "trained")


def _run(graph: Graph, model: str, run: Run) -> None:
    graph.add(
        run.id, "run", f"run {run.id[:12]}", model=model, status=run.status, actor=run.actor, reason=run.reason,
        experiment=run.experiment, at=iso(run.started), ended=iso(run.ended) if run.ended else None,
    )  # fmt: skip
    if run.snapshot:
        graph.add(run.snapshot, "snapshot", f"snapshot {run.snapshot[:12]}", model=model)
        graph.link(run.snapshot, run.id, "trained")
    if run.commit or run.code:
        told = f"commit {run.commit[:12]}" + (" with changes" if run.dirty else "") if run.commit else ""
        code = graph.add(
            f"code:{run.code or run.commit}", "code", told or f"code {run.code[:12]}", commit=run.commit,
            digest=run.code, dirty=run.dirty or None,
        )  # fmt: skip
        graph.link(code, run.id, "ran as")
    if run.config:
        config = graph.add(
            f"config:{run.config}", "config", f"loop.yaml {run.config[:12]}", digest=run.config
        )
        graph.link(config, run.id, "configured")


def _features(graph: Graph, model: str, run: Run, versions: dict[str, int]) -> None:
    """Columns, inputs, the label, the choice of rows and the transform of one run."""
    told = dict(run.lineage or {})
    transform = dict(told.get("transform") or {})
    gives, reads = list(transform.get("gives") or []), list(transform.get("reads") or [])
    middle = run.id
    if reads:
        label = f"{transform.get('source', 'transform')}: {len(reads)} inputs" + (
            f" → {len(gives)} features" if gives else ""
        )
        middle = graph.add(f"transform:{run.id}", "transform", label, level="table", model=model, gives=gives)
        graph.link(middle, run.id, "fed")
    parts: list[tuple[dict[str, Any], str, str, str]] = [
        (each, f"feature:{run.id}/{each['name']}", "feature", middle) for each in told.get("inputs") or []
    ]
    if told.get("label"):
        parts.append((told["label"], f"label:{run.id}", "label", run.id))
    if told.get("rows"):
        parts.append((told["rows"], f"rows:{run.id}", "rows", run.id))
    for each, reader, kind, target in parts:
        name = {"label": "label", "rows": "which rows"}.get(kind, each["name"])
        graph.add(reader, kind, name, name=each["name"], level=each["level"], view=each["view"], sql=each.get("sql"),
                  why=each.get("why"), run=run.id, model=model, reads=each["reads"])  # fmt: skip
        for read in each["reads"]:
            _column(graph, model, versions, read, reader)
        graph.link(reader, target, "fed")


def _column(graph: Graph, model: str, versions: dict[str, int], read: dict[str, Any], reader: str) -> None:
    table, column = read["table"], read["column"]
    if table not in versions:
        return
    label = f"{table}.{column}" if column != "*" else f"{table}, whole rows"
    here = graph.add(column_id(model, table, versions[table], column), "column", label, model=model, table=table,
                     column=column)  # fmt: skip
    graph.link(table_id(model, table, versions[table]), here, "has")
    graph.link(here, reader, "read by")


def _versions(graph: Graph, records: Records) -> None:
    model = records.model
    arms: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for arm in records.arms or ():
        arms[arm.version].append({"arm": arm.arm, "weight": arm.weight})
    answered: dict[int, int] = defaultdict(int)
    for row in records.answers:
        # Nobody saw a shadow's answers, and no model gave kept and default ones.
        answered[row.version] += row.answers if row.arm not in ("shadow", "cache", "default") else 0
    for found in records.versions:
        here = graph.add(
            version_id(model, found.version), "version", f"{model} {found.version}", model=model, version=found.version,
            stage=found.stage, semver=found.semver, author=found.author, at=iso(found.at), metrics=dict(found.metrics),
            serving=arms.get(found.version), live=_live(records, found, arms) or None,
            answers=answered.get(found.version), deleted=found.deleted or None,
        )  # fmt: skip
        if found.bundle:
            graph.add(found.bundle, "bundle", f"bundle {found.bundle[:12]}", model=model, digest=found.bundle)
            graph.link(found.bundle, here, "registered as")
        if found.run:
            graph.link(found.run, found.bundle or here, "packed into" if found.bundle else "registered as")
    for run in records.runs:
        if run.bundle:  # also one whose gates said no
            graph.add(run.bundle, "bundle", f"bundle {run.bundle[:12]}", model=model, digest=run.bundle)
            graph.link(run.id, run.bundle, "packed into")
    made = {item.bundle for item in records.evidence if item.kind == "compression"} - {None}
    for found in records.versions:
        if found.parent is not None:
            how = COMPRESSED if found.bundle in made else "baseline of"
            graph.link(version_id(model, found.parent), version_id(model, found.version), how)
    _evidence(graph, records)


def version_id(model: str, version: int) -> str:
    return f"{model}/{version}"


def _live(records: Records, found: Registered, arms: dict[int, list[dict[str, Any]]]) -> bool:
    """Whether anybody is answered by it; where no route table says so, what is approved for Production counts."""
    if records.arms is None:
        return found.stage == "Production"
    return any(arm["arm"] != "shadow" for arm in arms.get(found.version, ()))


def _evidence(graph: Graph, records: Records) -> None:
    bundles = {found.bundle: found.version for found in records.versions if found.bundle}
    for item in records.evidence:
        numbers = {item.version, bundles.get(item.bundle or "")} - {None}
        places = [version_id(records.model, number) for number in sorted(n for n in numbers if n is not None)]
        places = places or ([item.bundle] if item.bundle else [])
        graph.add(item.digest, "evidence", f"{item.kind}: {item.verdict}", of=item.kind, verdict=item.verdict,
                  at=iso(item.at), digest=item.digest)  # fmt: skip
        for place in places:
            graph.link(place, item.digest, "judged by")


def _promotions(graph: Graph, records: Records) -> None:
    for asked in records.promotions:
        yes = [reviewer for reviewer, decision, _ in asked.said if decision == "approve"]
        graph.add(
            asked.id, "promotion", f"to {asked.stage}: {asked.state}", model=records.model, version=asked.version,
            stage=asked.stage, state=asked.state, requested_by=asked.requested_by, approved_by=yes,
            rejected_by=[reviewer for reviewer, decision, _ in asked.said if decision == "reject"],
            reason=asked.reason, emergency=asked.emergency, at=iso(asked.decided or asked.requested),
        )  # fmt: skip
        graph.link(version_id(records.model, asked.version), asked.id, "promoted by")
    for rollout in records.rollouts:
        graph.add(
            rollout.id, "rollout", f"{rollout.strategy or 'rollout'}: {rollout.status.replace('_', ' ')}",
            model=records.model, version=rollout.version, status=rollout.status, strategy=rollout.strategy,
            baseline=rollout.baseline, at=iso(rollout.started), ended=iso(rollout.ended) if rollout.ended else None,
            reason=rollout.reason,
        )  # fmt: skip
        asked_by = rollout.promotion if rollout.promotion in graph.nodes else None
        graph.link(
            asked_by or version_id(records.model, rollout.version), rollout.id,
            "led to" if asked_by else "rolled out by",
        )  # fmt: skip


def _traffic(graph: Graph, records: Records) -> None:
    """Predictions per version and arm, the labels that came for them, the windows they were judged in, alerts."""
    model = records.model
    rolled: dict[int, list[str]] = defaultdict(list)
    for rollout in records.rollouts:
        rolled[rollout.version].append(rollout.id)
    by_version: dict[int, list[Answers]] = defaultdict(list)
    for row in records.answers:
        by_version[row.version].append(row)
    for version, rows in by_version.items():
        for row in rows:
            here = graph.add(
                f"predictions:{model}/{version}/{row.arm}", "predictions", f"{row.answers:,} answers, {row.arm}",
                model=model, version=version, arm=row.arm, answers=row.answers, errors=row.errors or None,
                at=iso(row.first), until=iso(row.last), log=f"predictions/{model}",
            )  # fmt: skip
            for cause in rolled[version] or [version_id(model, version)]:
                graph.link(cause, here, "sent traffic to" if rolled[version] else "answered")
        _labels(graph, records, version, rows)
    _windows(graph, records)


def _labels(graph: Graph, records: Records, version: int, rows: list[Answers]) -> None:
    first = min(row.first for row in rows)
    last = max([row.last for row in rows] + [w.last for w in records.windows if w.version == version])
    # Days are in order; one that began before the first answer may still bring its outcome.
    begin = bisect_left(records.labels, first, key=lambda day: day.last)
    end = bisect_right(records.labels, last, key=lambda day: day.first)
    came = records.labels[begin:end]
    if not came:
        return
    model, count, batches = records.model, sum(day.rows for day in came), sum(day.batches for day in came)
    here = graph.add(
        f"labels:{model}/{version}", "labels", f"{count:,} labels in {batches:,} batches", model=model,
        version=version, rows=count, batches=batches, at=iso(min(day.first for day in came)),
        until=iso(came[-1].last),
    )  # fmt: skip
    for row in rows:
        graph.link(f"predictions:{model}/{version}/{row.arm}", here, "outcomes in")


def _windows(graph: Graph, records: Records) -> None:
    model = records.model
    kinds: dict[tuple[int, str], list[Any]] = defaultdict(list)
    for window in records.windows:
        kinds[window.version, window.kind].append(window)
    for (version, kind), found in kinds.items():
        count = sum(each.count for each in found)
        verdicts = ", ".join(f"{each.count:,} {each.verdict}" for each in found)
        here = graph.add(
            f"windows:{model}/{version}/{kind}", "windows", f"{kind}: {verdicts}", model=model, version=version,
            of=kind, count=count, verdicts={each.verdict: each.count for each in found},
            at=iso(min(each.first for each in found)), until=iso(max(each.last for each in found)),
        )  # fmt: skip
        for arm in ("stable", "canary"):
            graph.link(f"predictions:{model}/{version}/{arm}", here, "judged in")
        if kind == "quality":
            graph.link(f"labels:{model}/{version}", here, "judged in")
    for alert in records.alerts:
        graph.add(
            alert.id, "alert", f"{alert.tier} {alert.title}", model=model, version=alert.version, of=alert.kind,
            tier=alert.tier, state=alert.state, at=iso(alert.event_time),
        )  # fmt: skip
        seen_in = f"windows:{model}/{alert.version}/{alert.kind}"
        if seen_in in graph.nodes:
            graph.link(seen_in, alert.id, "raised")
        elif alert.version is not None:
            for arm in ("stable", "canary"):
                graph.link(f"predictions:{model}/{alert.version}/{arm}", alert.id, "raised")


def _retrains(graph: Graph, records: Records) -> None:
    model = records.model
    for asked in records.retrains:
        graph.add(
            asked.id, "retrain", f"{asked.cause}: {asked.state}", model=model, cause=asked.cause,
            decision=asked.decision, why=asked.why, state=asked.state, at=iso(asked.event_time),
        )  # fmt: skip
        for cause in _causes(model, asked.key):
            graph.link(cause, asked.id, "called for")
        if asked.run:
            graph.link(asked.id, asked.run, "started")


def _causes(model: str, key: str) -> Iterable[str]:
    """Ids of what a trigger's key names: an alert, or a batch of a table."""
    kind, _, rest = key.partition(":")
    if kind in ("source", "contract"):
        table, _, batch = rest.partition(":")
        return [batch_id(model, table, batch)]
    return [rest.partition(":")[0]]


def _short(uri: str) -> str:
    """The end of a URI, where files differ."""
    return uri if len(uri) <= 25 else f"…{uri[-24:]}"
