"""Predictions in Kafka and ClickHouse: with the real clients, whatever is killed, away or full."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Message, TopicPartition

from loopwright.bundle.routes import Arm, LogPolicy, ServingPolicy
from loopwright.bundle.testing import route_for
from loopwright.cli.commands import loopwright
from loopwright.control.context import open_context
from loopwright.control.identify import LOCAL
from loopwright.ledger import store as ledger_store
from loopwright.monitoring.log import PredictionLog
from loopwright.serving.events import Event, SegmentWriter, frame

HERE = Path(__file__).parent
STABLE = Arm("stable", 1, 1.0)


@dataclass
class Broker:
    """A broker process, and a consumer's eye on it."""

    process: subprocess.Popen[str]
    address: str

    def messages(self, topic: str) -> list[Message]:
        """Everything that is in the topic now, each partition in its order."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "test", "log_level": 0})
        try:
            found: list[Message] = []
            partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            for number in partitions:
                place = TopicPartition(topic, number, 0)
                _, high = consumer.get_watermark_offsets(place, timeout=10)
                consumer.assign([place])
                here: list[Message] = []
                until = time.monotonic() + 10
                while len(here) < high and time.monotonic() < until:
                    here += [one for one in consumer.consume(1000, 0.2) if one.error() is None]
                assert len(here) == high
                found += here
            return found
        finally:
            consumer.close()

    def values(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(message.value() or b"") for message in self.messages(topic)]

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with subprocess.Popen(
        [sys.executable, str(HERE / "broker.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield Broker(process, process.stdout.readline().strip())
        process.kill()


def uid_of(message: Message) -> str:
    return dict(message.headers() or [])["uid"].decode()  # type: ignore[union-attr]


def event(number: int) -> Event:
    return Event(
        f"e{number}", f"unit-{number % 7}", 1_364_792_400_000_000 + number, 1_364_792_400_000_000, "late", 1, "stable",
        100, "ok", "", [float(number), None], [number / 1000],
    )  # fmt: skip


def feed(folder: Path, url: str, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "feed_once.py"), str(folder), url, how],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def written(folder: Path, count: int) -> Path:
    log = SegmentWriter(folder, "w0", rotate=20_000)
    for number in range(count):
        log.append(frame(event(number)))
    return folder


def test_killed_between_confirmation_and_memory_kafka_has_every_row_and_tells_the_second_copy_by_its_uid(
    tmp_path: Path, broker: Broker
) -> None:
    folder, url = written(tmp_path, 500), f"kafka://{broker.address}/killed"
    assert feed(folder, url, "kill").returncode == -signal.SIGKILL
    first = len(broker.messages("killed"))
    assert first > 0
    done = feed(folder, url, "go")
    assert done.returncode == 0, done.stderr
    messages = broker.messages("killed")
    assert len(messages) == 500 + first
    once = {uid_of(message): json.loads(message.value() or b"")["id"] for message in messages}
    assert sorted(once.values()) == sorted(f"e{number}" for number in range(500))
    for message in messages:
        told = json.loads(message.value() or b"")
        assert (message.key() or b"").decode() == told["unit"]
        assert told["uid"] == uid_of(message)
        assert dict(message.headers() or []) == {  # type: ignore[arg-type]
            "uid": told["uid"].encode(), "schema": b"1", "model": b"late", "version": b"1",
        }  # fmt: skip
    # A unit's messages are in one partition, and there in the order of its predictions (but for the second copies).
    for unit in range(7):
        mine = [message for message in messages if message.key() == f"unit-{unit}".encode()]
        assert len({message.partition() for message in mine}) == 1
        seen = list(dict.fromkeys(json.loads(message.value() or b"")["id"] for message in mine))
        assert seen == [f"e{number}" for number in range(unit, 500, 7)]


def test_killed_between_confirmation_and_memory_clickhouse_holds_every_row_once(tmp_path: Path) -> None:
    folder, url = tmp_path / "log", f"chdb:{tmp_path / 'db'}"
    folder.mkdir()
    log = SegmentWriter(folder, "w0", rotate=20_000)
    for number in range(50):
        log.append(frame(event(number)))
    for _ in range(2):  # the second time the same stretch, which the server knows by its token
        assert feed(folder, url, "kill").returncode == -signal.SIGKILL
    for number in range(50, 500):
        log.append(frame(event(number)))
    done = feed(folder, url, "go")  # the stretch is longer now: merged away by uid
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["rows"], found["final"], found["uids"]) == ([["550"]], [["500"]], [["500"]])
    assert [float(each) for each in found["sum"][0]] == [
        sum(range(500)),
        pytest.approx(sum(range(500)) / 1000),
    ]
    types = dict(found["types"])
    assert (types["event_time"], types["inputs"], types["outputs"]) == (
        "DateTime64(6, 'UTC')", "String", "Array(Float64)",
    )  # fmt: skip
    row = dict(zip(types, found["first"][0], strict=True))
    assert row["event_time"] == "2013-04-01 05:00:00"
    assert (row["uid"], row["inputs"]) == ("sv_1/w0-000000/0", '{"distance":0.0,"carrier":null}')
    assert row["redacted"] == "['carrier']"


@pytest.fixture
def clickhouse(tmp_path: Path) -> Iterator[str]:
    """A ClickHouse whose user is `me` and whose password is `hush-hush`; its address."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "clickhouse_server.py"), str(tmp_path / "engine"), "me", "hush-hush"],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield f"127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


def test_a_server_writes_to_clickhouse_over_http_and_waits_when_it_refuses(
    control: Any, serve: Callable[..., Any], clickhouse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    monkeypatch.setenv("LOOPWRIGHT_CLICKHOUSE_PASSWORD", "hush-hush")
    server = serve(log_to=[f"clickhouse://me@{clickhouse}/default/predictions?every=0.1"])
    client = clickhouse_connect.get_client(
        host="127.0.0.1", port=int(clickhouse.rpartition(":")[2]), username="me", password="hush-hush"
    )

    def there() -> list[str]:
        if not client.command("SELECT count() FROM system.tables WHERE name = 'predictions'"):
            return []
        return [row[0] for row in client.query("SELECT id FROM predictions FINAL ORDER BY id").result_rows]

    assert server.predict(id="c1").status_code == 200
    eventually(lambda: there() == ["c1"])
    httpx.get(f"http://{clickhouse}/refuse")
    assert server.predict(id="c2").status_code == 200
    eventually(lambda: gauge(metrics(server), "log_sink_up") == 0)
    server.admin("flush")
    assert [each.id for each in control.events] == ["c1", "c2"]
    assert there() == ["c1"]
    httpx.get(f"http://{clickhouse}/accept")
    eventually(lambda: there() == ["c1", "c2"])
    inputs, arm = client.query("SELECT inputs, arm FROM predictions WHERE id = 'c2'").result_rows[0]
    assert json.loads(inputs) == {"distance": 500.0, "hour": 6, "carrier": "UA"}
    assert arm == "stable"
    said = server.log.read_text()
    assert "not enough space" in said
    command = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert "hush-hush" not in said + metrics(server) + command.decode()
    client.close()


def test_the_log_of_a_home_is_replayed_by_a_command_that_is_audited(tmp_path: Path, broker: Broker) -> None:
    ctx = open_context(tmp_path / "home", LOCAL, create=True)
    uids = [f"sv_1/w0-1/{number * 90}" for number in range(300)]
    PredictionLog(ctx.home.predictions).append([event(number) for number in range(300)], "one", uids)
    asked = [
        "log",
        "replay",
        "late",
        "--home",
        str(ctx.home.root),
        "--to",
        f"kafka://{broker.address}/replayed",
    ]
    for _ in range(2):
        done = CliRunner().invoke(loopwright, [*asked, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["rows"] == 300
    messages = broker.messages("replayed")
    assert len(messages) == 600
    assert {uid_of(message) for message in messages} == set(uids)
    with ctx.ledger.read() as conn:
        noted = [row for row in ledger_store.rows(conn, limit=10) if row.action == "log.replay"]
    assert len(noted) == 2
    assert noted[0].payload["to"] == f"kafka://{broker.address}/replayed"
    ctx.ledger.dispose()


def test_redacted_inputs_reach_no_disk_no_wire_and_no_topic(
    control: Any, serve: Callable[..., Any], broker: Broker
) -> None:
    route = route_for(control.key, {1: control.bundle("one")}, (STABLE,))
    policy = ServingPolicy(log=LogPolicy(redact=("carrier",)))
    control.publish(msgspec.structs.replace(route, serving=policy))
    server = serve(log_to=[f"kafka://{broker.address}/redacted?every=0.1"])
    for number in range(20):
        answer = server.predict(500.0 + number, carrier="SECRET-CARRIER", id=f"r{number}")
        assert answer.status_code == 200, answer.text
    segments = list((control.folder.parent / "serving").rglob("*.seg"))
    disk = b"".join(path.read_bytes() for path in segments)
    assert b"r19" in disk
    assert not [
        path for path in (control.folder.parent / "serving").rglob("*")
        if path.is_file() and path.suffix != ".tmp" and b"SECRET-CARRIER" in path.read_bytes()
    ]  # fmt: skip
    copied = control.folder / "copied"
    copied.mkdir()
    for path in segments:
        shutil.copy(path, copied)
    server.admin("flush")
    assert {each.id for each in control.events} == {f"r{number}" for number in range(20)}
    assert all(each.inputs[2] is None for each in control.events)
    profiles = [fold.profile for fold in control.folds if fold.profile is not None]
    assert profiles
    assert all(
        "carrier" not in profile["columns"] and "distance" in profile["columns"] for profile in profiles
    )
    eventually(lambda: len(broker.values("redacted")) == 20)
    for value in broker.values("redacted"):
        assert value["redacted"] == ["carrier"]
        assert value["inputs"]["carrier"] is None
        assert value["inputs"]["distance"] >= 500.0
    done = feed(copied, f"chdb:{control.folder / 'db'}", "go")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["final"], found["secret"]) == ([["20"]], [["0"]])
    log = PredictionLog(control.folder / "predictions")
    log.append(control.events, "batch")
    (file,) = log.root.rglob("*.parquet")
    assert "SECRET-CARRIER" not in str(pq.read_table(file, partitioning=None).to_pylist())


def test_rows_are_sampled_and_everything_is_counted(
    control: Any, serve: Callable[..., Any], broker: Broker
) -> None:
    route = route_for(control.key, {1: control.bundle("one")}, (STABLE,))
    control.publish(msgspec.structs.replace(route, serving=ServingPolicy(log=LogPolicy(sample=0.25))))
    server = serve(log_to=[f"kafka://{broker.address}/sampled?every=0.1"])
    for number in range(200):
        assert server.predict(id=f"s{number}").status_code == 200
    # Told to stop, it first hands over what it has, to both receivers, and then needs no segment any more.
    assert server.stop() == 0
    assert sum(fold.n for fold in control.folds) == 200
    kept = {each.id for each in control.events}
    assert 20 < len(kept) < 90
    assert list((control.folder.parent / "serving" / "segments").glob("*.seg")) == []
    # Both receivers have the same rows.
    assert {value["id"] for value in broker.values("sampled")} == kept


def test_a_broker_that_is_away_and_a_killed_server_lose_nothing_and_delay_nothing_else(
    control: Any, serve: Callable[..., Any], broker: Broker
) -> None:
    control.route({1: control.bundle("one")}, STABLE)
    url = f"kafka://{broker.address}/kept?every=0.1&timeout=1"
    server = serve(log_to=[url], workers=2)
    answered: list[str] = []
    stop = threading.Event()

    def ask(port: int, part: int) -> None:
        number = 0
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            while not stop.is_set():
                name = f"k{part}-{number}"
                try:
                    if http.post("/v2/models/late/infer", json=body(name)).status_code == 200:
                        answered.append(name)
                except httpx.HTTPError:
                    time.sleep(0.02)  # the server was killed
                number += 1
                time.sleep(0.002)

    askers = [threading.Thread(target=ask, args=(server.port, part)) for part in range(2)]
    for thread in askers:
        thread.start()
    try:
        eventually(lambda: len(answered) > 100)
        broker.pause()
        eventually(
            lambda: 'log_sink_up{sink="kafka' in (text := metrics(server)) and gauge(text, "log_sink_up") == 0
        )
        assert gauge(metrics(server), "log_sink_backlog_bytes") > 0
        assert "does not take predictions" in server.http.get("/readyz").text
        # The control plane gets everything meanwhile.
        before = len(control.events)
        eventually(lambda: len(control.events) > before + 100)
        orphans = server.workers()
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(10)
        # They hold the port until what is under way is answered.
        eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in orphans), 60)
        broker.go_on()
        server = serve(log_to=[url], workers=2, port=server.port)
        more = len(answered)
        eventually(lambda: len(answered) > more + 100)
    finally:
        broker.go_on()
        stop.set()
        for thread in askers:
            thread.join()
    server.admin("flush")
    assert set(answered) <= {each.id for each in control.events}
    # All that is in the log, answered before the kill or not; what is sent twice carries the same uid.
    logged = sorted(each.id for each in control.events)
    eventually(
        lambda: sorted({value["uid"]: value["id"] for value in broker.values("kept")}.values()) == logged
    )
    eventually(lambda: gauge(metrics(server), "log_sink_backlog_bytes") == 0)
    assert gauge(metrics(server), "log_sink_up") == 1


def body(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "inputs": [
            {"name": "distance", "datatype": "FP64", "shape": [1], "data": [500.0]},
            {"name": "hour", "datatype": "INT64", "shape": [1], "data": [6]},
            {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["UA"]},
        ],
    }


def metrics(server: Any) -> str:
    return str(server.http.get("/metrics").text)


def gauge(text: str, name: str) -> float:
    return next(
        float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"loopwright_{name}{{")
    )


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.05)


def test_a_full_disk_refuses_or_sheds_as_the_policy_says_and_is_alarmed(
    tmp_path: Path, control: Any, serve: Callable[..., Any]
) -> None:
    bundles = {1: control.bundle("one")}
    control.route(bundles, STABLE)
    segments = tmp_path / "serving" / "segments"
    segments.mkdir(parents=True)
    # A disk of its own, as small as they come: half a megabyte in a mount namespace.
    mounted = f'mount -t tmpfs -o size=512k tmpfs "{segments}" && exec "$@"'
    server = serve(prefix=["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, "sh"])
    assert server.predict(id="before").status_code == 200
    seen = Path(f"/proc/{server.process.pid}/root{segments}")
    filler = seen / "filler"
    assert not (segments / "filler").exists()
    fill(filler)
    # The last page of the segment has room for a few.
    fit = []
    while server.predict(id=f"fits-{len(fit)}").status_code == 200:
        fit.append(f"fits-{len(fit)}")
        assert len(fit) < 100
    refused = [server.predict(id=f"refused-{number}") for number in range(4)]
    assert {answer.status_code for answer in refused} == {503}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert "predictions cannot be logged (No space left on device)" in refused[0].json()["error"]
    ready = server.http.get("/readyz")
    assert ready.status_code == 200
    assert "PREDICTIONS CANNOT BE LOGGED (No space left on device)" in ready.text
    assert counted(metrics(server), "log_refused_total") == 5
    assert counted(metrics(server), "log_dropped_total") == 0
    eventually(lambda: "loopwright_log_disk_low 1" in metrics(server))
    filler.unlink()
    assert server.predict(id="after").status_code == 200
    assert "PREDICTIONS CANNOT BE LOGGED" not in server.http.get("/readyz").text

    shed = ServingPolicy(log=LogPolicy(disk_full="shed"))
    control.publish(msgspec.structs.replace(route_for(control.key, bundles, (STABLE,)), serving=shed))
    server.admin("refresh")
    fill(filler)
    assert {server.predict(id=f"shed-{number}").status_code for number in range(100)} == {200}
    dropped = int(counted(metrics(server), "log_dropped_total"))
    assert dropped > 40
    assert "PREDICTIONS CANNOT BE LOGGED" in server.http.get("/readyz").text
    filler.unlink()
    assert server.predict(id="last").status_code == 200
    server.admin("flush")
    # Every answer that was to be on record is, once; none that was refused, and none that was counted as lost.
    kept = [f"shed-{number}" for number in range(100 - dropped)]
    assert [each.id for each in control.events] == ["before", *fit, "after", *kept, "last"]


def fill(filler: Path) -> None:
    """Take every byte that is left."""
    with filler.open("ab", buffering=0) as stream:
        for size in (4096, 512, 1):
            try:
                while stream.write(b"x" * size) == size:
                    pass
            except OSError:
                continue


def counted(text: str, name: str) -> float:
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"loopwright_{name}")
    )
