"""features test"""

from pathlib import Path
from typing import Any

import click

from loopwright.cli.session import Session, command
from loopwright.cli.show import Column, table


@command("test")
@click.argument("model")
@click.option(
    "--project", type=click.Path(path_type=Path), help="The project's folder, before its first run."
)
def test(session: Session, model: str, project: Path | None) -> int:
    """Run the tests of a model's feature views over all rows that are there now.

    Exit code 1 when one that blocks has failed: training would be refused.
    """
    answer = session.call(
        "feature_tests.run", model=model, project=str(project.absolute()) if project else None
    )
    session.show(answer, _results)
    return 1 if answer["failed"] else 0


def _results(answer: dict[str, Any]) -> str:
    columns: list[Column] = [
        ("view", "view"), ("test", "name"), ("state", "state"), ("failed", "failed"), ("rows", "rows"),
        ("condition", "condition"), ("first", lambda one: ", ".join(one["examples"])),
    ]  # fmt: skip
    return table(answer["tests"], columns, empty="no view has a test; give it one: tests={name: condition}")
