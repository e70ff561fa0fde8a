"""Three servers behind a real HAProxy under load: deployed anew, killed, hung and cut off, and no request fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from loopwright.bundle.routes import Arm
from loopwright.exports.balancer import Address, Backend, Balancer

from .balancing import HAProxy, Network, free_port, haproxy, network
from .conftest import Control, eventually, launch
from .load import Load

PER_SECOND = 60.0


class Replica:
    """One `loopwright serve` in its own network, with a folder of its own."""

    def __init__(self, number: int, where: Network, control: Control, folder: Path, drain: float) -> None:
        self.network = where
        self.name = f"{where.host}:{where.port}"
        self._control, self._folder, self._drain = control, folder / f"replica-{number}", drain
        self._folder.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        where = self.network
        self.process, self.log = launch(
            self._folder, self._control, where.prefix, host=where.bind, port=where.listens, drain_seconds=self._drain,
            control=f"http://{where.control}:{self._control.port}",
        )  # fmt: skip

    @property
    def pids(self) -> list[int]:
        """The supervisor and its workers."""
        assert self.process is not None
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def signal(self, number: signal.Signals) -> None:
        """To all of them: the whole machine stops, not one process of it."""
        for pid in self.pids:
            os.kill(pid, number)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self.process.wait(20)
        self.network.close()


@pytest.fixture
def replicas(control: Control, tmp_path: Path) -> Iterator[list[Replica]]:
    control.stop()
    control.host = "0.0.0.0"
    control.port = 0
    control.start()
    control.route({1: control.bundle("one")}, Arm("stable", 1, 1.0))
    made: list[Replica] = []
    try:
        for number in range(3):
            made.append(Replica(number, network(number), control, tmp_path, drain=5.0))
        for each in made:
            each.start()
        yield made
    finally:
        for each in made:
            each.close()


@pytest.fixture
def balancer(replicas: list[Replica], tmp_path: Path) -> Iterator[HAProxy]:
    asked = Balancer(
        backends=tuple(Backend(Address(each.network.host, each.network.port)) for each in replicas),
        listen=Address("127.0.0.1", free_port()), metrics=Address("127.0.0.1", free_port()),
        timeout=timedelta(seconds=3), connect_timeout=timedelta(seconds=0.5), check_every=timedelta(seconds=1),
        slow_start=timedelta(seconds=1),
    )  # fmt: skip
    assert asked.drain_seconds == 5
    with haproxy(asked, tmp_path) as running:
        everyone = {each.name for each in replicas}
        # Before its first check a replica counts as up.
        eventually(lambda: all("serving late at" in each.log.read_text() for each in replicas), 60)
        eventually(lambda: running.up() == everyone, 30)
        yield running


def test_no_request_fails_while_replicas_are_deployed_killed_hung_and_cut_off(
    control: Control, replicas: list[Replica], balancer: HAProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    everyone = {each.name for each in replicas}
    story: list[str] = []

    def down(replica: Replica) -> None:
        eventually(lambda: replica.name not in balancer.up(), 30)

    def all_up() -> None:
        eventually(lambda: balancer.up() == everyone, 60)

    with Load(balancer.port, per_second=PER_SECOND, units=50) as load:

        def told(what: str, since: float) -> None:
            story.append(load.report(what, since))

        began = load.now()
        for each in replicas:
            assert each.stop() == 0
            each.start()
            all_up()
        told("rolling deploy of three", began)

        began = load.now()
        replicas[0].signal(signal.SIGKILL)
        assert replicas[0].process is not None
        replicas[0].process.wait(20)
        down(replicas[0])
        replicas[0].start()
        all_up()
        told("one killed", began)

        began = load.now()
        replicas[1].signal(signal.SIGSTOP)
        down(replicas[1])
        time.sleep(1.0)
        replicas[1].signal(signal.SIGCONT)
        all_up()
        told("one hung", began)

        began = load.now()
        replicas[2].network.cut()
        down(replicas[2])
        time.sleep(1.0)
        replicas[2].network.heal()
        all_up()
        told(f"one cut off ({type(replicas[2].network).__name__.lower()})", began)
        time.sleep(0.5)
    story.append(load.report("in all"))
    with capsys.disabled():
        sys.stdout.write("\n  ".join(["", *story, ""]))
    assert load.failures == [], "\n".join([*story, balancer.log.read_text()[-3000:]])
    assert len(load.sent) > 5 * PER_SECOND
    # A request waits for a silent replica, or one after another, only as long as the balancer was told: 3 s each.
    assert load.p(99) < 7.0
    for each in replicas:
        assert each.stop() == 0
    answered = {f"r{number}" for number in range(len(load.sent))}
    logged = {event.id for event in control.events}
    missing = len(answered - logged)
    # A killed machine's log is on its disk, from where its successor ships it.
    assert missing == 0
