"""Turns what a request brings into the model's numbers. One function, used in training and in serving; numpy
only."""

import numpy as np

NAMES = ("carrier", "origin", "dest")
NUMBERS = (
    "distance", "weekday", "sched_dep_minute", "sched_arr_minute",
    "temp", "humid", "wind_speed", "precip", "pressure", "visib", "plane_year", "plane_seats",
    "late_origin_12h", "late_dest_6h", "late_origin_carrier_2d", "late_flight_30d", "late_carrier_14d",
    "late_dest_14d",
)  # fmt: skip
WORST_PLAUSIBLE_WIND = 100.0  # mph; the source holds one observation of 1,048


def fit(inputs):
    """Learn the codes of names from the training rows: the most frequent first, ties by name."""
    codes = {}
    for name in NAMES:
        values, counts = np.unique([value for value in inputs[name] if value is not None], return_counts=True)
        order = np.lexsort((values, -counts))
        codes[name] = {str(values[place]): code for code, place in enumerate(order)}
    return {"codes": codes}


def transform(inputs, state):
    """Names become codes (-1: never seen in training), numbers float32 with NaN for what is not known."""
    features = {}
    for name in NAMES:
        codes = state["codes"][name]
        features[name] = np.array([codes.get(value, -1) for value in inputs[name]], dtype=np.float32)
    for name in NUMBERS:
        features[name] = np.asarray(inputs[name], dtype=np.float32)
    features["wind_speed"] = np.where(
        features["wind_speed"] > WORST_PLAUSIBLE_WIND, np.float32(np.nan), features["wind_speed"]
    )
    return features
