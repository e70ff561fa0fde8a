"""data contract …"""

from loopwright.cli.lazy import subcommands


@subcommands()
def contract() -> None:
    """Infer, lint, compare and list data contracts."""
