"""A model in a process of its own may crash, hang, fill and babble: its caller gets an error, then answers."""

import ast
import importlib
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwright.bundle import isolated
from loopwright.bundle.archive import scan_archive
from loopwright.bundle.forms import PYFUNC
from loopwright.bundle.isolated import IsolatedRunner, Limits, ModelFailed
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.pickles import scan_bytes
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.trust import SignedTrust, TrustRecord, sign_trust
from loopwright.kernel.errors import BadInput, Unavailable

MODELS = Path(__file__).with_name("models")
sys.path.insert(0, str(MODELS))
faulty: Any = importlib.import_module("faulty")

KEY = SigningKey.generate()
NUMBERS = Schema(
    inputs=(Field("act", "float64"), Field("x", "float64")),
    features=("act", "x"),
    outputs=("prediction",),
    task="regression",
)
QUICK = Limits(call_seconds=10, load_seconds=60, memory=1 << 30)
"""Enough for whatever answers, on a machine that stalls; who waits for a model that does not is `hurried`."""


def trust(data: bytes) -> SignedTrust:
    record = TrustRecord(
        digest=scan_bytes(data).digest, globals=scan_bytes(data).globals, requested_by="dora", approved_by="ada",
        reason="a test", at="",
    )  # fmt: skip
    return sign_trust(record, KEY)


def start(model: object = None, limits: Limits = QUICK) -> IsolatedRunner:
    data = pickle.dumps(model or faulty.Faulty())
    return IsolatedRunner("model.pkl", data, NUMBERS, limits=limits, trust=trust(data), keys=[KEY.public])


def rows(act: int, count: int = 1) -> np.ndarray[Any, Any]:
    return np.column_stack([np.full(count, act), np.arange(count)]).astype(np.float32)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def hurried(runner: IsolatedRunner) -> Iterator[None]:
    """Two seconds for a call."""
    runner.limit(2.0)
    try:
        yield
    finally:
        runner.limit(QUICK.call_seconds)


def eventually(check: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until, "it never came so"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def runner() -> Iterator[IsolatedRunner]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(MODELS))
        environment.setenv("A_TOKEN", "secret")
        found = start()
        yield found
        found.close()


def answers(runner: IsolatedRunner) -> bool:
    """It gives right answers within the time a new process takes to load."""
    until = time.monotonic() + 60
    while True:
        try:
            return np.array_equal(np.ravel(runner(rows(faulty.WELL, 3))), [0, 2, 4])
        except Unavailable:
            if time.monotonic() > until:
                raise


def test_rows_are_answered_in_order_and_a_models_own_error_costs_no_process(runner: IsolatedRunner) -> None:
    assert np.array_equal(np.ravel(runner(rows(faulty.WELL, 5000))), np.arange(5000) * 2.0)
    pid = runner.pid
    with pytest.raises(ModelFailed, match="ValueError: no such carrier"):
        runner(rows(faulty.RAISES))
    with pytest.raises(ModelFailed, match="2 rows with an array of"):
        runner(rows(faulty.SHORT, 2))
    assert answers(runner) and runner.pid == pid
    assert runner.memory() > 5 << 20


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (faulty.ENDS, "exit status 3"),
        (faulty.HANGS, "no answer in 2.02 s"),
        (faulty.BABBLES, "something that is no answer: a frame of kind 255"),
        (faulty.SHOUTS, "exit status 4.*line 19999 of many"),
    ],
)
def test_a_process_that_fails_is_replaced_and_the_error_says_how_it_ended(
    runner: IsolatedRunner, act: int, said: str
) -> None:
    assert answers(runner)
    pid = runner.pid
    assert pid
    started = time.monotonic()
    hurry = hurried(runner) if act == faulty.HANGS else nullcontext()
    with hurry, pytest.raises(Unavailable, match=said) as caught:
        runner(rows(act))
    assert (
        time.monotonic() - started < QUICK.call_seconds
    )  # an end is seen as it comes, not when the time is over
    assert len(str(caught.value)) < 3000
    assert gone(pid) and runner.pid != pid
    assert answers(runner)


def test_a_process_gets_no_more_memory_than_it_may_have(runner: IsolatedRunner) -> None:
    with pytest.raises(ModelFailed, match="MemoryError"):
        runner(rows(faulty.FILLS))
    assert answers(runner)


def test_a_process_sees_neither_the_workers_files_nor_its_environment(
    runner: IsolatedRunner, tmp_path: Path
) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        other = start()
        with pytest.raises(ModelFailed) as caught:
            other(rows(faulty.TELLS))
        other.close()
    names, files, leads = ast.literal_eval(str(caught.value).removeprefix("ValueError: "))
    assert "A_TOKEN" not in names and "OMP_NUM_THREADS" in names
    kinds = {file.partition(":")[0] for file in files}
    assert kinds == {"/dev/null", "pipe", "socket"}, "its ends of two lines, and nothing else"
    assert leads


def test_a_model_that_fails_every_time_is_left_alone_longer_and_longer(runner: IsolatedRunner) -> None:
    assert answers(runner)
    with pytest.raises(Unavailable):
        runner(rows(faulty.ENDS))
    until = time.monotonic() + 60
    while True:  # a new process may still be loading
        with pytest.raises(Unavailable) as caught:
            runner(rows(faulty.ENDS))
        if "failed and was replaced" in str(caught.value):
            break
        assert time.monotonic() < until
    with pytest.raises(Unavailable, match=r"failed 2 times in a row; it is tried again in .*exit status 3"):
        runner(rows(faulty.WELL))
    assert answers(runner)


def test_a_call_that_a_new_process_is_ready_for_too_late_costs_no_process(
    runner: IsolatedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers(runner)
    pid = runner.pid
    waited = isolated._Child.wait_until_ready

    def slow(child: isolated._Child, until: float) -> None:
        waited(child, until)
        time.sleep(max(0.0, until - time.monotonic()))

    with monkeypatch.context() as patch, hurried(runner):
        patch.setattr(isolated._Child, "wait_until_ready", slow)
        with pytest.raises(Unavailable, match="too late for this call"):
            runner(rows(faulty.WELL))
    assert runner.pid == pid and answers(runner)


def test_calls_of_several_threads_take_turns_while_the_others_go_on(runner: IsolatedRunner) -> None:
    assert answers(runner)
    results: dict[int, Any] = {}

    def call(number: int) -> None:
        results[number] = np.ravel(runner(rows(faulty.WELL, number + 1)))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(results[number], np.arange(number + 1) * 2.0) for number in range(8))


def test_what_cannot_be_loaded_says_why_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    with pytest.raises(BadInput, match="No module named 'faulty'"):
        start()
    with pytest.raises(BadInput, match="cannot be loaded: LightGBMError"):
        IsolatedRunner("model.lightgbm.txt", b"no model", NUMBERS, limits=QUICK)


def program(mark: Path) -> bytes:
    """A pyfunc that leaves a mark when it is loaded."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("MLmodel", "flavors: {python_function: {loader_module: marks, code: code}}")
        archive.writestr("code/marks.py", f"open({str(mark)!r}, 'w').close()\ndef _load_pyfunc(path): ...")
    return packed.getvalue()


@pytest.mark.parametrize("record", ["none", "of other bytes", "of another key"])
def test_a_program_that_nobody_trusts_is_not_run_even_in_its_own_process(tmp_path: Path, record: str) -> None:
    data = program(tmp_path / "mark")
    about = scan_archive(data if record == "of another key" else program(tmp_path / "other"))
    said = TrustRecord(
        digest=about.digest,
        globals=about.globals,
        requested_by="dora",
        approved_by="ada",
        reason="a test",
        at="",
    )
    signed = sign_trust(said, SigningKey.generate() if record == "of another key" else KEY)
    with pytest.raises(BadInput, match=r"trust record|key"):
        IsolatedRunner(
            PYFUNC, data, NUMBERS, limits=QUICK, trust=None if record == "none" else signed, keys=[KEY.public]
        )
    assert not (tmp_path / "mark").exists()


def test_closing_ends_the_process_and_the_last_reference_does_too(runner: IsolatedRunner) -> None:
    one = start()
    pid = one.pid
    assert pid
    one.close()
    one.close()
    assert gone(pid)
    with pytest.raises(Unavailable, match="left memory"):
        one(rows(faulty.WELL))
    two = start()
    pid = two.pid
    assert pid
    del two
    assert gone(pid)


@pytest.mark.parametrize("closed", [True, False])
def test_what_a_model_started_ends_with_its_process(runner: IsolatedRunner, closed: bool) -> None:
    assert answers(runner)
    one = start() if closed else runner
    started = int(one(rows(faulty.FORKS))[0, 0])
    assert not gone(started)
    if closed:
        one.close()
    else:
        with hurried(one), pytest.raises(Unavailable):
            one(rows(faulty.HANGS))
    eventually(lambda: gone(started))


def test_a_call_under_way_ends_when_its_runner_is_closed(runner: IsolatedRunner) -> None:
    one = start(limits=Limits(call_seconds=60))
    caught: list[BaseException] = []

    def call() -> None:
        try:
            one(rows(faulty.HANGS))
        except Unavailable as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.2)
    one.close()
    thread.join(5)
    assert not thread.is_alive() and "left memory" in str(caught[0])


def test_a_killed_worker_leaves_no_process_even_one_that_hangs(runner: IsolatedRunner) -> None:
    program = (
        "import sys, threading\n"
        f"sys.path[:0] = [{str(MODELS)!r}, {str(Path(__file__).parent)!r}]\n"
        "import test_isolated as tests\n"
        "from loopwright.bundle.isolated import Limits\n"
        # Started from a thread that ends: the process must outlive that, and only that.
        "held = []\n"
        "thread = threading.Thread(target=lambda: held.append(tests.start(limits=Limits(call_seconds=60))))\n"
        "thread.start(); thread.join()\n"
        "held[0](tests.rows(tests.faulty.WELL))\n"
        "print(held[0].pid, flush=True)\n"
        "held[0](tests.rows(tests.faulty.HANGS))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert worker.stdout
    pid = int(worker.stdout.readline())
    assert not gone(pid)
    time.sleep(0.2)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    eventually(lambda: gone(pid))
