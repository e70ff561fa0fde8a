"""The group `data`: its commands are in the files beside it."""

from loopwright.cli.checks import check
from loopwright.cli.contract_suites import COMMANDS as SUITES
from loopwright.cli.contracts import contract
from loopwright.cli.incidents import COMMANDS as INCIDENTS
from loopwright.cli.landings import COMMANDS as LANDINGS
from loopwright.cli.lazy import subcommands
from loopwright.cli.tables import COMMANDS as TABLES


@subcommands()
def data() -> None:
    """Contracts, checks, tables, snapshots, incidents, quarantine."""


for each in (check, contract, *INCIDENTS, *LANDINGS, *TABLES):
    data.add_command(each)
for each in SUITES:
    contract.add_command(each)
