"""init, run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from loopwright.cli.progress import watch
from loopwright.cli.quiet import stdout_for_the_answer
from loopwright.cli.session import Session, command
from loopwright.cli.show import text
from loopwright.kernel.actor import SYSTEM, Actor
from loopwright.kernel.errors import BadInput, Refused


@command("init")
@click.argument("name")
@click.option(
    "--data",
    required=True,
    metavar="URI",
    help="Your rows: a CSV, Parquet or JSONL file, or a URI as in loop.yaml, like s3://… or postgresql://….",
)
@click.option("--target", required=True, metavar="COLUMN", help="The column to predict.")
@click.option(
    "--time", metavar="COLUMN", help="The column that says when a row happened; inferred when left out."
)
@click.option(
    "--task", type=click.Choice(["binary", "multiclass", "regression"]), help="Inferred when left out."
)
@click.option(
    "--key", multiple=True, metavar="COLUMN", help="A column that identifies a row; may be given again."
)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Where to write it; default: ./NAME.")
def init(
    session: Session, name: str, data: str, target: str, time: str | None, task: str | None,
    key: tuple[str, ...], folder: Path | None,
) -> None:  # fmt: skip
    """Scaffold a project for your own rows."""
    from loopwright.pipeline.scaffold import init_project

    report = init_project(
        folder or Path(name), name=name, data=data, target=target, time=time, task=task, key=list(key) or None
    )
    from loopwright.control.plain import plain

    session.show(plain(report), _scaffolded)


@command("run")
@click.argument("project", type=click.Path(path_type=Path), default=".")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override loop.yaml, like train.seed=8."
)
@click.option("--reason", default="by hand", show_default=True, help="Why; it is kept with the run.")
@click.option(
    "--semver",
    "version_number",
    metavar="NUMBER",
    help="The semantic version, like 2.0.0; default: what the change asks for.",
)
@click.option(
    "--snapshot",
    metavar="DIGEST",
    help="Train on what was pinned then; nothing is ingested, nor stands in the way.",
)
@click.option("--retrain", hidden=True, help="The retraining this run answers.")
@click.option("--tracking-uri", hidden=True, help="Where to track; default: the home.")
def run(
    session: Session,
    project: Path,
    overrides: tuple[str, ...],
    reason: str,
    version_number: str | None,
    snapshot: str | None,
    retrain: str | None,
    tracking_uri: str | None,
) -> int:
    """Take a project from data to a gated, registered version.

    Exit code 1 when the gates say no. With --url the control plane must run on this machine: the training runs here,
    on its home, and is tracked through it.
    """
    from loopwright.project.spec import load_project

    opened = load_project(project, overrides)  # a bad loop.yaml is told before a home is made
    opened.check_files()
    context = training_context(session, tracking_uri)
    if retrain:
        context = _for_retraining(context, retrain, opened.spec.model)
    from loopwright.pipeline.lifecycle import run_project

    if context.assumed_by is not None:  # as Operation does for every other act under another's name
        context.record(
            "user.assumed", subject=context.actor.name, payload={"operation": "run"}, by=context.assumed_by
        )
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from loopwright.control.incidents import noticing
    from loopwright.control.openlineage import following

    arguments = _arguments(context, opened, reason, retrain, version_number) | {"snapshot": snapshot}
    with acting(context.actor), following(context.home, context.ledger), noticing(context):
        if session.as_json:
            from loopwright.kernel.progress import Silent

            with stdout_for_the_answer():
                report = run_project(**arguments, progress=Silent())
        else:
            with watch() as progress:
                report = run_project(**arguments, progress=progress)
    from loopwright.control.plain import plain

    session.show(plain(report), _reported)
    return 0 if report.version is not None else 1


@command("apply")
@click.argument("project", type=click.Path(path_type=Path), default=".")
def apply(session: Session, project: Path) -> None:
    """Make a changed loop.yaml count without training.

    Policy, delivery, monitoring and retraining follow it from now on; what is registered stays as it is.
    """
    from loopwright.project.spec import load_project

    opened = load_project(project)
    opened.check_files()
    answer = session.client(create=True).call(
        "projects.apply", model=opened.spec.model, path=str(opened.dir), spec=opened.spec.to_json()
    )
    session.show(answer, lambda a: f"{a['model']}: applied {a['path']}; changed: {text(a['changed'])}")


def training_context(session: Session, tracking_uri: str | None = None) -> Any:
    """The home to train on: the folder, or the folder of a control plane on this machine."""
    from loopwright.control.client import HttpClient
    from loopwright.control.context import open_context
    from loopwright.control.folder import FolderClient
    from loopwright.kernel.actor import Actor, Role
    from loopwright.registry.entry import ARTIFACT_ROOT

    client = session.client(create=True)
    if isinstance(client, FolderClient):
        context = client.context
        os.environ[ARTIFACT_ROOT] = context.home.artifacts.as_uri()
    else:
        assert isinstance(client, HttpClient)
        where = client.call("system.where")
        home = Path(where["home"])
        if not (home / "keys").is_dir() or not os.access(home, os.W_OK):
            raise BadInput(
                "a run on a remote control plane is not supported yet", where=client.where, got=f"home {where['home']}",
                wanted="a control plane on this machine, whose home this user may write",
                next="Run it where the control plane runs, or on a folder: --home DIR.",
            )  # fmt: skip
        context = open_context(home, Actor(where["actor"], Role.parse(where["role"])))
        if context.key.public.key_id != where["key_id"]:
            raise BadInput(
                "the home on this machine is another than the control plane's", where=client.where, got=str(home),
                next="Run it where the control plane runs.",
            )  # fmt: skip
        tracking_uri = f"{client.where}/mlflow"
        if session.token:
            os.environ["MLFLOW_TRACKING_TOKEN"] = session.token
    from dataclasses import replace

    return replace(context, tracking_uri=tracking_uri) if tracking_uri else context


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Let MLflow's stores, when they are this process's own, know who acts."""
    from loopwright.registry.identity import current_actor

    token = current_actor.set(actor)
    try:
        yield
    finally:
        current_actor.reset(token)


def _for_retraining(context: Any, retrain: str, model: str) -> Any:
    """The home in the product's own hands; raises Refused unless the control plane has just begun this retraining.

    What is trained so has no person as its author: nobody may have their own work called that.
    """
    from loopwright.control.access import LOCAL
    from loopwright.retraining.store import list_retrains

    with context.ledger.read() as conn:
        running = {one.id for one in list_retrains(conn, model=model, state="running")}
    if context.actor != LOCAL or retrain not in running:
        raise Refused(
            "only the control plane answers its retrainings", where=model, got=retrain,
            next="Train it yourself, as its author: loopwright run DIR",
        )  # fmt: skip
    return context.acting_as(SYSTEM)


def _arguments(
    context: Any, project: Any, reason: str, retrain: str | None, version_number: str | None
) -> dict[str, Any]:
    return {
        "project": project, "home": context.home, "ledger": context.ledger, "actor": context.actor,
        "clock": context.clock, "key": context.key,
        "trusted": context.keyring.public, "tracking_uri": context.tracking_uri, "reason": reason,
        "retrain_id": retrain, "version_number": version_number,
    }  # fmt: skip


def _scaffolded(answer: dict[str, Any]) -> str:
    lines = [f"{name}: {text(value)}" for name, value in answer.items() if value not in (None, [], {}, "")]
    return "\n".join(lines)


def _reported(answer: dict[str, Any]) -> str:
    metrics = ", ".join(f"{name} {text(value)}" for name, value in sorted(answer["metrics"].items())[:4])
    gates = [
        f"  {g['verdict']:<12} {g['name']}: {g.get('detail') or text(g.get('value'))}"
        for g in answer["gates"]["results"]
    ]
    lines = [f"run {answer['run_id']} of {answer['model']}: {metrics}", *gates]
    if answer["version"] is None:
        return "\n".join([*lines, f"refused: {answer['refused']}. No version was registered."])
    model, version = answer["model"], answer["version"]
    lines.append(f"registered {model} version {version} (bundle {answer['bundle'][:12]})")
    smaller = answer.get("compressed")
    if smaller is not None:
        made = f"registered as version {smaller['version']}" if smaller["version"] else "no version"
        lines.append(f"compressed: {made}; {smaller['why'] or smaller['said']}")
        version = smaller["version"] or version
    return "\n".join([*lines, f"next: loopwright promote {model} {version} --to production"])
