"""A broken delivery, from its refusal to the closing of its incident, as a person meets it on the command line."""

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from loopwright.cli.edge import run
from loopwright.data.contract import Contract
from loopwright.kernel.clock import parse_time
from loopwright.pipeline.scaffold import init_project

CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: shop
version: 1.0.0
status: active
schema:
  - name: shop
    properties:
      - {name: order, logicalType: integer, primaryKey: true, required: true}
      - {name: placed, logicalType: timestamp, required: true}
      - {name: x, logicalType: number, logicalTypeOptions: {maximum: MAXIMUM}}
      - {name: place, logicalType: string}
      - {name: bought, logicalType: integer, required: true}
    customProperties: [{property: maxBadShare, value: SHARE}]
"""
FEATURES = """
from datetime import timedelta

from loopwright.features import Spine, WindowedRate

spine = Spine(table="shop", key=("order",), event_time="placed", label="bought > 0",
              inputs={"x": "x", "place": "place"})
views = [WindowedRate(name="lately", on=("place",), window=timedelta(days=3))]
INPUTS = {"x": "float64", "place": "string", "lately": "float64"}
"""


@dataclass
class Shop:
    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def project(self) -> str:
        return str(self.folder / "shop")

    def __call__(self, *words: str) -> tuple[int, str]:
        self.capsys.readouterr()
        code = run([*words, "--home", str(self.folder / "home")])
        said = self.capsys.readouterr()
        return code, said.out + said.err

    def json(self, *words: str) -> Any:
        code, said = self(*words, "--json")
        assert code in (0, 1), said
        return json.loads(said)

    def contract(self, maximum: int, share: float) -> None:
        text = CONTRACT.replace("MAXIMUM", str(maximum)).replace("SHARE", str(share))
        next((self.folder / "shop" / "contracts").glob("*.yaml")).write_text(text)

    def deliver(self, first: int, count: int, *, broken: bool = False, name: str = "shop.csv") -> None:
        chance = np.random.default_rng(first + 1)
        start = parse_time("2024-01-01T00:00:00Z")
        x = chance.normal(size=count)
        place = ["a" if n % 2 else "b" for n in range(count)]
        if broken:
            x = np.where(np.array(place) == "b", 1000.0, x)
        rows = pa.table(
            {
                "order": list(range(first, first + count)),
                "placed": [
                    (start + timedelta(hours=first + n)).strftime("%Y-%m-%dT%H:%M:%SZ") for n in range(count)
                ],
                "x": x,
                "place": place,
                "bought": (chance.random(count) < 1 / (1 + np.exp(-2 * np.clip(x, -3, 3)))).astype(int),
            }
        )
        pa_csv.write_csv(rows, self.folder / name)

    def use(self, name: str) -> None:
        """Let loop.yaml name another file."""
        path = self.folder / "shop" / "loop.yaml"
        text = path.read_text()
        old = next(line for line in text.splitlines() if ".csv" in line)
        at = old.index(".csv")
        stem = old[old.rindex("/", 0, at) + 1 : at + 4]
        path.write_text(text.replace(stem, name))


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    shop = Shop(tmp_path, capsys)
    shop.deliver(0, 400)
    init_project(
        tmp_path / "shop",
        name="shop",
        data=tmp_path / "shop.csv",
        target="bought",
        time="placed",
        key=["order"],
    )
    (tmp_path / "shop" / "features.py").write_text(FEATURES)
    shop.contract(100, 0.2)
    code, said = shop("run", shop.project)
    assert code == 0, said
    return shop


def test_from_a_broken_delivery_to_a_closed_incident(shop: Shop) -> None:
    gold = next(one for one in shop.json("data", "tables") if one["table"] == "frame")
    assert (gold["good_rows"], gold["gold_version"]) == (400, 0)
    pinned = shop.json("data", "snapshots", "shop")[0]["digest"]

    # A delivery of which half is broken does not come in, and says where to look.
    shop.deliver(400, 100, broken=True)
    code, said = shop("run", shop.project)
    assert code == 1
    assert "the batch is blocked by its contract" in said and "data incident show in_" in said
    code, said = shop("data", "incident", "list")
    assert code == 1 and "blocked" in said
    (incident,) = shop.json("data", "incident", "list")
    name = incident["id"]

    # Triage: which source, batch, rule, rows, since when; who is hit.
    told = shop.json("data", "incident", "show", name)
    triage = told["triage"]
    assert triage["source"]["uri"].endswith("shop.csv") and len(triage["source"]["batch"]) == 64
    assert [rule["name"] for rule in triage["rules"]] == ["x <= 100", "share of bad rows"]
    assert triage["last_good"]["rows"] == 400
    assert (triage["rows"]["failing"], triage["rows"]["first"], triage["rows"]["last"]) == (50, 1, 99)
    assert triage["rows"]["spread"][0] == {
        "column": "place", "value": "b", "failing": 50, "share": 1.0, "of_all": 0.5,
    }  # fmt: skip
    assert triage["rows"]["values"]["x <= 100"]["maximum"] == 1000
    assert any("100 rows came, 400 the time before" in line for line in triage["changes"])
    assert told["consumers"]["versions"] == ["shop/1"]
    assert [one["name"] for one in told["consumers"]["features"] if one["hit"]] == ["x"]
    (alert,) = [one for one in shop.json("alerts") if one["kind"] == "data"]
    assert (alert["tier"], alert["model"], alert["detail"]["incident"]) == ("P1", "shop", name)

    # The same again joins it.
    shop("data", "snapshot", shop.project)
    assert shop.json("data", "incident", "show", name)["count"] == 2

    # Going on with another source does not help: training refuses, except on what was pinned before.
    shop.deliver(500, 20, name="next.csv")
    shop.use("next.csv")
    code, said = shop("run", shop.project)
    assert code == 1 and f"incident {name}" in said and "--snapshot" in said
    code, said = shop("run", shop.project, "--snapshot", pinned[:12])
    assert code == 0 and "registered shop version 2" in said

    # Somebody looks after it. Its rows come in beside the good ones, which ends it.
    assert "acknowledged" in shop("data", "incident", "ack", name, "--reason", "asking the shop")[1]
    shop.use("shop.csv")
    shop.contract(100, 1)
    assert shop("data", "snapshot", shop.project)[0] == 0
    told = shop.json("data", "incident", "show", name)
    assert told["state"] == "resolved"
    states = {one["detail"]["incident"]: one["state"] for one in shop.json("alerts") if one["kind"] == "data"}
    assert states.pop(name) == "resolved"
    # That so many rows were set aside is unusual, and an incident that keeps nobody from training.
    (share,) = [one for one in shop.json("data", "incident", "list") if one["kind"] == "quarantine"]
    assert not share["blocking"] and "50.0% of 100 rows were set aside, usually 0.0%" in share["title"]
    assert states == {share["id"]: "open"}

    # The shop sells more now: the contract follows, and the rows held back keep it.
    (held,) = shop.json("data", "quarantine", "list", "shop")
    assert (held["table"], held["rows"], held["reasons"]) == ("shop", 50, {"x <= 100": 50})
    assert "row 1: x <= 100" in shop("data", "quarantine", "shop", "shop", "--limit", "1")[1]
    assert (
        shop("data", "quarantine", "release", "shop", "shop")[0] == 1
    )  # nothing keeps the contract in force
    shop.contract(2000, 1)
    assert shop.json("data", "quarantine", "release", "shop", "shop", "--dry-run")["released"] == 50
    code, said = shop("data", "quarantine", "release", "shop", "shop", "--reason", "larger orders are right")
    assert code == 0 and "50 rows judged: 50 are let in" in said

    # What is downstream follows: the days of those rows, and what a window of three days sees of them.
    dry = shop.json("data", "backfill", "shop", "--dry-run")
    assert dry["considered"][0] == "2024-01-17"
    done = shop.json("data", "backfill", "shop", "--incident", name)
    assert done["considered"] == dry["considered"] and done["written"][0] == "2024-01-17"
    assert done["unchanged"] == 16
    assert done["rows"] == 520
    again = shop.json("data", "backfill", "shop")
    assert again["written"] == [] and again["rows"] == 520

    # Closed, with what was learnt.
    file = shop.folder / "post-mortem.md"
    assert shop("data", "incident", "post-mortem", name, "--out", str(file))[0] == 0
    text = file.read_text()
    for part in (
        "x &lt;= 100",
        "`place` is `b` in 100% of them",
        "| released |",
        "```yaml",
    ):
        assert part in text
    assert shop("data", "incident", "close", name, "--post-mortem", str(file))[0] == 0
    assert [one["id"] for one in shop.json("data", "incident", "list")] == [share["id"]]
    assert [one["id"] for one in shop.json("data", "incident", "list", "--state", "closed")] == [name]
    events = [one["event"] for one in shop.json("data", "incident", "show", name)["timeline"]]
    assert [e for e in events if e != "consumers"] == [
        "opened", "repeated", "acknowledged", "resolved", "released", "backfilled", "closed",
    ]  # fmt: skip
    assert shop("audit", "verify")[0] == 0
    html = shop.json("data", "incident", "post-mortem", name, "--html")["text"]
    assert "<table>" in html and "<script" not in html

    # And training goes on.
    assert shop("run", shop.project)[0] == 0


def test_what_mends_itself_and_what_is_proposed(shop: Shop) -> None:
    # A source that delivers what is wanted after all ends its incident; a person may open it again.
    shop.deliver(400, 100, broken=True)
    assert shop("run", shop.project)[0] == 1
    (incident,) = shop.json("data", "incident", "list")
    proposals = shop.json("data", "incident", "show", incident["id"])["proposals"]
    shop.deliver(400, 100)
    assert shop("data", "snapshot", shop.project)[0] == 0
    (incident,) = shop.json("data", "incident", "list")
    assert (incident["state"], incident["blocking"]) == ("resolved", False)
    shop("data", "incident", "reopen", incident["id"], "--reason", "it came back")
    states = [one["state"] for one in shop.json("alerts") if one["kind"] == "data"]
    assert sorted(states) == ["open", "resolved"]
    assert shop("run", shop.project)[0] == 1
    shop("data", "incident", "resolve", incident["id"], "--reason", "it did not")

    # A source that is away is an incident of a table that had deliveries.
    (shop.folder / "shop.csv").unlink()
    assert shop("data", "snapshot", shop.project)[0] == 2
    (away,) = [one for one in shop.json("data", "incident", "list") if one["kind"] == "unreadable"]
    assert away["blocking"]
    shop.deliver(0, 400)
    assert shop("data", "snapshot", shop.project)[0] == 0
    assert {one["state"] for one in shop.json("data", "incident", "list")} == {"resolved"}

    # What is proposed, a contract takes.
    assert {one["where"] for one in proposals} == {"the table", "x"}
    text = CONTRACT.replace("MAXIMUM", "100").replace("SHARE", "1")
    count = next(one["yaml"] for one in proposals if one["where"] == "the table")
    assert "rowCount" in count
    under = "".join(f"    {line}\n" for line in count.splitlines())
    changed = Contract.parse(text.replace("    customProperties", under + "    customProperties"))
    assert len(changed.rules) == len(Contract.parse(text).rules) + 1
    wider = next(one["yaml"] for one in proposals if one["where"] == "x")
    assert wider == "logicalTypeOptions:\n  maximum: 1000.0\n"
