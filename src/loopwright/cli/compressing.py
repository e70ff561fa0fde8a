"""compress: a version becomes smaller and faster, as a version of its own."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from loopwright.cli.progress import watch
from loopwright.cli.quiet import stdout_for_the_answer
from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, table
from loopwright.cli.start import acting, training_context
from loopwright.kernel.clock import parse_duration
from loopwright.kernel.errors import BadInput
from loopwright.kernel.progress import Progress, Silent
from loopwright.kernel.sizes import said_size

MAX_RECIPE = 100_000
MAX_NODES = 10_000


@command("compress")
@click.argument("model", required=False, metavar="MODEL[@VERSION]")
@click.option("--target-size", metavar="SIZE", help="Bytes on disk at most, like 10MB.")
@click.option("--max-latency", metavar="TIME", help="Of the 99th percentile of a call, like 5ms.")
@click.option(
    "--max-loss", default="1%", show_default=True, metavar="SHARE",
    help="Of the version's own metric, decided on the confidence bound.",
)  # fmt: skip
@click.option("--explore", is_flag=True, help="Try all techniques and draw the trade-off.")
@click.option(
    "--budget", default="20m", show_default=True, metavar="TIME", help="Nothing is begun after it; goes on "
    "from there when asked again.",
)  # fmt: skip
@click.option(
    "--recipe", metavar="STEPS|FILE",
    help="Follow these steps, like tree-rounds,tree-rounding, or those of a YAML or JSON file, instead of the ladder.",
)  # fmt: skip
@click.option("--batch", type=int, default=1, show_default=True, help="Rows that production asks at once.")
@click.option("--threads", type=int, default=1, show_default=True, help="Threads of a prediction there.")
@click.option("--dry-run", is_flag=True, help="Print what would be tried; train and register nothing.")
@click.option("--reason", default="compressed by hand", show_default=True, help="Why; it is kept with it.")
@click.option(
    "--check-billion", is_flag=True, help="Instead: bring a transformer of 1B random parameters under 300 MB here."
)  # fmt: skip
def compress(
    session: Session, model: str | None, target_size: str | None, max_latency: str | None, max_loss: str, explore: bool,
    budget: str, recipe: str | None, batch: int, threads: int, dry_run: bool, reason: str, check_billion: bool,
) -> int:  # fmt: skip
    """Make a version smaller and faster, as a version of its own.

    Techniques are tried from the cheapest on, until one keeps to size, latency and loss; the outcome is gated and
    registered as the version's child, and rolled out like any version. Without a VERSION: the stable one.
    Exit code 1 when nothing keeps to what is asked, or a gate says no.
    """
    if check_billion:
        return _billion(session, model)
    if model is None:
        raise BadInput("no model is named", wanted="MODEL or MODEL@VERSION", next="loopwright models list")
    from loopwright.compression.constraints import Constraints
    from loopwright.compression.subject import Production
    from loopwright.pipeline.compressing import Place, compress_version, plan_version
    from loopwright.pipeline.compression_asked import Asked

    name, version = _named(model)
    asked = Asked(
        model=name, version=version, wanted=Constraints.parse(target_size, max_latency, max_loss),
        recipe=_recipe(recipe) if recipe else None, explore=explore, budget=_budget(budget), reason=reason,
        production=Production(batch, threads),
    )  # fmt: skip
    asked.checked()
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    context = training_context(session)
    place = Place(
        context.home, context.ledger, context.actor, context.clock, context.key, context.tracking_uri,
        tuple(context.keyring.public),
    )  # fmt: skip
    if dry_run:
        session.show(_watched(session, lambda progress: plan_version(asked, place, progress)), _planned)
        return 0
    from loopwright.control.openlineage import following

    if context.assumed_by is not None:  # as Operation does for every other act under another's name
        context.record(
            "user.assumed", subject=context.actor.name, payload={"operation": "compress"}, by=context.assumed_by
        )  # fmt: skip
    with acting(context.actor), following(context.home, context.ledger):
        answer = _watched(session, lambda progress: compress_version(asked, place, progress).to_json())
    session.show(answer, _said)
    return 0 if answer["version"] is not None else 1


def _watched(session: Session, work: Callable[[Progress], dict[str, Any]]) -> dict[str, Any]:
    if session.as_json:
        with stdout_for_the_answer():
            return work(Silent())
    with watch() as progress:
        return work(progress)


def _billion(session: Session, model: str | None) -> int:
    if model is not None:
        raise BadInput("the check makes a model of its own", got=model, wanted="--check-billion alone")
    from loopwright.compression.streaming.check import run_check

    folder = session.home / "cache" / "compression"
    folder.mkdir(parents=True, exist_ok=True)
    text: list[str] = []

    def work(progress: Progress) -> dict[str, Any]:
        report = run_check(folder, watch=progress)
        text.append(report.to_text())
        return report.to_json()

    answer = _watched(session, work)
    session.show(answer, lambda _: text[0])
    return 0 if answer["ok"] else 1


def _named(text: str) -> tuple[str, int | None]:
    name, at, number = text.rpartition("@")
    if not at:
        return text, None
    if not name or not number.isdecimal() or not 0 < int(number) < 2**31:
        raise BadInput("not a version", got=text, wanted="MODEL@NUMBER, like flight-late@3")
    return name, int(number)


def _budget(text: str) -> Any:
    found = parse_duration(text)
    if not found:
        raise BadInput("a budget of nothing", where="--budget", got=text, wanted="a duration, like 20m")
    return found


def _recipe(text: str) -> list[dict[str, Any]]:
    """Steps by name, or those of a file: a list, or a mapping with `recipe` alone, as loop.yaml has it."""
    from loopwright.compression.steps import STEPS

    path = Path(text)
    is_name = all(word.strip() in STEPS for word in text.replace("+", ",").split(","))
    if is_name or not (path.suffix in (".yaml", ".yml", ".json") or path.is_file()):
        return [{"step": word.strip()} for word in text.replace("+", ",").split(",")]
    try:
        if path.stat().st_size > MAX_RECIPE:
            raise BadInput("too large for a recipe", where=text, wanted=f"at most {MAX_RECIPE:,} bytes")
        written = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"cannot be read ({error.strerror or error})", where=text, wanted="names of steps, or a file"
        ) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"not text ({error})", where=text) from None
    import yaml

    try:
        said = json.loads(written) if path.suffix == ".json" else yaml.safe_load(written)
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"cannot be read ({error})", where=text, wanted="YAML or JSON") from None
    except RecursionError:
        raise BadInput("too deep for a recipe", where=text, wanted="a list of {step: NAME, …}") from None
    _check_nodes(said, text)
    if isinstance(said, dict):
        more = sorted(str(name) for name in said if name != "recipe")
        if more:
            raise BadInput(
                "a recipe file with more than a recipe", where=text, got=", ".join(more)[:200], wanted="`recipe` alone",
                next="Limits and the budget are options of loopwright compress.",
            )  # fmt: skip
        said = said.get("recipe")
    if not isinstance(said, list) or not all(isinstance(one, dict) for one in said):
        raise BadInput(
            "not a recipe", where=text, got=type(said).__name__, wanted="a list of {step: NAME, …}"
        )
    return said


def _check_nodes(said: Any, where: str) -> None:
    """Raise BadInput for what a few aliases of YAML make out of little text."""
    left, found = [said], 0
    while left:
        one = left.pop()
        found += 1
        if found > MAX_NODES:
            raise BadInput("too large for a recipe", where=where, wanted=f"at most {MAX_NODES:,} values")
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def _planned(answer: dict[str, Any]) -> str:
    rows = answer["rows"]
    wanted = answer["wanted"]
    asked = [said_size(wanted["size"])] if wanted["size"] else []
    asked += [f"{wanted['latency_ms']:g} ms"] if wanted["latency_ms"] else []
    asked.append(f"a loss of at most {wanted['loss']:.2%} of {answer['metric']}")
    head = (
        f"{answer['model']} version {answer['parent']}: {answer['kind']}, {answer['parameters']:,} parameters, "
        f"{said_size(answer['size'])}"
        f"{'' if answer['trainable'] or answer['kind'] == 'trees' else ', no torch module'}\n"
        f"asked: {', '.join(asked)}\n"
        f"rows: {rows['train']:,} teach, {rows['validation']:,} choose, {rows['test']:,} report"
    )
    columns: list[Column] = [
        ("technique", "technique"), ("recipe", "name"), ("at least", _least),
        ("", lambda one: f"skipped: {one['skipped']}" if one["skipped"] else
         f"beside it: {one['control']}" if one["control"] else ""),
    ]  # fmt: skip
    return f"{head}\n\n{table(answer['rungs'], columns)}\n\nNothing was trained, nothing registered."


def _least(rung: Mapping[str, Any]) -> str | None:
    """The bytes below which it cannot come; nothing is known of trees, and nothing is made of the original."""
    return said_size(rung["floor"]) if rung["floor"] and rung["name"] != "original" else None


def _said(answer: dict[str, Any]) -> str:
    who = f"{answer['model']} version {answer['parent']}"
    if answer["again"] and answer["version"] == answer["parent"]:
        return f"{answer['said']}\nreport and pictures: {answer['folder']}"
    lines = [
        answer["said"] if answer["again"] else f"{who}: {answer['said']}",
        *_candidates(answer["ladder"]),
    ]
    for gate in (answer["gates"] or {}).get("results", []):
        lines.append(f"  {gate['verdict']:<12} {gate['name']}: {gate.get('detail') or gate.get('value')}")
    if not answer["ladder"]["chosen"]:
        lines.append(f"ended: {answer['ladder']['ended']}")
    lines += [f"needed: {one}" for one in answer["needed"]]
    lines.append(f"report and pictures: {answer['folder']}")
    if answer["version"] is None:
        lines.append(f"refused: {answer['refused']}. No version was registered.")
        return "\n".join([*lines, *_unsure(answer)])
    said = "is there already, from the same compression" if answer["again"] else "registered"
    return "\n".join([
        *lines, f"{said}: {answer['model']} version {answer['version']} (bundle {answer['bundle'][:12]}), child of "
        f"version {answer['parent']}",
        f"next: loopwright promote {answer['model']} {answer['version']} --to production",
    ])  # fmt: skip


def _unsure(answer: dict[str, Any]) -> list[str]:
    """What to do where time was too short, or the rows that chose nothing are too few for a verdict on the loss."""
    from loopwright.compression.ladder import OUT_OF_BUDGET

    if any(one["why"] == OUT_OF_BUDGET for one in answer["ladder"]["candidates"]):
        return ["next: the same command goes on from there, with another --budget"]
    name = f"not worse than version {answer['parent']}"
    gates = (answer["gates"] or {}).get("results", [])
    if not any(one["name"].startswith(name) and one["verdict"] == "INCONCLUSIVE" for one in gates):
        return []
    return ["next: more held-out rows would tell; or allow a larger --max-loss"]


def _candidates(ladder: dict[str, Any]) -> list[str]:
    found = []
    for one in ladder["candidates"]:
        if one["status"] != "measured":
            found.append(f"  {one['name']}: {one['status']}, {one['why']}")
            continue
        latency, loss = one["latency"], one["validation"]
        found.append(
            f"  {one['name']}: {said_size(one['size'])}, p99 {latency['p99']:.3g} ms "
            f"({latency['ratio']:.2g} times the parent's speed), loss {round(loss['loss'], 5) + 0.0:.2%}, "
            f"at most {loss['loss_high']:.2%}"
        )  # fmt: skip
    return found
