"""The background job of explanations is killed again and again: every answer is explained, none twice."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from loopwright.control.access import LOCAL
from loopwright.control.context import open_context
from loopwright.control.controllers.explanations import ExplanationsController
from loopwright.monitoring.log import PredictionLog
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from tests.explained import DAY, ask, event, register, rows, sealed, ship

FILES, ROWS = 60, 50
WORK = """
import sys
from pathlib import Path
import lightgbm
from loopwright.control.access import LOCAL
from loopwright.control.context import open_context
from loopwright.control.controllers.explanations import ExplanationsController

ctx, controller = open_context(Path(sys.argv[1]), LOCAL), ExplanationsController(rows=40)
print("ready", flush=True)
while True:
    controller.tick(ctx)
"""


def test_every_answer_is_explained_once_whenever_the_job_dies(tmp_path: Path) -> None:
    ctx = open_context(tmp_path / "home", LOCAL, create=True)
    ensure_mlflow_tables(ctx.ledger)
    register(ctx, sealed(ctx, 0.1))
    ask(ctx)
    for file in range(FILES):
        ship(ctx, f"f{file:03d}", *(event(f"{file}-{row}") for row in range(ROWS)))
    chance, merged = np.random.default_rng(5), 0
    for kill in range(5):
        before = len(rows(ctx))
        with subprocess.Popen(
            [sys.executable, "-c", WORK, str(ctx.home.root)], stdout=subprocess.PIPE
        ) as job:
            assert job.stdout is not None
            assert job.stdout.readline() == b"ready\n"
            while kill < 2 and before == len(rows(ctx)) < FILES * ROWS:
                assert job.poll() is None
                time.sleep(0.01)
            time.sleep(float(chance.uniform(0, 0.2)))
            job.send_signal(signal.SIGKILL)
        if kill == 1:  # the day is merged while a part of it is explained
            merged = PredictionLog(ctx.home.predictions).compact("late", DAY.date(), least=2)
    done = len(rows(ctx))
    controller = ExplanationsController()
    while controller.tick(ctx):
        pass
    ids = [row["id"] for row in rows(ctx)]
    assert len(ids) == len(set(ids)) == FILES * ROWS
    assert merged == FILES and done > 0
