"""demo flights."""

from pathlib import Path

import click

from loopwright.cli.session import Session, command
from loopwright.kernel.errors import BadInput, did_you_mean

DEMOS = ("flights",)


@command("demo")
@click.argument("name", default="flights")
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep the home in this folder."
)
def demo(session: Session, name: str, keep: Path | None) -> int:
    """Take a model through its whole life on real data."""
    if name not in DEMOS:
        raise BadInput("no such demo", got=name, wanted=", ".join(DEMOS), next=did_you_mean(name, DEMOS))
    from loopwright.demo.flights import run

    return run(keep=None if keep is None else keep.absolute())
