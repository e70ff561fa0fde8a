from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from loopwright.kernel.clock import to_us
from loopwright.ledger.engine import Ledger
from loopwright.monitoring import store
from loopwright.monitoring.evaluate import Evaluation, Watched, evaluate
from loopwright.monitoring.labels import LabelLog
from loopwright.monitoring.log import PredictionLog
from loopwright.project.spec import Spec
from loopwright.serving.events import Event
from loopwright.serving.wire import Fold
from loopwright.stats.histogram import LatencyHistogram
from loopwright.stats.profile import Reference, build_reference

MONDAY = datetime(2013, 4, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def training_reference() -> Reference:
    random = np.random.default_rng(1)
    return build_reference(
        {
            "distance": random.normal(1000, 300, 20_000),
            "wind": random.gamma(2, 5, 20_000),
            "@prediction": random.random(20_000),
        }
    )


@dataclass
class World:
    """A model in service for whose traffic tests say what happened, hour by hour."""

    ledger: Ledger
    spec: Spec
    log: PredictionLog
    labels: LabelLog
    reference: Reference
    expected: float | None = 0.75
    batch: int = 0
    sent: list[Event] = field(default_factory=list)

    def serve(
        self,
        start: datetime,
        days: float,
        *,
        rows: int = 2000,
        version: int = 1,
        arm: str = "stable",
        shift: float = 0.0,
        skill: float = 1.0,
        errors: float = 0.0,
        seed: int = 0,
        labelled: float = 1.0,
        redacted: Collection[str] = (),
    ) -> None:
        """Answer `rows` requests spread evenly over `days`, and let labels come half a day later."""
        random = np.random.default_rng([seed, to_us(start) // 10**6])
        columns = {
            "distance": random.normal(1000 + 300 * shift, 300, rows),
            "wind": random.gamma(2, 5, rows),
            "@prediction": random.random(rows),
        }
        late = random.random(rows) < 0.5 + skill * (columns["@prediction"] - 0.5) * 0.9
        failed = random.random(rows) < errors
        moments = [start + timedelta(days=days) * (i / rows) for i in range(rows)]
        events = [
            Event(
                id=f"{version}-{arm}-{to_us(moment)}-{seed}",
                unit="u",
                event_time=to_us(moment),
                at=to_us(moment),
                model=self.spec.model,
                version=version,
                arm=arm,
                latency_us=900,
                status="error" if failed[i] else "ok",
                error="boom" if failed[i] else "",
                inputs=[float(columns["distance"][i]), float(columns["wind"][i])],
                outputs=[] if failed[i] else [float(columns["@prediction"][i])],
            )
            for i, moment in enumerate(moments)
        ]
        self.sent += events
        self.batch += 1
        self.log.append(events, f"batch-{self.batch:04d}")
        # Six hours a fold keep the tests quick; where hours matter, traffic is shorter than a day.
        grain = 6 if days > 1 else 1
        hours = np.array([event.event_time // (grain * 3_600_000_000) * grain for event in events])
        with self.ledger.write() as conn:
            for hour in np.unique(hours):
                here = hours == hour
                answered = here & ~failed
                latency = LatencyHistogram()
                latency.add(np.full(int(here.sum()), 900))
                profile = self.reference.without(redacted).count(
                    {name: column[answered] for name, column in columns.items()}
                )
                store.apply_fold(
                    conn,
                    Fold(
                        model=self.spec.model,
                        version=version,
                        arm=arm,
                        bucket=int(hour) * 3_600_000_000,
                        n=int(here.sum()),
                        errors=int((here & failed).sum()),
                        fallbacks=0,
                        latency=latency.to_json(),
                        profile=profile.to_json(),
                    ),
                )
            store.raise_watermark(conn, self.spec.model, moments[-1])
        come = np.flatnonzero(random.random(rows) < labelled)
        self.label([events[i].id for i in come], late[come], [moments[i] + timedelta(hours=12) for i in come])

    def label(self, ids: Sequence[str], labels: Sequence[float], available_at: Sequence[datetime]) -> None:
        self.batch += 1
        name = f"lb-{self.batch:04d}"
        path = self.labels.append(self.spec.model, name, ids, np.asarray(labels, dtype=float), available_at)
        with self.ledger.write() as conn:
            store.record_label_batch(
                conn,
                batch_id=name,
                model=self.spec.model,
                rows=len(ids),
                available_from=min(available_at),
                available_to=max(available_at),
                path=str(path),
                now=NOW,
            )

    def pass_time(self, until: datetime) -> None:
        with self.ledger.write() as conn:
            store.raise_watermark(conn, self.spec.model, until)

    def look(self) -> Evaluation:
        return evaluate(
            self.ledger,
            spec=self.spec,
            watch=lambda version: Watched(self.reference, self.expected),
            log=self.log,
            labels=self.labels,
            now=NOW,
        )

    def weeks(self, count: int, *, first: int = 0, **traffic: float) -> list[Evaluation]:
        """Serve week after week and look after each, a day and a half into the next."""
        looks = []
        for week in range(first, first + count):
            start = MONDAY + timedelta(weeks=week)
            self.serve(start, 7, seed=week, **traffic)  # type: ignore[arg-type]
            self.pass_time(start + timedelta(days=8, hours=12))
            looks.append(self.look())
        return looks


@pytest.fixture
def make_spec() -> Callable[..., Spec]:
    def make(**sections: object) -> Spec:
        return Spec.from_json(
            {
                "model": "flight-late",
                "task": "binary",
                "data": {
                    "sources": {"flights": {"uri": "flights.csv", "contract": "c.yaml"}},
                    "label": {"name": "late", "available_after": "6h"},
                },
                "monitoring": {"window": "7d", "drift": {"psi": 0.2}, "quality": {"drop": "5%"}},
                **sections,
            }
        )

    return make


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    opened.migrate()
    yield opened
    opened.dispose()


@pytest.fixture
def world(tmp_path: Path, ledger: Ledger, make_spec: Callable[..., Spec]) -> World:
    return World(
        ledger,
        make_spec(),
        PredictionLog(tmp_path / "predictions"),
        LabelLog(tmp_path / "labels"),
        training_reference(),
    )
