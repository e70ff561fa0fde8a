"""From a frame of labelled rows to a fitted, exported, measured model. No registry, no ledger."""

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from loopwright.bundle.forms import ONNX
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.transform import Transform
from loopwright.features.frame import Frame
from loopwright.features.module import Dtype, FeatureModule, import_project_file
from loopwright.kernel.errors import BadInput, LoopwrightError, did_you_mean
from loopwright.kernel.progress import Progress
from loopwright.pipeline.weights import weights_of
from loopwright.project.spec import Project
from loopwright.stats.metrics import METRICS
from loopwright.training.config import load_config
from loopwright.training.export import (
    ExportCheck,
    Inconvertible,
    native_files,
    predict_model,
    predict_onnx,
    to_onnx,
)
from loopwright.training.forms import Form, Trusts, checked_form, predict_form
from loopwright.training.search import search
from loopwright.training.seeds import seed_everything
from loopwright.training.split import Split

MIN_ROWS = 20
EXPORT_ROWS = 10_000
EXPORT_TOLERANCE = 1e-5
TRANSFORM = "transform.py"  # the name under which bundle.transform runs the source


class Notes(Protocol):
    """Where a fit writes what it finds; a `training.Recorder` is one."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...

    def text(self, content: str, name: str) -> None: ...

    def artifact_json(self, value: object, name: str) -> None: ...


@dataclass(frozen=True)
class Parts:
    """A frame cut for training, in event-time order.

    `fit` and `valid` choose hyperparameters; `train` (both together) fits the model; `holdout` is never trained on.
    """

    fit: Frame
    valid: Frame
    train: Frame
    holdout: Frame

    def sizes(self) -> dict[str, int]:
        """Rows per part."""
        return {
            "fit": self.fit.rows,
            "valid": self.valid.rows,
            "train": self.train.rows,
            "holdout": self.holdout.rows,
        }


@dataclass(frozen=True)
class Fitted:
    """A fitted model and the form it is served in. `holdout_output` is float64 (rows, outputs) from that form."""

    form: Form
    names: tuple[str, ...]
    state: Mapping[str, Any]
    classes: tuple[str, ...]
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    export: ExportCheck
    holdout_output: np.ndarray[Any, Any]
    algorithm: str
    """The fitted model's class, like "lightgbm.Booster"; of a scikit-learn pipeline, its last step's."""
    native: Mapping[str, bytes]
    """Files a bundle keeps beside the graph, by path."""
    weights: bytes | None = None
    """Of a torch module: its state, to be kept with the run."""


def schema_of(
    project: Project, inputs: Mapping[str, Dtype], features: tuple[str, ...], classes: tuple[str, ...]
) -> Schema:
    """The signature of the bundle: what a request brings, what the model reads, what it answers."""
    task = project.spec.task
    outputs = {"binary": ("probability",), "regression": ("prediction",)}.get(task, classes)
    fields = tuple(Field(name, dtype) for name, dtype in inputs.items())
    return Schema(inputs=fields, features=features, outputs=outputs, task=task, classes=classes)


def cut(frame: Frame, holdout: float | timedelta, where: str) -> Parts:
    """Cut `frame` into parts; raises BadInput when a part would hold fewer than 20 rows."""
    train, held = frame.split(holdout)
    fit, valid = train.split(0.2)
    for name, part in (("training", fit), ("validation", valid), ("holdout", held)):
        if part.rows < MIN_ROWS:
            raise BadInput(
                f"too few labelled rows for the {name} part",
                where=where,
                got=part.rows,
                wanted=f"at least {MIN_ROWS}",
                next="Bring more data, a later `data.as_of`, or a smaller `data.holdout`.",
            )
    return Parts(fit, valid, train, held)


def load_entry(project: Project) -> tuple[ModuleType, Callable[..., Any]]:
    """Import the file of `train.entry` ("train.py:train") and return it with its function."""
    file, _, name = project.spec.train.entry.partition(":")
    module = import_project_file(project.path(file), project.dir)
    function = getattr(module, name or "train", None)
    if not callable(function):
        raise BadInput(
            "the training file has no such function",
            where=f"{project.dir / 'loop.yaml'}: train.entry",
            got=project.spec.train.entry,
            wanted=f"a function `{name or 'train'}(train, valid, params, seed, run)` in {Path(file).name}",
        )
    return module, function


@contextmanager
def project_code(file: str, act: str) -> Iterator[None]:
    """Run the project's own code; what it raises becomes BadInput naming its line. The cause keeps the traceback."""
    try:
        yield
    except LoopwrightError:
        raise
    except Exception as error:
        name = Path(file).name
        steps = traceback.extract_tb(error.__traceback__)
        lines = [step.lineno for step in steps if Path(step.filename).name == name]
        raise BadInput(
            f"{act} raises {type(error).__name__}: {error}",
            where=f"{file}:{lines[-1]}" if lines else file,
            next="Mend the project; --debug shows the whole traceback.",
        ) from error


class Preparation:
    """Turns frames into splits with one transform state, learned from one frame only."""

    def __init__(self, transform: Transform, learn_from: Frame) -> None:
        self.transform = transform
        inputs = learn_from.inputs()
        few = {name: values[:5] for name, values in inputs.items()}
        with project_code(TRANSFORM, "fit or transform"):
            self.state: dict[str, Any] = transform.fit(inputs) if transform.fit else {}
            self.names = tuple(transform.transform(few, self.state))

    def split(self, frame: Frame) -> Split:
        """Features (rows, features) float32 and labels (rows,) float64 of the frame."""
        with project_code(TRANSFORM, "transform"):
            columns = self.transform.transform(frame.inputs(), self.state)
            x = np.column_stack([np.asarray(columns[name], dtype=np.float32) for name in self.names])
        return Split(x=x, y=frame.labels(), names=self.names)


def fit_model(
    project: Project,
    module: FeatureModule,
    parts: Parts,
    run: Notes,
    watch: Progress,
    params: Mapping[str, Any] | None = None,
    trusts: Trusts | None = None,
) -> Fitted:
    """Search hyperparameters (unless `params` are given), fit on `parts.train`, export, and measure on the holdout.

    The search learns its transform from `parts.fit` only, so the validation rows stay unseen. trusts: for models
    that can only be served in a form that runs code. Raises BadInput when the exported form does not answer as the
    model does within 1e-5, Untrusted for a form that nobody trusts.
    """
    spec = project.spec
    seed_everything(spec.train.seed)
    names = metric_names(project)
    source, train = load_entry(project)
    base = load_config(project)

    if params is None:
        params = base
        if spec.search is not None:
            params = {**base, **_searched(project, source, train, module, parts, base, run, watch)}

    watch.step("Train, export, measure")
    prepared = Preparation(module.transform, parts.train)
    fitted_on, held = prepared.split(parts.train), prepared.split(parts.holdout)
    run.params(dict(params))
    with project_code(spec.train.file, "train"):
        model = train(fitted_on, None, dict(params), spec.train.seed, run)
    classes = parts.train.classes if spec.task == "multiclass" else ()
    schema = schema_of(project, module.inputs, prepared.names, classes)
    form, export = checked_form(
        model, prepared.names, schema, _sample(fitted_on.x, held.x), EXPORT_TOLERANCE, trusts
    )
    if not export.equal:
        raise BadInput(
            "the exported model does not answer as the trained one",
            where=form.file,
            got=f"a difference of {export.max_difference:.2g} on {export.rows:,} rows",
            wanted=f"at most {EXPORT_TOLERANCE:g}",
            next="Keep features within float32, or return an onnx.ModelProto from train().",
        )
    output = predict_form(form, schema, held.x, trusts)
    metrics = evaluate(spec.task, held.y, output, names)
    run.metrics(metrics)
    watch.done(
        "holdout "
        + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        + f"; {'ONNX' if form.file == ONNX else form.file} equal within "
        + f"{export.max_difference:.1g} on {export.rows:,} rows"
    )
    return Fitted(
        form=form,
        names=prepared.names,
        state=prepared.state,
        classes=classes,
        params=dict(params),
        metrics=metrics,
        export=export,
        holdout_output=output,
        algorithm=algorithm_of(model),
        native=native_files(model),
        weights=weights_of(model),
    )


def algorithm_of(model: object) -> str:
    """The library and class of a fitted model."""
    steps = getattr(model, "steps", None)
    kind = type(steps[-1][1] if isinstance(steps, list) and steps else model)
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


def _sample(train: np.ndarray[Any, Any], held: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Up to 10,000 rows, the held-out ones first."""
    rows = np.concatenate([held[:EXPORT_ROWS], train[: max(0, EXPORT_ROWS - len(held))]])
    return np.ascontiguousarray(rows)


def evaluate(
    task: str, y: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any], names: list[str]
) -> dict[str, float]:
    """Compute the named metrics of `stats.metrics` of `predicted` (n, outputs) against `y` (n,)."""
    output = predicted if task == "multiclass" else predicted[:, 0]
    return {name: float(METRICS[name].fn(y, output)) for name in names}


DEFAULT_METRICS = {
    "binary": ["roc_auc", "log_loss", "brier"],
    "multiclass": ["accuracy", "f1_macro", "log_loss"],
    "regression": ["rmse", "mae", "r2"],
}


def metric_names(project: Project) -> list[str]:
    """The task's usual metrics and those that loop.yaml names; an unknown name is BadInput."""
    spec = project.spec
    named = [*spec.gates.metrics, *([spec.search.metric] if spec.search else [])]
    for name in named:
        if name not in METRICS:
            raise BadInput(
                "unknown metric",
                where=f"{project.dir / 'loop.yaml'}: gates.metrics / search.metric",
                got=name,
                wanted=f"one of {', '.join(sorted(METRICS))}",
                next=did_you_mean(name, METRICS) or "Mend the name in loop.yaml.",
            )
    return list(dict.fromkeys([*DEFAULT_METRICS[spec.task], *named]))


def _searched(
    project: Project,
    source: ModuleType,
    train: Callable[..., Any],
    module: FeatureModule,
    parts: Parts,
    base: Mapping[str, Any],
    run: Notes,
    watch: Progress,
) -> dict[str, Any]:
    spec = project.spec
    assert spec.search is not None
    space = getattr(source, "search_space", None)
    if not callable(space) or len(inspect.signature(space).parameters) != 1:
        raise BadInput(
            "`search` is asked for, but the training file says no search space",
            where=f"{project.dir / 'loop.yaml'}: search",
            got=spec.train.entry,
            wanted="def search_space(trial) -> dict of parameters",
            next="Write it beside `train`, or remove the `search` section.",
        )
    watch.step(f"Search hyperparameters, {spec.search.trials} trial{'s' * (spec.search.trials != 1)}")
    learn_from = parts.fit
    if spec.search.rows is not None and learn_from.rows > spec.search.rows:
        learn_from = learn_from.take(np.arange(learn_from.rows - spec.search.rows, learn_from.rows))
    prepared = Preparation(module.transform, learn_from)
    fit, valid = prepared.split(learn_from), prepared.split(parts.valid)
    metric = spec.search.metric

    def objective(candidate: Mapping[str, Any]) -> float:
        with project_code(spec.train.file, "train"):
            model = train(fit, valid, {**base, **candidate}, spec.train.seed, None)
        try:
            output = predict_onnx(to_onnx(model, prepared.names, spec.task), valid.x)
        except Inconvertible:
            output = predict_model(model, valid.x)
        return evaluate(spec.task, valid.y, output, [metric])[metric]

    def on_trial(number: int, value: float, best: float) -> None:
        assert spec.search is not None
        watch.update((number + 1) / spec.search.trials, f"{metric} {value:.4f}, best {best:.4f}")
        run.metrics({f"search_{metric}": value}, step=number)

    found = search(
        objective,
        space,
        trials=spec.search.trials,
        direction=spec.search.direction,
        seed=spec.train.seed,
        on_trial=on_trial,
    )
    watch.done(f"best {metric} {found.best_value:.4f} on the validation rows")
    return dict(found.best_params)
