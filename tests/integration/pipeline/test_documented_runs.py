"""What a run brings along for its documents: the written card, the number, and an SBOM of what was really installed."""

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from loopwright.bundle.depot import BundleDepot
from loopwright.control.context import Context, open_context
from loopwright.control.identify import LOCAL
from loopwright.control.operation import find
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Conflict, Refused
from loopwright.pipeline.lifecycle import RunReport, run_project
from loopwright.pipeline.scaffold import init_project
from loopwright.project.spec import load_project
from loopwright.registry import evidence, versions
from loopwright.registry.documents.schema import CARD_SCHEMA

ADA = Actor("ada", Role.DEVELOPER)
ROWS = 400
SAID = "The shop decides with it whom to send a voucher; never whom to refuse one."


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    made = open_context(tmp_path_factory.mktemp("documented") / "home", LOCAL, create=True)
    yield made
    made.ledger.dispose()


@pytest.fixture(scope="module")
def project(ctx: Context) -> Path:
    folder = ctx.home.root.parent
    chance = np.random.default_rng(3)
    x, z = chance.normal(size=ROWS), chance.normal(size=ROWS)
    bought = (chance.random(ROWS) < 1 / (1 + np.exp(-2 * x - z))).astype(int)
    pa_csv.write_csv(pa.table({"x": x, "z": z, "bought": bought}), folder / "shop.csv")
    init_project(folder / "shop", name="shop", data=folder / "shop.csv", target="bought")
    return folder / "shop"


def run(
    ctx: Context, project: Path, *overrides: str, actor: Actor = ADA, number: str | None = None
) -> RunReport:
    return run_project(
        project=load_project(project, ["search=null", "gates.baseline=null", *overrides]), home=ctx.home,
        ledger=ctx.ledger, actor=actor, clock=ctx.clock, key=ctx.key, tracking_uri=ctx.home.ledger_url,
        version_number=number,
    )  # fmt: skip


def semver(ctx: Context, report: RunReport) -> tuple[str | None, str]:
    assert report.version is not None
    with ctx.ledger.read() as conn:
        found = versions.get_version(conn, model="shop", version=report.version)
    return found.semver, found.annotations["semver_reason"]


@pytest.fixture(scope="module")
def first(ctx: Context, project: Path) -> RunReport:
    return run(ctx, project)


def test_a_new_projects_card_is_recorded_as_not_written(ctx: Context, first: RunReport) -> None:
    with ctx.ledger.read() as conn:
        found = evidence.evidence_of(conn, model="shop", version=first.version, kind="card")
    assert [(one.bundle, one.verdict.value) for one in found] == [(first.bundle, "FAIL")]
    assert found[0].payload["by"] == "ada" and "intended_use" in found[0].payload["unfilled"]
    assert semver(ctx, first) == ("1.0.0", "the first version")


def test_a_card_that_is_written_is_sealed_recorded_and_shown(
    ctx: Context, project: Path, first: RunReport
) -> None:
    card = project / "card.md"
    card.write_text(f"# shop\n\n## Intended use\n\n{SAID}\n", encoding="utf-8")
    report = run(ctx, project, "train.seed=5")
    assert SAID in BundleDepot(ctx.home.bundles).file(report.bundle, "card.md").read_text(encoding="utf-8")
    shown = find("documents.card")(ctx, model="shop", version=report.version, format="json")
    document = json.loads(shown["content"])
    jsonschema.Draft202012Validator(CARD_SCHEMA, format_checker=jsonschema.FormatChecker()).validate(document)
    filled = {s["name"] for s in document["written"]["sections"] if s["filled"]}
    assert filled == {"intended_use"}
    assert document["training"]["algorithm"] == "lightgbm.Booster"
    assert document["data"]["tables"][0]["contract"]["input_rows"] == ROWS
    number, why = semver(ctx, report)
    assert number == "1.0.1" and "another seed" in why


def test_changed_code_is_minor_and_says_which(ctx: Context, project: Path, first: RunReport) -> None:
    with (project / "train.py").open("a", encoding="utf-8") as file:
        file.write("\n# A remark is a change of the code too: nobody can tell which lines matter.\n")
    number, why = semver(ctx, run(ctx, project))
    assert number == "1.1.0" and why.endswith("changed: train.py")


def test_a_number_that_was_asked_for(ctx: Context, project: Path, first: RunReport) -> None:
    with pytest.raises(BadInput, match="not a semantic version"):
        run(ctx, project, number="2")
    with pytest.raises(Conflict, match="does not follow"):
        run(ctx, project, number="1.0.0")
    number, why = semver(ctx, run(ctx, project, "train.seed=6", number="3.0.0"))
    assert number == "3.0.0" and why.startswith("chosen by ada; proposed was ")


def test_a_number_that_promises_too_little_is_refused_and_nothing_is_registered(
    ctx: Context, project: Path, first: RunReport
) -> None:
    with (project / "features.py").open("a", encoding="utf-8") as file:
        file.write("\n# Another change.\n")
    with ctx.ledger.read() as conn:
        before = len(versions.list_versions(conn, model="shop"))
    with pytest.raises(Refused, match="promises less than changed"):
        run(ctx, project, number="3.0.9")
    with ctx.ledger.read() as conn:
        assert len(versions.list_versions(conn, model="shop")) == before
    assert semver(ctx, run(ctx, project, actor=LOCAL, number="3.0.9"))[0] == "3.0.9", "an admin may"


def test_the_bill_of_materials_lists_what_was_installed(ctx: Context, first: RunReport) -> None:
    content = find("documents.sbom")(ctx, model="shop", version=first.version)["content"]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(content) is None
    document = json.loads(content)
    parts = {part["name"]: part for part in document["components"]}
    assert parts["lightgbm"]["scope"] == "optional" and parts["onnxruntime"]["scope"] == "required"
    assert len(parts) > 50 and document["compositions"][0]["aggregate"] == "complete"
    model = document["metadata"]["component"]
    assert model["modelCard"]["modelParameters"]["architectureFamily"] == "gradient-boosted decision trees"
