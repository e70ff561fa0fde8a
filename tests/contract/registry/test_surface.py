"""Every route of MLflow's app stands in the table, and the documentation says what the table says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopwright.kernel.errors import NotFound
from loopwright.registry.guard import judge
from loopwright.registry.surface import ROUTES, plain_path, route_of

ROOT = Path(__file__).parents[3]
SAFE = ("GET", "HEAD", "OPTIONS")


@pytest.fixture(scope="module")
def offered() -> list[tuple[str, str]]:
    """(method, path) of all that MLflow's app answers to, with `x` for what varies."""
    from mlflow.server import app, fastapi_app

    flask = [(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods]
    native = [*_native(fastapi_app.create_fastapi_app())]
    assert len(flask) > 400 and len(native) > 50
    return sorted({(method, re.sub(r"<[^>]+>|{[^}]+}", "x", path)) for method, path in (*flask, *native)})


def _native(app: Any) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            prefix = route.include_context.prefix
            yield from ((method, prefix + one.path) for one in included.routes for method in one.methods)


def test_every_route_of_mlflow_stands_in_the_table(offered: list[tuple[str, str]]) -> None:
    assert [one for one in offered if route_of(*one) is None and one[0] not in ("HEAD", "OPTIONS")] == []


def test_the_table_names_nothing_that_mlflow_has_no_more(offered: list[tuple[str, str]]) -> None:
    met = {route_of(*one) for one in offered}
    # MLflow's own clients have asked for the first by GET.
    assert {f"{route.method} {route.path}" for route in ROUTES if route not in met} <= {"GET datasets/search"}


def test_a_route_that_changes_something_is_never_open_to_readers(offered: list[tuple[str, str]]) -> None:
    reads = re.compile(
        r"(?:[a-z-]+/)*(?:search|search-datasets|get-latest-versions|batchGetInfos|calculate-filter-correlation)"
        r"|traces/metrics|artifacts/presigned-download-url|/graphql"
    )
    for method, path in offered:
        route = route_of(method, path)
        if method not in SAFE and route is not None and route.treatment == "reads":
            assert reads.fullmatch(plain_path(path)), (method, path)


def test_a_route_that_a_later_mlflow_brings_does_not_exist_here() -> None:
    for method, path in (
        ("POST", "/api/2.0/mlflow/model-versions/promote-all"),
        ("PUT", "/api/2.0/mlflow/registered-models/create"),
        ("POST", "/api/4.0/mlflow/anything"),
        ("DELETE", "/api/2.0/mlflow-artifacts/everything"),
        ("POST", "/admin"),
    ):
        with pytest.raises(NotFound, match="not offered"):
            judge(method, path)


def test_the_reference_says_what_the_table_says() -> None:
    """Else: run scripts/mlflow-reference."""
    command = [sys.executable, str(ROOT / "scripts" / "mlflow-reference"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
