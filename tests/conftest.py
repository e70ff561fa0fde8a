"""What every test shares: markers by folder, a moment, a real PostgreSQL and a real Redis."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from loopwright.demo.processes import free_port
from tests.object_store import S3Server, s3_server_running

# Shared machines stall for a second now and then: no example is too slow. CI tries the same examples every time.
settings.register_profile("loopwright", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("loopwright")

HERE = Path(__file__).parent
TIERS = ("unit", "contract", "integration", "lifecycle")


TOGETHER = {
    "tests/lifecycle/": "the played demo",
    "tests/contract/data/test_rules_on_spark.py": "Spark",
    "tests/contract/features/test_spark.py": "Spark",
    "tests/integration/features/test_lake.py": "Spark",
    "tests/unit/features/test_portable.py": "Spark",
    "tests/unit/compression/": "torch and the networks trained once",
}
"""Files by what they share: a second process would wait for the demo to be played, or start a Spark of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""
        if tier in TIERS:
            item.add_marker(getattr(pytest.mark, tier))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests run in one process, and so do those of files that share what is dear."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no types
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return next((shared for start, shared in TOGETHER.items() if file.startswith(start)), file)

    return ByFile(config, log)


@pytest.fixture
def noon() -> datetime:
    return datetime(2013, 7, 1, 12, tzinfo=UTC)


def postgres_programs() -> Path:
    """The folder of pg_ctl and initdb; Debian keeps it off the PATH."""
    on_path = shutil.which("pg_ctl")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    pytest.fail("PostgreSQL is not installed. Run scripts/test-services, or: apt-get install postgresql")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL of this session's own, without durability; yields the URL of its server (no database)."""
    programs = postgres_programs()
    folder = Path(tempfile.mkdtemp(prefix="loopwright-postgres-"))
    # The server refuses to run as root.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs / program), *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            log = folder / "log"
            pytest.fail(f"{program}: {done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}")

    run("initdb", "-D", str(data), "-A", "trust", "-U", "loopwright", "-E", "UTF8", "--no-sync")
    port = free_port()
    settings = (
        f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder} "
        "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=200"
    )
    run("pg_ctl", "-D", str(data), "-w", "-t", "60", "-l", str(folder / "log"), "-o", settings, "start")
    try:
        yield f"postgresql://loopwright@127.0.0.1:{port}"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


_databases = count(1)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database."""
    import psycopg

    name = f"test_{next(_databases)}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield f"{postgres_server}/{name}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """A Redis of this session's own, in memory only; yields its URL without a database."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("Redis is not installed. Run scripts/test-services, or: apt-get install redis-server")
    folder, port = Path(tempfile.mkdtemp(prefix="loopwright-redis-")), free_port()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    log = folder / "log"
    server = subprocess.Popen([program, *options, "--logfile", str(log)], stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"Redis does not start: {log.read_text() if log.exists() else ''}")
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of an empty database."""
    import redis

    redis.Redis.from_url(redis_server).flushall()
    return f"{redis_server}/0"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server of this session's own; `.bucket()` makes a bucket."""
    with s3_server_running(free_port) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of a server that the environment names."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.bucket()


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A SparkSession of this process, on two threads; it is small, so ask it few things."""
    from loopwright.features.spark import spark_session

    if shutil.which("java") is None and not os.environ.get("JAVA_HOME"):
        pytest.fail(
            "Java is not installed. Run scripts/test-services, or: apt-get install openjdk-17-jre-headless"
        )
    folder = str(tmp_path_factory.mktemp("spark"))
    session = spark_session(
        "local[2]",
        {
            "spark.driver.memory": "1g",
            # The quick compiler alone: nothing here runs long enough to pay for the thorough one.
            "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": "2",
            "spark.sql.warehouse.dir": folder,
            "spark.local.dir": folder,
            # Plans here run once, over a few rows: to compile them takes longer than to interpret them.
            "spark.sql.codegen.wholeStage": "false",
            "spark.sql.codegen.factoryMode": "NO_CODEGEN",
            "spark.sql.adaptive.enabled": "false",
        },
    )
    yield session
    session.stop()
