"""Everything written about one version: gathers its records and makes the documents an auditor takes away."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from loopwright import __version__
from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import Manifest
from loopwright.control.context import Context
from loopwright.data.store import list_batches
from loopwright.delivery.routes import stable_version
from loopwright.delivery.store import active_rollout, list_events, list_rollouts
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import canonical_json, sha256_bytes
from loopwright.kernel.errors import Conflict, LoopwrightError, NotFound
from loopwright.kernel.home import Home
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as ledger_store
from loopwright.monitoring.store import list_alerts, list_windows
from loopwright.pipeline import store as pipeline_store
from loopwright.registry import evidence, promotion, store, versions
from loopwright.registry.documents.blocks import Page
from loopwright.registry.documents.card import build_card
from loopwright.registry.documents.facts import Facts
from loopwright.registry.documents.html import to_html
from loopwright.registry.documents.layout import lay_out
from loopwright.registry.documents.markdown import to_markdown
from loopwright.registry.documents.schema import CARD_SCHEMA
from loopwright.registry.lineage import lineage
from loopwright.registry.policies import policy_of
from loopwright.registry.policy import Policy
from loopwright.registry.records import Version, subject
from loopwright.registry.sbom import build_sbom
from loopwright.registry.tiers.store import find_reviews

log = logging.getLogger(__name__)

FORMATS = {"md": "text/markdown", "html": "text/html", "json": "application/json"}
WINDOWS = 200
AHEAD = {Stage.NONE: (Stage.STAGING, Stage.PRODUCTION), Stage.STAGING: (Stage.PRODUCTION,)}
"""The stages a version has still before it."""


@dataclass(frozen=True, slots=True)
class Document:
    """One file of the dossier, with one line on what it is."""

    name: str
    content: str
    about: str

    def to_json(self) -> dict[str, Any]:
        """The file with its digest."""
        raw = self.content.encode()
        return {"name": self.name, "about": self.about, "sha256": sha256_bytes(raw), "bytes": len(raw)}


def facts_of(ctx: Context, conn: Connection, version: Version) -> Facts:
    """Gather what is recorded about the version; raises Tampered when its bundle is not what was sealed."""
    model, number = version.model, version.version
    policy = policy_of(conn, model)
    snapshot = store.snapshot_manifest(conn, version.snapshot) if version.snapshot else None
    return Facts(
        version=version,
        now=ctx.now,
        manifest=sealed(ctx, version),
        evidence=evidence.evidence_of(conn, model=model, version=number),
        promotions=promotion.list_promotions(conn, model=model, version=number),
        spec=_spec(ctx.home, conn, version),
        run=_run(conn, version),
        snapshot=snapshot,
        landed=_landed(conn, model, snapshot),
        rollouts=_rollouts(conn, model, number),
        windows=[w.to_json() for w in list_windows(conn, model, version=number, limit=WINDOWS)],
        alerts=[alert.to_json() for alert in list_alerts(conn, model) if alert.version == number],
        serving=_serves(conn, model, number),
        policy={**policy.to_json(), "digest": policy.digest},
        missing={
            stage.value: promotion.assessment(
                conn, model=model, version=number, stage=stage, now=ctx.now
            ).missing
            for stage in AHEAD.get(version.stage, ())
        },
        sections=required_sections(policy),
        reviews={
            review.promotion_id: {
                "state": review.state, "due_at": iso(review.due_at), "broken_by": review.broken_by,
                "reviewer": review.reviewer, "comment": review.comment,
                "decided_at": iso(review.decided_at) if review.decided_at else None,
            }
            for review in find_reviews(conn, model=model, version=number)
        },
    )  # fmt: skip


def required_sections(policy: Policy) -> tuple[str, ...]:
    """The sections of a card that the policy wants written before Production."""
    asked = (each.sections for each in policy.rules(Stage.PRODUCTION).evidence if each.kind == "card")
    return tuple(sorted({name for sections in asked for name in sections}))


def card_of(ctx: Context, model: str, version: int) -> dict[str, Any]:
    """The model card as JSON; raises NotFound for an unknown version."""
    with ctx.ledger.read() as conn:
        return build_card(facts_of(ctx, conn, versions.get_version(conn, model=model, version=version)))


def in_format(card: Mapping[str, Any], format: str, page: Page | None = None) -> str:
    """The card as text: "md", "html" or "json"."""
    if format == "json":
        return readable(card)
    page = page or lay_out(card)
    return to_html(page) if format == "html" else to_markdown(page)


def sbom_of(ctx: Context, model: str, version: int, card: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The version's bill of materials. Raises Conflict when it has no sealed bundle, NotFound when that is not here."""
    with ctx.ledger.read() as conn:
        found = versions.get_version(conn, model=model, version=version)
        run = _run(conn, found)
    if found.bundle is None:
        raise Conflict(
            "a version without a sealed bundle has no bill of materials", where=found.subject,
            next="Only what `loopwright run` packed is known file by file.",
        )  # fmt: skip
    manifest = sealed(ctx, found)
    if manifest is None:
        raise NotFound("the version's bundle is not on this home", where=found.subject, got=found.bundle)
    pins = BundleDepot(ctx.home.bundles).file(found.bundle, "requirements.txt")
    return build_sbom(
        card or card_of(ctx, model, version),
        manifest,
        requirements=[line for line in pins.read_text(encoding="utf-8").splitlines() if line.strip()],
        environment=((run or {}).get("context") or {}).get("environment"),
    )


def dossier(ctx: Context, model: str, version: int) -> list[Document]:
    """All documents of a version, an index with their digests, and SHA256SUMS last, which covers the index too."""
    card = card_of(ctx, model, version)
    documents = [*_documents(ctx, card)]
    with ctx.ledger.read() as conn:
        head = ledger_store.rows(conn, limit=1)
    index = {
        "model": model,
        "version": version,
        "semver": card["identity"]["semver"],
        "bundle": card["identity"]["bundle"],
        "generated_at": card["generated_at"],
        "generated_by": ctx.actor.name,
        "generator": f"loopwright {__version__}",
        "audit_head": {"seq": head[-1].seq, "hash": head[-1].hash} if head else None,
        "files": [each.to_json() for each in documents],
    }
    documents.append(Document("index.json", readable(index), "What there is, with SHA-256 of every file."))
    sums = "".join(f"{each.to_json()['sha256']}  {each.name}\n" for each in documents)
    return [*documents, Document("SHA256SUMS", sums, "For: sha256sum -c SHA256SUMS")]


def sealed(ctx: Context, version: Version) -> Manifest | None:
    """The bundle's manifest, every byte of the bundle checked; None when there is none here."""
    depot = BundleDepot(ctx.home.bundles)
    if version.bundle is None or not depot.has(version.bundle):
        return None
    return depot.verify(version.bundle, ctx.keyring.public)


def readable(value: object) -> str:
    """JSON for people: indented, and refusing what JSON cannot hold."""
    canonical_json(value)
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _documents(ctx: Context, card: dict[str, Any]) -> Iterator[Document]:
    model, version = card["identity"]["model"], card["identity"]["version"]
    page = lay_out(card)
    yield Document("card.html", in_format(card, "html", page), "The model card, to read and to print.")
    yield Document("card.md", in_format(card, "md", page), "The model card as Markdown.")
    yield Document("card.json", in_format(card, "json"), "The model card for programs.")
    yield Document("card.schema.json", readable(CARD_SCHEMA), "The JSON Schema of card.json.")
    if card["interface"] is not None:
        sbom = readable(sbom_of(ctx, model, version, card))
        yield Document("sbom.cdx.json", sbom, "The software bill of materials, CycloneDX 1.6.")
    with ctx.ledger.read() as conn:
        found = evidence.evidence_of(conn, model=model, version=version)
        asked = promotion.list_promotions(conn, model=model, version=version)
        reviews = find_reviews(conn, model=model, version=version)
        trail = list(_trail(conn, card))
        descent = list(_lineage(conn, model, version))
    latest = {item.kind: item for item in found if item.bundle == card["identity"]["bundle"]}
    if "gates" in latest:
        yield Document("gates.json", readable(latest["gates"].to_json()), "What the gates found.")
    if "fairness" in latest:
        yield from _fairness(latest["fairness"].to_json())
    if "explainability" in latest:
        yield from _explanation(latest["explainability"].to_json())
    yield Document(
        "evidence.jsonl", _lines(item.to_json() for item in found), "Every recorded result, whole."
    )
    said = {
        "promotions": [each.to_json() for each in asked],
        "reviews": [
            {**card_review, "promotion_id": review.promotion_id, "reason": review.reason}
            for review in reviews
            if (card_review := _review_of(card, review.promotion_id))
        ],
    }
    yield Document("approvals.json", readable(said), "Who asked, who said what, under which policy.")
    yield from descent
    yield Document(
        "audit.jsonl", "".join(trail), "The audit log's rows about it, with their hashes in the chain."
    )


def _review_of(card: Mapping[str, Any], promotion_id: str) -> dict[str, Any] | None:
    for asked in card["governance"]["promotions"]:
        if asked["id"] == promotion_id:
            return asked["review"]  # type: ignore[no-any-return]
    return None


def _fairness(item: dict[str, Any]) -> Iterator[Document]:
    from loopwright.quality.fairness_report import fairness_markdown, fairness_svg

    yield Document("fairness.json", readable(item), "The fairness report, whole.")
    yield from _drawn("fairness.md", fairness_markdown, item, "The fairness report to read.")
    if "not_applicable" not in item["payload"]:
        yield from _drawn("fairness.svg", fairness_svg, item, "The fairness report as a picture.")


def _explanation(item: dict[str, Any]) -> Iterator[Document]:
    from loopwright.quality.explain_report import importance_svg

    yield Document("explainability.json", readable(item), "What the answers rest on, with explained rows.")
    if item["verdict"] == "PASS":
        yield from _drawn("explainability.svg", importance_svg, item, "The same as a picture.")


def _drawn(
    name: str, draw: Callable[[Mapping[str, Any]], str], item: dict[str, Any], about: str
) -> Iterator[Document]:
    """The document, unless the evidence has another form: then it is there as JSON, and no auditor goes without."""
    try:
        yield Document(name, draw(item["payload"]), about)
    except (KeyError, TypeError, ValueError) as error:
        log.warning("%s could not be drawn from evidence %s: %r", name, item["digest"][:12], error)


def _lineage(conn: Connection, model: str, version: int) -> Iterator[Document]:
    from loopwright.registry.lineage.page import page

    graph = lineage(conn, model=model, version=version, direction="both")
    yield Document("lineage.json", readable(graph), "Where it comes from and what became of it, as a graph.")
    yield Document(
        "lineage.html", page(graph), "The data lineage page: the same, drawn, to read and to print."
    )


def _trail(conn: Connection, card: Mapping[str, Any]) -> Iterator[str]:
    """Audit rows about the version, its run and its bytes, oldest first, one JSON object a line."""
    identity, run = card["identity"], (card["training"] or {}).get("run_id")
    named = [subject(identity["model"], identity["version"]), *([f"run {run}"] if run else [])]
    rows = {row.seq: row for name in named for row in ledger_store.rows(conn, subject=name)}
    if identity["bundle"]:  # what a run records before there is a version is about the model
        rows |= {
            row.seq: row
            for row in ledger_store.rows(conn, subject=identity["model"], action="evidence.recorded")
            if row.payload.get("bundle") == identity["bundle"]
        }
    return iter(_lines(rows[seq].to_json() for seq in sorted(rows)).splitlines(keepends=True))


def _lines(items: Iterator[dict[str, Any]] | Any) -> str:
    return "".join(canonical_json(item).decode() + "\n" for item in items)


def _spec(home: Home, conn: Connection, version: Version) -> dict[str, Any] | None:
    """The loop.yaml the version's run kept; of a run that kept none, what its project says now."""
    if version.run_id and re.fullmatch(r"[\w-]{1,100}", version.run_id):
        kept = home.root / "runs" / version.run_id / "spec.json"
        if kept.is_file():
            found: dict[str, Any] = json.loads(kept.read_bytes())
            return found
    project = pipeline_store.find_project(conn, version.model)
    return project["spec"] if project else None


def _run(conn: Connection, version: Version) -> dict[str, Any] | None:
    if not version.run_id:
        return None
    try:
        found = pipeline_store.find_run(conn, version.run_id)
    except LoopwrightError:  # a run that only MLflow knows
        return None
    return found if found["run_id"] == version.run_id else None


def _landed(
    conn: Connection, model: str, snapshot: Mapping[str, Any] | None
) -> dict[str, list[Mapping[str, Any]]]:
    """Table → reports of the batches that were in it when the snapshot was taken."""
    tables = (snapshot or {}).get("tables") or {}
    return {
        name: [
            batch.report
            for batch in list_batches(conn, f"{model}/{name}")
            if batch.silver_version is None or batch.silver_version <= table.get("version", 0)
        ]
        for name, table in tables.items()
    }


def _rollouts(conn: Connection, model: str, version: int) -> list[dict[str, Any]]:
    found = [rollout for rollout in list_rollouts(conn, model, limit=1000) if rollout.version == version]
    return [{**rollout.to_json(), "events": list_events(conn, rollout.id)} for rollout in found]


def _serves(conn: Connection, model: str, version: int) -> bool | None:
    stable, running = stable_version(conn, model), active_rollout(conn, model)
    if stable is None and running is None:
        return None
    return version == stable or (running is not None and running.version == version)
