"""The model card as a document of plain JSON, made from records alone. Pure.

Nothing in it was typed into a form but the sections that people wrote, which say so. What was never recorded is null
there and named under `gaps`; nothing is left out because it looks bad. `schema.CARD_SCHEMA` describes every field.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from loopwright.kernel.clock import iso
from loopwright.registry.documents.facts import Facts, Json
from loopwright.registry.documents.sections import says, title_of
from loopwright.registry.records import Evidence
from loopwright.registry.sbom import serial_number

SCHEMA_VERSION = "1.1"
USUAL = ("intended_use", "limitations", "training_data", "risks")
"""Sections every card shows, written or not."""

_COMPARED = ("comparison", "first model")
_DRIFT_SHOWN = 26
_QUALITY_SHOWN = 52


def build_card(facts: Facts) -> dict[str, Any]:
    """The card of one version as JSON that `CARD_SCHEMA` describes."""
    written = _written(facts)
    card = {
        "schema_version": SCHEMA_VERSION,
        "generated_at": iso(facts.now),
        "identity": _identity(facts, written),
        "written": written,
        "data": _data(facts),
        "training": _training(facts),
        "compression": _compression(facts.latest("compression")),
        "interface": _interface(facts),
        "quality": _quality(facts),
        "fairness": _judged(facts.latest("fairness"), "report"),
        "explainability": _explained(facts.latest("explainability")),
        "delivery": [_rollout(rollout) for rollout in facts.rollouts],
        "monitoring": _monitoring(facts),
        "governance": _governance(facts),
        "evidence": [
            {"kind": e.kind, "verdict": e.verdict.value, "at": iso(e.at), "digest": e.digest}
            for e in facts.evidence
        ],
        "sbom": {"serial_number": serial_number(facts.version.bundle)} if facts.version.bundle else None,
    }
    return {**card, "gaps": list(_gaps(card))}


def _identity(facts: Facts, written: Json) -> dict[str, Any]:
    version, spec = facts.version, facts.spec or {}
    notes = dict(version.annotations)
    licence = next((s["text"] for s in written["sections"] if s["name"] == "licence" and s["text"]), None)
    return {
        "model": version.model,
        "version": version.version,
        "semver": version.semver,
        "semver_reason": notes.pop("semver_reason", None),
        "task": facts.manifest.schema.task if facts.manifest else spec.get("task"),
        "stage": version.stage.value,
        "serving": facts.serving,
        "bundle": version.bundle,
        "author": version.author,
        "owner": spec.get("owner") or None,
        "team": spec.get("team"),
        "project": spec.get("project"),
        "registered_at": iso(version.created_at),
        "parent": version.parent,
        "licence": licence,
        "tags": dict(spec.get("tags") or {}),
        "annotations": notes,
    }


def _written(facts: Facts) -> dict[str, Any]:
    found = facts.latest("card")
    payload: Json = found.payload if found else {}
    texts: dict[str, str] = {str(k): str(v) for k, v in (payload.get("sections") or {}).items()}
    named = [*texts, *map(str, payload.get("unfilled") or ())]
    wanted = {*facts.sections}
    order = dict.fromkeys([*(n for n in ("summary",) if n in texts), *USUAL, *sorted(wanted), *named])
    return {
        "file": payload.get("file"),
        "digest": payload.get("digest"),
        "by": payload.get("by"),
        "at": iso(found.at) if found else None,
        "revision": sum(e.kind == "card" and e.bundle == facts.version.bundle for e in facts.evidence),
        "sections": [
            {
                "name": name,
                "title": title_of(name),
                "text": texts.get(name),
                "filled": says(name, texts.get(name) or ""),
                "required": name in wanted,
            }
            for name in order
        ],
    }


def _data(facts: Facts) -> dict[str, Any]:
    spec, snapshot = facts.spec or {}, facts.snapshot
    origin: Json = facts.manifest.provenance if facts.manifest else {}
    asked = spec.get("data") or {}
    sources, label = asked.get("sources") or {}, asked.get("label") or {}
    tables = (snapshot or {}).get("tables") or {}
    rows = [table.get("rows") for table in tables.values()]
    return {
        "snapshot": facts.version.snapshot,
        "rows": sum(rows) if rows and None not in rows else None,
        "tables": [
            {
                "name": name,
                "source": (sources.get(name) or {}).get("uri"),
                "rows": table.get("rows"),
                "table_version": table.get("version"),
                "content_digest": table.get("content_digest"),
                "contract": _contract(facts.landed.get(name) or ()),
            }
            for name, table in sorted(tables.items())
        ],
        "event_time": {
            "from": origin.get("trained_from"),
            "until": origin.get("trained_until"),
            "as_of": origin.get("as_of"),
        },
        "label": {"name": label.get("name"), "available_after": label.get("available_after")},
        "split": dict(origin.get("split_sizes") or {}),
    }


def _contract(reports: Iterable[Json]) -> dict[str, Any] | None:
    """What the contract found over all batches of a table; the rules are those of the newest."""
    landed = list(reports)
    if not landed:
        return None
    rules = landed[-1].get("rules") or []
    broken = [rule for rule in rules if rule.get("state") != "PASS"]
    return {
        "digest": landed[-1].get("contract_digest"),
        "batches": len(landed),
        "input_rows": sum(int(r.get("input_rows") or 0) for r in landed),
        "good_rows": sum(int(r.get("good_rows") or 0) for r in landed),
        "bad_rows": sum(int(r.get("bad_rows") or 0) for r in landed),
        "rules": len(rules),
        "broken": [
            {
                "name": str(r.get("name")),
                "severity": r.get("severity"),
                "state": r.get("state"),
                "rows": r.get("failed"),
            }
            for r in broken
        ],
    }


def _training(facts: Facts) -> dict[str, Any] | None:
    run, origin = facts.run, (facts.manifest.provenance if facts.manifest else {})
    if run is None and not origin:
        return None
    context: Json = (run or {}).get("context") or {}
    code = context.get("code") or {}
    git = code.get("git") or {}
    machine, installed = context.get("hardware") or {}, context.get("environment") or {}
    told = run or {}
    return {
        "run_id": facts.version.run_id,
        "started_at": told.get("started_at"),
        "ended_at": told.get("ended_at"),
        "by": told.get("actor") or origin.get("author"),
        "reason": told.get("reason") or origin.get("reason"),
        "commit": git.get("commit") or None,
        "dirty": git.get("dirty"),
        "kept_commit": git.get("snapshot") or None,
        "code_digest": code.get("digest"),
        "project_digest": origin.get("project_digest"),
        "algorithm": origin.get("algorithm"),
        "parameters": dict(told.get("params") or origin.get("params") or {}),
        "seed": origin.get("seed"),
        "python": installed.get("python"),
        "platform": installed.get("platform"),
        "packages": len(installed["packages"]) if installed.get("packages") else None,
        "packages_digest": installed.get("digest"),
        "processor": machine.get("cpu") or None,
        "cores": machine.get("cores"),
        "memory_bytes": machine.get("memory_bytes") or None,
        "gpus": list(machine.get("gpus") or []),
        "command": list(context.get("command") or []),
    }


def _compression(found: Evidence | None) -> dict[str, Any] | None:
    """How it was made smaller than its parent, and what that cost, beside the parent on the same rows."""
    if found is None:
        return None
    told = found.payload
    latency, judged, chosen = (told.get(name) or {} for name in ("latency", "test", "validation"))
    alike, wanted = told.get("agreement") or {}, told.get("wanted") or {}
    return {
        "verdict": found.verdict.value,
        "at": iso(found.at),
        "evidence": found.digest,
        "parent": told.get("parent"),
        "parent_bundle": told.get("parent_bundle"),
        "run": told.get("run"),
        "trained_in": told.get("trained_in"),
        "name": told.get("name"),
        "recipe": [dict(step) for step in told.get("recipe") or ()],
        "size": told.get("size"),
        "original_size": told.get("original_size"),
        "latency": {
            name: latency.get(name)
            for name in ("p50", "p99", "original_p50", "original_p99", "batch", "threads")
        },
        "loss": {
            part: {
                name: rows.get(name)
                for name in ("metric", "loss", "loss_low", "loss_high", "confidence", "rows")
            }
            for part, rows in (("validation", chosen), ("test", judged))
        },
        "agreement": {name: alike.get(name) for name in ("argmax", "cosine", "largest")},
        "controls": [str(one) for one in told.get("controls") or ()],
        "wanted": {name: wanted.get(name) for name in ("size", "latency_ms", "loss")},
    }


def _interface(facts: Facts) -> dict[str, Any] | None:
    if facts.manifest is None:
        return None
    schema = facts.manifest.schema
    return {
        "inputs": [{"name": f.name, "dtype": f.dtype, "nullable": f.nullable} for f in schema.inputs],
        "features": list(schema.features),
        "outputs": list(schema.outputs),
        "classes": list(schema.classes),
    }


def _quality(facts: Facts) -> dict[str, Any]:
    gates = facts.latest("gates")
    results: list[Any] = list((gates.payload.get("results") or []) if gates else [])
    return {
        "metrics": dict(facts.version.metrics),
        "gates": None if gates is None else {
            "verdict": gates.verdict.value,
            "at": iso(gates.at),
            "evidence": gates.digest,
            "rows": gates.payload.get("rows"),
            "baseline": gates.payload.get("baseline"),
            "results": [r for r in results if r.get("kind") not in (*_COMPARED, "behaviour")],
        },
        "comparison": next((r for r in results if r.get("kind") in _COMPARED), None),
        "behaviour": [r for r in results if r.get("kind") == "behaviour"],
    }  # fmt: skip


def _judged(found: Evidence | None, under: str) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "verdict": found.verdict.value,
        "at": iso(found.at),
        "evidence": found.digest,
        "not_applicable": found.payload.get("not_applicable"),
        under: None if "not_applicable" in found.payload else dict(found.payload),
    }


def _explained(found: Evidence | None) -> dict[str, Any] | None:
    if found is None:
        return None
    payload = found.payload
    return {
        "verdict": found.verdict.value,
        "at": iso(found.at),
        "evidence": found.digest,
        "why": payload.get("why"),
        "method": payload.get("method"),
        "rows": payload.get("rows"),
        "features": [dict(each) for each in payload.get("features") or ()],
    }


def _rollout(rollout: Json) -> dict[str, Any]:
    return {
        **{
            name: rollout.get(name)
            for name in ("id", "strategy", "status", "baseline", "started_at", "ended_at", "reason")
        },
        "steps": [
            {
                "at": event["at"],
                "event_time": event.get("event_time"),
                "kind": event["kind"],
                **{
                    name: (event.get("payload") or {}).get(name) for name in ("from", "to", "why", "evidence")
                },
            }
            for event in rollout.get("events") or ()
        ],
    }


def _monitoring(facts: Facts) -> dict[str, Any]:
    drift = [w for w in facts.windows if w["kind"] in ("drift", "prediction")]
    quality = [w for w in facts.windows if w["kind"] == "quality"]
    span = ("start", "end", "verdict")
    told = ("metric", "value", "low", "high", "expected", "limit", "labelled", "coverage")
    return {
        "drift": [
            {"kind": w["kind"], **{name: w[name] for name in span}, "moved": _moved(w["payload"])}
            for w in drift[-_DRIFT_SHOWN:]
        ],
        "quality": [
            {**{name: w[name] for name in span}, **{name: w["payload"].get(name) for name in told}}
            for w in quality[-_QUALITY_SHOWN:]
        ],
        "alerts": [
            {name: alert.get(name) for name in ("tier", "kind", "title", "state", "event_time", "opened_at", "by")}
            for alert in facts.alerts
        ],
    }  # fmt: skip


def _moved(payload: Json) -> list[dict[str, Any]]:
    """The columns a window found to have moved, the farthest first; PSI corrected for chance."""
    columns = payload.get("columns") or {}
    moved = [each for each in columns.values() if isinstance(each, Mapping) and each.get("verdict") == "FAIL"]
    moved.sort(key=lambda each: -(each.get("corrected") or 0.0))
    return [{"column": each.get("column"), "psi": each.get("corrected")} for each in moved]


def _governance(facts: Facts) -> dict[str, Any]:
    policy = facts.policy or {}
    return {
        "tier": policy.get("tier"),
        "policy_digest": policy.get("digest"),
        "approvals_needed": dict(policy.get("approvals") or {}),
        "evidence_needed": {
            stage: sorted(kinds) for stage, kinds in (policy.get("evidence") or {}).items()
        },
        "missing": {stage: list(lacks) for stage, lacks in facts.missing.items()},
        "promotions": [
            {
                "id": p.id,
                "stage": p.stage.value,
                "state": p.state,
                "requested_by": p.requested_by,
                "requested_at": iso(p.requested_at),
                "reason": p.reason,
                "decided_at": iso(p.decided_at) if p.decided_at else None,
                "policy_digest": p.policy_digest,
                "emergency": getattr(p, "emergency", None),
                "review": dict(facts.reviews[p.id]) if p.id in facts.reviews else None,
                "approvals": [
                    {"reviewer": a.reviewer, "decision": a.decision, "comment": a.comment, "at": iso(a.at),
                     "these_bytes": a.bundle == facts.version.bundle}
                    for a in p.approvals
                ],
            }
            for p in facts.promotions
        ],
    }  # fmt: skip


def _gaps(card: Json) -> Iterable[dict[str, str]]:
    """What a reader should know is missing, and how it could come to be there."""
    who = f"{card['identity']['model']} {card['identity']['version']}"
    document = f"loopwright models document {who} card.md"
    quality, training, data = card["quality"], card["training"] or {}, card["data"]

    def gap(about: str, what: str, next: str = "") -> dict[str, str]:
        return {"about": about, "what": what, "next": next}

    if card["identity"]["bundle"] is None:
        yield gap("bundle", "no sealed bundle: registered by a plain MLflow client, never gated, cannot be promoted",
                  "loopwright run PROJECT")  # fmt: skip
    elif card["interface"] is None:
        yield gap("bundle", "the sealed bundle is not on this home; what it says of itself is not shown")
    for section in card["written"]["sections"]:
        if not section["filled"] and (section["required"] or section["name"] in USUAL):
            said = "too short or placeholders" if section["text"] else "nothing is written"
            wanted = "; the policy requires it" if section["required"] else ""
            yield gap("card", f"{section['title']}: {said}{wanted}", document)
    if card["identity"]["licence"] is None:
        yield gap("card", "no licence is stated (`## Licence`)", document)
    if card["identity"]["owner"] is None:
        yield gap("identity", "no owner is named", "owner: in loop.yaml")
    if data["snapshot"] is None or not data["tables"]:
        yield gap("data", "no snapshot of the training data is recorded")
    yield from (
        gap("data", f"table {table['name']}: no contract result is recorded")
        for table in data["tables"]
        if table["contract"] is None
    )
    if data["tables"] and data["event_time"]["until"] is None:
        yield gap("data", "rows have no event time: how old they are is not known")
    if not training.get("run_id"):
        yield gap("training", "no training run is recorded")
    if not training.get("commit"):
        yield gap("training", "no commit: the project was not in a git repository", "git init")
    elif training.get("dirty") and not training.get("kept_commit"):
        yield gap("training", "the run had uncommitted changes that could not be kept")
    if not training.get("packages"):
        yield gap("training", "the installed packages are not recorded; the SBOM holds less")
    if quality["gates"] is None:
        yield gap("quality", "no gate has judged these bytes")
    else:
        if quality["comparison"] is None:
            yield gap("quality", "it was compared with no other version", "gates.baseline in loop.yaml")
        if not quality["behaviour"]:
            yield gap("quality", "no behaviour checks", "gates.behaviour in loop.yaml")
    if card["fairness"] is None:
        yield gap(
            "fairness",
            "no fairness report",
            "gates.fairness in loop.yaml: an attribute, or why it does not apply",
        )
    if card["explainability"] is None:
        yield gap("explainability", "no global explanation of the answers", "explain: in loop.yaml")
    monitoring, stage = card["monitoring"], card["identity"]["stage"]
    if stage in ("Production", "Archived") and card["delivery"]:
        if not monitoring["drift"]:
            yield gap("monitoring", "no window has been judged for drift")
        if not monitoring["quality"]:
            yield gap("monitoring", "quality on live traffic is unknown: no window had enough labels",
                      f"loopwright labels add {card['identity']['model']} FILE")  # fmt: skip
    for promotion in card["governance"]["promotions"]:
        review = promotion["review"]
        if review and review.get("state") == "open":
            yield gap("governance", f"the emergency promotion to {promotion['stage']} has not been reviewed; due "
                      f"{review.get('due_at')}")  # fmt: skip
