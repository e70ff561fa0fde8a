"""Tests of feature views, over the rows that are there now."""

from dataclasses import asdict
from typing import Any

from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.control.operations.features import _project as open_project
from loopwright.data.lake import Lake
from loopwright.features.module import load_features
from loopwright.features.offline import run_view_tests
from loopwright.kernel.actor import Role


@operation("feature_tests.run", "POST", "/features/{model}/tests", role=Role.DEVELOPER)
def run(ctx: Context, model: str, project: str | None = None) -> dict[str, Any]:
    """Run the tests of a model's feature views over the frame of all rows that are in the silver tables now."""
    opened = open_project(ctx, model, project)
    module = load_features(opened)
    lake = Lake.of(ctx.home, ctx.ledger)
    tables = {name: lake.files("silver", model, name) for name in module.tables()}
    results = run_view_tests(module, tables, label_available_after=opened.spec.data.label.available_after)
    return {
        "model": model,
        "failed": sum(result.state == "FAIL" for result in results),
        "tests": [{**asdict(result), "state": result.state} for result in results],
    }
