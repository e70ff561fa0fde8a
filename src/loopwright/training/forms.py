"""The form in which a fitted model is served: ONNX where a converter gives the same answers, else the model's own.

LightGBM, XGBoost and torch have files of their own that hold numbers and a graph. Other estimators can only be pickled,
and a pyfunc is a program: both are served only when two people said so.
"""

import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from loopwright.bundle.archive import pack, scan_archive
from loopwright.bundle.forms import (
    EXPORTED,
    LIGHTGBM,
    ONNX,
    PICKLED,
    PYFUNC,
    TORCHSCRIPT,
    TRUSTED_ONLY,
    XGBOOST,
)
from loopwright.bundle.isolated import IsolatedRunner, Limits
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.pickles import Scan, scan_bytes
from loopwright.bundle.signature import Schema
from loopwright.bundle.trust import SignedTrust
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput, Refused
from loopwright.training.export import (
    Array,
    ExportCheck,
    Inconvertible,
    booster_of,
    compare,
    is_torch,
    predict_model,
    predict_onnx,
    to_onnx,
    xgboost_of,
)

ROWS_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class Form:
    """A model as a bundle holds it: `data` under the name `file`. why: it is no ONNX graph, or ""."""

    file: str
    data: bytes
    why: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256_bytes(self.data)

    @property
    def runs_code(self) -> bool:
        """Whether it needs trust."""
        return self.file in TRUSTED_ONLY

    def scan(self) -> Scan:
        """What a person decides on before it is trusted."""
        return scan_archive(self.data) if self.file == PYFUNC else scan_bytes(self.data)


@dataclass(frozen=True, slots=True)
class Trusts:
    """Who is trusted with what. find: the signed record for a file's digest, or None; keys: whose records count."""

    find: Callable[[str], SignedTrust | None] = lambda digest: None
    keys: Sequence[PublicKey] = ()


class Untrusted(Refused):
    """The model can only be served in a form that runs code, and nobody said that it may. `form` is that form."""

    def __init__(self, form: Form) -> None:
        super().__init__(
            "the model cannot become ONNX, and nobody trusts it as it is",
            where=form.file,
            got=form.why,
            wanted="a model that converts, or trust by two people",
        )
        self.form = form


def to_form(
    model: Any, names: Sequence[str], task: str, check: Callable[[Form], ExportCheck]
) -> tuple[Form, ExportCheck]:
    """The form a fitted model is served in, and how far its answers are from the model's.

    check: compares a form with the model. Raises BadInput for a model of a kind that cannot be served, or whose answers
    differ in every form; Untrusted where `check` does.
    """
    try:
        form = Form(ONNX, to_onnx(model, names, task))
        found = check(form)
        if found.equal:
            return form, found
        why = f"its ONNX graph differs by {found.max_difference:.2g} on {found.rows:,} rows"
    except Inconvertible as error:
        why = str(error)
    own = _own(model, names, why)
    if own is None:
        raise BadInput(
            "the model cannot be exported so that it answers as it was trained",
            where="ONNX export",
            got=why,
            wanted=f"a difference of at most {1e-5:g}",
            next="Keep features within float32, or return an onnx.ModelProto from train().",
        )
    return own, check(own)


def predict_form(form: Form, schema: Schema, x: Array, trusts: Trusts | None = None) -> Array:
    """What the form answers for `x` (n, features), as it will be served: float64 (n, outputs). Raises Untrusted."""
    if form.file == ONNX:
        return predict_onnx(form.data, x)
    trusts = trusts or Trusts()
    trust = trusts.find(form.digest) if form.runs_code else None
    if form.runs_code and trust is None:
        raise Untrusted(form)
    limits = Limits(load_seconds=120, call_seconds=60)
    runner = IsolatedRunner(form.file, form.data, schema, limits=limits, trust=trust, keys=trusts.keys)
    try:
        rows = np.ascontiguousarray(x, dtype=np.float32)
        parts = [runner(rows[at : at + ROWS_AT_ONCE]) for at in range(0, len(rows), ROWS_AT_ONCE)]
    finally:
        runner.close()
    found = np.concatenate(parts) if parts else np.empty((0, len(schema.outputs)))
    return found[:, 1:] if schema.task == "binary" and found.shape[1] == 2 else found


def checked_form(
    model: Any, names: Sequence[str], schema: Schema, x: Array, tolerance: float, trusts: Trusts | None = None
) -> tuple[Form, ExportCheck]:
    """`to_form`, compared on the rows of `x`."""
    wanted: list[Array] = []

    def check(form: Form) -> ExportCheck:
        if not wanted:
            wanted.append(predict_model(model, x))
        return compare(wanted[0], predict_form(form, schema, x, trusts), tolerance)

    return to_form(model, names, schema.task, check)


def _own(model: Any, names: Sequence[str], why: str) -> Form | None:
    """The model in the form of its own library; None for kinds that have none."""
    if booster := booster_of(model):
        return Form(LIGHTGBM, booster.model_to_string().encode(), why)
    if booster := xgboost_of(model):
        return Form(XGBOOST, bytes(booster.save_raw("ubj")), why)
    if is_torch(model):
        return _torch(model, len(names), why)
    if _is_pyfunc(model):
        return Form(PYFUNC, _packed(model), why)
    if hasattr(model, "get_params") and hasattr(model, "predict"):
        import joblib  # type: ignore[import-untyped]

        stream = io.BytesIO()
        joblib.dump(model, stream)
        return Form(PICKLED[0], stream.getvalue(), why)
    return None


def _torch(model: Any, features: int, why: str) -> Form:
    import torch

    stream = io.BytesIO()
    if isinstance(model, torch.jit.ScriptModule):
        torch.jit.save(model.eval(), stream)
        return Form(TORCHSCRIPT, stream.getvalue(), why)
    sample = (torch.zeros(2, features),)
    try:
        exported = torch.export.export(
            model.eval(), sample, dynamic_shapes=({0: torch.export.Dim("rows", min=1)},)
        )
    except Exception as error:  # torch's own errors share no base class
        raise BadInput(
            f"torch.export cannot export the module ({type(error).__name__}: {str(error)[:500]})",
            where="train()",
            wanted="a module from float32 (rows, features) to one tensor, for any number of rows",
        ) from error
    torch.export.save(exported, stream)
    return Form(EXPORTED, stream.getvalue(), why)


def _is_pyfunc(model: Any) -> bool:
    return any(
        f"{kind.__module__}.{kind.__name__}".startswith("mlflow.pyfunc.") for kind in type(model).__mro__
    )


def _packed(model: Any) -> bytes:
    import cloudpickle  # type: ignore[import-untyped]
    from mlflow import pyfunc

    if not isinstance(model, pyfunc.PythonModel):
        raise BadInput(
            "a pyfunc that was loaded cannot be saved again",
            where="train()",
            got=type(model).__name__,
            wanted="an mlflow.pyfunc.PythonModel",
            next="Import a model that MLflow saved: loopwright models import FOLDER --model NAME",
        )
    module = sys.modules.get(type(model).__module__)
    ours = module is not None and not type(model).__module__.startswith("mlflow.")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "model")
        if ours:
            # Whoever serves the model does not have the project's files.
            cloudpickle.register_pickle_by_value(module)
        try:
            # What it needs is what is installed; to find that out, MLflow would run the model once more.
            pyfunc.save_model(path, python_model=model, pip_requirements=[])
        finally:
            if ours:
                cloudpickle.unregister_pickle_by_value(module)
        _forget_when(path / "MLmodel")
        return pack(path)


def _forget_when(mlmodel: Path) -> None:
    """Take out what differs from one saving to the next: who trusts a model trusts its bytes."""
    said = yaml.safe_load(mlmodel.read_text(encoding="utf-8"))
    for changing in ("model_uuid", "utc_time_created", "model_id", "run_id", "artifact_path"):
        said.pop(changing, None)
    mlmodel.write_text(yaml.safe_dump(said, sort_keys=True), encoding="utf-8")
