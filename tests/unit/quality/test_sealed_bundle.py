"""Gates on a real sealed bundle: transform, ONNX and schema are part of what is checked."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.bundle.testing import STRICT, TOLERANT, tiny_bundle
from loopwright.kernel.verdict import Verdict
from loopwright.project.sections import Gates
from loopwright.quality.gates import run_gates
from loopwright.quality.report import GateReport

KEY = SigningKey.generate()
ROWS = 800
CHECKS = """
import numpy as np
from loopwright.quality.behaviour import directional, invariance, minimum_functionality

@invariance()
def the_spelling_of_an_unknown_carrier_does_not_matter(inputs):
    unknown = np.array([c not in ("UA", "AA", "B6") for c in inputs["carrier"]])
    return {"carrier": np.where(unknown, "XX", inputs["carrier"]).astype(object)}

@directional("up")
def longer_flights_are_late_more_often(inputs):
    return {"distance": inputs["distance"] + 100}

@minimum_functionality()
def short_flights_are_not_certain_to_be_late(inputs):
    return {**inputs, "distance": np.full(len(inputs["hour"]), 1.0)}, lambda answers: answers[:, 0] < 0.9
"""


class Holdout:
    """Flights of which some are by a carrier nobody has seen."""

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        self.distance = random.uniform(100, 3_000, ROWS)
        self.hour = random.integers(0, 24, ROWS).astype(np.float64)
        self.carrier = random.choice(np.array(["UA", "AA", "B6", "ZZ"], dtype=object), ROWS)
        self.late = (random.random(ROWS) < self.distance / 3_000).astype(np.float64)

    def inputs(self) -> dict[str, NDArray[Any]]:
        return {"distance": self.distance, "hour": self.hour, "carrier": self.carrier}

    def labels(self) -> NDArray[Any]:
        return self.late

    def event_times(self) -> NDArray[Any]:
        return np.full(ROWS, np.datetime64("NaT"), dtype="datetime64[us]")


def sealed(folder: Path, transform: str) -> Bundle:
    return open_bundle(tiny_bundle(folder, KEY, transform=transform).path, [KEY.public])


def report(bundle: Bundle, checks: Path) -> GateReport:
    checks.write_text(CHECKS)
    gates = Gates.model_validate({"metrics": {"roc_auc": ">= 0.6"}, "latency_p99_ms": "<= 1000"})
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return run_gates(
        bundle=bundle, holdout=Holdout(), gates=gates, task="binary", behaviour=checks, seed=1, now=now
    )


def test_a_sound_bundle_passes_every_gate(tmp_path: Path) -> None:
    found = report(sealed(tmp_path / "bundle", TOLERANT), tmp_path / "behaviour.py")
    assert found.verdict is Verdict.PASS, found.summary()
    assert [result.kind for result in found.results] == ["smoke", "metric", "latency"] + 3 * ["behaviour"]
    assert found.model == "late"


def test_a_transform_that_raises_on_what_it_has_not_seen_does_not_pass(tmp_path: Path) -> None:
    found = report(sealed(tmp_path / "bundle", STRICT), tmp_path / "behaviour.py")
    assert found.verdict is Verdict.ERROR
    assert "KeyError" in found.summary()
