"""The bill of materials: valid CycloneDX, the same for the same records, complete about what serves."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from loopwright.registry.documents.card import build_card
from loopwright.registry.documents.facts import Facts
from loopwright.registry.sbom import MODEL, SERVING, build_sbom, serial_number
from loopwright.training.context import environment, plain_name
from tests.unit.registry.test_card import BUNDLE, EVIL, NOON, full, version

ENVIRONMENT: dict[str, Any] = {
    "packages": ["lightgbm==4.6.0", "loopwright==0.1.0", "numpy==2.3.1", "onnxruntime==1.22.0", "pandas==3.0.0",
                 "six==1.17.0", "uvicorn==0.35.0", "h11==0.16.0"],
    "requires": {"pandas": ["numpy", "six"], "uvicorn": ["h11"], "lightgbm": ["numpy"], "loopwright": ["lightgbm"]},
    "licences": {"numpy": "BSD-3-Clause", "six": "MIT License", "lightgbm": "not a licence anybody knows"},
}  # fmt: skip
PINS = ["numpy==2.3.1", "onnxruntime==1.22.0", "pandas==3.0.0"]


def made(facts: Facts | None = None, environment: Any = ENVIRONMENT) -> dict[str, Any]:
    facts = facts or full()
    assert facts.manifest is not None
    return build_sbom(build_card(facts), facts.manifest, requirements=PINS, environment=environment)


def valid(document: dict[str, Any]) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in document["components"]}


def test_it_is_valid_cyclonedx_with_the_model_and_its_files() -> None:
    document = made()
    valid(document)
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": BUNDLE}]
    assert [(part["name"], part["hashes"][0]["content"]) for part in model["components"]] == [
        ("model.onnx", "f" * 64)
    ]
    card = model["modelCard"]
    assert card["modelParameters"]["task"] == "binary classification"
    assert card["modelParameters"]["datasets"] == [{"ref": f"snapshot:{'e' * 64}"}]
    assert {"lowerBound": "0", "upperBound": "0.02"} in [
        figure.get("confidenceInterval") for figure in card["quantitativeAnalysis"]["performanceMetrics"]
    ]
    assert card["considerations"]["useCases"] and card["considerations"]["fairnessAssessments"]


def test_the_family_of_the_algorithm_is_named_where_it_is_known() -> None:
    facts = full()
    assert facts.manifest is not None
    facts.manifest.provenance["algorithm"] = "lightgbm.Booster"
    parameters = made(facts)["metadata"]["component"]["modelCard"]["modelParameters"]
    assert parameters["architectureFamily"] == "gradient-boosted decision trees"
    assert parameters["modelArchitecture"] == "lightgbm.Booster"


def test_what_serves_is_required_and_what_trained_is_optional() -> None:
    parts = by_name(made())
    required = {name for name, part in parts.items() if part.get("scope") == "required"}
    assert required == {"numpy", "onnxruntime", "pandas", "six", "uvicorn", "h11", "loopwright"}
    assert parts["lightgbm"]["scope"] == "optional"
    assert parts["numpy"]["purl"] == "pkg:pypi/numpy@2.3.1"


def test_licences_are_spdx_where_they_are_and_named_where_not() -> None:
    parts = by_name(made())
    assert (
        parts["numpy"]["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
        or parts["numpy"]["licenses"][0]["license"]["id"] == "BSD-3-Clause"
    )
    assert parts["lightgbm"]["licenses"][0]["license"]["name"] == "not a licence anybody knows"


def test_the_graph_leads_from_the_model_to_what_serves_it() -> None:
    document = made()
    graph = {each["ref"]: each.get("dependsOn", []) for each in document["dependencies"]}
    assert {"pkg:pypi/numpy@2.3.1", "pkg:pypi/uvicorn@0.35.0", f"snapshot:{'e' * 64}"} <= set(graph[MODEL])
    assert graph["pkg:pypi/pandas@3.0.0"] == ["pkg:pypi/numpy@2.3.1", "pkg:pypi/six@1.17.0"]
    assert document["compositions"] == [{"aggregate": "complete", "dependencies": [MODEL]}]


def test_the_same_records_give_the_same_bytes() -> None:
    document = made()
    assert json.dumps(document) == json.dumps(made())
    assert document["serialNumber"] == serial_number(BUNDLE)
    assert document["metadata"]["timestamp"].startswith(NOON.isoformat()[:19]), (
        "the version's own moment, not now"
    )


def test_without_a_captured_environment_it_says_that_it_is_incomplete() -> None:
    document = made(environment=None)
    valid(document)
    assert set(by_name(document)) == {"numpy", "onnxruntime", "pandas", f"snapshot {'e' * 12}"}
    assert document["compositions"][0]["aggregate"] == "incomplete"


def test_what_people_write_cannot_break_it() -> None:
    valid(made(full(EVIL, name=EVIL)))


def test_a_version_with_nothing_but_its_bundle_has_one() -> None:
    facts = Facts(version=version(bundle=BUNDLE), now=NOON, manifest=full().manifest)
    document = made(facts)
    valid(document)
    assert "considerations" in document["metadata"]["component"]["modelCard"]


def test_the_environment_a_run_captures_is_enough() -> None:
    document = made(environment=environment())
    valid(document)
    parts = by_name(document)
    assert parts["starlette"]["scope"] == "optional" and parts["msgspec"]["scope"] == "required"
    assert sum("licenses" in part for part in parts.values()) > len(parts) / 2


def test_serving_lists_everything_a_worker_imports() -> None:
    root = Path(__file__).parents[3] / "src/loopwright"
    imported: set[str] = set()
    for room in ("serving", "bundle", "stats", "kernel"):
        for path in (root / room).rglob("*.py"):
            # For plain MLflow, for tests, and for the processes of models that are no graph.
            if path.name in ("mlflow_loader.py", "testing.py", "natives.py"):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    imported.add((node.module or "").partition(".")[0])
    third = {plain_name(name) for name in imported if name not in __import__("sys").stdlib_module_names}
    optional = {
        "clickhouse-connect",
        "confluent-kafka",
        "google",
        "grpc",
        "onnx",
        "opentelemetry",
    }  # extras
    assert third - optional <= set(SERVING)


@pytest.mark.parametrize("name", ["PyYAML", "ruamel.yaml", "a__b"])
def test_names_of_packages_are_compared_as_indexes_do(name: str) -> None:
    assert plain_name(name) in {"pyyaml", "ruamel-yaml", "a-b"}
