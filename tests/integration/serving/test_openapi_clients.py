"""What a server says of itself, taken at its word: schemathesis over its document, curl over its pages."""

import html
import re
import subprocess
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from loopwright.bundle.routes import Arm
from tests.integration.serving.conftest import Control, Server

pytestmark = pytest.mark.integration

EXAMPLES = 4
"""Right requests and wrong ones, of each, for every address."""

ALWAYS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance, negative_data_rejection,
]  # fmt: skip

NOT_ALL_IN_A_SCHEMA = re.compile(r"/invocations$|/infer$|/bulk$")
"""That columns have one length, that tensors are those of the model: what these bodies must meet beside the schema."""

printable = st.text("abc é", max_size=5)
moments = st.datetimes(min_value=datetime(1900, 1, 2), max_value=datetime(2199, 12, 30))


@pytest.fixture
def server(control: Control, serve: Callable[..., Server]) -> Server:
    control.route({1: control.bundle("a")}, Arm("stable", 1, 1.0))
    return serve(workers=1)


def test_schemathesis_finds_no_difference_between_the_document_and_the_server(server: Server) -> None:
    schemathesis.openapi.format("printable-text", printable)
    schemathesis.openapi.format("date-time", moments.map(lambda moment: f"{moment.isoformat()}Z"))
    schemathesis.serializer("application/x-ndjson", "application/vnd.apache.arrow.stream")(_as_it_is)
    base = str(server.http.base_url).rstrip("/")
    document = server.http.get("/openapi.json").json()
    tried: dict[tuple[str, str], int] = {}

    def check(case: Any) -> None:
        key = (case.operation.label, case.meta.generation.mode.name)
        tried[key] = tried.get(key, 0) + 1
        checks = list(ALWAYS)
        if not NOT_ALL_IN_A_SCHEMA.search(case.operation.path):
            checks.append(positive_data_acceptance)
        if case.operation.path.endswith("/bulk"):  # a wrong line is an error in its place
            checks.remove(negative_data_rejection)
        case.validate_response(case.call(base_url=base), checks=checks)

    # What breaks a format that is ours alone cannot be made up (some of it would be right), and 413 for too many rows
    # is no refusal to schemathesis.
    text = re.sub(rb',"format":"printable-text"|,"maxItems":10000', b"", msgspec.json.encode(document))
    loose = msgspec.json.decode(text)
    for described, mode in ((document, GenerationMode.POSITIVE), (loose, GenerationMode.NEGATIVE)):
        for found in schemathesis.openapi.from_dict(described).get_all_operations():
            operation = found.ok()
            if mode is GenerationMode.NEGATIVE and not (operation.body or any(operation.iter_parameters())):
                continue
            settings(
                max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(given(case=operation.as_strategy(generation_mode=mode))(check))()  # fmt: skip

    assert {label.split()[1] for label, _ in tried} == document["paths"].keys()
    for path in ("/models/late/predict", "/models/late/invocations", "/v2/models/{model}/infer"):
        assert tried[f"POST {path}", "POSITIVE"] == tried[f"POST {path}", "NEGATIVE"] == EXAMPLES
    assert server.predict().status_code == 200
    assert server.process.poll() is None


def _as_it_is(context: Any, value: Any) -> dict[str, bytes]:
    """Send text, or the JSON of what is none: schemathesis writes no lines and no Arrow of its own."""
    return {
        "data": value.encode("utf-8", "replace") if isinstance(value, str) else msgspec.json.encode(value)
    }


def test_every_command_of_a_page_is_answered(server: Server) -> None:
    page = server.http.get("/docs/late").text
    commands = [html.unescape(text) for text in re.findall(r"<pre>(curl .*?)</pre>", page, re.DOTALL)]
    assert len(commands) == 5
    for command in commands:
        run = subprocess.run(
            ["sh", "-c", f"{command} -w '\\n%{{http_code}}'"], capture_output=True, text=True, timeout=30, check=False
        )  # fmt: skip
        assert (run.returncode, run.stderr) == (0, ""), command
        answer, _, status = run.stdout.rpartition("\n")
        assert (status, "0.6399" in answer) == ("200", True), (command, run.stdout)
