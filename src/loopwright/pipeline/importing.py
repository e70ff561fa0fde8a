"""From a model that plain MLflow logged elsewhere to a sealed, registered version.

The inputs come from its signature, the golden rows from its input example. An ONNX graph and the models of LightGBM and
XGBoost are taken as such; anything else stays the program it is, and needs trust. Without labelled rows nothing is
known of its quality: it is registered, and its gates are INCONCLUSIVE, which no policy takes for a pass.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from loopwright.bundle.archive import pack
from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.forms import ONNX, PICKLED, PYFUNC
from loopwright.bundle.keys import PublicKey, SigningKey
from loopwright.bundle.manifest import Golden
from loopwright.bundle.open import open_bundle
from loopwright.bundle.seal import SealedBundle, build_bundle
from loopwright.bundle.signature import Dtype, Field, Schema, Task, default_outputs
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import Clock, iso
from loopwright.kernel.errors import BadInput
from loopwright.kernel.home import Home
from loopwright.kernel.verdict import Verdict
from loopwright.ledger.engine import Ledger
from loopwright.pipeline.package import GOLDEN_ROWS, golden_positions
from loopwright.pipeline.trusting import kept_untrusted, trusts_of
from loopwright.project.sections import Gates
from loopwright.quality.gates import run_gates
from loopwright.quality.report import GateReport, GateResult
from loopwright.registry.authority import require_on
from loopwright.registry.evidence import record_evidence
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.versions import check_name, register_version
from loopwright.stats.profile import PREDICTION, build_reference
from loopwright.training.forms import Form, Trusts, checked_form, predict_form

Columns = Mapping[str, np.ndarray[Any, Any]]

_DTYPES: Mapping[str, Dtype] = {
    "double": "float64", "float": "float64", "integer": "int64", "long": "int64", "boolean": "bool",
}  # fmt: skip
_TEXT_BOOSTERS = (".lgb", ".txt")
_SAFE_XGBOOST = (".ubj", ".json", ".xgb", ".bst")
MAX_TENSOR = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What to import: `source` is the folder MLflow made. rows: labelled rows, with `label` among their columns."""

    source: Path
    model: str
    task: Task
    classes: tuple[str, ...] = ()
    rows: Columns | None = None
    label: str = ""
    gates: Gates = field(default_factory=Gates)
    reason: str = "imported from MLflow"
    origin: str = ""


@dataclass(frozen=True, slots=True)
class _Labelled:
    """Rows as gates take them."""

    columns: Columns
    answers: np.ndarray[Any, Any]

    def inputs(self) -> dict[str, np.ndarray[Any, Any]]:
        return dict(self.columns)

    def labels(self) -> np.ndarray[Any, Any]:
        return self.answers

    def event_times(self) -> np.ndarray[Any, Any]:
        return np.full(len(self.answers), np.datetime64("NaT"), dtype="datetime64[us]")


def import_model(
    asked: Imported,
    *,
    home: Home,
    ledger: Ledger,
    actor: Actor,
    clock: Clock,
    key: SigningKey,
    trusted: Sequence[PublicKey] = (),
) -> dict[str, Any]:
    """Seal and register the model; {"model", "version", "bundle", "form", "gates"}, version None when a gate failed.

    Is idempotent: the same folder and rows are the same version. Raises BadInput for a model without a signature or
    examples, or of text columns, Refused for one that runs code and is not trusted; nothing of it was run then.
    """
    check_name(asked.model)
    with ledger.read() as conn:
        require_on(conn, actor, Role.DEVELOPER, f"register a version of {asked.model}", model=asked.model)
    ensure_mlflow_tables(ledger)
    described = _described(asked.source)
    schema = _schema(asked, described)
    examples = _examples(asked, schema)
    keys = (key.public, *trusted)
    trusts = trusts_of(ledger, keys)
    with kept_untrusted(home, f"the same `loopwright models import {asked.source} …`"):
        form, outputs = _formed(asked, described, schema, _matrix(examples, schema), trusts)
    depot = BundleDepot(home.bundles)
    home.cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="importing-", dir=home.cache))
    try:
        sealed = _sealed(
            building / "bundle", asked, described, schema, form, examples, outputs, trusts, key, actor
        )
        digest = depot.add(sealed.path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    bundle = open_bundle(depot.path(digest), keys)
    try:
        gates = _gated(bundle, asked, schema, clock())
    finally:
        bundle.close()
    version = None
    with ledger.write() as conn:
        record_evidence(
            conn, kind="gates", model=asked.model, version=None, bundle=digest, verdict=gates.verdict,
            payload=gates.to_json(), at=clock(), actor=actor,
        )  # fmt: skip
        if gates.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE):
            version = register_version(
                conn, model=asked.model, bundle=digest, run_id=None, snapshot=None, author=actor,
                metrics={one.name: one.value for one in gates.results if one.kind == "metric" and one.value},
                now=clock(), card=bundle.card, annotations={"reason": asked.reason},
            ).version  # fmt: skip
    return {
        "model": asked.model, "version": version, "bundle": digest, "form": form.file, "why_not_onnx": form.why,
        "gates": gates.to_json(), "summary": gates.summary(),
    }  # fmt: skip


def _described(folder: Path) -> dict[str, Any]:
    """What MLflow's MLmodel says."""
    try:
        said = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("no MLflow model: there is no MLmodel in it", where=str(folder)) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"MLmodel cannot be read ({error})", where=str(folder)) from None
    if not isinstance(said, dict) or not isinstance(said.get("flavors"), dict):
        raise BadInput("MLmodel names no flavors", where=str(folder))
    return said


def _schema(asked: Imported, described: Mapping[str, Any]) -> Schema:
    where = f"{asked.source}: MLmodel: signature"
    signature = described.get("signature")
    if not isinstance(signature, dict) or not signature.get("inputs"):
        raise BadInput(
            "the model has no signature", where=where, wanted="named inputs and their types",
            next="Log it with signature=infer_signature(X, y) and an input_example.",
        )  # fmt: skip
    inputs = yaml.safe_load(signature["inputs"])
    fields: list[Field] = []
    for column in inputs:
        if column.get("type") == "tensor":
            fields += _tensor(column, len(inputs), where)
            continue
        dtype = _DTYPES.get(str(column.get("type")))
        if dtype is None or not column.get("name"):
            raise BadInput(
                "an input that is no number", where=where, got=f"{column.get('name')}: {column.get('type')}",
                wanted=", ".join(_DTYPES), next="Encode text before the model.",
            )  # fmt: skip
        fields.append(Field(str(column["name"]), dtype, nullable=dtype == "float64"))
    return Schema(
        inputs=tuple(fields), features=tuple(one.name for one in fields),
        outputs=default_outputs(asked.task, asked.classes), task=asked.task, classes=asked.classes,
    )  # fmt: skip


def _tensor(column: Mapping[str, Any], count: int, where: str) -> list[Field]:
    shape = column.get("tensor-spec", {}).get("shape", [])
    if count != 1 or len(shape) != 2 or not isinstance(shape[1], int) or not 0 < shape[1] <= MAX_TENSOR:
        raise BadInput("not one matrix", where=where, got=shape, wanted="one tensor of shape (-1, features)")
    return [Field(f"f{position}", "float64", nullable=False) for position in range(shape[1])]


def _examples(asked: Imported, schema: Schema) -> Columns:
    """Some rows of inputs: the labelled ones where they are given, else the model's own example."""
    if asked.rows is not None:
        missing = [one.name for one in schema.inputs if one.name not in asked.rows]
        if missing or asked.label not in asked.rows:
            raise BadInput(
                "the rows lack columns", where="--rows", got=", ".join(asked.rows),
                wanted=", ".join([*missing, asked.label]),
            )  # fmt: skip
        return {one.name: _numbers(asked.rows[one.name], one.name) for one in schema.inputs}
    from mlflow.models import Model

    example: Any = Model.load(str(asked.source)).load_input_example(str(asked.source))
    if example is None:
        raise BadInput(
            "there is no row to check the model with", where=str(asked.source),
            next="Log it with an input_example, or give labelled rows: --rows FILE --label COLUMN.",
        )  # fmt: skip
    names = [one.name for one in schema.inputs]
    if hasattr(example, "columns"):
        return {name: _numbers(example[name].to_numpy(), name) for name in names}
    matrix = np.atleast_2d(np.asarray(example, dtype=np.float64))
    if matrix.shape[1] != len(names):
        raise BadInput("the input example has another width", got=matrix.shape[1], wanted=str(len(names)))
    return {name: matrix[:, position] for position, name in enumerate(names)}


def _numbers(column: Any, name: str) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"not numbers ({error})", where=name) from None


def _matrix(columns: Columns, schema: Schema) -> np.ndarray[Any, Any]:
    return np.column_stack([columns[name] for name in schema.features]).astype(np.float32)


def _formed(
    asked: Imported, described: Mapping[str, Any], schema: Schema, x: np.ndarray[Any, Any], trusts: Trusts
) -> tuple[Form, np.ndarray[Any, Any]]:
    """The form it is served in, and its answers to `x`."""
    known = _known(asked.source, described)
    if known is not None:
        form, check = checked_form(known, schema.features, schema, x, 1e-5, trusts)
        if not check.equal:
            raise BadInput(
                "the exported model does not answer as the one that was logged", where=form.file,
                got=f"a difference of {check.max_difference:.2g}",
            )  # fmt: skip
    else:
        loader = ", ".join(sorted(described["flavors"]))
        form = Form(PYFUNC, pack(asked.source), f"of flavor {loader}, which only MLflow loads")
    answers = predict_form(form, schema, x, trusts)
    if answers.shape[1] != len(schema.outputs):
        raise BadInput(
            "the model answers with another number of outputs", where=str(asked.source), got=answers.shape[1],
            wanted=f"{len(schema.outputs)} for {asked.task}", next="Give --task and --classes that fit it.",
        )  # fmt: skip
    return form, answers


def _known(folder: Path, described: Mapping[str, Any]) -> Any:
    """The model itself, where its file holds numbers and a graph and nothing that runs; None otherwise."""
    flavors = described["flavors"]

    def file(flavor: str) -> Path | None:
        name = str((flavors.get(flavor) or {}).get("data", ""))
        path = (folder / name).resolve()
        return path if name and path.is_relative_to(folder.resolve()) and path.is_file() else None

    if path := file("onnx"):
        import onnx

        return onnx.load_from_string(path.read_bytes())
    if (path := file("lightgbm")) and path.suffix in _TEXT_BOOSTERS:
        import lightgbm

        return lightgbm.Booster(model_str=path.read_text(encoding="utf-8"))
    if (path := file("xgboost")) and path.suffix in _SAFE_XGBOOST:
        import xgboost

        booster = xgboost.Booster({"nthread": 1})
        booster.load_model(str(path))
        return booster
    return None


def _sealed(
    dest: Path,
    asked: Imported,
    described: Mapping[str, Any],
    schema: Schema,
    form: Form,
    examples: Columns,
    outputs: np.ndarray[Any, Any],
    trusts: Trusts,
    key: SigningKey,
    actor: Actor,
) -> SealedBundle:
    chosen = golden_positions(len(outputs), GOLDEN_ROWS)
    golden = Golden(
        {name: [None if value != value else value for value in values[chosen].tolist()] for name, values in
         examples.items()},
        outputs[chosen].tolist(),
    )  # fmt: skip
    plain, pickled = form.file == ONNX, form.file in PICKLED
    return build_bundle(
        dest, model=asked.model, onnx=form.data if plain else None, pickled=form.data if pickled else None,
        native=None if plain or pickled else (form.file, form.data),
        trust=trusts.find(form.digest) if form.runs_code else None, trusted=trusts.keys, schema=schema,
        transform=None, state={}, golden=golden,
        reference=build_reference({**examples, PREDICTION: outputs[:, 0]}).to_json(),
        card=_card(asked, described, form), provenance=_provenance(asked, described, actor),
        created_at=_created(described), key=key,
    )  # fmt: skip


def _provenance(asked: Imported, described: Mapping[str, Any], actor: Actor) -> dict[str, Any]:
    return {
        "run_id": None, "snapshot": None, "trained_from": None, "trained_until": None, "as_of": None,
        "author": actor.name, "reason": asked.reason, "params": {}, "metrics": {},
        "algorithm": ", ".join(sorted(name for name in described["flavors"] if name != "python_function")),
        "imported": {
            "from": asked.origin or str(asked.source), "mlflow_run": described.get("run_id"),
            "mlflow_model": described.get("model_uuid"), "mlflow_version": described.get("mlflow_version"),
        },
    }  # fmt: skip


def _created(described: Mapping[str, Any]) -> datetime:
    """When MLflow saved it, so that importing it again gives the same bundle."""
    try:
        return datetime.fromisoformat(str(described.get("utc_time_created"))).replace(tzinfo=UTC)
    except ValueError:
        return datetime(1970, 1, 1, tzinfo=UTC)


def _card(asked: Imported, described: Mapping[str, Any], form: Form) -> str:
    flavors = ", ".join(sorted(described["flavors"]))
    return (
        f"# {asked.model}\n\nTask: {asked.task}. Imported from MLflow ({asked.origin or asked.source}), not trained "
        f"here: there is no snapshot.\n\nFlavors: {flavors}. Saved {iso(_created(described))}. Served as "
        f"`{form.file}`{f', because {form.why}' if form.why else ''}.\n"
    )


def _gated(bundle: Any, asked: Imported, schema: Schema, now: datetime) -> GateReport:
    """The gates on the labelled rows; without any, nothing is known and the verdict says so."""
    given: list[GateResult] = []
    if asked.rows is None:
        given.append(
            GateResult(
                "labelled rows", "metric", Verdict.INCONCLUSIVE, None, "",
                "no labelled rows were given: --rows FILE --label COLUMN",
            )
        )  # fmt: skip
        rows = _Labelled({one.name: np.empty(0) for one in schema.inputs}, np.empty(0))
    else:
        rows = _Labelled({one.name: asked.rows[one.name] for one in schema.inputs}, _labels(asked, schema))
    return run_gates(
        bundle=bundle, holdout=rows, gates=asked.gates, task=asked.task, seed=0, now=now, given=given
    )


def _labels(asked: Imported, schema: Schema) -> np.ndarray[Any, Any]:
    assert asked.rows is not None
    column = asked.rows[asked.label]
    if asked.task != "multiclass":
        return _numbers(column, asked.label)
    known = {name: float(position) for position, name in enumerate(schema.classes)}
    strange = sorted({str(value) for value in column} - set(known))
    if strange:
        raise BadInput(
            "labels that are no class", where=asked.label, got=", ".join(strange[:5]), wanted=", ".join(known)
        )
    return np.array([known[str(value)] for value in column])
