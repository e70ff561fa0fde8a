"""Bundles on disk are looked at again while they answer."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.testing import tiny_bundle
from loopwright.kernel.errors import BadInput
from loopwright.serving import exposition
from loopwright.serving.cache import KEPT_DAMAGED, Cache
from loopwright.serving.options import ServeOptions
from loopwright.serving.recheck import Recheck

KEY = SigningKey.generate()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path / "serving")
    made.create()
    return made


@pytest.fixture
def control(tmp_path: Path) -> BundleDepot:
    return BundleDepot(tmp_path / "control")


@pytest.fixture
def digest(cache: Cache, control: BundleDepot, tmp_path: Path) -> str:
    """One bundle, at the control plane and in the server's cache."""
    digest = control.add(tiny_bundle(tmp_path / "built", KEY).path)
    fetch(cache, control, digest)
    return digest


def fetch(cache: Cache, control: BundleDepot, digest: str) -> None:
    cache.fetch_bundle(digest, [KEY.public], lambda d, name: control.file(d, name).read_bytes())


Make = Callable[..., Recheck]


@pytest.fixture
def recheck(cache: Cache, digest: str) -> Make:
    def make(**options: object) -> Recheck:
        given = {
            "every": 1.0, "needed": lambda: {digest}, "keys": lambda: [KEY.public], "damaged": lambda _: None,
            "complain": lambda *_: None, "now": lambda: 42.0,
        }  # fmt: skip
        return Recheck(cache, **{**given, **options})  # type: ignore[arg-type]

    return make


def spoil(cache: Cache, digest: str) -> None:
    path = cache.depot.path(digest) / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def test_a_round_without_a_finding_is_dated(recheck: Make) -> None:
    made = recheck()
    assert made.round()
    assert made.gauges() == {
        "bundle_recheck_failures_total": 0.0,
        "bundle_recheck_ok_timestamp_seconds": 42.0,
    }


def test_a_changed_bundle_is_counted_set_aside_told_and_can_be_fetched_again(
    recheck: Make, cache: Cache, control: BundleDepot, digest: str
) -> None:
    spoil(cache, digest)
    told: list[str] = []
    missed: list[str] = []
    made = recheck(damaged=missed.append, complain=lambda about, text: told.append(text))
    assert not made.round()
    assert (made.failures, made.last_ok) == (1, 0.0)
    assert missed == [digest]
    assert "model.onnx was changed" in told[0]
    (aside,) = cache.depot.root.glob(".damaged.*")
    assert (aside / "model.onnx").is_file()
    assert not cache.depot.has(digest)
    fetch(cache, control, digest)
    assert made.round()
    assert made.failures == 1


def test_what_is_missing_is_asked_for_and_no_failure(recheck: Make, cache: Cache, digest: str) -> None:
    cache.set_aside(digest)
    missed: list[str] = []
    made = recheck(damaged=missed.append)
    assert not made.round()
    assert (missed, made.failures) == ([digest], 0)


def test_only_a_few_damaged_copies_are_kept(cache: Cache, control: BundleDepot, digest: str) -> None:
    for _ in range(KEPT_DAMAGED + 2):
        cache.set_aside(digest)
        fetch(cache, control, digest)
    assert len(list(cache.depot.root.glob(".damaged.*"))) == KEPT_DAMAGED
    assert cache.set_aside("0" * 64) is None


def test_rounds_run_at_the_lowest_priority_until_stopped(recheck: Make) -> None:
    niceness: list[int] = []
    made = recheck(every=0.001, needed=lambda: niceness.append(os.nice(0)) or ())
    made.start()
    until = time.monotonic() + 10
    while len(niceness) < 3 and time.monotonic() < until:
        time.sleep(0.001)
    made.stop()
    assert niceness[0] == 19
    assert os.nice(0) < 19, "the rest of the process keeps its own"


def test_an_error_does_not_end_the_rounds(recheck: Make) -> None:
    calls: list[str] = []

    def needed() -> set[str]:
        raise OSError(5, "Input/output error")

    made = recheck(every=0.001, needed=needed, complain=lambda about, text: calls.append(text))
    made.start()
    until = time.monotonic() + 10
    while len(calls) < 2 and time.monotonic() < until:
        time.sleep(0.001)
    made.stop()
    assert "Input/output error" in calls[1]


def test_switched_off_it_says_nothing(recheck: Make) -> None:
    made = recheck(every=0.0)
    made.start()
    assert made.gauges() == {}
    with pytest.raises(BadInput, match="--verify-every"):
        ServeOptions(control="http://127.0.0.1:1", home=Path(), verify_every=-1.0).check()


def test_totals_are_counters_in_the_exposition(tmp_path: Path) -> None:
    text = exposition.render(
        tmp_path, {"bundle_recheck_failures_total": 2.0, "bundle_recheck_ok_timestamp_seconds": 1372680000.0}
    )
    assert "# TYPE loopwright_bundle_recheck_failures_total counter" in text
    assert "loopwright_bundle_recheck_ok_timestamp_seconds 1372680000\n" in text
