"""The edge of the command line: where errors become one paragraph and an exit code."""

import os
import sys
import textwrap
import traceback
from collections.abc import Sequence

import click

from loopwright.cli.commands import loopwright
from loopwright.control.faults import explain
from loopwright.kernel.errors import LoopwrightError

OK, NO, BAD = 0, 1, 2


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0 ok, 1 the answer is no, 2 bad usage or input.

    Whatever goes wrong is one paragraph on stderr; `--debug` adds the traceback.
    """
    try:
        code = loopwright.main(list(arguments), prog_name="loopwright", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return BAD
    except click.UsageError as error:
        error.show()
        return BAD
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except click.ClickException as error:
        click.echo(f"loopwright: {error.format_message()}", err=True)
        return BAD
    except Exception as error:  # noqa: BLE001 - the edge: whatever it is becomes one paragraph
        return _told(error, debug="--debug" in arguments)
    return code if isinstance(code, int) else OK


def _told(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    known = error if isinstance(error, LoopwrightError) else explain(error)
    if known is None:
        _say(
            f"an unexpected error, {type(error).__name__}: {error}. This is a fault of ours; "
            "run the command again with --debug for the details to report."
        )
        return BAD
    _say(str(known))
    return known.exit_code


def _say(text: str) -> None:
    paragraph = " ".join(f"loopwright: {text}".split())
    if sys.stderr.isatty():
        paragraph = textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False)
    click.echo(paragraph, err=True)
