"""explain [prediction] MODEL --id ID | MODEL VERSION --input FILE, explain status."""

import json
from pathlib import Path
from typing import Any

import click

from loopwright.cli.lazy import subcommands
from loopwright.cli.output import check_place
from loopwright.cli.session import Session, command
from loopwright.cli.show import pairs, table
from loopwright.kernel.errors import BadInput


@subcommands(default="prediction")
def explain() -> None:
    """Explain a prediction: which inputs moved it, and how far."""


@command("prediction", explain)
@click.argument("model")
@click.argument("version", type=int, required=False)
@click.option("--id", "request_id", help="The id of a logged prediction.")
@click.option("--input", "file", type=click.Path(path_type=Path), help="A JSON file: one row, input by name.")
@click.option("--svg", type=click.Path(path_type=Path), help="Draw it into this file.")
def prediction(
    session: Session,
    model: str,
    version: int | None,
    request_id: str | None,
    file: Path | None,
    svg: Path | None,
) -> None:
    """Explain a logged prediction of MODEL, or what VERSION answers to a row of inputs."""
    if (request_id is None) == (file is None):
        raise BadInput("what is to be explained?", wanted="either --id ID or VERSION with --input FILE")
    check_place(svg)
    if file is None:
        answer = session.call("explain.prediction", model=model, id=request_id, version=version)
    elif version is None:
        raise BadInput("--input needs a VERSION", wanted=f"loopwright explain {model} VERSION --input {file}")
    else:
        answer = session.call("explain.inputs", model=model, version=version, inputs=_row(file))
    if svg is not None:
        from loopwright.kernel.files import write_atomic
        from loopwright.quality.explain_report import waterfall_svg

        write_atomic(svg, waterfall_svg(answer).encode())
        session.note(f"drawn into {svg}")
    session.show(answer, _answer)


@command("status", explain)
@click.argument("model")
def status(session: Session, model: str) -> None:
    """Show how far the explanations of MODEL's logged predictions have come."""
    session.show(session.call("explain.status", model=model), pairs)


def _row(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read ({error.strerror})", where=str(file)) from None
    except ValueError as error:
        raise BadInput(f"not JSON ({error})", where=str(file)) from None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        raise BadInput("not one row", where=str(file), wanted='{"input": value, …}')
    return found


def _answer(answer: dict[str, Any]) -> str:
    head = {
        "model": f"{answer['model']} version {answer['version']}",
        **(
            {"id": answer["id"], "event time": answer["event_time"], "arm": answer["arm"]}
            if "id" in answer
            else {}
        ),
        answer["output"]: answer["prediction"],
        f"base ({answer['scale']})": answer["base"],
        f"output ({answer['scale']})": answer["raw"],
        "method": answer["method"],
    }
    listed = table(
        [one for one in answer["inputs"] if one["contribution"]],
        [("input", "input"), ("value", lambda one: _value(one.get("value"))),
         ("contribution", lambda one: f"{one['contribution']:+.4f}"), ("direction", "direction")],
        empty="nothing moved this answer",
    )  # fmt: skip
    warned = (
        "" if answer.get("as_logged", True) else f"\nlogged was {answer['logged']}: not what it answers now"
    )
    return f"{pairs(head)}\n\n{listed}{warned}"


def _value(value: Any) -> str | None:
    # 2005 is a year here as well as a number: no separators.
    return f"{value:.6g}" if isinstance(value, float) else None if value is None else str(value)
