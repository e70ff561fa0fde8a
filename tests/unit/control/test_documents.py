"""Documents of a version, as operations on a real home."""

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import jsonschema
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.testing import tiny_bundle
from loopwright.control.context import Context
from loopwright.control.operation import find
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, Tampered
from loopwright.ledger import store as ledger_store
from loopwright.pipeline import store as pipeline_store
from loopwright.registry.documents.schema import CARD_SCHEMA
from loopwright.registry.versions import register_version
from tests.governing import record

from .conftest import AUTHOR, FakeClock

SAID = "Planners hold gates and crews with it, an hour before the departure."
CARD = "".join(
    f"## {heading}\n\n{SAID}\n\n" for heading in ("Intended use", "Limitations", "Training data", "Risks")
)


@pytest.fixture
def version(ctx: Context, tmp_path: Path) -> int:
    """A version with a real bundle, a run and its gates; nobody has written about it."""
    digest = BundleDepot(ctx.home.bundles).add(tiny_bundle(tmp_path / "bundle", ctx.key).path)
    with ctx.ledger.write() as conn:
        pipeline_store.start_run(
            conn, run_id="run-1", model="late", project="p", experiment="e", actor="dora", reason="first",
            snapshot=None, now=ctx.now,
        )  # fmt: skip
        pipeline_store.finish_run(
            conn, "run-1", status="FINISHED", now=ctx.now, bundle=digest,
            context={"environment": {"packages": ["numpy==2.3.1", "msgspec==0.19.0"], "requires": {"numpy": []}}},
        )  # fmt: skip
        record(conn, "gates", "late", digest, at=ctx.now, payload={"rows": 500, "results": []})
        return register_version(
            conn, model="late", bundle=digest, run_id="run-1", snapshot=None, author=AUTHOR, metrics={"roc_auc": 0.7},
            now=ctx.now,
        ).version  # fmt: skip


def test_a_card_in_every_format(ctx: Context, version: int) -> None:
    markdown = find("documents.card")(ctx, model="late", version=version)
    page = find("documents.card")(ctx, model="late", version=version, format="html")
    document = find("documents.card")(ctx, model="late", version=version, format="json")
    assert markdown["content"].startswith("# late 1.0.0\n") and page["content"].startswith("<!DOCTYPE html>")
    card = json.loads(document["content"])
    jsonschema.Draft202012Validator(CARD_SCHEMA, format_checker=jsonschema.FormatChecker()).validate(card)
    assert card["training"]["packages"] == 2 and card["interface"]["outputs"] == ["probability"]
    assert document["sha256"] == hashlib.sha256(document["content"].encode()).hexdigest()
    with pytest.raises(BadInput, match="md, html, json"):
        find("documents.card")(ctx, model="late", version=version, format="pdf")
    with pytest.raises(NotFound):
        find("documents.card")(ctx, model="late", version=9)


def test_a_changed_bundle_gets_no_card(ctx: Context, version: int) -> None:
    bundle = next(iter(ctx.home.bundles.iterdir()))
    (bundle / "state.json").write_text("{}")
    with pytest.raises(Tampered, match=r"state\.json was changed"):
        find("documents.card")(ctx, model="late", version=version)


def test_the_bill_of_materials_of_a_version(ctx: Context, version: int) -> None:
    answer = find("documents.sbom")(ctx, model="late", version=version)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(answer["content"]) is None
    document = json.loads(answer["content"])
    scopes = {part["name"]: part.get("scope") for part in document["components"]}
    assert scopes["msgspec"] == "required" and "onnxruntime" in scopes


def test_a_version_whose_bundle_is_elsewhere_has_a_card_and_no_bill(
    ctx: Context, register: Callable[..., int]
) -> None:
    number = register("other")
    assert "not on this home" in find("documents.card")(ctx, model="other", version=number)["content"]
    with pytest.raises(NotFound, match="not on this home"):
        find("documents.sbom")(ctx, model="other", version=number)


def test_a_card_written_later_counts_without_training(
    ctx: Context, people: dict[str, Context], version: int
) -> None:
    dora = people["dora"]
    first = find("documents.record")(dora, model="late", version=version, text="## Risks\n\nTodo\n")
    assert (first["filled"], first["not_filled"]) == ([], ["Risks"])
    assert first["policy_misses"] == ["Intended use", "Limitations", "Risks", "Training data"]
    missing = find("models.show")(dora, model="late", version=version)["missing"]["Production"]
    assert any("card" in each for each in missing)

    second = find("documents.record")(dora, model="late", version=version, text=CARD, file="mine.md")
    assert second["policy_misses"] == [] and second["recorded"]
    missing = find("models.show")(dora, model="late", version=version)["missing"]["Production"]
    assert not any("card" in each for each in missing)
    card = json.loads(find("documents.card")(dora, model="late", version=version, format="json")["content"])
    assert (card["written"]["by"], card["written"]["file"], card["written"]["revision"]) == (
        "dora",
        "mine.md",
        2,
    )


def test_the_newest_text_counts_and_the_same_text_again_changes_nothing(
    ctx: Context, clock: FakeClock, version: int
) -> None:
    say = find("documents.record")
    say(ctx, model="late", version=version, text=CARD)
    clock.move(timedelta(minutes=1))
    assert not say(ctx, model="late", version=version, text=CARD)["recorded"]
    clock.move(timedelta(minutes=1))
    assert say(ctx, model="late", version=version, text="## Risks\n\nNone.\n")["recorded"]
    clock.move(timedelta(minutes=1))
    assert say(ctx, model="late", version=version, text=CARD)["recorded"], (
        "back to the text before is news again"
    )
    with ctx.ledger.read() as conn:
        rows = [
            r for r in ledger_store.rows(conn, subject=f"late/{version}") if r.payload.get("kind") == "card"
        ]
    assert [row.actor for row in rows] == ["local"] * 3 and len({row.payload["digest"] for row in rows}) == 3


def test_who_only_looks_writes_no_card(people: dict[str, Context], version: int) -> None:
    with pytest.raises(Refused, match="vera may not"):
        find("documents.record")(people["vera"], model="late", version=version, text=CARD)
    assert find("documents.card")(people["vera"], model="late", version=version)["content"]


def test_a_version_without_a_seal_is_not_documented(ctx: Context, version: int) -> None:
    with ctx.ledger.write() as conn:
        conn.exec_driver_sql("UPDATE lw_versions SET bundle = NULL")
    for name, arguments in (("documents.record", {"text": CARD}), ("documents.sbom", {})):
        with pytest.raises(Conflict, match="sealed bundle"):
            find(name)(ctx, model="late", version=version, **arguments)
    assert "never gated" in find("documents.card")(ctx, model="late", version=version)["content"]


def test_everything_for_an_auditor_with_digests_that_hold(ctx: Context, version: int) -> None:
    find("documents.record")(ctx, model="late", version=version, text=CARD)
    bundle = next(iter(ctx.home.bundles.iterdir())).name
    with ctx.ledger.write() as conn:
        record(
            conn, "fairness", "late", bundle, at=ctx.now, payload={"not_applicable": "it is about machines"}
        )
        found = [{"name": "x", "mean_abs_shap": 0.1}]
        payload = {
            "method": "exact",
            "rows": 10,
            "features": found,
            "inputs": found,
            "sample": [],
            "base": 0.0,
        }
        record(conn, "explainability", "late", bundle, at=ctx.now, payload={**payload, "scale": "raw"})
    find("models.promote")(ctx, model="late", version=version, to="staging", reason="try it")
    answer = find("documents.all")(ctx, model="late", version=version)
    files = {each["name"]: each["content"] for each in answer["files"]}
    assert {"card.html", "card.md", "card.json", "card.schema.json", "sbom.cdx.json", "gates.json", "fairness.md",
            "explainability.json", "evidence.jsonl", "approvals.json", "lineage.json", "lineage.html",
            "audit.jsonl", "index.json", "SHA256SUMS"} <= set(files)  # fmt: skip

    index = json.loads(files["index.json"])
    for each in index["files"]:
        assert hashlib.sha256(files[each["name"]].encode()).hexdigest() == each["sha256"]
    sums = dict(line.split("  ")[::-1] for line in files["SHA256SUMS"].splitlines())
    assert set(sums) == set(files) - {"SHA256SUMS"}
    assert sums["index.json"] == hashlib.sha256(files["index.json"].encode()).hexdigest()

    trail = [json.loads(line) for line in files["audit.jsonl"].splitlines()]
    assert {"version.registered", "promotion.requested", "evidence.recorded"} <= {
        row["action"] for row in trail
    }
    assert [row["seq"] for row in trail] == sorted(row["seq"] for row in trail)
    assert json.loads(files["approvals.json"])["promotions"][0]["reason"] == "try it"


def test_two_dossiers_of_one_moment_are_equal(ctx: Context, version: int) -> None:
    first, second = (find("documents.all")(ctx, model="late", version=version) for _ in range(2))
    assert first == second


def test_evidence_in_another_form_costs_its_picture_and_nothing_else(
    ctx: Context, register: Callable[..., int]
) -> None:
    number = register("other")  # its explanation has neither a scale nor features
    answer = find("documents.all")(ctx, model="other", version=number)
    names = {each["name"] for each in answer["files"]}
    assert "explainability.json" in names and "explainability.svg" not in names and "fairness.md" in names
