"""A home whose home.json names PostgreSQL: the same commands, the same answers."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loopwright.kernel.home import Home
from loopwright.ledger import store
from loopwright.ledger.engine import Ledger


@pytest.fixture
def home(tmp_path: Path, postgres_url: str) -> Home:
    home = Home.at(tmp_path / "home").create()
    home.config.write_text(json.dumps({"ledger_url": postgres_url}))
    return home


def loopwright(home: Home, *arguments: str, code: int = 0) -> Any:
    """Run a command with --json in a process of its own and return its answer."""
    command = [sys.executable, "-m", "loopwright", *arguments, "--home", str(home.root), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOOPWRIGHT_")}
    done = subprocess.run(command, cwd=home.root.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else None


def a_csv(path: Path) -> None:
    rng = random.Random(7)
    lines = ["age,city,bought"]
    for _ in range(1500):
        age, city = rng.randint(18, 80), rng.choice("abc")
        lines.append(f"{age},{city},{int(rng.random() < 1 / (1 + 2.7 ** (-(age - 50) / 10)))}")
    path.write_text("\n".join(lines) + "\n")


def test_a_model_of_ones_own_reaches_production(home: Home, postgres_url: str) -> None:
    a_csv(home.root.parent / "my.csv")
    loopwright(home, "init", "my-model", "--data", "my.csv", "--target", "bought")
    loopwright(home, "run", "my-model")
    asked = loopwright(home, "promote", "my-model", "1", "--to", "production")
    assert asked["state"] == "pending"
    loopwright(home, "approve", "my-model", "1", "--as", "local")
    [line] = loopwright(home, "status")
    assert line["production"] == [1]
    assert loopwright(home, "audit", "verify")["ok"]
    assert not (home.root / "ledger.db").exists()

    ledger = Ledger.open(postgres_url)
    with ledger.read() as conn:
        acts = [row.action for row in store.rows(conn)]
    ledger.dispose()
    assert "promotion.requested" in acts


def test_a_database_that_is_down_is_one_sentence(home: Home) -> None:
    home.config.write_text(json.dumps({"ledger_url": "postgresql://ada:secret@127.0.0.1:1/db"}))
    command = [sys.executable, "-m", "loopwright", "status", "--home", str(home.root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1
