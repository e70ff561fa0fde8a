"""Counters in mapped files: nothing lost with a process, summed over workers."""

from pathlib import Path

import pytest

from loopwright.serving.counters import Counters, disown, read_counters
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
        counters.observe(("latency", "m", "3", "stable"), us)
    text = render(tmp_path, {"workers_ready": 1})
    assert 'loopwright_request_seconds_bucket{model="m",version="3",arm="stable",le="0.0005"} 2' in text
    assert 'loopwright_request_seconds_bucket{model="m",version="3",arm="stable",le="0.001"} 3' in text
    assert 'loopwright_request_seconds_bucket{model="m",version="3",arm="stable",le="10"} 4' in text
    assert 'loopwright_request_seconds_bucket{model="m",version="3",arm="stable",le="+Inf"} 5' in text
    assert 'loopwright_request_seconds_count{model="m",version="3",arm="stable"} 5' in text
    assert "loopwright_workers_ready 1" in text


def test_the_exposition_is_what_prometheus_parses(tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    counters = Counters(tmp_path / "w0.counters")
    counters.add(("predictions", 'odd"name\\\n', "1", "stable", "ok"), 3)
    counters.observe(("latency", "m", "1", "stable"), 1000)
    counters.observe_size(("batch", "m", "1"), 5)
    counters.put(("queue_rows", "m", "1"), 7)
    families = {family.name: family for family in text_string_to_metric_families(render(tmp_path, {}))}
    (sample,) = families["loopwright_predictions"].samples
    assert (sample.labels["model"], sample.value) == ('odd"name\\\n', 3)
    assert "loopwright_worker_resident_bytes" in families
    assert families["loopwright_batch_rows"].type == "histogram"
    assert [sample.value for sample in families["loopwright_queue_rows"].samples] == [7]


def test_too_many_series_are_counted_together_rather_than_lost(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "w0.counters")
    for number in range(3000):
        counters.add(("http", str(number)))
    assert sum(series.count for series in read_counters(tmp_path).values()) == 3000


@pytest.mark.parametrize(
    ("slo_us", "bucket", "kept"),
    [
        (100_000, "0.1", 3),  # ends where a bucket ends
        (80_000, "0.08", 2),  # between two
        (120, "0.00012", 1),  # below all others
        (20_000_000, "20", 4),  # beyond all others
    ],
)
def test_one_bucket_ends_exactly_at_the_objective(
    tmp_path: Path, slo_us: int, bucket: str, kept: int
) -> None:
    key = ("latency", "m", "1", "stable")
    for worker in ("w0", "w1"):
        counters = Counters(tmp_path / f"{worker}.counters")
        for us in (100, 80_000, 80_001, 15_000_000, 30_000_000):
            counters.observe(key, us, slo_us)
    lines = [line for line in render(tmp_path, {}).splitlines() if "request_seconds_bucket" in line]
    counts = [int(line.rsplit(" ", 1)[1]) for line in lines]
    assert counts == sorted(counts)
    assert [line.rsplit(" ", 1)[1] for line in lines if f'le="{bucket}"' in line] == [str(2 * kept)]
    assert len(lines) == len({line.split('le="')[1] for line in lines})


def test_after_another_objective_the_former_one_counts_no_more(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "w0.counters")
    for slo_us in (70_000, 80_000):
        counters.observe(("latency", "m", "1", "stable"), 75_000, slo_us)
    text = render(tmp_path, {})
    assert 'le="0.08"} 1' in text
    assert 'le="0.07"}' not in text
    assert 'le="+Inf"} 2' in text


def test_what_is_now_ends_with_its_process(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "w0.counters")
    counters.put(("queue_rows", "m", "1"), 9)
    counters.add(("http", "200"))
    disown(tmp_path / "w0.counters")
    assert read_counters(tmp_path)["queue_rows", "m", "1"].count == 0
    counters.put(("queue_rows", "m", "1"), 9)
    Counters(tmp_path / "w0.counters")
    told = read_counters(tmp_path)
    assert (told["queue_rows", "m", "1"].count, told["http", "200"].count) == (0, 1)


@pytest.mark.parametrize("size", [0, 4, 8, 512])
def test_a_file_that_a_worker_has_only_just_made_says_nothing_yet(tmp_path: Path, size: int) -> None:
    Counters(tmp_path / "w0.counters").add(("http", "200"), 3)
    (tmp_path / "w0b.counters").write_bytes(bytes(size))
    for _ in range(2):
        text = render(tmp_path, {})
        assert 'loopwright_http_requests_total{code="200"} 3\n' in text and '"w0b"' not in text
        disown(tmp_path / "w0b.counters")
