"""A worker that hangs when its supervisor is killed does not keep the port for ever."""

import socket
import subprocess
import sys

import pytest

HANGS = """
import sys, time
from loopwright.serving.orphan import end_with
end_with(int(sys.argv[1]), float(sys.argv[2]))
print("hangs", flush=True)
time.sleep(60)
"""


def test_a_process_that_hangs_ends_soon_after_whoever_it_belongs_to() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        hanging = subprocess.Popen(
            [sys.executable, "-c", HANGS, str(theirs.fileno()), "0.1"],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
        )
    with hanging:
        assert hanging.stdout and hanging.stdout.readline() == b"hangs\n"
        ours.sendall(b'{"ping": {}}\n')  # what is said meanwhile is for others
        with pytest.raises(subprocess.TimeoutExpired):
            hanging.wait(0.5)
        ours.close()
        assert hanging.wait(10) == 70
