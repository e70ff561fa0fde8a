"""The model card as Markdown, generated from what is recorded; nothing in it was typed into a form."""

from collections.abc import Sequence

from loopwright.kernel.clock import iso
from loopwright.registry.policy import Promotion
from loopwright.registry.records import Evidence, Version


def model_card(
    version: Version,
    *,
    promotions: Sequence[Promotion] = (),
    evidence: Sequence[Evidence] = (),
    written: str = "",
) -> str:
    """Return the card of one version. `written` is the card in the bundle: what the model is and is not for."""
    return (
        "\n\n".join(
            part
            for part in (
                f"# {version.model} {version.version}" + (f" ({version.semver})" if version.semver else ""),
                _facts(version),
                written.strip(),
                _metrics(version),
                _evidence(evidence),
                _governance(promotions),
            )
            if part
        )
        + "\n"
    )


def _facts(version: Version) -> str:
    rows = [
        ("Stage", version.stage.value),
        ("Author", version.author),
        ("Registered", iso(version.created_at)),
        ("Bundle", version.bundle or "none: registered by a plain MLflow client, not servable"),
        ("Trained in run", version.run_id or "unknown"),
        ("On snapshot", version.snapshot or "unknown"),
        (
            "Compared with",
            f"version {version.parent}" if version.parent is not None else "nothing: the first model",
        ),
        *((f"Note: {key}", value) for key, value in sorted(version.annotations.items())),
    ]
    return _table(("", ""), rows)


def _metrics(version: Version) -> str:
    if not version.metrics:
        return ""
    rows = [(name, f"{value:.6g}") for name, value in sorted(version.metrics.items())]
    return "## Measured\n\n" + _table(("metric", "value"), rows)


def _evidence(evidence: Sequence[Evidence]) -> str:
    if not evidence:
        return "## Evidence\n\nNone is recorded."
    rows = [(item.kind, item.verdict.value, iso(item.at), item.digest[:12]) for item in evidence]
    return "## Evidence\n\n" + _table(("kind", "verdict", "recorded", "digest"), rows)


def _governance(promotions: Sequence[Promotion]) -> str:
    if not promotions:
        return "## Promotions\n\nNobody has requested one."
    rows = [
        (p.stage.value, p.state, p.requested_by, ", ".join(p.approved_by) or "nobody", p.reason)
        for p in promotions
    ]
    return "## Promotions\n\n" + _table(("to", "state", "requested by", "approved by", "reason"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
