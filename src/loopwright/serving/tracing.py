"""OpenTelemetry spans, one for each request, sent over OTLP/HTTP in the background. Needs the extra `otel`.

A caller's `traceparent` is continued and its sampling decision kept; of requests without one the given share is traced.
Spans carry names and numbers only: model, version, arm, rows, status. No inputs, no outputs, no tokens.
"""

from typing import Any

from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.serving.watching import Answered, Asked

QUEUE = 4096
"""Spans that may wait to be sent; more are dropped by the SDK, which counts them."""


class Tracing:
    """Sends spans to `endpoint`, like http://collector:4318/v1/traces. share: of 0 to 1, what is traced unasked.

    Raises BadInput for what is no endpoint, Unavailable when OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, *, share: float = 1.0, service: str = "loopwright") -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise BadInput(
                "not an OTLP endpoint", where="--otlp", got=endpoint, wanted="http://HOST:4318/v1/traces"
            )
        if not 0.0 <= share <= 1.0:
            raise BadInput("not a share", where="--trace-share", got=share, wanted="0 to 1")
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise Unavailable(
                "OpenTelemetry is not installed", where="--otlp", next="Run: pip install 'loopwright[otel]'"
            ) from None
        self._trace = trace
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service}),
            sampler=ParentBased(TraceIdRatioBased(share)),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE))
        self._tracer = self._provider.get_tracer("loopwright.serving")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, asked: Asked) -> Any:
        """Begin a span under the caller's."""
        carrier = {
            name: value for name in ("traceparent", "tracestate") if (value := asked.header(name.encode()))
        }
        return self._tracer.start_span(
            f"{asked.method} {asked.path.split('?')[0][:200]}",
            context=self._propagator.extract(carrier) if carrier else None,
            kind=self._trace.SpanKind.SERVER,
        )

    def end(
        self, begun: Any, asked: Asked, status: int | str, size: int, us: int, by: Answered | None
    ) -> None:
        """End the span with who answered and how."""
        if not begun.is_recording():
            begun.end()
            return
        if asked.protocol == "http":
            begun.set_attribute("http.request.method", asked.method)
            begun.set_attribute("http.response.status_code", status)
            failed = isinstance(status, int) and status >= 500
        else:
            begun.set_attribute("rpc.system", asked.protocol)
            begun.set_attribute("rpc.method", asked.method)
            begun.set_attribute("rpc.response.status_code", status)
            failed = status in ("INTERNAL", "UNAVAILABLE", "UNKNOWN")
        if by is not None:
            begun.update_name(f"predict {by.model}")
            begun.set_attribute("loopwright.model", by.model)
            begun.set_attribute("loopwright.version", by.version)
            begun.set_attribute("loopwright.arm", by.arm)
            begun.set_attribute("loopwright.request_id", by.request_id)
            begun.set_attribute("loopwright.rows", by.rows)
            begun.set_attribute("loopwright.fallback", by.fallback)
        if failed:
            begun.set_status(self._trace.StatusCode.ERROR)
        begun.end()

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()
