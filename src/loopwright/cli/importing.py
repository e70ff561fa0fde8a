"""models import: a model that plain MLflow logged elsewhere becomes a version."""

import os
import tempfile
from pathlib import Path
from typing import Any, get_args

import click

from loopwright.cli.session import Session, command
from loopwright.cli.start import training_context
from loopwright.kernel.errors import BadInput


@command("import")
@click.argument("source")
@click.option("--model", required=True, metavar="NAME", help="The name it gets here.")
@click.option(
    "--task",
    required=True,
    type=click.Choice(["binary", "multiclass", "regression"]),
    help="What its answers are.",
)
@click.option(
    "--classes", default="", metavar="A,B,…", help="For multiclass: the classes, as its answers are ordered."
)
@click.option(
    "--rows", "rows_file", type=click.Path(path_type=Path), metavar="FILE",
    help="Labelled rows (CSV or Parquet) it was not trained on: without them its gates stay undecided.",
)  # fmt: skip
@click.option("--label", default="", metavar="COLUMN", help="The column of --rows with the truth.")
@click.option(
    "--gate", "gates", multiple=True, metavar="LIMIT", help='Like "roc_auc >= 0.7"; may be given often.'
)
@click.option("--reason", default="imported from MLflow", show_default=True, help="Why; it is kept with it.")
def import_model(
    session: Session, source: str, model: str, task: str, classes: str, rows_file: Path | None, label: str,
    gates: tuple[str, ...], reason: str,
) -> int:  # fmt: skip
    """Register a model that MLflow saved: SOURCE is its folder or a URI like models:/NAME/3 or runs:/RUN/model.

    Exit code 1 when a gate said no and nothing was registered. The model is run on this machine, under the home's keys.
    """
    if bool(rows_file) != bool(label) or (gates and not rows_file):
        raise BadInput(
            "rows, label and gates belong together", wanted="--rows FILE --label COLUMN [--gate LIMIT]"
        )
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    context = training_context(session)
    from loopwright.bundle.signature import Task
    from loopwright.pipeline.importing import Imported
    from loopwright.pipeline.importing import import_model as run

    assert task in get_args(Task)
    with tempfile.TemporaryDirectory() as downloads:
        answer = run(
            Imported(
                source=_folder(source, context.tracking_uri, downloads), model=model, task=task,  # type: ignore[arg-type]
                classes=tuple(name.strip() for name in classes.split(",") if name.strip()),
                rows=_columns(rows_file) if rows_file else None, label=label, gates=_gates(gates), reason=reason,
                origin=source,
            ),
            home=context.home, ledger=context.ledger, actor=context.actor, clock=context.clock, key=context.key,
            trusted=context.keyring.public,
        )  # fmt: skip
    session.show(answer, _said)
    return 0 if answer["version"] is not None else 1


def _folder(source: str, tracking_uri: str, downloads: str) -> Path:
    path = Path(source)
    if path.is_dir():
        return path.resolve()
    if ":/" not in source:
        raise BadInput(
            "no such folder", where=source, wanted="a folder with an MLmodel, or models:/NAME/VERSION"
        )
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=downloads)).resolve()
    except (MlflowException, OSError) as error:
        raise BadInput(f"MLflow cannot bring it ({error})", where=source) from error


def _columns(path: Path) -> dict[str, Any]:
    import pandas

    try:
        frame = pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read ({error})", where=str(path), wanted="CSV or Parquet") from None
    return {str(name): frame[name].to_numpy() for name in frame.columns}


def _gates(limits: tuple[str, ...]) -> Any:
    from loopwright.project.sections import Gates

    found: dict[str, str] = {}
    for limit in limits:
        name, _, rest = limit.strip().partition(" ")
        found[name] = rest
    return Gates.model_validate({"metrics": found})


def _said(answer: dict[str, Any]) -> str:
    lines = [f"{answer['model']}: {answer['form']}, bundle {answer['bundle'][:12]}; {answer['summary']}"]
    if answer["why_not_onnx"]:
        lines.append(f"no ONNX graph: {answer['why_not_onnx']}")
    if answer["version"] is None:
        return "\n".join([*lines, "No version was registered."])
    return "\n".join([*lines, f"registered version {answer['version']}"])
