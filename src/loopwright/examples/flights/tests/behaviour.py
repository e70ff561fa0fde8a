"""What this model must do, whatever its AUC says. Run by the gates on held-out flights, through the sealed
bundle."""

import numpy as np

from loopwright.quality.behaviour import directional, invariance, minimum_functionality

RECENT = (
    "late_origin_12h",
    "late_dest_6h",
    "late_origin_carrier_2d",
    "late_flight_30d",
    "late_carrier_14d",
    "late_dest_14d",
)


@invariance(tolerance=0.02, share=0.95)
def a_mile_more_does_not_matter(inputs):
    """A distance rounded the other way does not change the answer."""
    return {"distance": inputs["distance"] + 1}


@directional("up", share=0.99)
def a_bad_day_at_the_airport_never_helps(inputs):
    """When more flights have been late lately, this one is not less likely to be."""
    return {name: np.minimum(inputs[name] + 0.3, 1.0) for name in RECENT}


@minimum_functionality(share=0.95)
def an_early_flight_on_a_calm_day_is_punctual(inputs):
    """At 6 in the morning, in clear weather, with nobody late lately: no alarm."""
    rows = len(inputs["dest"])
    calm = {
        "visib": 10.0,
        "precip": 0.0,
        "wind_speed": 5.0,
        "sched_dep_minute": 360.0,
        **dict.fromkeys(RECENT, 0.05),
    }
    cases = inputs | {name: np.full(rows, value) for name, value in calm.items()}
    return cases, lambda answers: answers[:, 0] < 0.25
