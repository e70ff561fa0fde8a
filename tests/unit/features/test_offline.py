"""Frames against an oracle that looks at every row by hand."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.features import FeatureView, Prior, Spine, WindowedRate
from loopwright.features.module import FeatureModule
from loopwright.features.offline import build_frame
from loopwright.kernel.errors import BadInput

START = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
AFTER = 2 * HOUR
WINDOW = 5 * HOUR
TTL = 4 * HOUR
KNOWN_AFTER = 1 * HOUR


def at(hours: float | None) -> datetime | None:
    return None if hours is None else START + hours * HOUR


def module(*views: FeatureView | WindowedRate, **spine: object) -> FeatureModule:
    names = {"x": "float64"}
    for view in views:
        names |= dict.fromkeys(view.columns if isinstance(view, FeatureView) else [view.name], "float64")
        if isinstance(view, WindowedRate) and view.count:
            names[view.count] = "int64"
    given_spine = Spine(
        table="asked", key=("id",), event_time="t", label="y", label_available_at="known", inputs=("x",)
    )
    return FeatureModule(spine=replace(given_spine, **spine), views=views, inputs=names)  # type: ignore[arg-type]


VIEW = FeatureView(
    "seen", "facts", entity=("k",), event_time="t", columns=("v",), ttl=TTL, available_after=KNOWN_AFTER
)
STATIC = FeatureView("place", "places", entity={"k": "name"}, columns={"size": "s"})
RATE = WindowedRate("rate", WINDOW, on=("k",), prior=Prior(0.25, 2), count="n")
ALL = WindowedRate("all_rate", WINDOW, value="z")

hours = st.integers(0, 12)
keys = st.sampled_from(["a", "b", None])
asked_rows = st.lists(
    st.tuples(
        keys,
        hours,
        st.sampled_from([0.0, 1.0, None]),
        st.one_of(st.none(), st.integers(0, 16)),
        st.integers(-3, 3),
    ),
    max_size=14,
)
fact_rows = st.lists(
    st.tuples(keys, st.one_of(st.none(), hours), st.one_of(st.none(), st.integers(0, 5))), max_size=10
)

ASKED = pa.schema(
    [("id", pa.int64()), ("k", pa.string()), ("t", pa.timestamp("us", "UTC")), ("y", pa.float64()),
     ("known", pa.timestamp("us", "UTC")), ("z", pa.int64()), ("x", pa.float64())]
)  # fmt: skip
FACTS = pa.schema([("k", pa.string()), ("t", pa.timestamp("us", "UTC")), ("v", pa.float64())])
PLACES = pa.table({"name": ["a", "b"], "s": [1.0, 2.0]})


def asked_table(rows: list[tuple[str | None, int, float | None, int | None, int]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"id": i, "k": k, "t": at(t), "y": y, "known": at(known), "z": z, "x": float(i)}
            for i, (k, t, y, known, z) in enumerate(rows)
        ],
        schema=ASKED,
    )


def facts_table(rows: list[tuple[str | None, int | None, int | None]]) -> pa.Table:
    return pa.Table.from_pylist([{"k": k, "t": at(t), "v": v} for k, t, v in rows], schema=FACTS)


@settings(max_examples=40, deadline=None)
@given(
    asked=asked_rows, facts=fact_rows, since=st.one_of(st.none(), hours), until=st.one_of(st.none(), hours)
)
def test_every_row_holds_what_was_known_at_its_moment_and_nothing_later(asked, facts, since, until) -> None:  # type: ignore[no-untyped-def]
    frame = build_frame(
        module(VIEW, STATIC, RATE, ALL),
        {"asked": asked_table(asked), "facts": facts_table(facts), "places": PLACES},
        label_available_after=AFTER,
        since=at(since),
        until=at(until),
    )

    def known(row):  # type: ignore[no-untyped-def]
        return None if row[3] is None else max(row[3], row[1] + 2)

    wanted = []
    for number, (k, t, y, _, _) in enumerate(asked):
        if (since is not None and t < since) or (until is not None and t >= until):
            continue
        found = [
            (ft, v) for fk, ft, v in facts if fk == k and k is not None and ft is not None and ft + 1 <= t
        ]
        newest = max((ft for ft, _ in found), default=None)
        fresh = newest is not None and t < newest + 4
        best = max((-1 if v is None else v for ft, v in found if ft == newest), default=-1)
        rated = [
            r[2]
            for r in asked
            if r[0] == k
            and k is not None
            and r[2] is not None
            and known(r) is not None
            and t - 5 < known(r) <= t
        ]
        every = [r[4] for r in asked if known(r) is not None and t - 5 < known(r) <= t]
        label_at = known(asked[number])
        visible = y is not None and label_at is not None and (until is None or label_at <= until)
        wanted.append({
            "id": str(number), "t": at(t), "label": y if visible else None, "at": at(label_at),
            "v": float(best) if fresh and best >= 0 else None,
            "size": {"a": 1.0, "b": 2.0}.get(k),
            "rate": float((Fraction(sum(map(int, rated))) + Fraction(1, 2)) / (len(rated) + 2)), "n": len(rated),
            "all": sum(every) / len(every) if every else None,
        })  # fmt: skip
    wanted.sort(key=lambda row: (row["t"], row["id"]))
    got = [
        {"id": r["_id"], "t": r["_event_time"], "label": r["_label"], "at": r["_label_at"], "v": r["v"],
         "size": r["size"], "rate": r["rate"], "n": r["n"], "all": r["all_rate"]}
        for r in frame.table.to_pylist()
    ]  # fmt: skip
    assert got == wanted


def one(
    asked: list[tuple[str | None, int, float | None, int | None, int]], row: str, **options: object
) -> dict[str, object]:
    frame = build_frame(
        module(RATE), {"asked": asked_table(asked)}, label_available_after=options.get("after", AFTER)  # type: ignore[arg-type]
    )  # fmt: skip
    return next(r for r in frame.table.to_pylist() if r["_id"] == row)


def test_a_label_that_becomes_known_at_the_very_moment_counts() -> None:
    assert one([("a", 0, 1.0, 5, 0), ("a", 5, 0.0, 9, 0)], "1")["n"] == 1


def test_a_label_known_exactly_one_window_ago_no_longer_counts() -> None:
    assert one([("a", 0, 1.0, 4, 0), ("a", 9, 0.0, 12, 0)], "1")["n"] == 0


def test_a_row_never_sees_its_own_label_even_when_labels_need_no_time() -> None:
    assert one([("a", 5, 1.0, 0, 0)], "0", after=timedelta(0))["n"] == 0


def test_a_label_said_to_be_known_early_waits_for_the_floor() -> None:
    asked = [("a", 3, 1.0, 0, 0), ("a", 4, 0.0, 9, 0), ("a", 5, 0.0, 9, 0)]
    assert one(asked, "1")["n"] == 0
    assert one(asked, "2")["n"] == 1


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [("a", 1, 3), ("a", 1, 5), ("a", 1, None), ("a", 1, 4)]
    asked = asked_table([("a", 3, 1.0, 9, 0)])
    for order in (rows, rows[::-1]):
        frame = build_frame(
            module(VIEW), {"asked": asked, "facts": facts_table(order)}, label_available_after=AFTER
        )
        assert frame.inputs()["v"].tolist() == [5.0]


def test_rows_without_a_label_are_kept_unless_labels_are_required() -> None:
    tables = {"asked": asked_table([("a", 1, 1.0, 2, 0), ("a", 2, None, 3, 0), ("a", 3, 1.0, None, 0)])}
    assert build_frame(module(), tables, label_available_after=AFTER).rows == 3
    labelled = build_frame(module(), tables, label_available_after=AFTER, require_label=True)
    assert labelled.ids().tolist() == ["0"]


def test_a_rate_of_decimals_is_summed_exactly() -> None:
    asked = pa.table({
        "id": range(4), "t": [at(h) for h in (0, 0, 0, 3)], "y": [0.0] * 4, "known": [at(1)] * 4,
        "z": [0.1, 0.2, 0.3, 0.0], "x": [0.0] * 4,
    })  # fmt: skip
    frame = build_frame(module(ALL), {"asked": asked}, label_available_after=AFTER)
    assert frame.inputs()["all_rate"][3] == 0.6 / 3


def test_text_labels_become_the_index_of_their_class() -> None:
    asked = pa.table({"id": [1, 2, 3], "y": ["no", "yes", None], "x": [0.0, 1.0, 2.0]})
    plain = replace(module(), spine=Spine("asked", key=("id",), label="y", inputs=("x",)))
    frame = build_frame(plain, {"asked": asked}, label_available_after=AFTER)
    assert frame.classes == ("no", "yes")
    np.testing.assert_array_equal(frame.labels(), [0.0, 1.0, np.nan])


def test_classes_that_are_numbers_are_ordered_as_numbers() -> None:
    asked = pa.table({"id": range(3), "y": [10, 9, 2], "x": [0.0] * 3})
    many = replace(module(), spine=Spine("asked", key=("id",), label="y", inputs=("x",)), task="multiclass")
    assert build_frame(many, {"asked": asked}, label_available_after=AFTER).classes == ("2", "9", "10")


def test_a_label_outside_the_models_classes_is_an_error() -> None:
    asked = pa.table({"id": [1], "y": ["maybe"], "x": [0.0]})
    plain = replace(module(), spine=Spine("asked", key=("id",), label="y", inputs=("x",)))
    with pytest.raises(BadInput, match="maybe"):
        build_frame(plain, {"asked": asked}, label_available_after=AFTER, classes=("no", "yes"))


def test_a_binary_label_that_is_a_count_is_an_error() -> None:
    with pytest.raises(BadInput, match="neither 0 nor 1"):
        build_frame(
            module(label="y * 3"), {"asked": asked_table([("a", 1, 1.0, 2, 0)])}, label_available_after=AFTER
        )


def test_rows_without_a_key_are_named_by_their_content() -> None:
    tables = {"asked": pa.table({"y": [1.0, 1.0, 0.0], "x": [1.0, 1.0, 2.0]})}
    plain = replace(module(), spine=Spine("asked", label="y", inputs=("x",)))
    ids = build_frame(plain, tables, label_available_after=AFTER).ids()
    assert len(set(ids)) == 3
    again = build_frame(plain, {"asked": tables["asked"].take([2, 0, 1])}, label_available_after=AFTER).ids()
    assert set(ids) == set(again)


def test_a_key_that_names_two_rows_is_an_error_that_shows_one() -> None:
    asked = pa.table({"id": [7, 7], "y": [1.0, 0.0], "x": [0.0, 1.0]})
    with pytest.raises(BadInput, match=r"7 \(2 rows\)"):
        build_frame(
            replace(module(), spine=Spine("asked", key=("id",), label="y", inputs=("x",))),
            {"asked": asked},
            label_available_after=AFTER,
        )


def test_a_row_without_an_event_time_is_an_error_not_a_lost_row() -> None:
    asked = pa.Table.from_pylist([{"id": 1, "t": None, "y": 1.0, "x": 0.0}], schema=ASKED)
    with pytest.raises(BadInput, match="1 rows have no event time"):
        build_frame(module(), {"asked": asked}, label_available_after=AFTER)


def test_a_misspelt_column_names_the_file_and_a_candidate() -> None:
    with pytest.raises(BadInput, match=r"features\.py: spine.*\"known\""):
        build_frame(
            module(label_available_at="knwon"),
            {"asked": asked_table([("a", 1, 1.0, 2, 0)])},
            label_available_after=AFTER,
        )


def test_a_missing_table_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean `askd`"):
        build_frame(module(), {"askd": asked_table([])}, label_available_after=AFTER)


def test_an_empty_table_gives_an_empty_frame() -> None:
    frame = build_frame(
        module(VIEW, RATE), {"asked": asked_table([]), "facts": facts_table([])}, label_available_after=AFTER
    )
    assert frame.rows == 0
    assert set(frame.inputs()) == {"x", "v", "rate", "n"}
