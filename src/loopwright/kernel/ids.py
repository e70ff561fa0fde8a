"""Identifiers that sort by the time they were made."""

import secrets
import threading
import time

_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """Return e.g. "ro_019a3f…": prefix, 14 hex digits of microseconds, 12 random hex digits.

    Ids made by one process sort in the order they were made, also within one microsecond.
    """
    global _last
    with _lock:
        _last = max(_last + 1, time.time_ns() // 1_000)
        moment = _last
    return f"{prefix}_{moment:014x}{secrets.token_hex(6)}"
