"""features …: what is online, how old it is, and what a version makes of it, from the command line."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.testing import tiny_bundle
from loopwright.cli.feature_health import _health
from loopwright.cli.features import _aggregated
from loopwright.control.access import LOCAL
from loopwright.control.context import Context, open_context
from loopwright.data.lake import Lake
from loopwright.monitoring.feature_health.statistics import FeatureStatistics
from loopwright.monitoring.feature_health.store import save_statistics
from loopwright.monitoring.windows import Window
from loopwright.pipeline.store import save_project
from loopwright.project.spec import load_project
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.versions import register_version
from tests.governing import vouch
from tests.unit.cli.conftest import Type

START = datetime(2013, 7, 1, tzinfo=UTC)
LOOP = """
model: late
task: binary
owner: ops@example.com
data:
  sources:
    carriers: {uri: carriers.csv, contract: carriers.yaml}
    flights: {uri: flights.csv, contract: flights.yaml}
  label: {name: late}
"""
FEATURES = """
from datetime import timedelta
from loopwright.features import FeatureView, Spine, ViewTest

spine = Spine(table="flights", key="id", event_time="t", label="late", inputs=("hour", "carrier"))
views = [
    FeatureView(
        "routes", "carriers", ("carrier",), {"distance": "distance"}, "t", ttl=timedelta(hours=6),
        owner="routes@example.com", description="How far <b>carriers</b> & others fly.",
        tests={"not negative": ViewTest("distance >= 0", severity="warn")},
    ),
]
INPUTS = {"distance": "float64", "hour": "int64", "carrier": "string"}
"""


def carriers(*rows: tuple[str, int, float | None]) -> pa.Table:
    return pa.table({
        "carrier": [r[0] for r in rows],
        "t": pa.array([START + timedelta(hours=r[1]) for r in rows], pa.timestamp("us", "UTC")),
        "distance": pa.array([r[2] for r in rows], pa.float64()),
        "_batch": ["b"] * len(rows), "_row": list(range(1, len(rows) + 1)),
    })  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with MLflow's tables and a landed table, made once and copied."""
    folder = tmp_path_factory.mktemp("template") / "home"
    made = open_context(folder, LOCAL, create=True)
    ensure_mlflow_tables(made.ledger)
    table = carriers(("UA", 1, 500.0), ("AA", 9, None), ("B6", 10, 1000.0), ("UA", 10, 700.0))
    Lake.of(made.home, made.ledger).write("silver", "late", "carriers", table)
    made.ledger.dispose()
    return folder


@pytest.fixture
def ctx(template: Path, tmp_path: Path) -> Context:
    return open_context(Path(shutil.copytree(template, tmp_path / "home")), LOCAL)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "loop.yaml").write_text(LOOP)
    (folder / "features.py").write_text(FEATURES)
    (folder / "transform.py").write_text("def transform(inputs, state):\n    return inputs\n")
    return folder


@pytest.fixture
def materialized(ctx: Context, project: Path, loopwright: Type) -> Context:
    done = loopwright(
        "features", "materialize", "late", "--project", str(project), "--as-of", "2013-07-01T12:00:00Z"
    )
    assert done.code == 0, done.err
    assert "routes" in done.out and "3 online" in done.err
    return ctx


@pytest.fixture
def version(ctx: Context, tmp_path: Path) -> int:
    digest = BundleDepot(ctx.home.bundles).add(tiny_bundle(tmp_path / "bundle", ctx.key).path)
    with ctx.ledger.write() as conn:
        vouch(conn, "late", digest, at=ctx.now)
        return register_version(
            conn, model="late", bundle=digest, run_id=None, snapshot=None, author=LOCAL, metrics={}, now=ctx.now
        ).version  # fmt: skip


def get(loopwright: Type, *words: str) -> tuple[int, dict[str, object]]:
    answer = loopwright("features", "get", "late", "--at", "2013-07-01T12:30:00Z", *words, "--json")
    assert answer.code in (0, 1), answer.err
    return answer.code, json.loads(answer.out)


def test_a_dry_run_says_what_it_would_do(ctx: Context, project: Path, loopwright: Type) -> None:
    would = loopwright("features", "materialize", "late", "--project", str(project), "--dry-run")
    assert would.code == 0
    assert re.search(r"routes +full +3", would.out)
    assert loopwright("features", "status", "late").code == 2  # nothing is known of it


def test_stored_values_come_with_ages_and_statuses(materialized: Context, loopwright: Type) -> None:
    shown = loopwright("features", "get", "late", "--entity", "carrier=UA", "--at", "2013-07-01T12:30:00Z")
    assert shown.code == 0
    assert re.search(r"routes +distance +700 +PRESENT +2\.5 h", shown.out)
    later = loopwright("features", "get", "late", "--entity", "carrier=UA", "--at", "2013-07-01T16:00:00Z")
    assert re.search(r"routes +distance +– +EXPIRED", later.out)
    assert (
        "NULL"
        in loopwright("features", "get", "late", "--entity", "carrier=AA", "--at", "2013-07-01T12:30:00Z").out
    )
    assert "NOT_FOUND" in loopwright("features", "get", "late", "--entity", "carrier=??").out
    assert (
        "not asked: routes, whose key lacks carrier"
        in loopwright("features", "get", "late", "--entity", "x=1").out
    )


def test_a_version_makes_its_features_of_what_is_stored_and_what_is_asked(
    materialized: Context, version: int, loopwright: Type
) -> None:
    code, answer = get(loopwright, "--entity", "carrier=UA", "--entity", "hour=12")
    (row,) = answer["rows"]  # type: ignore[misc]
    assert code == 0 and answer["version"] == version
    assert row["inputs"] == {"distance": 700.0, "hour": 12, "carrier": "UA"}
    assert row["features"] == pytest.approx(
        {"distance": 0.7, "hour": 0.5, "carrier": row["features"]["carrier"]}
    )


def test_inputs_that_nothing_gives_are_named(materialized: Context, version: int, loopwright: Type) -> None:
    code, answer = get(loopwright, "--entity", "carrier=UA")
    (row,) = answer["rows"]  # type: ignore[misc]
    assert (code, row["missing"], row["features"]) == (1, ["hour"], None)
    shown = loopwright("features", "get", "late", "--entity", "carrier=UA")
    assert "missing of the inputs of late: hour (give them: --entity NAME=VALUE)" in shown.out
    wrong = loopwright("features", "get", "late", "--entity", "carrier=UA", "--entity", "hour=noon")
    assert wrong.code == 2
    assert "hour: not a value for this input; got noon, wanted int64 or null" in wrong.err


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_many_entities_are_read_from_a_file_into_one(
    materialized: Context, version: int, tmp_path: Path, loopwright: Type, kind: str
) -> None:
    rows = [{"carrier": "UA", "hour": 6}, {"carrier": "zz", "hour": 7}, {"carrier": "B6", "hour": 8}]
    asked, out = tmp_path / f"asked.{kind}", tmp_path / f"out.{kind}"
    if kind == "csv":
        asked.write_text("carrier,hour\n" + "".join(f"{r['carrier']},{r['hour']}\n" for r in rows))
    elif kind == "jsonl":
        asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), asked)
    done = loopwright(
        "features", "get", "late", "--file", str(asked), "--out", str(out), "--at", "2013-07-01T12:30:00Z"
    )
    assert (done.code, done.out.strip()) == (0, f"{out}: 3 entities")
    if kind == "parquet":
        found = pq.read_table(out).to_pylist()
        assert [row["routes.distance"] for row in found] == [700.0, None, 1000.0]
    else:
        text = out.read_text().splitlines()
        found = [json.loads(line) for line in text] if kind == "jsonl" else []
        assert len(text) == (4 if kind == "csv" else 3)
    if kind == "csv":
        head, first = text[0].split(","), text[1].split(",")
        found = [dict(zip(head, line.split(","), strict=True)) for line in text[1:]]
        assert dict(zip(head, first, strict=True))["routes.age"] == "9000.0"
    assert [row["routes.status"] for row in found] == ["PRESENT", "NOT_FOUND", "PRESENT"]
    assert float(found[0]["feature.hour"]) == 0.25


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "carrier,hour\nUA\n", r"a\.csv:2: another number of fields"),
        ("a.jsonl", '{"carrier": "UA"}\n[1]\n', r"a\.jsonl:2: not a JSON object"),
        ("a.txt", "carrier", r"not a file of entities; got \.txt, wanted a name that ends in"),
        ("a.csv", "carrier\n", "so many entities; got 0"),
    ],
)
def test_a_file_that_is_no_list_of_entities_is_told_with_its_line(
    ctx: Context, tmp_path: Path, loopwright: Type, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    answer = loopwright("features", "get", "late", "--file", str(tmp_path / name))
    assert answer.code == 2
    assert re.search(said, answer.err)


def test_status_tells_what_is_stale_and_exits_with_one(
    materialized: Context, project: Path, loopwright: Type
) -> None:
    fresh = json.loads(loopwright("features", "status", "late", "--json").out)
    assert (fresh["views"][0]["rows"], fresh["views"][0]["stale"]) == (3, [])
    Lake.of(materialized.home, materialized.ledger).write(
        "silver", "late", "carriers", carriers(("DL", 11, 1.0))
    )
    stale = loopwright("features", "status", "late")
    assert stale.code == 1
    assert "carriers was read at version 0 and is at 1" in stale.out
    loopwright(
        "features", "materialize", "late", "--project", str(project), "--as-of", "2013-07-01T12:00:00Z"
    )
    assert loopwright("features", "status", "late").code == 0


def test_views_are_listed_and_shown_with_their_past(
    materialized: Context, project: Path, loopwright: Type
) -> None:
    assert re.search(
        r"late +routes +1 +carrier +distance +6h +routes@example.com +3", loopwright("features", "list").out
    )
    (project / "features.py").write_text(
        FEATURES.replace('"distance": "distance"', '"distance": "distance * 2"')
    )
    again = loopwright(
        "features", "materialize", "late", "--project", str(project), "--as-of", "2013-07-01T13:00:00Z"
    )
    assert "the definition changed" in again.out
    shown = json.loads(loopwright("features", "show", "late", "routes", "--json").out)
    assert [one["number"] for one in shown["definitions"]] == [1, 2]
    assert [one["state"] for one in shown["materializations"]] == ["done", "done"]
    told = loopwright("features", "show", "late", "routes").out
    assert re.search(r"gives +by\ndistance +distance \* 2\n", told)
    assert re.search(r"not negative +distance >= 0 +warn", told)
    unknown = loopwright("features", "show", "late", "rutes")
    assert unknown.code == 2 and "did you mean `routes`?" in unknown.err
    assert "no feature views are known" in loopwright("features", "list", "lat").err


def test_the_page_needs_nothing_else_and_obeys_no_words_of_a_project(
    materialized: Context, tmp_path: Path, loopwright: Type
) -> None:
    out = tmp_path / "page.html"
    assert loopwright("features", "docs", "late", "--out", str(out)).code == 0
    page = out.read_text()
    assert "How far &lt;b&gt;carriers&lt;/b&gt; &amp; others fly." in page
    assert "distance &gt;= 0" in page and "routes@example.com" in page
    assert not re.search(r"<script|<b>|https?://|src=|@import", page)


def test_a_training_set_is_made_for_rows_of_ones_own(
    materialized: Context, project: Path, tmp_path: Path, loopwright: Type
) -> None:
    asked, out = tmp_path / "asked.csv", tmp_path / "set.parquet"
    asked.write_text(
        "carrier,event_time\nUA,2013-07-01T05:00:00Z\nzz,2013-07-01T05:00:00Z\nUA,2013-07-01T11:00:00Z\n"
    )
    words = ("features", "training-set", "late", "--entities", str(asked), "--project", str(project))
    done = loopwright(*words, "--out", str(out))
    assert done.code == 0, done.err
    assert [row["distance"] for row in pq.read_table(out).to_pylist()] == [500.0, None, 700.0]
    assert "PRESENT" in done.out and "NOT_FOUND" in done.out
    refused = loopwright(*words, "--out", str(tmp_path / "home" / "keys" / "x.parquet"))
    assert refused.code == 1 and "the home's own files" in refused.err


def test_what_cannot_be_materialised_says_why(ctx: Context, project: Path, loopwright: Type) -> None:
    nowhere = loopwright("features", "materialize", "late")
    assert nowhere.code == 2 and "no project has run for the model `late`" in nowhere.err
    other = loopwright("features", "materialize", "other", "--project", str(project))
    assert other.code == 2 and "the project is for another model" in other.err
    timeless = loopwright(
        "features", "materialize", "late", "--project", str(project), "--as-of", "2013-07-01T12:00:00"
    )
    assert timeless.code == 2 and "`as_of` has no zone" in timeless.err


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"function": "count", "window": "1d", "over": "event_time"}, "count of rows over 1d"),
        ({"function": "sum", "value": "amount", "where": "paid", "over": "event_time"}, "sum of amount where paid"),
        ({"function": "max", "value": "a", "window": "7d", "over": "available_at"},
         "max of a over 7d of when it became known"),
    ],
)  # fmt: skip
def test_an_aggregation_is_shown_in_words(how: dict[str, str], told: str) -> None:
    assert _aggregated(how) == told


def test_to_look_at_health_holds_a_view_to_its_ttl_and_runs_no_code(
    materialized: Context, project: Path, version: int, loopwright: Type
) -> None:
    (project / "features.py").write_text("raise SystemExit('it ran')")
    window = Window(START, START + timedelta(days=1))
    counted = FeatureStatistics(
        "distance", "routes", "requests", window, 30, 0, 3, newest=START + timedelta(hours=10)
    )
    with materialized.ledger.write() as conn:
        save_project(conn, "late", str(project), load_project(project).spec.to_json(), "d", materialized.now)
        save_statistics(conn, "late", [counted], materialized.now)
    shown = json.loads(loopwright("features", "health", "late", "--json").out)
    assert [(each["feature"], each["rule"], each["wanted"]) for each in shown["broken"]] == [
        ("routes", "freshness", "<= 6h")
    ]


def test_values_of_rows_are_shown_to_those_who_work_on_the_model(
    materialized: Context, version: int, loopwright: Type
) -> None:
    window = Window(START, START + timedelta(days=1))
    counted = FeatureStatistics("carrier", "spine", "requests", window, 30, 0, 1, top=(("Ms Example", 30),))
    with materialized.ledger.write() as conn:
        save_statistics(conn, "late", [counted], materialized.now)
    for name in ("dora", "vera"):
        role = "developer" if name == "dora" else "viewer"
        assert loopwright("user", "add", name, "--role", role).code == 0
    assert "Ms Example" in loopwright("--as", "dora", "features", "health", "late").out
    shown = loopwright("--as", "vera", "features", "health", "late")
    assert "carrier" in shown.out and "Ms Example" not in shown.out


def test_status_is_about_the_store_that_the_home_names(
    materialized: Context, tmp_path: Path, loopwright: Type
) -> None:
    elsewhere = {"online_url": f"sqlite:///{tmp_path / 'other.db'}"}
    (materialized.home.root / "home.json").write_text(json.dumps(elsewhere))
    (view,) = json.loads(loopwright("features", "status", "late", "--json").out)["views"]
    assert (view["online"], view["last"]) == (False, None)


def test_a_rule_is_broken_where_it_was_judged() -> None:
    def counted(source: str, feature: str, view: str) -> dict[str, object]:
        return {
            "source": source, "feature": feature, "view": view, "start": "2013-07-01T00:00:00Z",
            "end": "2013-07-02T00:00:00Z", "rows": 30, "null_rate": 0.0, "distinct": 3, "mean": 1.0, "minimum": 0.0,
            "maximum": 2.0, "top": [], "age_seconds": 60.0,
        }  # fmt: skip

    def rule(feature: str, name: str) -> dict[str, str]:
        return {"feature": feature, "source": "requests", "rule": name, "found": "9", "wanted": "<= 5"}

    both = [counted(source, f, v) for source in ("requests", "offline") for f, v in (("a", "x"), ("b", "y"))]
    shown = _health({"statistics": both, "broken": [rule("a", "maximum")]})
    assert shown.count("BROKEN") == 1
    shown = _health({"statistics": both, "broken": [rule("y", "freshness")]})
    assert shown.count("BROKEN") == 2
