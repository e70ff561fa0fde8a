"""Training runs: list, show, compare, reproduce."""

from typing import Any

from loopwright.control.context import Context
from loopwright.control.operation import operation
from loopwright.kernel.actor import Role
from loopwright.kernel.errors import BadInput
from loopwright.pipeline import store as pipeline_store


@operation("runs.list", "GET", "/runs")
def list_runs(ctx: Context, model: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """List runs, newest first; of one model when given."""
    if not 1 <= limit <= 10_000:
        raise BadInput("`limit` is out of range", got=limit, wanted="1 to 10000")
    with ctx.ledger.read() as conn:
        if model is not None:
            pipeline_store.load_project_row(conn, model)  # an unknown model names the nearest
        found = pipeline_store.list_runs(conn, model, limit)
    return [{name: value for name, value in run.items() if name != "context"} for run in found]


@operation("runs.show", "GET", "/runs/{run}")
def show(ctx: Context, run: str) -> dict[str, Any]:
    """Show one run with its captured context; `run` is its id or the beginning of it."""
    with ctx.ledger.read() as conn:
        return pipeline_store.find_run(conn, run)


@operation("runs.compare", "GET", "/compare")
def compare(ctx: Context, runs: list[str]) -> dict[str, Any]:
    """Put runs side by side: what differs in parameters, metrics, data and code."""
    if len(runs) < 2:
        raise BadInput("one run cannot be compared", got=len(runs), wanted="two runs or more")
    with ctx.ledger.read() as conn:
        found = [pipeline_store.find_run(conn, run) for run in runs]
    flat = [_facts(run) for run in found]
    names = list(dict.fromkeys(name for facts in flat for name in facts))
    rows = []
    for name in names:
        values = [facts.get(name) for facts in flat]
        rows.append({"name": name, "values": values, "differs": any(value != values[0] for value in values)})
    return {"runs": [run["run_id"] for run in found], "rows": rows}


@operation("runs.reproduce", "POST", "/runs/{run}/reproduce", role=Role.DEVELOPER)
def reproduce(ctx: Context, run: str) -> Any:
    """Run a recorded run again from its snapshot and say: bitwise, within tolerance or diverged."""
    from loopwright.pipeline.reproduce import reproduce as rerun  # brings the training libraries

    with ctx.ledger.read() as conn:
        run_id = pipeline_store.find_run(conn, run)["run_id"]
    return rerun(home=ctx.home, ledger=ctx.ledger, run_id=run_id)


def _facts(run: dict[str, Any]) -> dict[str, Any]:
    context = run["context"]
    git = (context.get("code") or {}).get("git") or {}
    facts = {
        "model": run["model"], "status": run["status"], "started_at": run["started_at"], "actor": run["actor"],
        "snapshot": run["snapshot"], "bundle": run["bundle"], "commit": git.get("commit"),
        "seed": (context.get("seeds") or {}).get("seed"),
    }  # fmt: skip
    facts |= {f"metric {name}": value for name, value in sorted(run["metrics"].items())}
    return facts | {f"param {name}": value for name, value in sorted(run["params"].items())}
