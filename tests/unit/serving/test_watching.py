"""Traces and the access log: what they tell of a request, and what they never do."""

import asyncio
import json
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.open import open_bundle
from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import STRICT, tiny_bundle
from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.serving.access_log import FLUSH_LINES, AccessLog
from loopwright.serving.app import App, Bounds
from loopwright.serving.callers import Caller, Callers
from loopwright.serving.counters import Counters
from loopwright.serving.deadline import NoDeadline
from loopwright.serving.engine import Engine, Model, Served
from loopwright.serving.events import SegmentWriter
from loopwright.serving.tracing import Tracing

KEY = SigningKey.generate()
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Host:
    def not_started(self) -> str:
        return ""

    def not_ready(self) -> str:
        return ""

    def warnings(self) -> list[str]:
        return []

    def gauges(self) -> dict[str, float]:
        return {}

    async def ask(self, what: str) -> tuple[int, dict[str, Any]]:
        return 200, {}


@pytest.fixture
def app(tmp_path: Path) -> App:
    sealed = tiny_bundle(tmp_path / "one", KEY, transform=STRICT)
    served = Served.of(3, open_bundle(sealed.path, [KEY.public]))
    counters = Counters(tmp_path / "w0.counters")
    engine = Engine(SegmentWriter(tmp_path, "w0"), counters, now_us=lambda: 1_000_000, limit=NoDeadline())
    engine.serve({"late": Model("late", "salt", (Arm("stable", 3, 1.0),), {3: served})})
    made = App(engine, counters, Host(), tmp_path, Bounds())
    made.publish()
    return made


def ask(app: App, *carriers: str, path: str = "/v2/models/late/infer", **headers: str) -> httpx.Response:
    n = len(carriers)
    body = {
        "inputs": [
            {"name": "distance", "datatype": "FP64", "shape": [n], "data": [500.0] * n},
            {"name": "hour", "datatype": "INT64", "shape": [n], "data": [6] * n},
            {"name": "carrier", "datatype": "BYTES", "shape": [n], "data": list(carriers)},
        ]
    }

    async def run() -> httpx.Response:
        app.publish()
        transport = httpx.ASGITransport(app, client=("10.1.2.3", 1))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return await http.post(path, json=body, headers=headers)

    return asyncio.run(run())


class Collector:
    """An OTLP/HTTP receiver that keeps the spans it was sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        owner.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


class TestTracing:
    def test_a_span_continues_the_callers_trace_and_says_who_answered(
        self, app: App, collector: Collector
    ) -> None:
        tracing = Tracing(collector.url)
        app.front.watchers.append(tracing)
        assert ask(app, "UA", "AA", traceparent=CALLER, authorization="Bearer lw_secret").status_code == 200
        assert ask(app, "XX", traceparent=CALLER).status_code == 500
        tracing.close()
        first, second = collector.spans
        assert first.name == "predict late"
        assert first.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
        assert first.parent_span_id.hex() == "00f067aa0ba902b7"
        told = attributes(first)
        assert told.pop("loopwright.request_id")
        assert told == {
            "http.request.method": "POST", "http.response.status_code": 200, "loopwright.model": "late",
            "loopwright.version": 3, "loopwright.arm": "stable", "loopwright.rows": 2, "loopwright.fallback": False,
        }  # fmt: skip
        assert second.status.code == 2  # an error of ours
        assert all(secret not in str(collector.spans) for secret in ("lw_secret", "500.0", "UA"))

    def test_what_the_caller_leaves_out_stays_out(self, app: App, collector: Collector) -> None:
        tracing = Tracing(collector.url)
        app.front.watchers.append(tracing)
        ask(app, "UA", traceparent=CALLER[:-1] + "0")
        tracing.close()
        assert collector.spans == []

    def test_of_requests_that_nobody_traces_a_share_is(self, app: App, collector: Collector) -> None:
        tracing = Tracing(collector.url, share=0.0)
        app.front.watchers.append(tracing)
        ask(app, "UA")
        tracing.close()
        assert collector.spans == []

    def test_a_collector_that_is_away_costs_no_answer(self, app: App) -> None:
        app.front.watchers.append(Tracing("http://127.0.0.1:9/v1/traces"))
        assert ask(app, "UA").status_code == 200

    @pytest.mark.parametrize(
        ("endpoint", "share", "message"),
        [("collector:4317", 1.0, "not an OTLP endpoint"), ("http://x:1/v1/traces", 1.5, "not a share")],
    )
    def test_what_cannot_be_meant_is_refused(self, endpoint: str, share: float, message: str) -> None:
        with pytest.raises(BadInput, match=message):
            Tracing(endpoint, share=share)


class TestAccessLog:
    def test_a_line_says_who_asked_and_what_they_were_told(self, app: App, tmp_path: Path) -> None:
        log = AccessLog(str(tmp_path / "access.jsonl"))
        app.front.watchers.append(log)
        ask(app, "UA", traceparent=CALLER, authorization="Bearer lw_secret")
        ask(app, "UA", path="/v2/models/early/infer")
        log.close()
        text = (tmp_path / "access.jsonl").read_text()
        first, second = map(json.loads, text.splitlines())
        assert (first["client"], first["method"], first["status"]) == ("10.1.2.3", "POST", 200)
        assert (first["model"], first["version"], first["arm"], first["rows"]) == ("late", 3, "stable", 1)
        assert first["traceparent"] == CALLER
        assert first["ms"] > 0
        assert first["bytes"] > 0
        assert (second["path"], second["status"], "model" in second) == ("/v2/models/early/infer", 404, False)
        assert "lw_secret" not in text

    def test_a_caller_who_is_known_is_named(self, app: App, tmp_path: Path) -> None:
        shop = Caller("shop", sha256(b"lw_secret").hexdigest())
        app.front.callers = Callers((shop,))
        log = AccessLog(str(tmp_path / "access.jsonl"))
        app.front.watchers.append(log)
        assert ask(app, "UA", authorization="Bearer lw_secret").status_code == 200
        assert ask(app, "UA").status_code == 401
        log.close()
        first, second = map(json.loads, (tmp_path / "access.jsonl").read_text().splitlines())
        assert (first["caller"], "caller" in second) == ("shop", False)

    def test_lines_are_written_together(self, app: App, tmp_path: Path) -> None:
        path = tmp_path / "access.jsonl"
        log = AccessLog(str(path))
        app.front.watchers.append(log)
        for _ in range(FLUSH_LINES - 1):
            ask(app, "UA", path="/nothing")
        assert path.stat().st_size == 0
        ask(app, "UA", path="/nothing")
        assert len(path.read_text().splitlines()) == FLUSH_LINES

    def test_a_disk_that_is_full_costs_no_answer(self, app: App, capsys: pytest.CaptureFixture[str]) -> None:
        log = AccessLog("/dev/full")
        app.front.watchers.append(log)
        assert ask(app, "UA").status_code == 200
        log.close()
        assert log.lost == 1
        assert (
            "/dev/full: lines of the access log are lost (No space left on device)" in capsys.readouterr().err
        )

    def test_a_place_that_cannot_be_written_is_told_before_serving(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="--access-log"):
            AccessLog(str(tmp_path / "none" / "access.jsonl"))


def test_without_watchers_requests_take_the_hot_way(app: App) -> None:
    assert "/v2/models/late/infer" in app.hot
    app.front.watchers.append(AccessLog("/dev/null"))
    app.publish()
    assert app.hot == {}
