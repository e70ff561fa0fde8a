"""A faulty speed-up of transform.py: codes are looked up without a thought for names that training never saw.

It passes every check on January to March, and raises KeyError on the first flight to an airport unseen in its
training rows. The demo ships it to show that a canary finds this and that no user is hurt.
"""

import numpy as np

NAMES = ("carrier", "origin", "dest")
NUMBERS = (
    "distance", "weekday", "sched_dep_minute", "sched_arr_minute",
    "temp", "humid", "wind_speed", "precip", "pressure", "visib", "plane_year", "plane_seats",
    "late_origin_12h", "late_dest_6h", "late_origin_carrier_2d", "late_flight_30d", "late_carrier_14d",
    "late_dest_14d",
)  # fmt: skip
WORST_PLAUSIBLE_WIND = 100.0


def fit(inputs):
    codes = {}
    for name in NAMES:
        values, counts = np.unique([value for value in inputs[name] if value is not None], return_counts=True)
        order = np.lexsort((values, -counts))
        codes[name] = {str(values[place]): code for code, place in enumerate(order)}
    return {"codes": codes}


def transform(inputs, state):
    features = {}
    for name in NAMES:
        code_of = state["codes"][name].__getitem__
        features[name] = np.fromiter(map(code_of, inputs[name]), dtype=np.float32, count=len(inputs[name]))
    for name in NUMBERS:
        features[name] = np.asarray(inputs[name], dtype=np.float32)
    features["wind_speed"] = np.where(
        features["wind_speed"] > WORST_PLAUSIBLE_WIND, np.float32(np.nan), features["wind_speed"]
    )
    return features
