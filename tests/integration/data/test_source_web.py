"""Downloads from a real server that breaks off, falls silent, redirects, or changes its mind."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loopwright.data.source import Reading, resolve
from loopwright.data.sources import scratch, web
from loopwright.kernel.errors import BadInput, NotFound, Refused, Unavailable

ROWS = 20_000
CSV = b"x,y\n" + b"".join(b"%d,text %d\n" % (n, n) for n in range(ROWS))


@dataclass
class Server:
    """What it does next: each request takes the first of `plan`, and "whole" when none is left."""

    url: str
    plan: list[str] = field(default_factory=list)
    seen: list[dict[str, str]] = field(default_factory=list)
    etag: str = '"one"'
    data: bytes = CSV
    elsewhere: str = ""


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            server.seen.append(
                {name.lower(): value for name, value in self.headers.items()} | {"path": self.path}
            )
            act = server.plan.pop(0) if server.plan else "whole"
            if act.isdigit():
                self.send_response(int(act))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if act.startswith("to "):
                self.send_response(302)
                self.send_header("Location", act[3:])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, asked = 0, self.headers.get("Range")
            if asked and self.headers.get("If-Range") == server.etag and act != "no ranges":
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
            else:
                self.send_response(200)
            rest = server.data[start:]
            self.send_header("Content-Length", str(len(rest)))
            self.send_header("Content-Type", "text/csv; charset=utf-8")
            if act != "no ranges":
                self.send_header("ETag", server.etag)
                self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 3] if act in ("cut", "stall") else rest)
            self.wfile.flush()
            if act == "stall":
                self.connection.settimeout(60)
                with suppress(OSError):
                    self.connection.recv(1)  # until the client hangs up
            self.close_connection = True

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(web, "PAUSE", 0.01)
    monkeypatch.setattr(web, "ATTEMPTS", 2)
    monkeypatch.setattr(web, "SILENT_SECONDS", 30.0)
    made = Server("")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(made)) as listening:
        listening.daemon_threads = True
        made.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        listening.shutdown()
        thread.join()


def rows(uri: str, **how: Any) -> int:
    return resolve(uri, Path(), **how).read().input_rows


@pytest.mark.parametrize("trouble", ["cut", "stall"])
def test_a_download_goes_on_where_it_broke_off(
    server: Server, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble == "stall":
        monkeypatch.setattr(web, "SILENT_SECONDS", 2.0)
    server.plan = [trouble, trouble, "503"]
    assert rows(f"{server.url}/a.csv") == ROWS
    asked = [int(seen.get("range", "bytes=0-")[6:-1]) for seen in server.seen]
    assert asked[0] == 0 and 0 < asked[1] < asked[2] == asked[3] < len(CSV)


def test_what_comes_is_told_and_whoever_hears_it_may_end_it(server: Server) -> None:
    server.data = CSV * 16
    told: list[int] = []
    assert resolve(f"{server.url}/a.csv", Path(), moved=lambda: told.append(1)).digest
    assert 1 < len(told) <= len(server.data) // web.MOVES

    def end() -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        resolve(f"{server.url}/b.csv", Path(), moved=end)


def test_a_name_that_turns_out_to_mean_another_machine_is_sent_nothing(server: Server) -> None:
    def check(host: str) -> None:
        if host != "localhost":
            raise Refused("not that one", got=host)

    with pytest.raises(Refused, match=r"not that one; got 127\.0\.0\.1"):
        resolve(f"{server.url.replace('127.0.0.1', 'localhost')}/a.csv", Path(), check_host=check)
    assert server.seen == []
    told: list[str] = []
    assert resolve(f"{server.url}/a.csv", Path(), check_host=told.append).digest
    assert told == ["127.0.0.1", "127.0.0.1"]  # by name, and once it is called


def test_a_later_process_goes_on_where_an_earlier_one_gave_up(server: Server) -> None:
    server.plan = ["cut", "500", "500"]
    with pytest.raises(
        Unavailable, match=r"breaks off; got HTTP 500, after \d+ bytes.*it goes on from there"
    ):
        resolve(f"{server.url}/a.csv", Path())
    assert rows(f"{server.url}/a.csv") == ROWS
    assert server.seen[-1]["range"] == f"bytes={len(CSV) // 3}-"
    assert [p.name for p in Path(tempfile.gettempdir()).rglob("*.part")] == []


def test_a_file_that_changed_meanwhile_is_read_anew(server: Server) -> None:
    server.plan = ["cut", "500", "500"]
    with pytest.raises(Unavailable):
        resolve(f"{server.url}/a.csv", Path())
    server.etag, server.data = '"two"', b"x,y\n1,2\n"
    assert rows(f"{server.url}/a.csv") == 1


def test_a_server_without_ranges_starts_over(server: Server) -> None:
    server.plan = ["no ranges"]
    assert rows(f"{server.url}/a.csv") == ROWS
    assert "range" not in server.seen[0]


def test_credentials_stay_with_their_server(server: Server) -> None:
    host = server.url.removeprefix("http://")
    server.plan = [f"to http://localhost:{host.rpartition(':')[2]}/b.csv"]
    assert rows(f"http://ada:s3cret@{host}/a.csv") == ROWS
    first, second = server.seen
    assert first["authorization"].startswith("Basic ") and "authorization" not in second
    server.plan, server.seen = ["to /c.csv"], []
    assert rows(f"http://ada:s3cret@{host}/a.csv") == ROWS
    assert [seen["path"] for seen in server.seen] == ["/a.csv", "/c.csv"]
    assert all("authorization" in seen for seen in server.seen)


def test_redirects_end(server: Server) -> None:
    server.plan = [f"to {server.url}/{n}" for n in range(9)]
    with pytest.raises(BadInput, match="too many redirects"):
        resolve(f"{server.url}/a.csv", Path())
    server.plan = ["to file:///etc/passwd"]
    with pytest.raises(BadInput, match="not followed"):
        resolve(f"{server.url}/a.csv", Path())


@pytest.mark.parametrize(("code", "said"), [("404", "Check the uri"), ("403", "the link has run out")])
def test_what_the_server_refuses_is_not_tried_again(server: Server, code: str, said: str) -> None:
    server.plan = [code]
    with pytest.raises(NotFound, match=f"HTTP {code}.*{said}") as caught:
        resolve(f"{server.url}/a.csv?sig=s3cret", Path())
    assert len(server.seen) == 1 and "s3cret" not in str(caught.value)


def test_what_is_too_large_is_told_before_it_comes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "MAX_DOWNLOAD", 1000)
    with pytest.raises(BadInput, match="too large to download"):
        resolve(f"{server.url}/a.csv", Path())
    monkeypatch.setattr(scratch, "MAX_DOWNLOAD", 1 << 40)
    monkeypatch.setattr(scratch, "SPARE", 1 << 60)
    with pytest.raises(Unavailable, match="does not fit on the disk"):
        resolve(f"{server.url}/a.csv", Path())


def test_the_format_comes_from_the_name_the_type_or_loop_yaml(server: Server) -> None:
    assert rows(f"{server.url}/export?day=1") == ROWS
    server.data = b'{"x": 1}\n'
    assert rows(f"{server.url}/export?day=2", reading=Reading(format="jsonl")) == 1
