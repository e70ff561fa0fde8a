"""From a fitted model to ONNX, and the proof that both answer alike.

Every exported graph has one input `features`, float32 (n, features), and one output `outputs`, float32 (n,
outputs): the probability of class 1 for binary, one probability per class for multiclass, the value for
regression.
"""

import copy
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from loopwright.bundle.manifest import NATIVE
from loopwright.kernel.errors import BadInput
from loopwright.training.lightgbm_onnx import float32_not_above, lightgbm_to_onnx

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ExportCheck:
    """How far the graph's answers were from the model's, at most: |a - b| / max(1, |a|), over `rows` rows."""

    rows: int
    max_difference: float
    tolerance: float = 1e-5

    @property
    def equal(self) -> bool:
        """Whether there were rows and all agree within the tolerance; no rows prove nothing."""
        return self.rows > 0 and self.max_difference <= self.tolerance


class Inconvertible(BadInput):
    """The model is of a kind that is known, but no converter can make an ONNX graph of this one."""


def to_onnx(model: Any, names: Sequence[str], task: str) -> bytes:
    """Export a LightGBM or XGBoost Booster (or its scikit-learn wrapper), a scikit-learn estimator, a torch module, or
    an onnx.ModelProto.

    The same model gives the same bytes. Raises BadInput for models of an unknown kind and for a graph whose input or
    output does not fit `names` and `task`, Inconvertible for a known kind that has no graph.
    """
    if isinstance(model, onnx.ModelProto):
        graph = model
    elif booster := booster_of(model):
        try:
            graph = lightgbm_to_onnx(booster)
        except BadInput as error:
            raise Inconvertible(
                error.what, where=error.where, got=error.got, wanted=error.wanted, next=error.next
            ) from error
    elif booster := xgboost_of(model):
        graph = _xgboost(booster, len(names), task)
    elif is_torch(model):
        graph = _torch(model, len(names), task)
    elif any(kind.__module__.startswith("mlflow.pyfunc") for kind in type(model).__mro__):
        raise Inconvertible("a pyfunc is a program, not a graph", where="train()", got=type(model).__name__)
    elif hasattr(model, "get_params") and hasattr(model, "predict"):
        graph = _sklearn(model, len(names), task)
    else:
        raise BadInput(
            "a model of a kind that cannot be exported",
            where="train()",
            got=f"{type(model).__module__}.{type(model).__name__}",
            wanted="a model of LightGBM, XGBoost, scikit-learn or torch, a pyfunc, or an onnx.ModelProto",
        )
    _check_graph(graph, len(names), task)
    return bytes(graph.SerializeToString(deterministic=True))


def native_files(model: Any) -> dict[str, bytes]:
    """What a bundle keeps beside the graph, by path: a LightGBM model's own text, from which its answers are explained
    exactly; nothing for other models.
    """
    booster = booster_of(model)
    return {NATIVE: booster.model_to_string().encode()} if booster else {}


def predict_onnx(graph: bytes, x: Array) -> Array:
    """Outputs of an exported graph for `x` (n, features), as float64 (n, outputs). One thread: bitwise
    repeatable."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rows = np.ascontiguousarray(x, dtype=np.float32)
    outputs = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: rows})[0]
    return _columns(outputs)


def predict_model(model: Any, x: Array) -> Array:
    """What the fitted model itself says: float64 (n, outputs), in the order of the exported graph's
    outputs."""
    if isinstance(model, onnx.ModelProto):
        return predict_onnx(bytes(model.SerializeToString()), x)
    if booster := booster_of(model):
        answers = booster.predict(x)
    elif booster := xgboost_of(model):
        import xgboost

        rows = xgboost.DMatrix(np.ascontiguousarray(x, dtype=np.float32), nthread=1)
        answers = _plain(booster).predict(rows)
    elif is_torch(model):
        answers = _torch_answers(model, x)
    elif any(kind.__module__.startswith("mlflow.pyfunc") for kind in type(model).__mro__):
        answers = model.predict(None, x)
    elif hasattr(model, "predict_proba"):
        answers = model.predict_proba(x)
        answers = answers[:, 1] if answers.shape[1] == 2 else answers
    else:
        answers = model.predict(x)
    return _columns(answers)


def check_export(model: Any, graph: bytes, x: Array, tolerance: float = 1e-5) -> ExportCheck:
    """Compare the graph with the model it came from on the rows of `x`; a NaN on one side only is infinitely
    far."""
    if not len(x):
        return ExportCheck(0, 0.0, tolerance)
    return compare(predict_model(model, x), predict_onnx(graph, x), tolerance)


def compare(wanted: Array, got: Array, tolerance: float = 1e-5) -> ExportCheck:
    """How far answers `got` are from those `wanted`, both (n, outputs)."""
    if not len(wanted):
        return ExportCheck(0, 0.0, tolerance)
    if got.shape[1] == 2 and wanted.shape[1] == 1:  # two classes named as multiclass answer both
        got = got[:, 1:]
    if wanted.shape != got.shape:
        return ExportCheck(len(wanted), float("inf"), tolerance)
    both = np.isnan(wanted) & np.isnan(got)
    difference = np.where(both, 0.0, np.abs(wanted - got) / np.maximum(1.0, np.abs(wanted)))
    difference = np.where(np.isnan(difference), np.inf, difference)
    return ExportCheck(len(wanted), float(difference.max(initial=0.0)), tolerance)


def _columns(answers: Any) -> Array:
    found = np.asarray(answers, dtype=np.float64)
    return found[:, np.newaxis] if found.ndim == 1 else found


def booster_of(model: Any) -> Any:
    """The LightGBM Booster in `model`, or None. Told by name, so that LightGBM need not be installed."""
    if not type(model).__module__.startswith("lightgbm"):
        return None
    return getattr(model, "booster_", model)


def xgboost_of(model: Any) -> Any:
    """The XGBoost Booster in `model` as it predicts (stopped early, only its best rounds), or None."""
    if not type(model).__module__.startswith("xgboost"):
        return None
    if not hasattr(model, "get_booster"):
        return model
    booster = model.get_booster()
    best = getattr(booster, "best_iteration", None) if "best_iteration" in booster.attributes() else None
    return booster if best is None else booster[: int(best) + 1]


def _plain(booster: Any) -> Any:
    """A copy that reads a matrix by position, whatever its columns were called, on one thread."""
    plain = booster.copy()
    plain.feature_names = plain.feature_types = None
    plain.set_param({"nthread": 1})
    return plain


def is_torch(model: Any) -> bool:
    """Whether it is a torch module. Told by name, so that torch need not be installed."""
    return any(
        f"{kind.__module__}.{kind.__name__}" == "torch.nn.modules.module.Module"
        for kind in type(model).__mro__
    )


def _torch_answers(model: Any, x: Array) -> Array:
    import torch

    with torch.inference_mode():
        answer = model.eval()(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)))
    if not isinstance(answer, torch.Tensor):
        raise BadInput(
            "the module answers with something else than numbers", where="train()", got=type(answer).__name__,
            wanted="one tensor, a row for each row",
        )  # fmt: skip
    return np.asarray(answer.numpy())


def _xgboost(booster: Any, features: int, task: str) -> onnx.ModelProto:
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    try:
        graph: onnx.ModelProto = convert_xgboost(
            _plain(booster), initial_types=[("features", FloatTensorType([None, features]))], target_opset=15
        )
    except Exception as error:
        raise Inconvertible(
            f"cannot export ({type(error).__name__}: {error})", where="XGBoost to ONNX"
        ) from error
    answer = graph.graph.output[-1].name
    kind = graph.graph.output[-1].type.tensor_type
    width = kind.shape.dim[1].dim_value if len(kind.shape.dim) == 2 else 1
    return _outputs(graph, answer, second=task == "binary", width=width if task == "multiclass" else 1)


def _torch(model: Any, features: int, task: str) -> onnx.ModelProto:
    import torch

    stream = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # The exporter without a dependency of its own; what it cannot do, torch.export does.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model.eval(), (torch.zeros(2, features),), stream,  # type: ignore[arg-type] # a stream is taken too
                dynamo=False, opset_version=17,
                input_names=["features"], output_names=["outputs"],
                dynamic_axes={"features": {0: "rows"}, "outputs": {0: "rows"}},
            )  # fmt: skip
        graph = onnx.load_from_string(stream.getvalue())
    except Exception as error:
        raise Inconvertible(
            f"cannot export ({type(error).__name__}: {str(error)[:500]})", where="torch to ONNX"
        ) from error
    if len(graph.graph.output) != 1 or len(graph.graph.output[0].type.tensor_type.shape.dim) not in (1, 2):
        raise Inconvertible("not one tensor of rows", where="torch to ONNX", got=len(graph.graph.output))
    return graph


def _sklearn(model: Any, features: int, task: str) -> onnx.ModelProto:
    from skl2onnx import to_onnx as convert  # slow to import, and only these models need it
    from skl2onnx.common.data_types import FloatTensorType

    classifier = hasattr(model, "predict_proba")
    if classifier != (task != "regression"):
        raise BadInput(
            "the model does not fit the task",
            where="train()",
            got=type(model).__name__,
            wanted=f"a model for {task}",
        )
    rounded = _thresholds_down(copy.deepcopy(model))
    options = {id(rounded): {"zipmap": False}} if classifier else None
    try:
        graph: onnx.ModelProto = convert(
            rounded,
            initial_types=[("features", FloatTensorType([None, features]))],
            options=options,
            target_opset={"": 17, "ai.onnx.ml": 3},
        )
    except Exception as error:
        raise Inconvertible(
            f"cannot export ({type(error).__name__}: {error})",
            where="scikit-learn to ONNX",
            got=type(model).__name__,
            next="Use a model that skl2onnx converts, or return an onnx.ModelProto from train().",
        ) from error
    width = len(model.classes_) if classifier and task == "multiclass" else 1
    return _outputs(graph, graph.graph.output[-1].name, second=classifier and task == "binary", width=width)


def _outputs(graph: onnx.ModelProto, answer: str, *, second: bool, width: int) -> onnx.ModelProto:
    """Let `answer`, or its second column, be the graph's one output, (n, width)."""
    ends = "_answers"
    if second:
        graph.graph.initializer.append(helper.make_tensor("_one", TensorProto.INT64, [1], [1]))
        graph.graph.node.append(helper.make_node("Gather", [answer, "_one"], [ends], axis=1))
    else:
        graph.graph.node.append(helper.make_node("Identity", [answer], [ends]))
    graph.graph.initializer.append(helper.make_tensor("_shape", TensorProto.INT64, [2], [-1, width]))
    graph.graph.node.append(helper.make_node("Reshape", [ends, "_shape"], ["outputs"]))
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info("outputs", TensorProto.FLOAT, [None, width]))
    return graph


def _thresholds_down(model: Any) -> Any:
    """Round the thresholds of the trees in `model` (a copy) down to float32; see `lightgbm_onnx`."""
    for part in _parts(model):
        tree = getattr(part, "tree_", None)
        if tree is not None:
            tree.threshold[:] = float32_not_above(tree.threshold)
        for iteration in getattr(part, "_predictors", ()):
            for predictor in iteration:
                predictor.nodes["num_threshold"] = float32_not_above(predictor.nodes["num_threshold"])
    return model


def _parts(model: Any) -> list[Any]:
    """The model and every estimator inside it: of pipelines, ensembles and calibrators."""
    inside: list[Any] = [step for _, step in getattr(model, "steps", ())]
    inside += list(np.asarray(getattr(model, "estimators_", ()), dtype=object).ravel())
    inside += list(getattr(model, "calibrated_classifiers_", ()))
    inside += [getattr(model, name, None) for name in ("estimator", "best_estimator_", "final_estimator_")]
    found = [model]
    for part in inside:
        if hasattr(part, "__dict__") or hasattr(part, "tree_"):
            found += _parts(part)
    return found


def _check_graph(model: onnx.ModelProto, features: int, task: str) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise BadInput(
            "the graph does not have one input and one output",
            where="ONNX export",
            got=f"{len(inputs)} inputs, {len(model.graph.output)} outputs",
            wanted="one float input (n, features) and one float output (n, outputs)",
        )
    for value, what, wanted in ((inputs[0], "input", features), (model.graph.output[0], "output", None)):
        kind = value.type.tensor_type
        if kind.elem_type != TensorProto.FLOAT:
            raise BadInput(
                f"the graph's {what} is not float32",
                where="ONNX export",
                got=TensorProto.DataType.Name(kind.elem_type),
            )
        sizes = [dim.dim_value for dim in kind.shape.dim]
        if wanted is not None and len(sizes) == 2 and sizes[1] not in (0, wanted):
            raise BadInput(
                f"the graph's {what} has another width",
                where="ONNX export",
                got=sizes[1],
                wanted=f"{wanted} features",
            )
        if what == "output" and task != "multiclass" and len(sizes) == 2 and sizes[1] > 1:
            raise BadInput(
                f"the graph answers with {sizes[1]} numbers a row",
                where="ONNX export",
                wanted=f"one for {task}",
            )
