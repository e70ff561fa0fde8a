"""Runs a model in a process of its own: what it crashes, fills or hangs there leaves the worker as it was.

The process gets verified bytes in a sealed memory file, never a path; no descriptor, no secret and no setting of the
worker besides. One call at a time; while it waits, other threads of the worker go on. This keeps a worker safe from a
model's faults. It is no jail: the process runs as the worker's user, so that what it loads has to be trusted still.
"""

import fcntl
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loopwright.bundle.keys import PublicKey
from loopwright.bundle.model_wire import (
    MAX_COLUMNS,
    MAX_TEXT,
    Garbled,
    Kind,
    matrix_bytes,
    matrix_of,
    receive,
    send,
    shaped,
)
from loopwright.bundle.signature import Schema
from loopwright.bundle.trust import SignedTrust
from loopwright.kernel.errors import BadInput, LoopwrightError, Unavailable

_SETTINGS = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""What of the worker's environment the process sees: nothing of it is a secret."""

_THREADS = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
_TAIL = 8 << 10
_LONGEST_PAUSE = 30.0
_HICCUP = 0.1
"""Seconds that a machine may stall: what a fast model has left for an answer must be more."""

_GRACE = 1.0


class ModelFailed(LoopwrightError):
    """The model raised for these rows; its process is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a model's process may take.

    memory: bytes of data. load_seconds: until it is ready. call_seconds: for one row; a hundred rows get twice that.
    request: the most bytes of features in one call.
    """

    memory: int = 4 << 30
    load_seconds: float = 60.0
    call_seconds: float = 10.0
    request: int = 1 << 30


class IsolatedRunner:
    """A `Runner` whose model lives in a child process. Safe to use from several threads; calls take turns.

    A call that takes too long, or during which the process ends, fails with Unavailable and what the process said last;
    the process is started again at once, and after further failures with a growing pause. `close` ends it for good, as
    does losing the last reference.
    """

    isolated = True

    def __init__(
        self,
        file: str,
        model: bytes,
        schema: Schema,
        *,
        limits: Limits | None = None,
        trust: SignedTrust | None = None,
        keys: Sequence[PublicKey] = (),
    ) -> None:
        """Start the process and wait until it is ready; raises BadInput with its reason when it cannot load."""
        self.limits = limits or Limits()
        self._file, self._size = file, len(model)
        self._hello = msgspec.json.encode(
            {
                "file": file,
                "schema": schema.to_json(),
                "memory": self.limits.memory,
                "request": self.limits.request,
                "trust": None if trust is None else msgspec.to_builtins(trust),
                "keys": [key.to_text() for key in keys],
            }
        )
        self._turn = threading.Lock()
        self._failures, self._not_before, self._why = 0, 0.0, ""
        self._closed = False
        self._seconds = self.limits.call_seconds
        self._slowest: float | None = None
        """Seconds of the slowest good answer, for one row."""
        self._held = _Held(_memory_file(model))
        self._finalizer = weakref.finalize(self, self._held.release)
        try:
            with self._turn:
                self._start().wait_until_ready(time.monotonic() + self.limits.load_seconds)
        except (TimeoutError, EOFError, Garbled, OSError) as error:
            said = self._held.child.said() if self._held.child else ""
            self.close()
            if isinstance(error, LoopwrightError):
                raise
            raise BadInput(
                "the model's process did not become ready",
                where=file,
                got=f"{_reason(error, self.limits.load_seconds)}{said}",
            ) from error
        except BaseException:
            self.close()
            raise

    def __call__(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return the model's numbers for float32 (n, f); raises ModelFailed, or Unavailable when the process failed."""
        seconds = self._seconds * (1 + len(features) / 100)
        until = time.monotonic() + seconds
        if not self._turn.acquire(timeout=seconds):
            raise Unavailable(
                "the model's process is busy", where=self._file, wanted=f"an answer in {seconds:g} s"
            )
        try:
            return self._call(features, until, seconds)
        finally:
            self._turn.release()

    def memory(self) -> int:
        """Bytes in memory on behalf of this model: the process's own and the file it was loaded from."""
        child = self._held.child
        return self._size + (child.resident() if child else 0)

    @property
    def pid(self) -> int | None:
        """The process's id, for the operator's eyes; None while there is none."""
        child = self._held.child
        return child.process.pid if child else None

    def limit(self, seconds: float) -> None:
        """Bound a call of one row to `seconds` from now on."""
        self._seconds = seconds

    def close(self) -> None:
        """End the process; a call under way fails. Is idempotent."""
        self._closed = True
        child = self._held.child
        if child is not None:
            child.ask_to_end(_GRACE)
        self._finalizer()

    def _call(self, features: NDArray[np.float32], until: float, seconds: float) -> NDArray[Any]:
        child = self._child(until)
        try:
            child.wait_until_ready(min(until, child.started + self.limits.load_seconds))
            # The little that waiting for its turn, or for the process, has left would blame a model that is well.
            began, share = time.monotonic(), 1 + len(features) / 100
            wanted = seconds / 2 if self._slowest is None else max(_HICCUP, 2 * self._slowest * share)
            late = until - began < min(wanted, seconds / 2)
            answer = None if late else child.answer(features, until)
            if answer is not None:
                self._slowest = max(self._slowest or 0.0, (time.monotonic() - began) / share)
        except ModelFailed:
            raise
        except BaseException as error:
            if isinstance(error, TimeoutError) and not child.ready and time.monotonic() < child.load_until:
                raise Unavailable(
                    "the model's process is starting again", where=self._file, got=self._why or None
                ) from None
            raise self._failed(child, error, seconds) from error
        if answer is None:
            raise Unavailable(
                "the model's process was free, or ready, too late for this call", where=self._file,
                got=self._why or None, wanted="time for the answer",
            )  # fmt: skip
        self._failures, self._why = 0, ""
        return answer

    def _child(self, until: float) -> "_Child":
        if self._closed:
            raise Unavailable("this version has left memory", where=self._file)
        if self._held.child is not None:
            return self._held.child
        pause = self._not_before - time.monotonic()
        if pause > 0:
            raise Unavailable(
                f"the model's process failed {self._failures} times in a row; it is tried again in {pause:.1f} s",
                where=self._file,
                got=self._why,
            )
        return self._start()

    def _start(self) -> "_Child":
        model = self._held.descriptor()
        if model < 0:
            raise Unavailable("this version has left memory", where=self._file)
        try:
            child = _Child(model, self._hello, self.limits)
        finally:
            os.close(model)
        self._held.child = child
        if self._closed:
            self._held.release()
            raise Unavailable("this version has left memory", where=self._file)
        return child

    def _failed(self, child: "_Child", error: BaseException, seconds: float) -> BaseException:
        """End the process and prepare the next; returns what to raise."""
        self._held.child = None
        status = child.end()
        self._failures += 1
        # The first failure is answered at once by a new process; a model that fails at every call is left alone longer.
        pause = 0.0 if self._failures == 1 else min(_LONGEST_PAUSE, 0.25 * 2 ** (self._failures - 2))
        self._not_before = time.monotonic() + pause
        self._why = f"{_reason(error, seconds, status)}{child.said()}"
        if self._closed:
            return Unavailable("this version has left memory", where=self._file)
        if not pause:
            with suppress(OSError):
                self._start()
        if not isinstance(error, Exception):
            return error
        return Unavailable("the model's process failed and was replaced", where=self._file, got=self._why)


class _Held:
    """What outlives no runner: the model's bytes and the process."""

    def __init__(self, model: int) -> None:
        self.model = model
        self.child: _Child | None = None
        self._lock = threading.Lock()

    def descriptor(self) -> int:
        """One more descriptor of the model's bytes, -1 when they are gone: their own may be closed at any moment, and
        its number be another file's.
        """
        with self._lock:
            return os.dup(self.model) if self.model >= 0 else -1

    def release(self) -> None:
        with self._lock:
            child, self.child = self.child, None
            model, self.model = self.model, -1
        if child is not None:
            child.end()
        if model >= 0:
            os.close(model)


class _Child:
    """One process, from its start to its end."""

    def __init__(self, model: int, hello: bytes, limits: Limits) -> None:
        self.started = time.monotonic()
        self.load_until = self.started + limits.load_seconds
        self.ready = False
        self._closing = threading.Lock()
        ours, theirs = socket.socketpair()
        said, saying = os.pipe()
        try:
            arguments = [str(theirs.fileno()), str(model), str(os.getpid())]
            self.process = _spawner.run(
                lambda: subprocess.Popen(
                    [sys.executable, "-s", "-P", "-m", "loopwright.bundle.model_process", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=saying,
                    stderr=saying,
                    pass_fds=(theirs.fileno(), model),
                    env={**{name: os.environ[name] for name in _SETTINGS if name in os.environ}, **_FIXED},
                    cwd="/",
                    # A terminal's Ctrl-C is for the supervisor alone.
                    start_new_session=True,
                )
            )
        except BaseException:
            ours.close()
            os.close(said)
            raise
        finally:
            theirs.close()
            os.close(saying)
        self._peer = ours
        self._tail = _Tail(said)
        try:
            send(ours, Kind.HELLO, hello, until=self.load_until)
        except BaseException:
            self.end()
            raise

    def wait_until_ready(self, until: float) -> None:
        """Return when it has loaded; TimeoutError after `until`. Raises BadInput with its reason when it cannot."""
        if self.ready:
            return
        poll = select.poll()
        poll.register(self._peer, select.POLLIN)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError
        kind, said = receive(self._peer, {Kind.READY: 0, Kind.ERROR: MAX_TEXT}, time.monotonic() + 5)
        if kind is Kind.ERROR:
            raise BadInput(f"the model cannot be loaded: {said.decode(errors='replace')}")
        self.ready = True

    def answer(self, features: NDArray[np.float32], until: float) -> NDArray[Any]:
        """One call; raises ModelFailed when the model does, TimeoutError, EOFError, Garbled or OSError."""
        rows = len(features)
        send(self._peer, Kind.PREDICT, *shaped(features, "<f4"), until=until)
        most = {Kind.ANSWER: matrix_bytes(rows, MAX_COLUMNS, 8), Kind.ERROR: MAX_TEXT}
        kind, data = receive(self._peer, most, until)
        if kind is Kind.ERROR:
            raise ModelFailed(data.decode(errors="replace"))
        answer = matrix_of(data, "<f8")
        if len(answer) != rows:
            raise Garbled(f"{len(answer)} rows for {rows}")
        return answer

    def resident(self) -> int:
        """Bytes it has in memory now and shares with nobody; 0 when it is gone."""
        try:
            _, resident, shared = Path(f"/proc/{self.process.pid}/statm").read_text().split()[:3]
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")

    def ask_to_end(self, seconds: float) -> None:
        """Close its line and give it a moment to clear away what it unpacked."""
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        until = time.monotonic() + seconds
        with suppress(ChildProcessError):  # ended in another thread
            while time.monotonic() < until and not self._has_ended():
                time.sleep(0.005)

    def _has_ended(self) -> bool:
        # Not waited for: until then its number, by which `end` finds what it started, is nobody else's.
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self) -> int:
        """Kill it, with every process that it started, and return its exit status."""
        with self._closing:
            if self.process.returncode is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            status = self.process.wait()
            self._tail.finish()
            with suppress(OSError):
                # Wakes a thread that is still waiting for an answer.
                self._peer.shutdown(socket.SHUT_RDWR)
            self._peer.close()
        return status

    def said(self) -> str:
        """The end of what it wrote, for an error's text."""
        return self._tail.text()


class _Tail:
    """Reads what the process writes, so that it never waits for a reader, and keeps the end of it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._kept = descriptor, bytearray()
        self._thread = threading.Thread(target=self._read, name="model-stderr", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        # A process it started may hold the other end for longer.
        self._thread.join(0.2)

    def text(self) -> str:
        lines = bytes(self._kept[-_TAIL:]).decode(errors="replace").strip().splitlines()
        return f"; it said: {' / '.join(lines[-6:])[-1000:]}" if lines else ""

    def _read(self) -> None:
        with suppress(OSError):
            while chunk := os.read(self._descriptor, 4096):
                self._kept += chunk
                del self._kept[:-_TAIL]
        os.close(self._descriptor)


class _Spawner:
    """Starts processes from one thread that lives as long as this process.

    The kernel ends a process whose parent's *thread* has ended (PR_SET_PDEATHSIG), so no passing thread may start one.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, start: Callable[[], "subprocess.Popen[bytes]"]) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._thread is None or self._pid != os.getpid():
                # After a fork the thread is not there.
                self._jobs, self._pid = queue.SimpleQueue(), os.getpid()
                self._thread = threading.Thread(target=self._work, name="model-spawner", daemon=True)
                self._thread.start()
        started: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((start, started))
        return started.result()

    def _work(self) -> None:
        jobs = self._jobs
        while True:
            start, started = jobs.get()
            try:
                started.set_result(start())
            except BaseException as error:  # noqa: BLE001 - belongs to whoever asked
                started.set_exception(error)
            del start, started


_spawner = _Spawner()

_FIXED = {
    **_THREADS,
    "HOME": "/nonexistent",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    # torch.load unpickles nothing but tensors then, whoever calls it.
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "CUDA_VISIBLE_DEVICES": "",
}


def _memory_file(data: bytes) -> int:
    """A descriptor of a file in memory that holds `data` and that nobody can change any more."""
    descriptor = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while len(view):
            view = view[os.write(descriptor, view) :]
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _reason(error: BaseException, seconds: float, status: int | None = None) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {seconds:g} s"
    if isinstance(error, Garbled):
        return f"something that is no answer: {error}"
    ended = "" if status is None else f" ({_exit(status)})"
    return (
        f"its process ended{ended}" if isinstance(error, (EOFError, OSError)) else str(error) or repr(error)
    )


def _exit(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
