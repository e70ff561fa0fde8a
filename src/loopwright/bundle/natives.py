"""Loads models that are no ONNX graph. Only the process of one model imports this: here live the heavy libraries.

Every loader gets bytes that were verified, and returns a function float32 (n, f) → numbers, one row for each.
"""

import atexit
import fcntl
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.bundle.archive import scan_archive, unpack
from loopwright.bundle.forms import EXPORTED, LIGHTGBM, PICKLED, PYFUNC, TORCHSCRIPT, TRUSTED_ONLY, XGBOOST
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.signature import Schema
from loopwright.bundle.trust import SignedTrust, check_trusted, load_trusted
from loopwright.kernel.errors import BadInput, Refused

Answers = Callable[[NDArray[np.float32]], Any]

_UNPACKED = "loopwright-pyfunc-"


def load(
    file: str, data: bytes, schema: Schema, trust: SignedTrust | None, keys: Sequence[PublicKey]
) -> Answers:
    """Load the model in the bundle's file `file`; raises BadInput and Refused, and what a library raises."""
    if file in TRUSTED_ONLY and trust is None:
        raise Refused("a model that runs code is not loaded without a trust record", where=file)
    if file in PICKLED and trust is not None:
        return Estimator(load_trusted(data, trust, keys), schema)
    if file == PYFUNC and trust is not None:
        check_trusted(data, trust, keys, scan=scan_archive)
    loaders: dict[str, Callable[[bytes, Schema], Answers]] = {
        TORCHSCRIPT: _torchscript,
        EXPORTED: _exported,
        PYFUNC: _pyfunc,
        LIGHTGBM: _lightgbm,
        XGBOOST: _xgboost,
    }
    try:
        return loaders[file](data, schema)
    except ImportError as error:
        raise BadInput(
            f"its library is not installed where it is served ({error})",
            where=file,
            next="Install it beside Loopwright, or export the model to ONNX.",
        ) from error


class Estimator:
    """Calls an estimator in scikit-learn's manner: `predict_proba` for classes, `predict` for numbers."""

    def __init__(self, model: Any, schema: Schema) -> None:
        method = "predict" if schema.task == "regression" else "predict_proba"
        predict = getattr(model, method, None)
        if not callable(predict):
            raise BadInput(
                f"a {schema.task} model without `{method}`", got=type(model).__name__, wanted="an estimator"
            )
        self._predict: Callable[..., Any] = predict
        self._order = _order(model, schema)

    def __call__(self, features: NDArray[np.float32]) -> NDArray[Any]:
        answer = np.asarray(self._predict(features))
        return answer if self._order is None else answer[:, self._order]


def _order(model: Any, schema: Schema) -> list[int] | None:
    """Where the schema's classes stand in the estimator's answers."""
    known = getattr(model, "classes_", None)
    if schema.task != "multiclass" or known is None:
        return None
    names = [str(name) for name in known]
    if sorted(names) != sorted(schema.classes):
        raise BadInput(
            "the model knows other classes", got=", ".join(names), wanted=", ".join(schema.classes)
        )
    return [names.index(name) for name in schema.classes]


def _lightgbm(data: bytes, schema: Schema) -> Answers:
    import lightgbm

    booster = lightgbm.Booster(model_str=data.decode(), params={"verbosity": -1})
    return lambda features: booster.predict(features, num_threads=1)


def _xgboost(data: bytes, schema: Schema) -> Answers:
    import xgboost

    booster = xgboost.Booster({"nthread": 1, "verbosity": 0})
    booster.load_model(bytearray(data))
    # Names of the training frame: rows come as a plain matrix, in the schema's order.
    booster.feature_names = None
    booster.feature_types = None
    try:
        booster.inplace_predict(np.zeros((1, len(schema.features)), dtype=np.float32))
    except xgboost.core.XGBoostError:
        # A linear booster only takes a matrix of its own kind.
        return lambda features: booster.predict(xgboost.DMatrix(features, nthread=1))
    return lambda features: booster.inplace_predict(features)


def _torchscript(data: bytes, schema: Schema) -> Answers:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    return _forward(torch, module.eval())


def _exported(data: bytes, schema: Schema) -> Answers:
    import torch

    return _forward(torch, torch.export.load(io.BytesIO(data)).module())


def _forward(torch: Any, module: Any) -> Answers:
    torch.set_num_threads(1)

    def answers(features: NDArray[np.float32]) -> NDArray[Any]:
        with torch.inference_mode():
            answer = module(torch.from_numpy(np.array(features)))
        if isinstance(answer, (tuple, list)) and len(answer) == 1:
            answer = answer[0]
        if not isinstance(answer, torch.Tensor):
            raise BadInput(
                "the module answers with something else than numbers",
                got=type(answer).__name__,
                wanted="one tensor, a row for each row",
            )
        return np.asarray(answer.to(torch.float64).numpy())

    return answers


def _pyfunc(data: bytes, schema: Schema) -> Answers:
    folder = _private_folder()
    unpack(data, folder)
    # Whoever trusts a pyfunc trusts it with everything: a torch module in it is pickled whole.
    os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)
    import mlflow.pyfunc
    import pandas

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    signature = model.metadata.signature
    tensors = signature is not None and signature.inputs is not None and signature.inputs.is_tensor_spec()
    wanted = {} if tensors or signature is None or signature.inputs is None else signature.inputs.input_dict()
    whole = {name for name in schema.features if _is_whole(wanted.get(name))}
    single = {name for name in schema.features if getattr(_type(wanted.get(name)), "name", "") == "float"}
    boolean = {name for name in schema.features if getattr(_type(wanted.get(name)), "name", "") == "boolean"}

    def frame(features: NDArray[np.float32]) -> Any:
        if tensors:
            kind = signature.inputs.numpy_types()[0]
            return features.astype(kind)
        columns: dict[str, Any] = {}
        for position, name in enumerate(schema.features):
            column = features[:, position]
            if name in whole:
                columns[name] = column.astype(_type(wanted[name]).to_numpy())
            elif name in boolean:
                columns[name] = column.astype(bool)
            else:
                columns[name] = column.astype(np.float32 if name in single else np.float64)
        return pandas.DataFrame(columns)

    return lambda features: _numbers(model.predict(frame(features)), schema)


def _type(column: Any) -> Any:
    return getattr(column, "type", None)


def _is_whole(column: Any) -> bool:
    return getattr(_type(column), "name", "") in ("integer", "long")


def _numbers(answer: Any, schema: Schema) -> NDArray[Any]:
    """A pyfunc's answer as a matrix; the schema's outputs by name where it names its columns."""
    names = [str(name) for name in getattr(answer, "columns", ())]
    if names and set(schema.outputs) <= set(names):
        answer = answer[[answer.columns[names.index(output)] for output in schema.outputs]]
    if isinstance(answer, dict) and set(schema.outputs) <= set(answer):
        answer = np.column_stack([np.asarray(answer[output]) for output in schema.outputs])
    try:
        numbers = np.asarray(answer, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput("the model answers with something else than numbers", got=str(error)) from None
    return numbers


def _private_folder() -> Path:
    """An empty folder that goes with this process; what processes left that were killed goes first.

    Whoever has such a folder holds its lock: the kernel lets go of it when the process ends, in whatever way.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_UNPACKED}*"):
        with suppress(OSError):
            # One that is just being made has no lock file yet.
            descriptor = os.open(old / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(descriptor)
    folder = Path(tempfile.mkdtemp(prefix=_UNPACKED))
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.rename(folder / ".lock", folder / "lock")  # noqa: PTH104 - a descriptor that is locked, under its final name
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "model").mkdir()
    return folder / "model"
