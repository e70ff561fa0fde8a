"""What every online store promises, on a SQLite file and on a real Redis."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright.features.online import (
    Head,
    OnlineFeatures,
    OnlineStore,
    open_store,
    pack,
    pack_key,
)
from loopwright.features.status import Status
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Unavailable

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
HOUR = 3_600_000_000


def head(**changes: Any) -> Head:
    return msgspec.structs.replace(
        Head(
            definition="d1", schema=7, generation=0, change=0, entity=("origin",), kinds=("string",),
            columns=("temp", "wind"), dtypes=("float64", "float64"), as_of=to_us(NOON), ttl=6 * HOUR,
        ),
        **changes,
    )  # fmt: skip


def row(temp: float | None, wind: float | None = 1.0, *, hours_old: float = 1.0, schema: int = 7) -> bytes:
    at = to_us(NOON) - int(hours_old * HOUR)
    return pack(schema, at, at, (temp, wind))


def write(
    store: OnlineStore, rows: dict[str, bytes], build: str, view: str = "weather", **changes: Any
) -> Head:
    writing = store.begin("m", view, build)
    writing.put([(pack_key([name]), packed) for name, packed in rows.items()], [], len(rows))
    writing.publish(head(**changes))
    return store.heads("m")[view]


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'online.db'}"
    return str(request.getfixturevalue("redis_url"))


@pytest.fixture
def store(url: str) -> Iterator[OnlineStore]:
    opened = open_store(url)
    yield opened
    opened.close()


@pytest.fixture
def features(store: OnlineStore) -> OnlineFeatures:
    return OnlineFeatures(store, clock=lambda: NOON)


class TestReading:
    def test_a_value_comes_with_its_age_and_status(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        write(store, {"JFK": row(70.5, None, hours_old=2)}, "b1")
        found = features.read("m", "weather", {"origin": "JFK"})
        assert (found.status, found.values, found.age) == (
            Status.PRESENT,
            {"temp": 70.5, "wind": None},
            7200.0,
        )
        assert (found.status_of("temp"), found.status_of("wind")) == (Status.PRESENT, Status.NULL)
        assert found.definition == "d1"

    def test_a_row_older_than_the_ttl_is_expired_from_that_moment_on(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        write(store, {"JFK": row(70.5, hours_old=0)}, "b1")
        just_before = features.read("m", "weather", ["JFK"], at=NOON + timedelta(hours=6, microseconds=-1))
        at = features.read("m", "weather", ["JFK"], at=NOON + timedelta(hours=6))
        assert (just_before.status, at.status, at.values["temp"]) == (Status.PRESENT, Status.EXPIRED, None)
        assert at.age == 6 * 3600

    def test_windows_do_not_expire_with_the_row_beside_them(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        write(
            store,
            {"JFK": row(70.5, 3.0, hours_old=9), "LGA": row(1.0, None, hours_old=9)},
            "b1",
            lasting=("wind",),
        )
        jfk, lga = (features.read("m", "weather", [name]) for name in ("JFK", "LGA"))
        assert (jfk.status, jfk.values) == (Status.EXPIRED, {"temp": None, "wind": 3.0})
        assert (jfk.status_of("temp"), jfk.status_of("wind")) == (Status.EXPIRED, Status.PRESENT)
        assert lga.status_of("wind") is Status.NULL

    def test_an_entity_nobody_heard_of_is_not_found_and_a_null_one_equals_nothing(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        write(store, {"JFK": row(1.0)}, "b1")
        for name, status in (("LGA", Status.NOT_FOUND), (None, Status.NULL_KEY)):
            found = features.read("m", "weather", {"origin": name})
            assert (found.status, found.values, found.age) == (status, {"temp": None, "wind": None}, None)

    def test_a_view_may_say_what_an_unknown_entity_has(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        write(store, {}, "b1", absent=(0.2, 0))
        assert features.read("m", "weather", ["LGA"]).values == {"temp": 0.2, "wind": 0}

    def test_windows_are_as_old_as_their_reckoning_and_facts_without_time_have_no_age(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        untimed = {"JFK": pack(7, None, None, (1.0, 2.0))}
        write(store, untimed, "b1", timed=False, ttl=None, as_of=to_us(NOON) - HOUR)
        assert features.read("m", "weather", ["JFK"]).age == 3600.0
        write(store, untimed, "b2", timed=False, static=True, ttl=None)
        assert features.read("m", "weather", ["JFK"]).age is None

    def test_many_entities_and_views_come_in_order_and_duplicates_stay(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        write(store, {f"E{n}": row(float(n)) for n in range(700)}, "b1")
        write(
            store, {"E1": pack(7, None, None, (9.0, 9.0))}, "b2", "plane", timed=False, static=True, ttl=None
        )
        asked = [{"origin": f"E{n}"} for n in [1, 699, 5000, 1, 3]] + [{"origin": None}]
        found = features.read_many("m", asked)
        assert [one["weather"].values["temp"] for one in found] == [1.0, 699.0, None, 1.0, 3.0, None]
        assert [one["plane"].status for one in found] == [
            Status.PRESENT if a["origin"] == "E1" else Status.NOT_FOUND if a["origin"] else Status.NULL_KEY
            for a in asked
        ]
        many = features.read_many("m", [{"origin": f"E{n}"} for n in range(700)], ["weather"])
        assert [one["weather"].values["temp"] for one in many] == [float(n) for n in range(700)]

    def test_a_view_that_was_never_materialised_is_named_with_its_nearest(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        with pytest.raises(NotFound, match="loopwright features materialize m"):
            features.read("m", "weather", ["JFK"])
        write(store, {}, "b1")
        with pytest.raises(NotFound, match="did you mean `weather`"):
            features.read_many("m", [{"origin": "JFK"}], ["wether"])

    def test_keys_are_read_as_the_types_of_the_view(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        writing = store.begin("m", "flight", "b1")
        writing.put([(pack_key(["AA", 12]), row(3.0))], [], 1)
        writing.publish(head(entity=("carrier", "flight"), kinds=("string", "int64")))
        for number in (12, "12", 12.0):
            assert features.read("m", "flight", {"carrier": "AA", "flight": number}).values["temp"] == 3.0
        with pytest.raises(
            BadInput, match=r"flight\.flight: a key of another type; got twelve, wanted int64"
        ):
            features.read("m", "flight", ["AA", "twelve"])
        with pytest.raises(BadInput, match="the entity lacks `flight`"):
            features.read("m", "flight", {"carrier": "AA", "flihgt": 12})

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_what_was_packed_is_read(
        self, store: OnlineStore, features: OnlineFeatures, data: st.DataObject
    ) -> None:
        values = (
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.floats(allow_nan=False)
            | st.text()
        )
        rows = data.draw(st.dictionaries(st.text(), st.tuples(values, values), max_size=20))
        write(
            store,
            {name: pack(7, None, None, pair) for name, pair in rows.items()},
            "b",
            timed=False,
            ttl=None,
        )
        found = features.read_many("m", [{"origin": name} for name in rows], ["weather"])
        assert [tuple(one["weather"].values.values()) for one in found] == list(rows.values())


class TestSwitching:
    def test_what_is_being_built_is_not_seen_until_it_is_whole(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        write(store, {"JFK": row(1.0), "LGA": row(1.0)}, "b1")
        building = store.begin("m", "weather", "b2")
        building.put([(pack_key(["JFK"]), row(2.0))], [], 1)
        assert features.read("m", "weather", ["JFK"]).values["temp"] == 1.0
        building.publish(head())
        assert features.read("m", "weather", ["JFK"]).values["temp"] == 2.0
        assert features.read("m", "weather", ["LGA"]).status is Status.NOT_FOUND  # the new set lacks it

    def test_readers_see_one_complete_set_or_the_other(self, store: OnlineStore, url: str) -> None:
        names = [f"E{n}" for n in range(40)]
        write(store, {name: row(0.0) for name in names}, "b0")
        stop, watches, mixed, seen = threading.Event(), threading.Event(), list[set[float]](), set[float]()

        def watch() -> None:
            with_own = open_store(url)
            reader = OnlineFeatures(with_own, clock=lambda: NOON)
            last = False
            while not last:
                last = stop.is_set()  # once more after the last change
                got = reader.read_many("m", [{"origin": name} for name in names], ["weather"])
                temps = {one["weather"].values["temp"] for one in got}
                seen.update(temps)
                if len(temps) != 1:
                    mixed.append(temps)
                watches.set()
            with_own.close()

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            assert watches.wait(60)
            for number in range(1, 30):
                write(store, {name: row(float(number)) for name in names}, f"b{number}")
        finally:
            stop.set()
            watching.join(60)
        assert not mixed
        assert seen >= {0.0, 29.0}  # it did watch while they changed

    def test_all_who_open_a_new_store_at_once_may_write(self, tmp_path: Path) -> None:
        for turn in range(20):
            together, failed = threading.Barrier(6), list[Exception]()

            def begin(number: int, turn: int = turn, together: threading.Barrier = together) -> None:
                with_own = open_store(f"sqlite:///{tmp_path / f'{turn}.db'}")
                together.wait(30)
                try:
                    with_own.begin("m", f"view{number}", "b1")
                except Unavailable as error:
                    failed.append(error)  # noqa: B023
                with_own.close()

            threads = [threading.Thread(target=begin, args=(number,)) for number in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert failed == []

    def test_a_changed_schema_is_seen_by_a_reader_that_knew_the_old_one(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        write(store, {"JFK": row(1.0, 2.0)}, "b1")
        features.read("m", "weather", ["JFK"])
        building = store.begin("m", "weather", "b2")
        building.put([(pack_key(["JFK", 3]), pack(8, None, None, (5, "x", True)))], [], 1)
        building.publish(
            head(
                schema=8, definition="d2", entity=("origin", "hour"), kinds=("string", "int64"), ttl=None,
                columns=("n", "word", "yes"), dtypes=("int64", "string", "bool"), timed=False,
            )
        )  # fmt: skip
        found = features.read("m", "weather", {"origin": "JFK", "hour": 3})
        assert (found.values, found.definition) == ({"n": 5, "word": "x", "yes": True}, "d2")
        many = features.read_many("m", [{"origin": "JFK", "hour": "3"}])
        assert many[0]["weather"].values["word"] == "x"

    def test_a_row_of_another_schema_is_never_decoded_as_this_one(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        write(store, {"JFK": row(1.0, schema=6)}, "b1")
        with pytest.raises(Unavailable, match="another schema"):
            features.read("m", "weather", ["JFK"])

    def test_an_increment_changes_some_entities_and_deletes_others(
        self, store: OnlineStore, features: OnlineFeatures
    ) -> None:
        standing = write(store, {"JFK": row(1.0), "LGA": row(1.0), "EWR": row(1.0)}, "b1")
        writing = store.begin("m", "weather", "b2", onto=standing.generation)
        writing.put([(pack_key(["JFK"]), row(2.0))], [pack_key(["LGA"]), pack_key(["XXX"])], 1)
        writing.publish(head(as_of=to_us(NOON) + HOUR))
        found = features.read_many("m", [{"origin": o} for o in ("JFK", "LGA", "EWR")])
        assert [one["weather"].values["temp"] for one in found] == [2.0, None, 1.0]
        after = store.heads("m")["weather"]
        assert (after.as_of, after.rows, after.generation) == (to_us(NOON) + HOUR, 2, standing.generation)


class TestWriting:
    def test_a_build_that_was_cut_short_goes_on_where_it_was(
        self, store: OnlineStore, features: OnlineFeatures, url: str
    ) -> None:
        cut = store.begin("m", "weather", "b1")
        cut.put([(pack_key(["JFK"]), row(1.0))], [], 1)
        again = open_store(url).begin("m", "weather", "b1")
        assert (again.position, again.generation) == (1, cut.generation)
        again.put([(pack_key(["LGA"]), row(2.0))], [], 2)
        again.publish(head())
        assert store.heads("m")["weather"].rows == 2
        assert features.read("m", "weather", ["JFK"]).values["temp"] == 1.0

    def test_whoever_began_last_holds_the_pen(self, store: OnlineStore, features: OnlineFeatures) -> None:
        write(store, {"JFK": row(0.0)}, "b0")
        slow = store.begin("m", "weather", "b1")
        slow.put([(pack_key(["JFK"]), row(1.0))], [], 1)
        quick = store.begin("m", "weather", "b2")
        with pytest.raises(Conflict, match="taken over"):
            slow.put([(pack_key(["JFK"]), row(1.0))], [], 2)
        with pytest.raises(Conflict, match="taken over"):
            slow.publish(head())
        quick.put([(pack_key(["JFK"]), row(2.0))], [], 1)
        quick.publish(head())
        with pytest.raises(Conflict, match="taken over"):
            slow.publish(head())
        assert features.read("m", "weather", ["JFK"]).values["temp"] == 2.0

    def test_nothing_is_left_of_what_was_replaced_or_given_up(self, store: OnlineStore, url: str) -> None:
        for number in range(3):
            store.begin("m", "weather", f"given up {number}").put([(pack_key(["X"]), row(1.0))], [], 1)
            write(store, {"JFK": row(1.0)}, f"b{number}")
        assert len(_generations(store, url)) == 1

    def test_models_do_not_see_each_other(self, store: OnlineStore) -> None:
        write(store, {"JFK": row(1.0)}, "b1")
        assert store.heads("other") == {}
        assert store.fetch("other", [("weather", [pack_key(["JFK"])])]) == [(None, ())]


def _generations(store: OnlineStore, url: str) -> list[str]:
    if url.startswith("sqlite"):
        import sqlite3

        with sqlite3.connect(url.removeprefix("sqlite:///")) as file:
            tables = file.execute("SELECT name FROM sqlite_master WHERE name GLOB 'g[0-9]*'").fetchall()
        return [name for (name,) in tables]
    import redis

    return [key.decode() for key in redis.Redis.from_url(url).keys("lw:*:weather:g*")]  # type: ignore[union-attr]
