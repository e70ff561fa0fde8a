"""Step 6: two workers answer April, one request per flight; the log and the labels hold exactly what happened."""

import json

import duckdb
import numpy as np

from loopwright.bundle.approval import verify_record
from loopwright.bundle.routes import open_routes
from tests.lifecycle.conftest import Played

APRIL = "event_time >= '2013-04-01' AND event_time < '2013-05-01'"
IDS = "concat_ws('-', year, month, day, carrier, flight, origin, sched_dep_time)"
KNOWN = "greatest(time_hour + to_minutes((minute + dep_delay + air_time + 45)::BIGINT), time_hour + INTERVAL 6 HOUR)"


def test_every_flight_of_april_was_answered_once_by_version_1(
    played: Played, source: duckdb.DuckDBPyConnection
) -> None:
    flown = {
        row[0]
        for row in source.execute(
            f"SELECT {IDS} FROM flights WHERE time_hour >= '2013-04-01' AND time_hour < '2013-05-01'"
        ).fetchall()
    }
    logged = played.predictions(f"SELECT id, version, arm, status FROM log WHERE {APRIL}")
    assert len(logged) == 28_353
    assert {row[0] for row in logged} == flown
    assert {row[1:] for row in logged} == {(1, "stable", "ok")}
    told = played.figures["april"]
    assert (told["rows"], told["requests"], told["failed"], told["fallbacks"]) == (28_353, 28_353, 0, 0)
    assert told["by_version"] == {"1": 28_353}
    assert told["by_arm"] == {"stable": 28_353}


def test_april_came_one_flight_at_a_time(played: Played) -> None:
    # A row of a request with several rows has no latency of its own: its latency_us is 0.
    ((alone, slow),) = played.predictions(
        f"SELECT count(*) FILTER (latency_us > 0), count(*) FILTER (latency_us > 1e6) FROM log WHERE {APRIL}"
    )
    assert alone == 28_353
    assert slow <= 16  # what is under way at once: a machine that stalls once holds no more


def test_all_the_year_every_flight_was_answered_exactly_once(
    played: Played, source: duckdb.DuckDBPyConnection
) -> None:
    last = played.predictions("SELECT max(event_time) FROM log")[0][0]
    flown = source.execute(
        f"SELECT {IDS} FROM flights WHERE time_hour >= '2013-04-01' AND time_hour <= ?", [last]
    ).fetchall()
    answered = played.predictions("SELECT id FROM log WHERE arm <> 'shadow' AND status <> 'error'")
    assert len(answered) == len(set(answered)) == len(flown)
    assert set(answered) == set(flown)


def test_both_workers_answered_and_all_they_wrote_was_taken_in(played: Played) -> None:
    shipped = played.sql("SELECT source, segment, shipped FROM lw_segments")
    by_worker = dict.fromkeys(("w0", "w1"), 0)
    for row in shipped:
        by_worker[row["segment"].split("-")[0]] += row["shipped"]
    total = sum(by_worker.values())
    assert all(size > 0.2 * total for size in by_worker.values())
    # What arrived is counted by hour of event time too; those counts and the log must agree, arm by arm.
    counted = {
        (row["version"], row["arm"]): row["hours"]
        for row in played.sql("SELECT version, arm, count(*) AS hours FROM lw_folds GROUP BY version, arm")
    }
    logged = played.predictions(
        "SELECT version, arm, count(DISTINCT date_trunc('hour', event_time)) FROM log GROUP BY ALL"
    )
    assert {(version, arm): hours for version, arm, hours in logged} == counted


def test_each_logged_answer_is_what_the_sealed_bundle_says_about_the_logged_inputs(played: Played) -> None:
    bundle = played.bundle(1)
    logged = played.predictions(f"SELECT inputs, outputs[1] FROM log WHERE {APRIL}")
    columns = zip(*(json.loads(inputs) for inputs, _ in logged), strict=True)
    inputs = {
        field.name: np.array(column, dtype=object)
        for field, column in zip(bundle.schema.inputs, columns, strict=True)
    }
    again = bundle.predict(inputs)[:, 0]
    np.testing.assert_allclose(again, [answer for _, answer in logged], atol=1e-7)


def test_only_what_was_sealed_and_approved_is_routed(played: Played) -> None:
    (row,) = played.sql("SELECT document FROM lw_route_tables ORDER BY serial DESC LIMIT 1")
    table = open_routes(json.loads(row["document"])["signed"].encode(), [played.key])
    routes = table.models["flight-late"].versions
    effective = {
        row["version"]: row for row in played.sql("SELECT * FROM lw_promotions WHERE state = 'effective'")
    }
    assert routes
    for version, route in routes.items():
        record = verify_record(route.approval, [played.key])
        promotion = effective[int(version)]
        assert (record.model, str(record.version), record.stage) == ("flight-late", version, "Production")
        assert record.bundle == route.bundle == promotion["bundle"]
        assert (record.promotion_id, record.requested_by) == (promotion["id"], promotion["requested_by"])
        assert [reviewer for reviewer, _ in record.approvals] == ["bo", "chen"]


def test_labels_arrived_when_flights_had_landed_and_never_before(
    played: Played, source: duckdb.DuckDBPyConnection
) -> None:
    until = played.figures["april"]["until"]
    ((expected,),) = source.execute(
        f"SELECT count(*) FROM flights WHERE arr_delay IS NOT NULL AND {KNOWN} >= '2013-04-01' AND {KNOWN} < ?",
        [until],
    ).fetchall()
    assert played.figures["april"]["labels"] == expected == 27_583

    labels = played.predictions("SELECT id, label, available_at FROM labels")
    assert len({row[0] for row in labels}) == len(labels)
    landed = {
        name: (late, known)
        for name, late, known in source.execute(
            f"SELECT {IDS}, arr_delay > 15, {KNOWN} FROM flights WHERE arr_delay IS NOT NULL"
        ).fetchall()
    }
    assert all((bool(label), available) == landed[name] for name, label, available in labels)
    # Each batch came after its newest label was known, in the story's own time: the log had moved past it.
    batches = played.sql("SELECT rows, event_to FROM lw_label_batches")
    assert sum(batch["rows"] for batch in batches) == len(labels)
    cancelled = {
        row[0] for row in source.execute(f"SELECT {IDS} FROM flights WHERE dep_time IS NULL").fetchall()
    }
    assert cancelled.isdisjoint(row[0] for row in labels)
