"""A model at hand and its rows, made into a subject: exported, and the export checked against the model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import onnx

from loopwright.compression.artefact import Artefact, save
from loopwright.compression.judging import predict
from loopwright.compression.rows import Data, rows_of, split
from loopwright.compression.steps import CannotExport, without_torch
from loopwright.compression.subject import Array, Production, Samples, Subject
from loopwright.kernel.errors import BadInput, LoopwrightError
from loopwright.kernel.files import write_atomic
from loopwright.kernel.progress import Progress, Silent
from loopwright.stats.metrics import Metric
from loopwright.stats.metrics import metric as metric_called
from loopwright.training.export import Inconvertible, check_export, is_torch, to_onnx

TASKS = ("binary", "multiclass", "regression")
HEADS = ("softmax", "sigmoid", "none")
EXPORT_TOLERANCE = 1e-3
"""Share of the largest answer by which an exported graph may differ from its module; sums differ by about 1e-6."""
CHECKED_ROWS = 64
_REGRESSION = ("rmse", "mae", "r2")


class Prepared(TypedDict, total=False):
    """What `prepare` takes by name, besides the metric."""

    validation: Data | None
    test: Data | None
    task: str
    production: Production | Mapping[str, Any] | None
    variable: Mapping[str, Mapping[int, str]]
    head: str
    loss: Callable[[Any, Any], Any] | None
    answer: Callable[[Array], Array] | None
    batch_free: bool
    name: str


def prepare(
    model: Any,
    train: Data,
    held_out: Data | None = None,
    *,
    metric: str | Metric,
    folder: str | Path = "compressed",
    validation: Data | None = None,
    test: Data | None = None,
    task: str = "",
    production: Production | Mapping[str, Any] | None = None,
    variable: Mapping[str, Mapping[int, str]] | None = None,
    head: str = "",
    loss: Callable[[Any, Any], Any] | None = None,
    answer: Callable[[Array], Array] | None = None,
    batch_free: bool = False,
    name: str = "",
    watch: Progress | None = None,
    seed: int = 7,
) -> Subject:
    """The model with the rows that it may learn from, be chosen by and be reported on; for several calls on one model.

    model: the path of an ONNX file, an onnx.ModelProto, a torch module, or a fitted model of LightGBM, XGBoost or
    scikit-learn; all but the first are exported into `folder`/parent and the export is checked against the model.
    train, held_out, validation, test: (inputs, truth) each; inputs are an array (n, …), or a dict of them by the names
    of the model's inputs; truth is (n,): class indices or numbers. `held_out`, which the model must not have seen, is
    split by `seed` into halves that choose and report, unless `validation` and `test` are given.
    task: binary, multiclass or regression; told from the metric, the truth and the answers when left out.
    production: how the model is asked, `Production` or {"batch": 1, "threads": 1, "lengths": {}}.
    answer: from the graph's first output to what the metric takes; batch_free: answers must not depend on the batch.

    For a torch module: variable: input → axis → name, of axes besides the rows that vary. It answers with logits, and
    head, put behind it in the graph, is softmax (multiclass), sigmoid (binary) or none; loss: (answers, truth) → what
    training lowers, a scalar, instead of the task's.

    Raises BadInput, NotFound for a metric, CannotExport.
    """
    folder = Path(folder)
    judged_by = metric_called(metric) if isinstance(metric, str) else metric
    for what, value, known in (("task", task, TASKS), ("head", head, HEADS)):
        if value and value not in known:
            raise BadInput(f"no such {what}", where="compress()", got=value, wanted=", ".join(known))
    asked = _production(production)
    watch = watch or Silent()
    if is_torch(model):
        samples = split(train, held_out, validation, test, (), seed)
        task = task or _task(judged_by, samples.train.y, columns=0 if head == "softmax" else None)
        network, graph = _exported(model, samples, task, head, loss, variable or {}, folder, watch)
    else:
        if variable or head or loss:
            raise BadInput(
                "variable, head and loss are of torch modules", where="compress()", got=type(model).__name__,
                wanted="a torch module, or none of them",
            )  # fmt: skip
        network, graph = None, _graph(model, train, judged_by, task, folder, watch)
        samples = split(train, held_out, validation, test, graph.ports, seed)
    return Subject(
        name or _name(model), graph, samples, judged_by, network, answer, asked or Production(), batch_free
    )


def _graph(model: Any, train: Data, metric: Metric, task: str, folder: Path, watch: Progress) -> Artefact:
    """The ONNX file of what is not a torch module."""
    if isinstance(model, str | Path):
        path = Path(model)
        if path.is_dir():
            raise BadInput("a folder, not a model", where=str(path), wanted="the path of an ONNX file")
        return Artefact.open(path)
    target = folder / "parent" / "model.onnx"
    if isinstance(model, onnx.ModelProto):
        return save(model, target)
    rows = rows_of(train, (), "train")
    if len(rows.feeds) != 1 or next(iter(rows.feeds.values())).ndim != 2:
        raise BadInput(
            "such a model takes one table", where="train", got=", ".join(rows.feeds), wanted="(n, features)"
        )
    x = next(iter(rows.feeds.values())).astype(np.float32)
    task = task or _task(metric, rows.y, columns=None)
    data = to_onnx(model, [f"feature_{at}" for at in range(x.shape[1])], task)
    try:
        check = check_export(model, data, x[:CHECKED_ROWS])
    except LoopwrightError:
        raise
    except Exception as error:  # whatever the model's own library raises
        raise BadInput(
            f"the model does not take these rows ({type(error).__name__}: {' '.join(str(error).split())[:300]})",
            where=type(model).__name__, got=f"{x.shape[1]} columns", wanted="the columns that it was fitted on",
        ) from error  # fmt: skip
    _say(folder, watch, check.rows, check.max_difference)
    if not check.equal:
        raise Inconvertible(
            "the exported graph answers differently", where=type(model).__name__,
            got=f"a difference of {check.max_difference:.3g}", wanted=f"at most {check.tolerance:g}",
        )  # fmt: skip
    write_atomic(target, data)
    return Artefact.open(target)


def _exported(
    module: Any, samples: Samples, task: str, head: str, loss: Callable[[Any, Any], Any] | None,
    variable: Mapping[str, Mapping[int, str]], folder: Path, watch: Progress,
) -> tuple[Any, Artefact]:  # fmt: skip
    """The module as a network, and its graph, which answers as the module and its head do."""
    try:
        import torch

        from loopwright.compression.networks.network import LOSSES, TorchNetwork
    except ModuleNotFoundError as error:
        raise without_torch("a torch module", error.name or "torch") from error
    if isinstance(module, torch.jit.ScriptModule):
        raise CannotExport(
            "a scripted module cannot be traced again",
            where="compress()",
            next="Give the nn.Module it was made of.",
        )
    example = {name: values[:2] for name, values in samples.train.feeds.items()}
    network = TorchNetwork(module, example, loss or LOSSES[task], variable)
    network.check()
    few = {name: values[:CHECKED_ROWS] for name, values in samples.train.feeds.items()}
    try:
        own = network.answers(few)
    except Exception as error:  # whatever the user's forward() raises
        raise BadInput(
            f"the module does not take these rows ({type(error).__name__}: {str(error)[:300]})", where="compress()",
            got=", ".join(f"{name} {values.dtype}{values.shape[1:]}" for name, values in few.items()),
            wanted="one input by position, several by the names of forward()",
        ) from error  # fmt: skip
    width = 1 if own.ndim == 1 else int(own.shape[-1])
    if task == "binary" and width == 2:
        task = "multiclass"
        network = replace(network, loss=loss or LOSSES[task])
    _check_width(task, width, samples.train.y, own)
    kind = head or {"multiclass": "softmax", "binary": "sigmoid", "regression": "none"}[task]
    if not head and kind != "none" and _probabilities(own):
        raise BadInput(
            "the module answers with probabilities", where="compress()", got=f"its last step a {kind}",
            wanted="logits", next=f"Take the {kind} off: it is put behind the module in the graph. Or say"
            f" head='none' and give the loss that fits; or head={kind!r}, if these are logits all the same.",
        )  # fmt: skip
    behind = {"softmax": torch.nn.Softmax(-1), "sigmoid": torch.nn.Sigmoid()}.get(kind)
    network = replace(network, head=behind, task=task)
    path = folder / "parent" / "model.onnx"
    network.export(path)
    graph = Artefact.open(path)
    if behind is not None:
        with torch.inference_mode():
            own = behind(torch.from_numpy(own)).numpy()
    theirs = predict(graph, few)
    largest = float(np.abs(own - theirs).max()) if own.shape == theirs.shape else float("inf")
    _say(folder, watch, len(own), largest)
    if not largest <= EXPORT_TOLERANCE * max(1.0, float(np.abs(own).max())):
        raise CannotExport(
            "the exported graph answers differently than the module", where="compress()",
            got=f"a difference of {largest:.3g}", wanted=f"at most {EXPORT_TOLERANCE:g} of the largest answer",
            next="Look for what depends on training mode, on randomness or on the values it sees.",
        )  # fmt: skip
    return network, graph


def _say(folder: Path, watch: Progress, rows: int, largest: float) -> None:
    """Keep and tell how far the exported graph is from its model."""
    watch.note(f"exported: at most {largest:.2g} from the model's own answers on {rows} rows")
    said = {"rows": rows, "largest_difference": largest if np.isfinite(largest) else None}
    write_atomic(folder / "parent" / "export.json", json.dumps(said).encode())


def _task(metric: Metric, truth: Array, columns: int | None) -> str:
    if metric.name in _REGRESSION:
        return "regression"
    return "binary" if columns is None and set(np.unique(truth).tolist()) <= {0, 1} else "multiclass"


def _check_width(task: str, width: int, truth: Array, answers: Array) -> None:
    if answers.ndim > 2:
        raise BadInput(
            "the module answers with more than a row of numbers", where="compress()", got=answers.shape,
            wanted="(n,) or (n, outputs)", next="Wrap it in a module that gives the answer that is judged.",
        )  # fmt: skip
    classes = int(truth.max()) + 1 if task == "multiclass" else 1
    if (task == "multiclass" and width < classes) or (task != "multiclass" and width != 1):
        raise BadInput(
            "the module's answers do not fit the truth", where=f"compress(): {task}", got=f"{width} outputs",
            wanted=f"{classes} or more" if task == "multiclass" else "one",
        )  # fmt: skip


def _probabilities(answers: Array) -> bool:
    """Whether each row is shares of one, or, of one number, all lie between 0 and 1."""
    inside = bool(((answers >= 0) & (answers <= 1)).all())
    wide = answers.ndim == 2 and answers.shape[1] > 1
    return inside and (not wide or bool(np.allclose(answers.sum(1), 1, atol=1e-3)))


def _production(said: Production | Mapping[str, Any] | None) -> Production | None:
    if said is None or isinstance(said, Production):
        return said
    if unknown := sorted(set(said) - {"batch", "threads", "lengths"}):
        raise BadInput(
            "unknown settings", where="production", got=", ".join(unknown), wanted="batch, threads, lengths"
        )
    return Production(**said)


def _name(model: Any) -> str:
    return Path(model).stem if isinstance(model, str | Path) else type(model).__name__
