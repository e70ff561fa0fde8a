"""Documents of a version: model card, bill of materials, all of them for an auditor; and the part people write."""

from typing import Any

from loopwright.control import dossier
from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.kernel.actor import Role
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput, Conflict
from loopwright.registry import evidence, versions
from loopwright.registry.authority import require_on
from loopwright.registry.documents.sections import check_headings, is_filled, parse_card, says, title_of
from loopwright.registry.policies import policy_of


@operation("documents.card", "GET", "/models/{model}/{version}/card")
def card(ctx: Context, model: str, version: int, format: str = "md") -> dict[str, Any]:
    """Show the model card, made from what is recorded now: as md, html or json."""
    if format not in dossier.FORMATS:
        raise BadInput("no such format of a card", got=format, wanted=", ".join(dossier.FORMATS))
    content = dossier.in_format(dossier.card_of(ctx, model, version), format)
    return _file(f"{model}-{version}-card.{format}", dossier.FORMATS[format], content)


@operation("documents.sbom", "GET", "/models/{model}/{version}/sbom")
def sbom(ctx: Context, model: str, version: int) -> dict[str, Any]:
    """Show the software bill of materials: CycloneDX 1.6 with the model, its data and its packages."""
    content = dossier.readable(dossier.sbom_of(ctx, model, version))
    return _file(f"{model}-{version}.cdx.json", "application/vnd.cyclonedx+json", content)


@operation("documents.all", "GET", "/models/{model}/{version}/documents")
def every_document(ctx: Context, model: str, version: int) -> dict[str, Any]:
    """Return every document of a version with its SHA-256, for whoever audits it."""
    made = dossier.dossier(ctx, model, version)
    return {
        "model": model,
        "version": version,
        "files": [{**each.to_json(), "content": each.content} for each in made],
    }


@operation("documents.record", "POST", "/models/{model}/{version}/card", role=Role.DEVELOPER)
def record(ctx: Context, model: str, version: int, text: str, file: str = "card.md") -> dict[str, Any]:
    """Record what people write about a version, as Markdown with `## Heading`s; the newest counts.

    No training is needed. Is idempotent: the same text again changes nothing. The answer says which sections are
    filled, which of the text before are filled no longer, and which ones the policy still misses before Production.
    """
    if not file or len(file) > 256 or any(ord(sign) < 32 for sign in file):
        raise BadInput("not the name of a file", where="file", got=file)
    written = parse_card(text, file=file)
    with ctx.ledger.write() as conn:
        found = versions.get_version(conn, model=model, version=version)
        require_on(conn, ctx.actor, Role.DEVELOPER, f"document {found.subject}", model=model)
        if found.bundle is None:
            raise Conflict(
                "only a version with a sealed bundle can be documented", where=found.subject,
                next="Train it with: loopwright run PROJECT",
            )  # fmt: skip
        standing = evidence.evidence_of(conn, model=model, version=version, kind="card")
        wanted = dossier.required_sections(policy_of(conn, model))
        check_headings(written, wanted)
        before = standing[-1].payload.get("sections", {}) if standing else {}
        is_new = not standing or standing[-1].payload.get("digest") != written.digest
        if is_new:
            evidence.record_evidence(
                conn, kind="card", model=model, version=version, bundle=found.bundle, verdict=written.verdict,
                payload=written.payload(by=ctx.actor.name), at=ctx.now, actor=ctx.actor,
            )  # fmt: skip
    return {
        "model": model,
        "version": version,
        "recorded": is_new,
        "filled": [title_of(name) for name in written.filled],
        "not_filled": [title_of(name) for name in written.sections if name not in written.filled],
        "lost": [
            title_of(name) for name, body in before.items() if says(name, body) and name not in written.filled
        ],
        "policy_misses": [
            title_of(name) for name in wanted if not is_filled(written.sections.get(name) or "")
        ],
        "digest": written.digest,
    }


def _file(name: str, kind: str, content: str) -> dict[str, Any]:
    return {"name": name, "media_type": kind, "sha256": sha256_bytes(content.encode()), "content": content}
