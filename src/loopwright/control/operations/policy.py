"""Policies: the documents of the tiers, what governs a model, and what a version lacks."""

import json
from typing import Any

from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.kernel.stage import Stage
from loopwright.project.policy import TIERS
from loopwright.project.policy import Policy as Section
from loopwright.registry import policies, promotion, versions
from loopwright.registry.policy import Policy
from loopwright.registry.tiers.store import policy_section


@operation("policy.list", "GET", "/policies")
def list_policies(ctx: Context, tier: str | None = None) -> list[dict[str, Any]]:
    """List every document the tiers have had, the one in force last."""
    tiers = TIERS if tier is None else (policies.check_tier(tier),)
    with ctx.ledger.read() as conn:
        return [document.to_json() for one in tiers for document in policies.history(conn, one)]


@operation("policy.show", "GET", "/policy")
def show(ctx: Context, tier: str | None = None, model: str | None = None) -> dict[str, Any]:
    """Show the document in force for a tier, or all that governs a model: its tier's document and its project."""
    with ctx.ledger.read() as conn:
        if model is None:
            return policies.in_force(conn, policies.check_tier(tier or "high")).to_json()
        if tier is not None:
            raise BadInput("both a tier and a model are given", wanted="one of them")
        if policy_section(conn, model) is None:
            versions.check_model(conn, model)
        governs = policies.policy_of(conn, model)
        document = policies.in_force(conn, governs.tier)
        found = policy_section(conn, model)
        ungranted = policies.ungranted(conn, model)
    return {
        **document.to_json(), "model": model, "digest": governs.digest, "document": governs.to_json(),
        "tier_digest": document.policy.digest, "waived": found[1] if found else [],
        "ungranted": list(ungranted),
        "looser": list(governs.looser_than(document.policy)), "stricter": list(document.policy.looser_than(governs)),
    }  # fmt: skip


@operation("policy.set", "POST", "/policies", role=Role.ADMIN)
def set_policy(
    ctx: Context, document: dict[str, Any], reason: str = "", dry_run: bool = False
) -> dict[str, Any]:
    """Put a document into force for its tier, under the next number; or only say what it would change."""
    with ctx.ledger.write() as conn:
        change = policies.set_document(
            conn, document, actor=ctx.actor, reason=reason, now=ctx.now, dry_run=dry_run
        )
    return {**change.to_json(), "dry_run": dry_run}


@operation("policy.test", "GET", "/models/{model}/{version}/policy")
def examine(
    ctx: Context, model: str, version: int, to: str = "Production", document: str = ""
) -> dict[str, Any]:
    """Say what a version has and lacks for a stage, and the next cheapest step.

    `document` is the JSON of a policy to try in the place of what governs the model.
    """
    stages = {each.value.lower(): each for each in (Stage.STAGING, Stage.PRODUCTION)}
    stage = stages.get(to.strip().lower())
    if stage is None:
        # "prod" is further from "production" than a slip of the keys, but no less clear.
        near = [name for name in stages if len(to) > 1 and name.startswith(to.strip().lower())]
        raise BadInput(
            "nothing is promoted to this stage", got=to, wanted="staging or production",
            next=did_you_mean(near[0] if near else to, stages),
        )  # fmt: skip
    with ctx.ledger.read() as conn:
        tried = _tried(document) if document else None
        found = versions.get_version(conn, model=model, version=version)
        governs = tried or policies.policy_of(conn, model)
        answer = promotion.assessment(
            conn, model=model, version=version, stage=stage, now=ctx.now, policy=tried
        )
    return {
        "model": model, "version": version, "stage": found.stage.value, "to": stage.value, "tier": governs.tier,
        "tried": bool(document), **answer.to_json(),
    }  # fmt: skip


def _tried(document: str) -> Policy:
    try:
        said = json.loads(document)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise BadInput("not a policy's JSON", where="document", got=document)
    section = Section.from_json(said)
    return policies.builtin(section.tier).replaced_by(section.to_json())
