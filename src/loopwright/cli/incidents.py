"""data incident|quarantine …, data backfill"""

from loopwright.cli.lazy import subcommands


@subcommands()
def incident() -> None:
    """Show and work on data-quality incidents."""
