from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import BadInput
from loopwright.monitoring.labels import LabelLog, outcomes
from loopwright.monitoring.log import PredictionLog
from loopwright.serving.events import Event

APRIL = datetime(2013, 4, 1, tzinfo=UTC)
LATER = datetime(2013, 6, 1, tzinfo=UTC)


def event(id: str, at: datetime = APRIL, *, value: float = 0.5, **changes: object) -> Event:
    fields: dict[str, object] = {
        "id": id, "unit": "N1", "event_time": to_us(at), "at": to_us(at), "model": "m", "version": 1, "arm": "stable",
        "latency_us": 5, "status": "ok", "error": "", "inputs": [1.5, None, "EWR"], "outputs": [value],
    }  # fmt: skip
    return Event(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> PredictionLog:
    return PredictionLog(tmp_path / "predictions")


@pytest.fixture
def labels(tmp_path: Path) -> LabelLog:
    return LabelLog(tmp_path / "labels")


def joined(log: PredictionLog, labels: LabelLog, **which: object) -> list[tuple[float, float]]:
    span = {"model": "m", "start": APRIL, "end": LATER, "until": LATER, **which}
    found = outcomes(log, labels, **span)  # type: ignore[arg-type]
    return list(zip(found.p[:, 0].tolist(), found.y.tolist(), strict=True))


def add(labels: LabelLog, name: str, known: dict[str, float | None], at: datetime = APRIL) -> None:
    labels.append("m", name, list(known), list(known.values()), [at] * len(known))


def test_a_batch_sent_again_is_not_there_twice(log: PredictionLog) -> None:
    events = [event("a"), event("b", APRIL + timedelta(days=1))]
    for _ in range(2):
        assert log.append(events, "s1_0") == 2
    files = log.files("m", APRIL, LATER)
    assert [file.parent.name for file in files] == ["day=2013-04-01", "day=2013-04-02"]
    assert sum(pq.read_table(file, partitioning=None).num_rows for file in files) == 2


def test_rows_keep_everything_that_was_answered(log: PredictionLog) -> None:
    log.append([event("a", value=0.25)], "s")
    (row,) = pq.read_table(log.files("m", APRIL, LATER)[0], partitioning=None).to_pylist()
    assert row["event_time"] == APRIL
    assert (row["id"], row["version"], row["inputs"], row["outputs"]) == ("a", 1, '[1.5,null,"EWR"]', [0.25])


def test_only_the_days_of_the_span_are_opened(log: PredictionLog) -> None:
    log.append([event(str(day), APRIL + timedelta(days=day)) for day in range(5)], "s")
    week = log.files("m", APRIL + timedelta(days=1), APRIL + timedelta(days=3))
    assert [file.parent.name for file in week] == ["day=2013-04-02", "day=2013-04-03"]
    assert log.files("unknown", APRIL, LATER) == []


def test_a_compacted_day_answers_the_same(log: PredictionLog, labels: LabelLog) -> None:
    for i in range(5):
        log.append([event(f"e{i}", value=i / 10)], f"s{i}")
    add(labels, "l", {f"e{i}": float(i % 2) for i in range(5)})
    before = joined(log, labels)
    assert log.compact("m", date(2013, 4, 1), least=6) == 0
    assert log.compact("m", date(2013, 4, 1), least=5) == 5
    assert len(log.files("m", APRIL, LATER)) == 1
    log.append([event("e0", value=0.0)], "s0")  # a retry of what was merged already
    assert joined(log, labels) == before


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b"])
def test_names_that_leave_the_folder_are_refused(log: PredictionLog, labels: LabelLog, name: str) -> None:
    with pytest.raises(BadInput):
        log.append([event("a")], name)
    with pytest.raises(BadInput):
        log.append([event("a", model=name)], "s")
    with pytest.raises(BadInput):
        labels.append("m", name, ["a"], [1.0], [APRIL])


def test_the_first_answer_to_an_id_and_its_newest_label_count(log: PredictionLog, labels: LabelLog) -> None:
    log.append([event("a", APRIL + timedelta(hours=2), value=0.9), event("a", APRIL, value=0.1)], "s")
    add(labels, "l1", {"a": 0.0}, APRIL + timedelta(days=1))
    add(labels, "l2", {"a": 1.0}, APRIL + timedelta(days=2))
    assert joined(log, labels) == [(0.1, 1.0)]


def test_a_label_counts_from_the_moment_it_was_available(log: PredictionLog, labels: LabelLog) -> None:
    log.append([event("a")], "s")
    add(labels, "l1", {"a": 0.0}, APRIL + timedelta(days=1))
    add(labels, "l2", {"a": 1.0}, APRIL + timedelta(days=40))
    assert joined(log, labels, until=APRIL + timedelta(hours=23)) == []
    assert joined(log, labels, until=APRIL + timedelta(days=39)) == [(0.5, 0.0)]


def test_shadow_answers_failures_and_other_versions_are_kept_apart(
    log: PredictionLog, labels: LabelLog
) -> None:
    log.append(
        [
            event("a", value=0.1),
            event("a", value=0.7, arm="shadow", version=2),
            event("b", arm="canary", version=2, status="error", outputs=[]),
            event("b", value=0.3, status="fallback"),
        ],
        "s",
    )
    add(labels, "l", {"a": 1.0, "b": 0.0})
    assert joined(log, labels) == [(0.1, 1.0), (0.3, 0.0)]
    assert joined(log, labels, version=2) == []
    assert joined(log, labels, arm="shadow") == [(0.7, 1.0)]


def test_labels_that_never_come_leave_the_answer_unlabelled(log: PredictionLog, labels: LabelLog) -> None:
    log.append([event("a"), event("cancelled")], "s")
    add(labels, "l", {"a": 1.0, "cancelled": None, "not asked": 0.0})
    found = outcomes(log, labels, model="m", start=APRIL, end=LATER, until=LATER)
    assert (found.answered, found.labelled, found.coverage) == (2, 1, 0.5)


def test_answers_of_several_classes_come_as_rows(log: PredictionLog, labels: LabelLog) -> None:
    log.append([event("a", outputs=[0.1, 0.2, 0.7]), event("b", outputs=[0.5, 0.3, 0.2])], "s")
    add(labels, "l", {"a": 2.0, "b": 0.0})
    found = outcomes(log, labels, model="m", start=APRIL, end=LATER, until=LATER)
    np.testing.assert_array_equal(found.p, [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])


def test_without_answers_or_labels_there_is_nothing(log: PredictionLog, labels: LabelLog) -> None:
    assert outcomes(log, labels, model="m", start=APRIL, end=LATER, until=LATER).answered == 0
    log.append([event("a")], "s")
    assert outcomes(log, labels, model="m", start=APRIL, end=LATER, until=LATER).answered == 1


def test_fresh_labels_are_counted_by_id(labels: LabelLog) -> None:
    add(labels, "l1", {"a": 0.0, "b": 1.0}, APRIL + timedelta(days=1))
    add(labels, "l2", {"a": 1.0, "c": None}, APRIL + timedelta(days=35))
    assert labels.count("m", APRIL, LATER) == 2
    assert labels.count("m", APRIL + timedelta(days=1), LATER) == 1
    assert labels.count("other", APRIL, LATER) == 0


def test_labels_that_do_not_pair_up_are_refused(labels: LabelLog) -> None:
    with pytest.raises(BadInput):
        labels.append("m", "l", ["a", "b"], [1.0], [APRIL])
    with pytest.raises(BadInput, match="without an id"):
        labels.append("m", "l", [""], [1.0], [APRIL])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_join_agrees_with_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("join")
    log, labels = PredictionLog(root / "p"), LabelLog(root / "l")
    ids = st.sampled_from("abcdef")
    hours = st.integers(0, 60 * 24)
    answers = data.draw(st.lists(st.tuples(ids, hours), max_size=12, unique_by=lambda a: a[1]))
    told = data.draw(st.lists(st.tuples(ids, hours, st.sampled_from([0.0, 1.0, None])), max_size=12))
    log.append([event(i, APRIL + timedelta(hours=h), value=h / 10_000) for i, h in answers], "s")
    for n, (i, h, label) in enumerate(told):
        add(labels, f"l{n:02d}", {i: label}, APRIL + timedelta(hours=h))
    until = APRIL + timedelta(hours=data.draw(hours))

    first = {}
    for i, h in sorted(answers, key=lambda a: -a[1]):
        first[i] = h / 10_000
    newest: dict[str, tuple[int, int, float]] = {}
    for n, (i, h, label) in enumerate(told):
        if label is not None and APRIL + timedelta(hours=h) <= until:
            newest[i] = max(newest.get(i, (-1, -1, 0.0)), (h, n, label))
    expected = [(first[i], newest[i][2]) for i in sorted(first) if i in newest]
    assert joined(log, labels, until=until, end=APRIL + timedelta(days=61)) == expected
