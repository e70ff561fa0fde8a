"""One model in a process of its own: `python -m loopwright.bundle.model_process SOCKET MODEL PARENT`.

SOCKET and MODEL are inherited descriptors, of the line to the worker and of the verified bytes; PARENT is the worker's
pid. It ends when the worker does, whatever it is doing just then. See `isolated` for the worker's side, `model_wire`
for what they say.
"""

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import time
from typing import Any

import msgspec
import numpy as np

from loopwright.bundle.keys import PublicKey
from loopwright.bundle.model_wire import (
    MAX_HELLO,
    MAX_TEXT,
    Kind,
    matrix_of,
    receive,
    send,
    shaped,
)
from loopwright.bundle.natives import Answers, load
from loopwright.bundle.signature import Schema
from loopwright.bundle.trust import SignedTrust
from loopwright.kernel.errors import LoopwrightError

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_FILES = 256


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """What to load, and the bounds to keep. memory: bytes of data; request: the most bytes of one PREDICT."""

    file: str
    schema: Schema
    memory: int
    request: int
    trust: SignedTrust | None = None
    keys: tuple[str, ...] = ()


def main(arguments: list[str]) -> int:
    """Load, say READY or ERROR, then answer until the worker closes its end."""
    peer_number, model_number, parent = map(int, arguments)
    _die_with(parent)
    peer = socket.socket(fileno=peer_number)
    _, raw = receive(peer, {Kind.HELLO: MAX_HELLO}, time.monotonic() + 30)
    hello = msgspec.json.decode(raw, type=Hello)
    peer.settimeout(None)
    _limit(hello.memory)
    try:
        answers = _loaded(hello, model_number)
    except BaseException as error:  # noqa: BLE001 - the worker is told, whatever a library raises
        send(peer, Kind.ERROR, _text(error))
        return 1
    gc.collect()
    gc.freeze()
    send(peer, Kind.READY)
    while True:
        try:
            _, asked = receive(peer, {Kind.PREDICT: hello.request})
        except EOFError:
            return 0
        _answer(peer, answers, matrix_of(asked, "<f4"))


def _answer(peer: socket.socket, answers: Answers, features: np.ndarray[Any, Any]) -> None:
    try:
        found = np.asarray(answers(features), dtype=np.float64)
        if not found.size or not found.ndim or len(found) != len(features):
            raise ValueError(f"the model answered {len(features)} rows with an array of {found.shape}")
        parts = shaped(found.reshape(len(found), -1), "<f8")
    except Exception as error:  # noqa: BLE001 - whatever a model raises is its answer
        send(peer, Kind.ERROR, _text(error))
        return
    send(peer, Kind.ANSWER, *parts)


def _loaded(hello: Hello, model: int) -> Answers:
    # Opened anew: the position in an inherited descriptor is shared with whoever has it too.
    with open(f"/proc/self/fd/{model}", "rb") as file:  # noqa: PTH123 - a descriptor, not a place
        data = file.read()
    os.close(model)
    keys = [PublicKey.from_text(text) for text in hello.keys]
    return load(hello.file, data, hello.schema, hello.trust, keys)


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process when the worker's ends; at once when it has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        libc.prctl(option, int(value), 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != parent:
        os._exit(0)


def _limit(memory: int) -> None:
    # Of data, not of addresses: libraries map far more than they use.
    for limit, value in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _FILES),
    ):
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _text(error: BaseException) -> bytes:
    said = str(error) if isinstance(error, LoopwrightError) else f"{type(error).__name__}: {error}"
    return said.encode(errors="replace")[:MAX_TEXT]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
