"""What a real HAProxy does with the exported configuration, in front of replicas that do as the test says."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import tiny_answer
from loopwright.exports.balancer import Address, Backend, Balancer, Stick

from .balancing import HAProxy, free_port, haproxy
from .conftest import Control, Server, eventually

FAST = timedelta(seconds=1)


class Replica:
    """Answers with its name. how: of the next requests, what each meets instead: a status, "break" or "hang"."""

    def __init__(self, name: str, how: list[int | str]) -> None:
        self.name, self.how, self.ready = name, how, True
        self.seen: list[tuple[str, Mapping[str, str]]] = []
        replica = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/readyz":
                    self._answer(200 if replica.ready else 503)
                else:
                    self.do_POST()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                replica.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                how = replica.how.pop(0) if replica.how else 200
                if how == "break":
                    self.close_connection = True
                    self.connection.close()
                elif how == "hang":
                    time.sleep(12)
                    self.close_connection = True
                else:
                    self._answer(int(how))

            def _answer(self, status: int) -> None:
                body = json.dumps({"replica": replica.name}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A health check that has seen the status goes without the rest."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Site:
    """Three replicas behind a balancer. how: what the next requests meet, whichever replica they come to."""

    def __init__(self, stack: ExitStack, folder: Path, options: dict[str, Any]) -> None:
        self.how: list[int | str] = []
        self.replicas = [Replica(f"r{number}", self.how) for number in range(3)]
        for replica in self.replicas:
            stack.callback(replica.close)
        weights = options.pop("weights", (100, 100, 100))
        self.asked = Balancer(
            backends=tuple(
                Backend(Address("127.0.0.1", replica.port), weight)
                for replica, weight in zip(self.replicas, weights, strict=True)
            ),
            **{
                "listen": Address("127.0.0.1", free_port()), "metrics": Address("127.0.0.1", free_port()),
                "timeout": timedelta(seconds=5), "check_every": FAST, "slow_start": timedelta(), **options,
            },
        )  # fmt: skip
        self.proxy: HAProxy = stack.enter_context(haproxy(self.asked, folder))
        self.http = stack.enter_context(httpx.Client(base_url=self.proxy.url, timeout=20))

    def infer(self, path: str = "/v2/models/late/infer", **options: Any) -> httpx.Response:
        return self.http.post(path, **{"content": b"{}", **options})

    def who(self, **options: Any) -> str:
        name: str = self.infer(**options).json()["replica"]
        return name

    @property
    def seen(self) -> list[tuple[str, Mapping[str, str]]]:
        return [each for replica in self.replicas for each in replica.seen]


Start = Callable[..., Site]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda **options: Site(stack, tmp_path, options)


def test_a_unit_stays_on_its_replica_and_units_spread(start: Start) -> None:
    site = start()
    homes = {unit: site.who(headers={"X-Loopwright-Unit": f"user-{unit}"}) for unit in range(60)}
    again = {unit: site.who(headers={"X-Loopwright-Unit": f"user-{unit}"}) for unit in range(60)}
    assert again == homes
    assert min(Counter(homes.values()).values()) > 8
    assert len({site.who() for _ in range(60)}) == 3, "without the header all are asked"
    # One leaves: its units move, and nobody else's.
    gone = site.replicas[1]
    gone.ready = False
    eventually(lambda: len(site.proxy.up()) == 2)
    moved = {unit: site.who(headers={"X-Loopwright-Unit": f"user-{unit}"}) for unit in range(60)}
    assert {unit for unit in homes if moved[unit] != homes[unit]} == {
        unit for unit, home in homes.items() if home == gone.name
    }
    gone.ready = True
    eventually(lambda: len(site.proxy.up()) == 3)
    assert {unit: site.who(headers={"X-Loopwright-Unit": f"user-{unit}"}) for unit in range(60)} == homes


def test_a_cookie_keeps_a_client_on_its_replica(start: Start) -> None:
    site = start(stick=Stick.COOKIE)
    first = site.infer()
    assert "HttpOnly" in first.headers["set-cookie"]
    assert {site.who() for _ in range(9)} == {first.json()["replica"]}
    assert len({httpx.post(f"{site.proxy.url}/ping", content=b"").json()["replica"] for _ in range(30)}) > 1
    assert all("cookie" not in headers for _, headers in site.seen), "replicas are not told"


@pytest.mark.parametrize("stick", list(Stick))
def test_weights_share_requests_out(start: Start, stick: Stick) -> None:
    site = start(stick=stick, weights=(0, 50, 150))
    counted = Counter[str]()
    for unit in range(160):
        site.http.cookies.clear()
        counted[site.who(headers={"X-Loopwright-Unit": f"user-{unit}"})] += 1
    assert counted["r0"] == 0
    assert counted["r1"] == pytest.approx(40, abs=25)


@pytest.mark.parametrize("failure", [503, "break", "hang"])
@pytest.mark.parametrize("stick", [Stick.UNIT_HEADER, Stick.NONE])
def test_what_a_replica_did_not_answer_is_sent_to_another_with_the_same_id(
    start: Start, failure: int | str, stick: Stick
) -> None:
    site = start(stick=stick)
    site.how += [failure]
    answer = site.infer(headers={"X-Loopwright-Unit": "u1"})
    assert answer.status_code == 200
    tried = {headers["x-request-id"] for _, headers in site.seen}
    assert (len(site.seen), len(tried)) == (2, 1)
    assert [len(replica.seen) for replica in site.replicas].count(1) == 2, "another replica"
    assert re.fullmatch(r"[0-9a-f-]{36}", *tried)


@pytest.mark.parametrize("status", [200, 400, 404, 422, 429, 500, 504])
def test_what_was_answered_is_passed_on_as_it_is(start: Start, status: int) -> None:
    site = start()
    site.how += [status]
    assert site.infer(headers={"X-Request-Id": "mine"}).status_code == status
    assert [headers["x-request-id"] for _, headers in site.seen] == ["mine"]


def test_after_two_more_tries_the_client_is_told(start: Start) -> None:
    site = start()
    site.how += ["break"] * 3
    answer = site.infer()
    assert (answer.status_code, len(site.seen)) == (502, 3)
    assert "error" in answer.json()
    site.how += [503] * 3
    assert site.infer().status_code == 503
    assert len(site.seen) == 6


def test_what_may_not_be_done_twice_is_sent_once(start: Start) -> None:
    site = start()
    for path, options in (
        ("/v2/models/late/jobs", {}),
        ("/v2/models/late/job%73", {}),
        ("/v2/models/late/infer", {"content": b"x" * (site.asked.buffer + 1000)}),
    ):
        site.how[:] = ["break"]
        before = len(site.seen)
        try:
            answer = httpx.post(site.proxy.url + path, **{"content": b"{}", **options})
        except httpx.RemoteProtocolError:
            pass  # what broke was a connection used before: HAProxy breaks the client's as well, and says nothing
        else:
            assert answer.status_code == 502, path
        assert len(site.seen) == before + 1, path
    site.how[:] = ["break"]
    assert site.infer("/v2/models/late/jobs", headers={"Idempotency-Key": "k"}).status_code == 200
    large = b"x" * (site.asked.buffer // 2)
    site.how[:] = ["break"]
    assert site.infer(content=large).status_code == 200


@pytest.mark.parametrize("path", [
    "/admin/flush", "/%61dmin/flush", "/admin%2fflush", "/admin", "/metrics", "/m%65trics",
    "/v2/repository/models/late/load", "/v2/repository/%6dodels/late/unload",
])  # fmt: skip
def test_what_is_for_operators_is_not_passed_on(start: Start, path: str) -> None:
    site = start()
    for answer in (site.infer(path), site.http.get(path)):
        assert (answer.status_code, answer.json()) == (404, {"error": "not served through the balancer"})
    assert site.seen == []
    assert site.http.get("/v2/models/admin").status_code == 200


def test_an_arm_is_forced_only_where_that_was_allowed(start: Start) -> None:
    for overrides in (False, True):
        site = start(overrides=overrides)
        site.infer(headers={"X-Loopwright-Arm": "canary", "X-Forwarded-For": "6.6.6.6"})
        ((_, headers),) = site.seen
        assert ("x-loopwright-arm" in headers) is overrides
        assert headers["x-forwarded-for"].endswith("127.0.0.1")


def test_without_a_replica_the_client_is_told_in_json_when_to_come_back(start: Start) -> None:
    site = start()
    for replica in site.replicas:
        replica.ready = False
    eventually(lambda: not site.proxy.up())
    answer = site.infer()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"error": "no replica can take the request now"}
    assert site.seen == []


def test_grpc_is_balanced_and_a_replica_that_is_gone_is_passed_over(
    control: Control, serve: Callable[..., Server], tmp_path: Path
) -> None:
    control.route({1: control.bundle("one")}, Arm("stable", 1, 1.0))
    grpc_port = free_port()
    server = serve(grpc_port=grpc_port)
    # The same machine under two addresses; at the second nobody answers.
    asked = Balancer(
        backends=(Backend(Address("127.0.0.1", server.port)), Backend(Address("127.0.0.2", server.port))),
        listen=Address("127.0.0.1", free_port()), metrics=Address("127.0.0.1", free_port()),
        grpc=Address("127.0.0.1", free_port()), grpc_port=grpc_port, stick=Stick.NONE,
        check_every=timedelta(seconds=30),
    )  # fmt: skip
    inputs = []
    for name, values, kind in (
        ("distance", np.array([500.0]), "FP64"),
        ("hour", np.array([6]), "INT64"),
        ("carrier", np.array(["UA"], dtype=object), "BYTES"),
    ):
        tensor = triton.InferInput(name, [1], kind)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    with haproxy(asked, tmp_path):
        client = triton.InferenceServerClient(str(asked.grpc))
        answers = [client.infer("late", inputs) for _ in range(12)]
        for act in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
                act("late")
    wanted = tiny_answer(500.0, 6, "UA")
    assert [answer.as_numpy("probability")[0] for answer in answers] == [pytest.approx(wanted, abs=1e-6)] * 12
    names = {answer.get_response().parameters["request_id"].string_param for answer in answers}
    assert len(names) == 12
    assert all(re.fullmatch(r"[0-9a-f-]{36}", name) for name in names), "the balancer named them"


def test_metrics_and_the_page_of_statistics_have_ports_of_their_own(start: Start) -> None:
    site = start(stats=Address("127.0.0.1", free_port()))
    site.infer()
    text = httpx.get(f"http://{site.asked.metrics}/metrics").text
    assert 'haproxy_backend_http_responses_total{proxy="replicas",code="2xx"} 1' in text
    assert httpx.get(f"http://{site.asked.metrics}/").status_code == 404
    assert "Statistics Report" in httpx.get(f"http://{site.asked.stats}/").text
