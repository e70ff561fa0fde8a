"""The bill of materials of a version, as CycloneDX 1.6: the model, its files, its data, what serves and what made it.

Made from the card, the bundle's manifest and the environment its run captured: the same records give the same bytes.
The library writes components, package URLs and the dependency graph; it knows no model cards yet, so that part is ours.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from loopwright.bundle.manifest import Manifest
from loopwright.kernel.clock import parse_time

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

Json = Mapping[str, Any]

SERVING = (
    "cryptography", "httptools", "loopwright", "msgspec", "nanoarrow", "numpy", "onnxruntime", "uvicorn", "uvloop",
    "wsproto",
)  # fmt: skip
"""What a worker imports; together with the bundle's own requirements, the roots of what serves a version."""

MODEL = "model"
_TASKS = {
    "binary": "binary classification",
    "multiclass": "multi-class classification",
    "regression": "regression",
}
_FAMILIES = {
    "lightgbm": "gradient-boosted decision trees",
    "xgboost": "gradient-boosted decision trees",
    "catboost": "gradient-boosted decision trees",
    "onnx": "ONNX graph built by the project",
}


def serial_number(bundle: str) -> str:
    """The SBOM's serial number: a UUID (version 5) of the bundle's digest."""
    return uuid5(NAMESPACE_URL, f"urn:sha256:{bundle}").urn


def build_sbom(
    card: Json, manifest: Manifest, *, requirements: Sequence[str], environment: Json | None
) -> dict[str, Any]:
    """CycloneDX 1.6 as JSON.

    `card` is the version's card, `requirements` the lines of the bundle's requirements.txt, `environment` what the run
    captured (None: only what the bundle pins is listed, and the composition says that it is incomplete).
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.output.json import JsonV1Dot6

    known = dict(_pin(line) for line in (environment or {}).get("packages") or ())
    pinned = {name: version for name, version in map(_pin, requirements) if name}
    serving = _reach([*pinned, *(name for name in SERVING if name in known)], environment)
    packages = {**known, **{name: version for name, version in pinned.items() if version}}
    identity = card["identity"]
    model = _model(identity, manifest)
    parts = {
        name: _package(name, version, name in serving, ((environment or {}).get("licences") or {}).get(name))
        for name, version in sorted(packages.items())
    }
    data = _dataset(card)
    bom = Bom(
        components=[*parts.values(), *data],
        serial_number=UUID(serial_number(str(identity["bundle"]))),
        version=max(1, card["written"]["revision"]),  # all else in it is sealed with the bundle
        metadata=BomMetaData(
            component=model, timestamp=parse_time(identity["registered_at"]), tools=_tools(known)
        ),
    )
    bom.register_dependency(model, [*(parts[name] for name in sorted(serving & parts.keys()) if name in
                                      {*pinned, *SERVING}), *data])  # fmt: skip
    requires = (environment or {}).get("requires") or {}
    for name, part in parts.items():
        bom.register_dependency(part, [parts[wanted] for wanted in requires.get(name, ()) if wanted in parts])
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = model_card(card, manifest)
    document["compositions"] = [
        {"aggregate": "complete" if requires else "incomplete", "dependencies": [MODEL]},
    ]
    return document


def model_card(card: Json, manifest: Manifest) -> dict[str, Any]:
    """The `modelCard` of CycloneDX 1.6, from our card; what is not recorded is left out."""
    algorithm = (card["training"] or {}).get("algorithm") or ""
    family = _FAMILIES.get(algorithm.partition(".")[0])
    parameters: dict[str, Any] = {
        "approach": {"type": "supervised"},
        "task": _TASKS[manifest.schema.task],
        "datasets": [{"ref": f"snapshot:{card['data']['snapshot']}"}] if card["data"]["snapshot"] else [],
        "inputs": [
            {"format": f"{f.name}: {f.dtype}{'' if f.nullable else ', not null'}"}
            for f in manifest.schema.inputs
        ],
        "outputs": [{"format": f"{name}: float64"} for name in manifest.schema.outputs],
    }
    if family:
        parameters["architectureFamily"] = family
    if algorithm:
        parameters["modelArchitecture"] = algorithm
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": list(_figures(card))},
        "considerations": _considerations(card),
    }


def _figures(card: Json) -> Iterable[dict[str, Any]]:
    held = (
        f"{rows:,} held-out rows"
        if (rows := (card["quality"]["gates"] or {}).get("rows"))
        else "held-out rows"
    )
    for name, value in sorted(card["quality"]["metrics"].items()):
        yield {"type": name, "value": f"{value:.6g}", "slice": held}
    compared = card["quality"]["comparison"]
    if compared and compared.get("value") is not None:
        yield {
            "type": str(compared["name"]),
            "value": f"{compared['value']:+.6g}",
            "slice": "rows neither version was trained on",
            **_interval(compared.get("interval")),
        }
    report = (card["fairness"] or {}).get("report") or {}
    for attribute in report.get("attributes") or ():
        for metric in attribute.get("metrics") or ():
            for group in metric.get("groups") or ():
                if group.get("value") is not None:
                    yield {
                        "type": str(metric["metric"]),
                        "value": f"{group['value']:.6g}",
                        "slice": f"{attribute['attribute']} = {group['group']}",
                        **_interval((group.get("low"), group.get("high"))),
                    }


def _interval(bounds: Sequence[Any] | None) -> dict[str, Any]:
    if not bounds or None in bounds:
        return {}
    return {"confidenceInterval": {"lowerBound": f"{bounds[0]:.6g}", "upperBound": f"{bounds[1]:.6g}"}}


def _considerations(card: Json) -> dict[str, Any]:
    said = {s["name"]: s["text"] for s in card["written"]["sections"] if s["filled"]}
    report = (card["fairness"] or {}).get("report") or {}
    found: dict[str, Any] = {
        "useCases": [said["intended_use"]] if "intended_use" in said else [],
        "technicalLimitations": [said["limitations"]] if "limitations" in said else [],
        "ethicalConsiderations": [{"name": said["risks"]}] if "risks" in said else [],
        "fairnessAssessments": [
            {"groupAtRisk": str(each["attribute"]), "harms": f"{each['verdict']}: {each.get('why', '')}"}
            for each in report.get("attributes") or ()
        ],
    }
    return {name: value for name, value in found.items() if value}


def _model(identity: Json, manifest: Manifest) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.contact import OrganizationalContact
    from cyclonedx.model.license import DisjunctiveLicense

    bundle = str(identity["bundle"])
    files = [
        Component(
            name=name,
            type=ComponentType.FILE,
            bom_ref=f"file:{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        )
        for name, digest in sorted(manifest.files.items())
    ]
    told = {
        "loopwright:model": identity["model"],
        "loopwright:version": identity["version"],
        "loopwright:bundle": bundle,
        "loopwright:run": manifest.provenance.get("run_id"),
        "loopwright:snapshot": manifest.provenance.get("snapshot"),
    }
    licence = (identity["licence"] or "").strip()
    return Component(
        name=str(identity["model"]),
        version=str(identity["semver"] or identity["version"]),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=MODEL,
        group=identity["team"] or None,
        authors=[OrganizationalContact(name=str(identity["author"]))],
        # The manifest names every file with its digest, so its digest stands for the whole bundle.
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=bundle)],
        licenses=[DisjunctiveLicense(name=licence)] if licence and len(licence) <= 100 and "\n" not in licence else [],
        components=files,
        properties=[Property(name=name, value=str(value)) for name, value in told.items() if value is not None],
    )  # fmt: skip


def _package(name: str, version: str, is_served: bool, licence: str | None) -> "Component":
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    purl = PackageURL("pypi", name=name, version=version or None)
    return Component(
        name=name,
        version=version or None,
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        purl=purl,
        # CycloneDX's word for what is there but not reached when the model answers: it was there in training.
        scope=ComponentScope.REQUIRED if is_served else ComponentScope.OPTIONAL,
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
    )


def _dataset(card: Json) -> list["Component"]:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    data = card["data"]
    if not data["snapshot"]:
        return []
    told = {f"loopwright:rows:{table['name']}": table["rows"] for table in data["tables"]}
    told |= {f"loopwright:source:{table['name']}": table["source"] for table in data["tables"]}
    told |= {
        "loopwright:trained_from": data["event_time"]["from"],
        "loopwright:trained_until": data["event_time"]["until"],
    }
    snapshot = str(data["snapshot"])
    is_digest = re.fullmatch(r"[0-9a-f]{64}", snapshot) is not None
    return [
        Component(
            name=f"snapshot {snapshot[:12]}",
            type=ComponentType.DATA,
            bom_ref=f"snapshot:{snapshot}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=snapshot)] if is_digest else [],
            properties=[Property(name=name, value=str(value)) for name, value in told.items() if value is not None],
        )
    ]  # fmt: skip


def _tools(known: Mapping[str, str]) -> Any:
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository

    return ToolRepository(
        components=[
            Component(
                name="loopwright",
                version=known.get("loopwright"),
                type=ComponentType.APPLICATION,
                bom_ref="tool",
            )
        ]
    )


def _reach(roots: Iterable[str], environment: Json | None) -> set[str]:
    """The roots and all they require, by the captured graph."""
    requires = (environment or {}).get("requires") or {}
    reached: set[str] = set()
    pending = list(roots)
    while pending:
        name = pending.pop()
        # The one package that trains, registers and serves: what only its other rooms need is not served.
        if name not in reached:
            reached.add(name)
            pending += [] if name == "loopwright" else requires.get(name, ())
    return reached


def _pin(line: str) -> tuple[str, str]:
    """ "PyYAML==6.0.3" → ("pyyaml", "6.0.3"); a line without a version → (name, "")."""
    name, _, version = line.partition("==")
    plain = re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", name.strip(), maxsplit=1)[0]).lower()
    return plain, version.split(";")[0].strip()
