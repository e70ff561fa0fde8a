"""What an online store is given is what a frame holds for a question asked at that moment."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright.data.files import Files
from loopwright.features.module import FeatureModule
from loopwright.features.newest import Change, Newest, bounded, layout_of
from loopwright.features.offline import build_frame
from loopwright.features.view import Aggregate, FeatureView, Prior, Spine, WindowedRate
from loopwright.kernel.errors import BadInput

START = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
LABEL_AFTER = 2 * HOUR
NAMES = ("a", "b", "c")
NUMBERS = (1, 2)

FACTS = pa.schema(
    [("name", pa.string()), ("number", pa.int64()), ("t", pa.timestamp("us", "UTC")),
     ("known", pa.timestamp("us", "UTC")), ("x", pa.float64()), ("n", pa.int64()), ("word", pa.string())]
)  # fmt: skip
ASKED = pa.schema(
    [("id", pa.string()), ("name", pa.string()), ("number", pa.int64()), ("moment", pa.timestamp("us", "UTC")),
     ("label", pa.float64()), ("asks", pa.bool_())]
)  # fmt: skip

BOTH = ("name", "number")
VIEWS = (
    FeatureView("plain", "facts", "name", {"plain_x": "x", "plain_word": "word"}, "t", ttl=5 * HOUR),
    FeatureView("late", "facts", BOTH, {"late_x": "x", "late_n": "n"}, "t", available_after=2 * HOUR),
    FeatureView("corrected", "facts", "name", {"corrected_x": "x"}, "t", available_at="known", ttl=8 * HOUR),
    FeatureView("static", "facts", "name", {"static_n": "n", "static_word": "upper(word)"}),
    FeatureView(
        "windows", "facts", {"name": "name"}, {"windows_n": "n"}, "t", ttl=4 * HOUR, available_at="known",
        aggregations={
            "count_6h": Aggregate("count", window=6 * HOUR),
            "sum_known": Aggregate("sum", "x", 5 * HOUR, over="available_at"),
            "mean_all": Aggregate("mean", "x"), "last_3h": Aggregate("last", "n", 3 * HOUR),
            "distinct_9h": Aggregate("distinct", "word", 9 * HOUR, where="n > 1"),
        },
    ),
    FeatureView(
        "only_windows", "facts", BOTH, (), "t", available_after=HOUR,
        aggregations={"max_x": Aggregate("max", "x", 7 * HOUR), "spread": Aggregate("stddev", "n", 7 * HOUR)},
    ),
    FeatureView(
        "query", "facts", "name", {"query_x": "total"}, "t", ttl=9 * HOUR,
        source="SELECT name, t, sum(x) AS total FROM facts GROUP BY name, t",
    ),
    WindowedRate("rate", 6 * HOUR, on="name", prior=Prior(0.2, 5), count="rate_count"),
    WindowedRate("bare", 4 * HOUR, on={"number": "number + 1"}),
    WindowedRate("overall", 4 * HOUR, on=()),
    WindowedRate("of_value", 5 * HOUR, on=BOTH, value="number * 2", available_at="moment + INTERVAL 3 HOUR"),
)  # fmt: skip
DTYPES: dict[str, Any] = {
    "plain_word": "string", "static_word": "string", "late_n": "int64", "static_n": "int64", "windows_n": "int64",
    "count_6h": "int64", "distinct_9h": "int64", "rate_count": "int64", "last_3h": "int64",
}  # fmt: skip
GIVEN = [
    name
    for view in VIEWS
    for name in (
        view.names() if isinstance(view, FeatureView) else [view.name, *([view.count] if view.count else [])]
    )
]
MODULE = FeatureModule(
    Spine(
        "asked", "id", "moment", label="label", where="asks", inputs={"name_asked": "name", "number_asked": "number"}
    ),
    VIEWS,
    {name: DTYPES.get(name, "float64") for name in GIVEN} | {"name_asked": "string", "number_asked": "int64"},
)  # fmt: skip

hours = st.integers(0, 24)
facts = st.lists(
    st.tuples(
        st.sampled_from([*NAMES, None]), st.sampled_from([*NUMBERS, None]), hours, st.none() | st.integers(-2, 6),
        st.none() | st.floats(-100, 100, width=16), st.none() | st.integers(0, 3), st.sampled_from(["p", "q", None]),
    ), max_size=24,
)  # fmt: skip
history = st.lists(
    st.tuples(st.sampled_from([*NAMES, None]), st.sampled_from(NUMBERS), hours, st.sampled_from([0.0, 1.0, None])),
    max_size=24,
)  # fmt: skip


def as_facts(rows: list[Any]) -> pa.Table:
    made = [
        (name, number, START + t * HOUR, None if late is None else START + (t + late) * HOUR, x, n, word)
        for name, number, t, late, x, n, word in rows
    ]
    return pa.Table.from_pylist([dict(zip(FACTS.names, row, strict=True)) for row in made], FACTS)


def as_asked(rows: list[Any], as_of: datetime, *, ask: bool) -> pa.Table:
    made = [
        (f"h{i}", name, number, START + t * HOUR, label, False)
        for i, (name, number, t, label) in enumerate(rows)
    ]
    if ask:
        made += [
            (f"{name}/{number}", name, number, as_of, None, True)
            for name in (*NAMES, "unheard")
            for number in NUMBERS
        ]
    return pa.Table.from_pylist([dict(zip(ASKED.names, row, strict=True)) for row in made], ASKED)


def stored(folder: Path, name: str, table: pa.Table) -> Files:
    path = folder / f"{name}.parquet"
    pq.write_table(table, path)
    return Files((str(path),), table.schema)


def written(
    folder: Path, view: Any, tables: dict[str, Files], as_of: datetime, change: Change | None = None
) -> dict[tuple[Any, ...], tuple[Any, ...] | None]:
    """Key → values (after the TTL), None for entities that are gone."""
    with bounded(folder / "spill") as duck:
        newest = Newest(MODULE, view, tables, as_of=as_of, label_available_after=LABEL_AFTER, duck=duck)
        if change is not None:
            newest.changed(change)
        total = newest.write(folder / "out.parquet", restricted=change is not None)
    layout, rows = newest.layout, pq.read_table(folder / "out.parquet").to_pylist()
    assert total == len(rows)
    found: dict[tuple[Any, ...], tuple[Any, ...] | None] = {}
    for row in rows:
        key = tuple(row[f"_key{n}"] for n in range(len(layout.entity)))
        assert key not in found
        at = (
            None
            if row["_t"] is None
            else START + timedelta(microseconds=row["_t"] - int(START.timestamp() * 1e6))
        )
        expired = (
            layout.ttl is not None and at is not None and as_of >= at + timedelta(microseconds=layout.ttl)
        )
        values = tuple(None if expired and n not in layout.lasting else row[n] for n in layout.names)
        found[key] = None if row["_gone"] else values
    return found


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=facts, past=history, hour=st.integers(0, 30))
def test_every_entity_has_what_a_frame_holds_for_it_at_that_moment(
    tmp_path: Path, rows: list[Any], past: list[Any], hour: int
) -> None:
    as_of = START + hour * HOUR
    tables = {"facts": as_facts(rows), "asked": as_asked(past, as_of, ask=True)}
    frame = build_frame(MODULE, tables, label_available_after=LABEL_AFTER).table.to_pylist()
    files = {name: stored(tmp_path, name, table) for name, table in tables.items()}
    for view in VIEWS:
        found = written(tmp_path, view, files, as_of)
        layout = layout_of(MODULE, view, LABEL_AFTER)
        for row in frame:
            asked = {"name": row["name_asked"], "number": row["number_asked"]}
            key = tuple(asked[n] for n in layout.entity)
            if view.name == "bare":
                key = (asked["number"] + 1,)
            held = found.get(key, layout.absent)
            assert held == tuple(row[n] for n in layout.names), (view.name, key)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), first=st.integers(0, 26), later=st.integers(0, 9))
def test_an_increment_gives_what_writing_everything_anew_would(
    tmp_path: Path, data: st.DataObject, first: int, later: int
) -> None:
    kept, gone, come = data.draw(facts), data.draw(facts), data.draw(facts)
    past, new_past = data.draw(history), data.draw(history)
    then, now = START + first * HOUR, START + (first + later) * HOUR
    asked = [as_asked(rows, now, ask=False) for rows in (past, new_past)]
    file = {
        name: stored(tmp_path, name, table)
        for name, table in {
            "kept": as_facts(kept), "gone": as_facts(gone), "come": as_facts(come), "past": asked[0], "new": asked[1],
        }.items()
    }  # fmt: skip
    before = {"facts": _joined(file["kept"], file["gone"]), "asked": file["past"]}
    after = {"facts": _joined(file["kept"], file["come"]), "asked": _joined(file["past"], file["new"])}
    for view in VIEWS:
        if view.name == "query":
            continue  # nobody can tell which rows of a query a changed row makes: it is always written anew
        change = Change(then, added={"facts": file["come"]}, removed={"facts": file["gone"]})
        if isinstance(view, WindowedRate):
            change = Change(then, added={"asked": file["new"]})
        state = written(tmp_path, view, before, then) | written(tmp_path, view, after, now, change)
        wanted = written(tmp_path, view, after, now)
        # Rows outlive their TTL in a store: what matters is what is read.
        assert _told(state) == _told(wanted), view.name


def _told(rows: dict[tuple[Any, ...], tuple[Any, ...] | None]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    return {key: row for key, row in rows.items() if row is not None and any(v is not None for v in row)}


def _joined(one: Files, other: Files) -> Files:
    return Files(one.uris + other.uris, one.schema)


def test_a_row_that_stays_and_expires_needs_no_writing(tmp_path: Path) -> None:
    files = {"facts": stored(tmp_path, "facts", as_facts([("a", 1, 0, 0, 1.0, 1, "p")]))}
    change = Change(START + HOUR)
    assert written(tmp_path, VIEWS[0], files, START + 20 * HOUR, change) == {}


def test_only_the_named_entities_are_written(tmp_path: Path) -> None:
    rows = [(name, 1, hour, 0, float(hour), 1, "p") for name in NAMES for hour in range(3)]
    files = {"facts": stored(tmp_path, "facts", as_facts(rows))}
    with bounded(tmp_path / "spill") as duck:
        newest = Newest(
            MODULE, VIEWS[0], files, as_of=START + 9 * HOUR, label_available_after=LABEL_AFTER, duck=duck
        )
        assert newest.named([("b",), ("nobody",)]) == 2
        newest.write(tmp_path / "out.parquet", restricted=True)
    found = {row["_key0"]: row["_gone"] for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    assert found == {"b": False, "nobody": True}


def test_sql_that_fails_names_the_view(tmp_path: Path) -> None:
    broken = FeatureView("broken", "facts", "name", {"plain_x": "x + nowhere"}, "t")
    files = {"facts": stored(tmp_path, "facts", as_facts([]))}
    with bounded(tmp_path / "spill") as duck, pytest.raises(BadInput, match=r"view broken: .*nowhere"):
        Newest(MODULE, broken, files, as_of=START, label_available_after=LABEL_AFTER, duck=duck).write(
            tmp_path / "out.parquet"
        )
