"""Says to whoever works that it is to stop; may be set from a signal handler."""

import os
import select
from dataclasses import dataclass, field


@dataclass
class Stop:
    """Like `threading.Event`, whose `set` waits for a lock that the interrupted `wait` may hold: for ever."""

    _said: bool = False
    _pipe: tuple[int, int] = field(default_factory=os.pipe)

    def set(self) -> None:
        """Stop. Is idempotent; wakes whoever waits."""
        if not self._said:
            self._said = True
            os.write(self._pipe[1], b".")

    def is_set(self) -> bool:
        return self._said

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, at most so long; whether it is."""
        if not self._said:
            poll = select.poll()  # `select` takes no descriptor above 1023
            poll.register(self._pipe[0], select.POLLIN)
            poll.poll(max(0.0, seconds) * 1000)
        return self._said

    def __del__(self) -> None:
        for end in self._pipe:
            os.close(end)
