"""Projects: what a home knows of their loop.yaml."""

from collections.abc import Mapping
from typing import Any

from loopwright.control.context import Context
from loopwright.control.inputs import check_redacted
from loopwright.control.operation import operation
from loopwright.kernel.actor import Role, require
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, Refused
from loopwright.ledger import store as ledger_store
from loopwright.pipeline import store as pipeline_store
from loopwright.project.spec import Spec
from loopwright.registry import policies
from loopwright.registry.authority import check_team


@operation("projects.list", "GET", "/projects")
def list_projects(ctx: Context) -> list[dict[str, Any]]:
    """List projects: the model each is for, where it lies, and the digest of its loop.yaml."""
    with ctx.ledger.read() as conn:
        found = pipeline_store.list_projects(conn)
    return [{name: project[name] for name in ("model", "path", "spec_digest")} for project in found]


@operation("projects.apply", "POST", "/projects/{model}", role=Role.VIEWER)
def apply(ctx: Context, model: str, path: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Make a changed loop.yaml count for policy, delivery, monitoring and retraining without training.

    Is idempotent: the same loop.yaml again changes nothing. Only an admin may loosen a policy, which governs the
    developer's own work, or say from which folder the control plane trains: of the home, not of a team.
    """
    parsed = Spec.from_json(spec)
    if parsed.model != model:
        raise BadInput("the loop.yaml is for another model", got=parsed.model, wanted=model)
    # Not the role that the operation asks for: a new model has no team yet but the one its loop.yaml names.
    require(ctx.actor, Role.DEVELOPER, f"apply a loop.yaml to {model}", model=model, team=parsed.team)
    digest = digest_json(parsed.to_json())
    with ctx.ledger.write() as conn:
        check_team(conn, ctx.actor, model=model, team=parsed.team)
        known = {project["model"]: project for project in pipeline_store.list_projects(conn)}
        before = known.get(model)
        waived = policies.admit(
            conn, model=model, section=parsed.to_json()["policy"], actor=ctx.actor, deliberate=True
        )  # fmt: skip
        _check_reach(ctx, parsed, path, before)
        check_redacted(ctx, conn, parsed)
        if before is None or (before["spec_digest"], before["path"]) != (digest, path):
            pipeline_store.save_project(conn, model, path, parsed.to_json(), digest, ctx.now)
            ledger_store.append(
                conn, at=ctx.now, actor=ctx.actor.name, action="project.applied", subject=model,
                payload={"path": path, "spec_digest": digest, "before": before["spec_digest"] if before else None},
            )  # fmt: skip
        policies.waive(conn, model, waived, actor=ctx.actor, now=ctx.now)
    changed = [] if before is None else sorted(
        key for key in parsed.to_json() if parsed.to_json()[key] != before["spec"].get(key)
    )  # fmt: skip
    return {"model": model, "path": path, "spec_digest": digest, "changed": changed}


def _check_reach(ctx: Context, spec: Spec, path: str, before: Mapping[str, Any] | None) -> None:
    # Whoever says which folder says whose code runs with the control plane's rights, beside its keys.
    if ctx.actor.role_on(model=spec.model) >= Role.ADMIN:
        return
    if before is None or before["path"] != path:
        raise Refused(
            f"{ctx.actor.name} may not say from where the control plane trains {spec.model}", got=path,
            wanted=before["path"] if before else "the role admin", next="Ask an admin to apply it: loopwright apply",
        )  # fmt: skip
