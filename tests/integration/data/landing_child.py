"""Lands batches in forks of one warm process, so that many can be killed in little time.

Reads one JSON job a line: {root, lake, steps, deadly, kill_after}; answers with how the fork ended. A step is
["land", file, contract, hour] or ["rebuild", contract, hour]. `deadly`: where the fork kills itself, like
"before silver"; `kill_after`: seconds after which it is killed from outside.
"""

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from loopwright.data import ingest as ingesting
from loopwright.data import lease, rebuild
from loopwright.data.contract import Contract
from loopwright.data.ingest import ingest
from loopwright.data.lake import Lake
from loopwright.data.source import resolve
from loopwright.kernel.actor import SYSTEM
from loopwright.ledger.engine import Ledger

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
# A killed holder keeps the others out for so long; tests wait less, but a machine that stalls must not lose a lease.
lease.TTL = timedelta(seconds=3)


def tell(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def perish(where: str, deadly: str) -> None:
    if where == deadly:
        os.kill(os.getpid(), signal.SIGKILL)


def work(job: dict[str, Any]) -> None:
    root, deadly = Path(job["root"]), job.get("deadly", "")

    class Fragile(Lake):
        def commit(self, layer: Any, *args: Any, **named: Any) -> int:
            perish(f"before {layer}", deadly)
            version = super().commit(layer, *args, **named)
            perish(f"after {layer}", deadly)
            return version

    real = ingesting.ledger_store.append

    def append(*args: Any, **named: Any) -> Any:
        if named["action"].startswith("data."):
            perish("in the ledger", deadly)
        return real(*args, **named)

    ingesting.ledger_store.append = append
    ledger = Ledger.open(f"sqlite:///{root / 'ledger.db'}")
    lake = Fragile(job["lake"], ledger, staging=root / "staging")
    for step in job["steps"]:
        contract = Contract.load(root / step[-2])
        now = NOON + timedelta(hours=step[-1])
        if step[0] == "land":
            ingest(
                lake,
                model="m",
                table="t",
                source=resolve(step[1], root),
                contract=contract,
                actor=SYSTEM,
                now=now,
            )
        else:
            rebuild.rebuild(lake, model="m", table="t", contract=contract, actor=SYSTEM, now=now)
    ledger.dispose()


def main() -> None:
    tell("ready")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                work(json.loads(line))
            except BaseException as error:  # noqa: BLE001 - a fork must not go on as its parent
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        tell(os.waitstatus_to_exitcode(ended(pid, json.loads(line).get("kill_after"))))


def ended(pid: int, kill_after: float | None) -> int:
    """Wait for a fork, and kill it when its time is over."""
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while deadline is not None and time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.001)
    if deadline is not None:
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


if __name__ == "__main__":
    main()
