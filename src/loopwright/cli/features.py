"""features …"""

from loopwright.cli.feature_health import health, parity
from loopwright.cli.lazy import subcommands


@subcommands()
def features() -> None:
    """Materialise, read and watch features."""


features.add_command(health)
features.add_command(parity)
