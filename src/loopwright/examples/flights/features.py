"""What is known about a flight at the hour of its scheduled departure.

The calendar and the schedule are known anyway; the weather is the newest observation at least an hour old;
how late flights have been running is counted only from flights whose landing was known by then.
"""

from datetime import timedelta

from loopwright.features import FeatureView, Prior, Spine, WindowedRate

# From scheduled departure: the delay at the gate, the time in the air, and taxiing plus reporting.
LANDED = "time_hour + to_minutes(CAST(minute + dep_delay + air_time + 45 AS BIGINT))"

spine = Spine(
    table="flights",
    key=("year", "month", "day", "carrier", "flight", "origin", "sched_dep_time"),
    event_time="time_hour",
    unit="tailnum",
    # Cancelled and diverted flights have no arrival delay: their label never comes.
    label="arr_delay > 15",
    label_available_at=LANDED,
    inputs={
        "carrier": "carrier",
        "origin": "origin",
        "dest": "dest",
        "distance": "distance",
        "weekday": "isodow(make_date(year, month, day))",
        "sched_dep_minute": "hour * 60 + minute",
        "sched_arr_minute": "(sched_arr_time // 100) * 60 + sched_arr_time % 100",
    },
)

USUAL = Prior(rate=0.2, weight=5)


def late(name: str, window: timedelta, *on: str) -> WindowedRate:
    return WindowedRate(name=name, on=on, window=window, prior=USUAL, owner="ops-ml@example.com")


views = [
    FeatureView(
        name="weather",
        table="weather",
        entity=("origin",),
        event_time="time_hour",
        available_after=timedelta(hours=1),
        ttl=timedelta(hours=6),
        columns=("temp", "humid", "wind_speed", "precip", "pressure", "visib"),
        owner="weather@example.com",
    ),
    FeatureView(
        name="plane",
        table="planes",
        entity=("tailnum",),
        columns={"plane_year": "year", "plane_seats": "seats"},
        owner="fleet@example.com",
    ),
    late("late_origin_12h", timedelta(hours=12), "origin"),
    late("late_dest_6h", timedelta(hours=6), "dest"),
    late("late_flight_30d", timedelta(days=30), "carrier", "flight"),
    late("late_origin_carrier_2d", timedelta(days=2), "origin", "carrier"),
    late("late_carrier_14d", timedelta(days=14), "carrier"),
    late("late_dest_14d", timedelta(days=14), "dest"),
]

INPUTS = {
    "carrier": "string",
    "origin": "string",
    "dest": "string",
    "distance": "float64",
    "weekday": "int64",
    "sched_dep_minute": "float64",
    "sched_arr_minute": "float64",
    "temp": "float64",
    "humid": "float64",
    "wind_speed": "float64",
    "precip": "float64",
    "pressure": "float64",
    "visib": "float64",
    "plane_year": "float64",
    "plane_seats": "float64",
    "late_origin_12h": "float64",
    "late_dest_6h": "float64",
    "late_origin_carrier_2d": "float64",
    "late_flight_30d": "float64",
    "late_carrier_14d": "float64",
    "late_dest_14d": "float64",
}
