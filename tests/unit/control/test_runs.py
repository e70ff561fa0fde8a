"""What runs are compared by, as their captured context keeps it."""

from datetime import timedelta

from loopwright.control.context import Context
from loopwright.control.operation import find
from loopwright.pipeline import store


def test_runs_are_compared_by_commit_and_seed(ctx: Context) -> None:
    with ctx.ledger.write() as conn:
        for number, (commit, seed) in enumerate((("a" * 40, 7), ("b" * 40, 7))):
            name = f"run{number}"
            store.start_run(
                conn, run_id=name, model="m", project="p", experiment="t/p/m", actor="ana", reason="", snapshot=None,
                now=ctx.now,
            )  # fmt: skip
            context = {"code": {"git": {"commit": commit}}, "seeds": {"seed": seed}}
            store.finish_run(
                conn, name, status="FINISHED", now=ctx.now + timedelta(seconds=1), bundle=None, params={}, metrics={},
                context=context,
            )  # fmt: skip
    answer = find("runs.compare")(ctx, runs=["run0", "run1"])
    rows = {row["name"]: row for row in answer["rows"]}
    assert rows["commit"]["values"] == ["a" * 40, "b" * 40] and rows["commit"]["differs"]
    assert rows["seed"]["values"] == [7, 7] and not rows["seed"]["differs"]
