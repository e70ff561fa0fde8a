"""Ends a worker whose supervisor is gone and that does not end by itself.

A worker that hangs does not hear that. It would keep the port: no other server could start there.
"""

import os
import select
import threading
import time

EXIT_CODE = 70


def end_with(line: int, seconds: float) -> None:
    """Watch the descriptor `line` of a connection: `seconds` after its other end is gone, this process ends.

    In a thread, so that it works whatever the others wait for; costs nothing until then.
    """
    watched = os.dup(line)
    threading.Thread(target=_watch, args=(watched, seconds), name="orphan", daemon=True).start()


def _watch(line: int, seconds: float) -> None:
    poll = select.poll()
    poll.register(line, 0)  # a hang-up is always told
    poll.poll()
    time.sleep(seconds)
    os._exit(EXIT_CODE)
