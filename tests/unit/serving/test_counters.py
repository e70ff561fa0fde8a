"""Counters in mapped files: nothing lost with a process, summed over workers."""

from pathlib import Path

from loopwright.serving.counters import Counters, read_counters
from loopwright.serving.exposition import render


def test_counts_survive_their_writer_and_add_up_over_workers(tmp_path: Path) -> None:
    first, second = Counters(tmp_path / "w0.counters"), Counters(tmp_path / "w1.counters")
    first.add(("predictions", "m", "1", "stable", "ok"), 2)
    second.add(("predictions", "m", "1", "stable", "ok"))
    second.add(("http", "200"))
    del first
    again = Counters(tmp_path / "w0.counters")
    again.add(("predictions", "m", "1", "stable", "ok"))
    total = {key: series.count for key, series in read_counters(tmp_path).items()}
    assert total == {("predictions", "m", "1", "stable", "ok"): 4, ("http", "200"): 1}


def test_latencies_fall_into_buckets_that_prometheus_adds_up(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "w0.counters")
    for us in (100, 500, 501, 20_000, 99_000_000):
        counters.observe(("latency", "m"), us)
    text = render(tmp_path, {"workers_ready": 1})
    assert 'loopwright_request_seconds_bucket{model="m",le="0.0005"} 2' in text
    assert 'loopwright_request_seconds_bucket{model="m",le="0.001"} 3' in text
    assert 'loopwright_request_seconds_bucket{model="m",le="10.0"} 4' in text
    assert 'loopwright_request_seconds_bucket{model="m",le="+Inf"} 5' in text
    assert 'loopwright_request_seconds_count{model="m"} 5' in text
    assert "loopwright_workers_ready 1" in text


def test_the_exposition_is_what_prometheus_parses(tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    counters = Counters(tmp_path / "w0.counters")
    counters.add(("predictions", 'odd"name\\\n', "1", "stable", "ok"), 3)
    counters.observe(("latency", "m"), 1000)
    families = {family.name: family for family in text_string_to_metric_families(render(tmp_path, {}))}
    (sample,) = families["loopwright_predictions"].samples
    assert (sample.labels["model"], sample.value) == ('odd"name\\\n', 3)
    assert "loopwright_worker_resident_bytes" in families


def test_too_many_series_are_counted_together_rather_than_lost(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "w0.counters")
    for number in range(700):
        counters.add(("http", str(number)))
    assert sum(series.count for series in read_counters(tmp_path).values()) == 700
