"""The command line: one thin file per stage, imported only when its command is called."""

import sys


def main() -> int:
    """Run the command line on `sys.argv`; returns the exit code: 0 ok, 1 the answer is no, 2 bad input."""
    from loopwright.cli.edge import run  # click costs 80 ms: not for whoever only imports the package

    return run(sys.argv[1:])
