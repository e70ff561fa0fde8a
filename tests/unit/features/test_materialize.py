"""Bringing the online store up to a moment: everything, what changed, nothing; and going on after a cut."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from loopwright.data.lake import Lake
from loopwright.features import store as feature_store
from loopwright.features.lease import Lease
from loopwright.features.materialize import Work, materialize
from loopwright.features.module import FeatureModule
from loopwright.features.online import OnlineFeatures, open_store
from loopwright.features.status import Status
from loopwright.features.view import FeatureView, Prior, Spine, WindowedRate
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Unavailable
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger

START = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
WEATHER = FeatureView(
    "weather", "weather", "origin", {"temp": "temp"}, "t", ttl=6 * HOUR, owner="weather@example.com"
)
RATE = WindowedRate("late_6h", 6 * HOUR, on="origin", prior=Prior(0.2, 5))


def module(*views: Any) -> FeatureModule:
    chosen = views or (WEATHER, RATE)
    inputs = {"temp": "float64", "late_6h": "float64", "wind": "float64"}
    names = {name for v in chosen for name in (v.names() if isinstance(v, FeatureView) else [v.name])}
    return FeatureModule(
        Spine("flights", "id", "t", label="late"), chosen, {n: d for n, d in inputs.items() if n in names}
    )  # type: ignore[arg-type, misc]


class Place:
    """A lake with weather and flights, and a store."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger.open(f"sqlite:///{folder / 'ledger.db'}")
        self.ledger.migrate()
        self.lake = Lake(folder / "lake", self.ledger)
        self.url = f"sqlite:///{folder / 'online.db'}"
        self.store = open_store(self.url)
        self.staging = folder / "staging"
        self.now = START + 10 * HOUR
        self.batches = 0

    def work(self, *views: Any, **changes: Any) -> Work:
        self.staging.mkdir(exist_ok=True)
        arguments: dict[str, Any] = dict(
            module=module(*views), model="m", lake=self.lake, store=self.store, actor=SYSTEM, clock=lambda: self.now,
            staging=self.staging, label_available_after=timedelta(0),
        )  # fmt: skip
        return Work(**{**arguments, **changes})

    def weather(self, *rows: tuple[str, int, float], replace: str | None = None) -> str:
        self.batches += 1
        name = f"{self.batches:064x}"
        table = pa.table({
            "origin": [r[0] for r in rows],
            "t": pa.array([START + r[1] * HOUR for r in rows], pa.timestamp("us", "UTC")),
            "temp": [r[2] for r in rows], "wind": [r[2] / 2 for r in rows],
            "_batch": [name] * len(rows), "_row": list(range(1, len(rows) + 1)),
        })  # fmt: skip
        self.lake.write("silver", "m", "weather", table, replace=replace)
        return name

    def flights(self, *rows: tuple[str, int, float]) -> None:
        self.batches += 1
        table = pa.table({
            "id": [f"{self.batches}-{n}" for n in range(len(rows))], "origin": [r[0] for r in rows],
            "t": pa.array([START + r[1] * HOUR for r in rows], pa.timestamp("us", "UTC")), "late": [r[2] for r in rows],
            "_batch": [f"{self.batches:064x}"] * len(rows), "_row": list(range(1, len(rows) + 1)),
        })  # fmt: skip
        self.lake.write("silver", "m", "flights", table)

    def temps(self, *origins: str, at: datetime | None = None) -> list[Any]:
        reader = OnlineFeatures(self.store, clock=lambda: at or self.now)
        found = reader.read_many("m", [{"origin": origin} for origin in origins], ["weather"])
        return [one["weather"].values["temp"] for one in found]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.weather(("JFK", 1, 10.0), ("JFK", 8, 11.0), ("LGA", 7, 20.0), ("EWR", 0, 30.0), ("JFK", 12, 99.0))
    made.flights(("JFK", 1, 1.0), ("JFK", 7, 1.0), ("LGA", 9, 0.0))
    yield made
    made.store.close()


def test_what_is_known_at_a_moment_is_online_and_nothing_later(place: Place) -> None:
    done = {one.view: one for one in materialize(place.work())}
    assert (done["weather"].kind, done["weather"].entities, done["weather"].rows_online) == ("full", 3, 3)
    assert place.temps("JFK", "LGA", "EWR", "???") == [11.0, 20.0, None, None]
    reader = OnlineFeatures(place.store, clock=lambda: place.now)
    assert reader.read("m", "weather", ["EWR"]).status is Status.EXPIRED
    assert reader.read("m", "late_6h", ["JFK"]).values == {"late_6h": (1 + 0.2 * 5) / 6}
    assert reader.read("m", "late_6h", ["nobody"]).values == {"late_6h": 0.2}


def test_again_at_the_same_moment_nothing_is_done(place: Place) -> None:
    materialize(place.work())
    assert [(one.kind, one.why) for one in materialize(place.work())] == [("none", "nothing has changed")] * 2


def test_an_increment_writes_the_entities_that_can_have_changed(place: Place) -> None:
    materialize(place.work())
    place.weather(("LGA", 9, 21.0), ("SFO", 10, 50.0))  # late, and new
    place.now = START + 12 * HOUR  # JFK's row of hour 12 is known now
    done = {one.view: one for one in materialize(place.work())}
    assert (done["weather"].kind, done["weather"].entities) == ("increment", 3)
    assert place.temps("JFK", "LGA", "SFO") == [99.0, 21.0, 50.0]
    # The flight of hour 1 fell out of JFK's window at hour 7, before; the others are still in theirs.
    assert done["late_6h"].entities == 0
    place.now = START + 14 * HOUR  # the flight of hour 7 was known a microsecond later
    assert {one.view: one.entities for one in materialize(place.work())}["late_6h"] == 1


def test_an_increment_ends_as_writing_everything_anew_does(place: Place) -> None:
    materialize(place.work())
    batch = place.weather(("JFK", 9, 5.0), ("SFO", 9, 6.0))
    materialize(place.work())
    assert place.temps("JFK", "SFO") == [5.0, 6.0]
    place.weather(("LGA", 9, 7.0), replace=batch)  # the batch is corrected: its rows of JFK and SFO go
    materialize(place.work())
    after = place.temps("JFK", "LGA", "SFO", "EWR")
    assert after == [11.0, 7.0, None, None]
    assert {one.kind for one in materialize(place.work(), full=True)} == {"full"}
    assert place.temps("JFK", "LGA", "SFO", "EWR") == after
    assert place.store.heads("m")["weather"].rows == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"full": True}, "asked for"),
        ({"as_of": START + 9 * HOUR}, "an earlier moment than what stands"),
    ],
)
def test_a_view_is_written_anew_when(place: Place, change: dict[str, Any], why: str) -> None:
    materialize(place.work())
    (done,) = materialize(place.work(), views=["weather"], **change)
    assert (done.kind, done.why) == ("full", why)


def test_a_changed_definition_is_written_anew_and_numbered(place: Place) -> None:
    materialize(place.work())
    changed = FeatureView(
        "weather", "weather", "origin", {"temp": "temp * 2", "wind": "wind"}, "t", ttl=6 * HOUR
    )
    (done,) = materialize(place.work(changed))
    assert (done.kind, done.why) == ("full", "the definition changed")
    assert place.temps("JFK") == [22.0]
    with place.ledger.read() as conn:
        numbers = [
            (one.number, one.document["columns"]) for one in feature_store.definitions(conn, "m", "weather")
        ]
    assert numbers == [(1, [["temp", "temp"]]), (2, [["temp", "temp * 2"], ["wind", "wind"]])]


def test_a_view_that_gives_no_input_stays_offline_and_the_registry_says_so(place: Place) -> None:
    unused = FeatureView("wind", "weather", "origin", {"wind_speed": "wind"}, "t")
    work = place.work(WEATHER)
    with_unused = FeatureModule(work.module.spine, (WEATHER, unused), work.module.inputs)
    assert [one.view for one in materialize(place.work(module=with_unused))] == ["weather"]
    with place.ledger.read() as conn:
        found = {one.name: one.document["inputs"] for one in feature_store.definitions(conn, "m")}
    assert found == {"weather": {"temp": "float64"}, "wind": {}}


def test_redis_is_brought_up_to_date_in_the_same_way(place: Place, redis_url: str) -> None:
    place.store = open_store(redis_url)
    materialize(place.work())
    place.weather(("LGA", 9, 21.0), ("SFO", 10, 50.0))
    place.now = START + 12 * HOUR
    done = {one.view: (one.kind, one.entities, one.rows_online) for one in materialize(place.work())}
    assert done["weather"] == ("increment", 3, 4)
    assert place.temps("JFK", "LGA", "SFO", "nobody") == [99.0, 21.0, 50.0, None]


def test_words_about_a_view_are_kept_and_move_no_row(place: Place) -> None:
    materialize(place.work(WEATHER))
    described = FeatureView(
        "weather", "weather", "origin", {"temp": "temp"}, "t", ttl=6 * HOUR, description="Outside."
    )
    (done,) = materialize(place.work(described))
    assert done.kind == "none"
    with place.ledger.read() as conn:
        assert feature_store.newest_definition(conn, "m", "weather").number == 2  # type: ignore[union-attr]


def test_named_entities_are_written_at_the_moment_that_stands(place: Place) -> None:
    materialize(place.work())
    place.weather(("LGA", 9, 21.0), ("JFK", 9, 12.0))
    (done,) = materialize(
        place.work(), views=["weather"], entities=[{"origin": "LGA"}], as_of=START + 20 * HOUR
    )
    assert (done.entities, done.as_of) == (1, START + 10 * HOUR)
    assert place.temps("LGA", "JFK") == [21.0, 11.0]
    materialize(place.work())
    assert place.temps("LGA", "JFK") == [21.0, 12.0]  # what was not named is not forgotten


def test_a_named_entity_of_another_type_is_refused_by_name(place: Place) -> None:
    place.flights(("JFK", 1, 1.0))
    by_time = FeatureView("weather", "weather", {"t": "t"}, {"temp": "temp"}, "t")
    materialize(place.work(by_time))
    with pytest.raises(BadInput, match=r"view weather: an entity of another type.*wanted t: TIMESTAMP"):
        materialize(place.work(by_time), entities=[{"t": "not a time"}])


def test_since_an_event_time_entities_are_written_again(place: Place) -> None:
    materialize(place.work())
    (done,) = materialize(place.work(), views=["weather"], since=START + 8 * HOUR)
    assert (done.kind, done.entities) == ("increment", 1)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(place: Place) -> None:
    would = materialize(place.work(), dry_run=True)
    assert [(one.view, one.kind, one.entities) for one in would] == [
        ("weather", "full", 3),
        ("late_6h", "full", 2),
    ]
    assert place.store.heads("m") == {}
    with place.ledger.read() as conn:
        assert feature_store.history(conn, "m") == []
        assert feature_store.definitions(conn, "m") == []
    materialize(place.work())
    place.weather(("SFO", 9, 1.0))
    assert [one.entities for one in materialize(place.work(), dry_run=True)] == [1, 0]


def test_what_was_cut_short_goes_on_where_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.weather(*((f"E{n:02}", 9, float(n)) for n in range(30)))
    work = place.work(WEATHER, batch_rows=10)
    _cut_after(monkeypatch, 2)
    with pytest.raises(Unavailable, match="pulled"):
        materialize(work)
    monkeypatch.undo()
    assert place.store.heads("m") == {}
    with place.ledger.read() as conn:
        left = feature_store.last(conn, "m", "weather")
    assert left is not None
    assert left.state == "failed" and "pulled" in left.progress["error"]
    puts = _count_rows(monkeypatch)
    (done,) = materialize(work)
    assert (done.resumed, sum(puts), done.id) == (True, 13, left.id)
    assert (place.store.heads("m")["weather"].rows, place.temps("E29", "JFK")) == (33, [29.0, 11.0])
    assert list(place.staging.glob("*.parquet")) == []


def test_what_was_cut_short_is_given_up_when_it_no_longer_fits(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut_after(monkeypatch, 0)
    with pytest.raises(Unavailable):
        materialize(place.work(WEATHER))
    monkeypatch.undo()
    changed = FeatureView("weather", "weather", "origin", {"temp": "temp + 1"}, "t", ttl=6 * HOUR)
    (done,) = materialize(place.work(changed))
    assert (done.resumed, place.temps("JFK")) == (False, [12.0])
    assert list(place.staging.glob("*.parquet")) == []


def test_only_one_at_a_time_materialises_a_view(place: Place) -> None:
    with place.ledger.write() as conn:
        ledger_store.acquire(conn, "materialize m/weather", "elsewhere/1/x", timedelta(minutes=1), place.now)
    with pytest.raises(Conflict, match="elsewhere/1/x"):
        materialize(place.work(WEATHER))


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_over(place: Place) -> None:
    lease = Lease(place.ledger, "materialize m/weather", lambda: place.now)
    dead = f"{lease.holder.split('/')[0]}/{2**22 + 1}/x"
    with place.ledger.write() as conn:
        ledger_store.acquire(conn, lease.name, dead, timedelta(minutes=1), place.now)
    assert materialize(place.work(WEATHER))[0].kind == "full"


def test_each_is_recorded_and_audited(place: Place) -> None:
    materialize(place.work(WEATHER))
    with place.ledger.read() as conn:
        (one,) = feature_store.history(conn, "m", "weather")
        audited = [row for row in ledger_store.rows(conn, limit=50) if row.action == "features.materialized"]
        assert feature_store.last_as_of(conn, "m") == place.now
    assert (one.state, one.rows, one.as_of, one.store) == ("done", 3, place.now, place.url)
    assert [(row.subject, row.payload["rows"]) for row in audited] == [("m/weather", 3)]


def test_an_unknown_view_names_the_nearest_and_a_missing_table_says_what_to_do(place: Place) -> None:
    with pytest.raises(NotFound, match="did you mean `weather`"):
        materialize(place.work(), views=["wether"])
    nowhere = FeatureView("weather", "wind_table", "origin", {"temp": "temp"}, "t")
    with pytest.raises(NotFound, match="loopwright run"):
        materialize(place.work(nowhere))


def test_a_key_that_changed_its_type_is_not_mixed_with_the_old_ones(place: Place) -> None:
    materialize(place.work(WEATHER))
    head = place.store.heads("m")["weather"]
    assert head.kinds == ("string",)
    broken = FeatureView(
        "weather", "weather", {"origin": "length(origin)"}, {"temp": "temp"}, "t", ttl=6 * HOUR
    )
    (done,) = materialize(place.work(broken))
    assert (done.kind, place.store.heads("m")["weather"].kinds) == ("full", ("int64",))
    reader = OnlineFeatures(place.store, clock=lambda: place.now)
    assert reader.read("m", "weather", {"origin": "3"}).values["temp"] == 11.0
    with pytest.raises(BadInput, match="wanted int64"):
        reader.read("m", "weather", {"origin": "JFK"})


def _cut_after(monkeypatch: pytest.MonkeyPatch, puts: int) -> None:
    from loopwright.features.online_sqlite import SqliteWriting

    real, seen = SqliteWriting.put, []

    def put(self: SqliteWriting, *arguments: Any) -> None:
        if len(seen) == puts:
            raise Unavailable("the plug was pulled")
        seen.append(1)
        real(self, *arguments)

    monkeypatch.setattr(SqliteWriting, "put", put)


def _count_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from loopwright.features.online_sqlite import SqliteWriting

    real, counted = SqliteWriting.put, list[int]()

    def put(self: SqliteWriting, rows: Any, gone: Any, position: int) -> None:
        counted.append(len(rows))
        real(self, rows, gone, position)

    monkeypatch.setattr(SqliteWriting, "put", put)
    return counted
