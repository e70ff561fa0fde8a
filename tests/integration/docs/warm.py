"""A `loopwright` that starts warm: each command runs in a process of its own, forked from one that has imported it all.

What a command imports takes seconds and is the same each time; what it does, its arguments, folder, environment and
outputs are those of a command typed at a shell. A page of fifty commands would otherwise be mostly waiting.
"""

import array
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

CLIENT = """
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
said = json.dumps({{"words": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}).encode()
server.sendmsg([len(said).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
server.sendall(said)
answer = server.recv(1)
sys.exit(answer[0] if answer else 1)
"""


class Warm:
    """A server of commands. `program`: a file that does what `python -m loopwright` does."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.short = tempfile.TemporaryDirectory(prefix="lw-")  # a socket's path has at most 107 characters
        path = Path(self.short.name) / "warm.sock"
        self.program = folder / "loopwright"
        client = folder / "client.py"
        client.write_text(CLIENT.format(path=str(path)))
        self.program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {client} "$@"\n')
        self.program.chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(path)], env=environment, cwd=folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        """End it; commands that run end with it."""
        self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.short.cleanup()


def serve(path: str) -> None:
    """Import what commands import, then fork one process for each that asks, until told to stop."""
    from loopwright.cli.commands import SECTIONS
    from loopwright.control.operation import every_operation

    every_operation()
    for name in ("mlflow", "loopwright.cli.edge", "loopwright.control.client", "loopwright.registry.entry"):
        import_module(name)
    for section in SECTIONS:
        for place, _ in section.commands.values():
            import_module(f"loopwright.cli.{place.partition(':')[0]}")
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(16)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        asked, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with asked:
                os._exit(run(asked))
        asked.close()


def run(asked: socket.socket) -> int:
    """Be the command that was asked for, and tell its exit code."""
    head, ancillary, _, _ = asked.recvmsg(4, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    descriptors = array.array("i", ancillary[0][2])
    size, said = int.from_bytes(head, "big"), b""
    while len(said) < size:
        said += asked.recv(size - len(said))
    command = json.loads(said)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv = ["loopwright", *command["words"]]
    from loopwright.cli import main

    code = 1
    try:
        code = main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        asked.sendall(bytes([code & 255]))
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    serve(sys.argv[1])
