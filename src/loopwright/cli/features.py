"""features …"""

from loopwright.cli.lazy import subcommands


@subcommands()
def features() -> None:
    """Materialise, read and watch features."""
