"""Keeps standard output for the answer alone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stdout_for_the_answer() -> Iterator[None]:
    """Send what others print meanwhile (libraries in C too) to stderr, so that --json prints JSON and nothing else."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
