"""Snapshots, differences, vacuum and pages as the command line, HTTP and Python ask for them."""

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright.cli.edge import run
from loopwright.control.access import LOCAL
from loopwright.control.context import Context, open_context
from loopwright.control.operation import find
from loopwright.data import snapshot
from loopwright.data.ingest import ingest
from loopwright.data.lake import Lake
from loopwright.data.snapshot import Snapshot, take_snapshot, verify_snapshot
from loopwright.data.source import resolve
from loopwright.data.versions import store as versions_store
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, NotFound, Refused
from loopwright.ledger import store as ledger_store
from tests.integration.data.conftest import contract
from tests.unit.control.test_doorkeeper import browse

RULES = contract("{name: id, logicalType: integer, primaryKey: true}", "{name: s}",
                 custom="{property: load, value: full}")  # fmt: skip
VERA, DORA, ADA = (
    Actor(n, r) for n, r in (("vera", Role.VIEWER), ("dora", Role.DEVELOPER), ("ada", Role.ADMIN))
)
Two = tuple[Snapshot, Snapshot]
Said = Callable[..., tuple[int, str]]


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    made = open_context(tmp_path / "home", LOCAL, create=True)
    yield made
    made.ledger.dispose()


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    for name in ("LOOPWRIGHT_URL", "LOOPWRIGHT_TOKEN", "LOOPWRIGHT_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOOPWRIGHT_HOME", str(tmp_path / "home"))

    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run(list(words))
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def land(
    ctx: Context, tmp_path: Path, text: str, *, table: str = "t", at: datetime | None = None
) -> Snapshot:
    path = tmp_path / "source.csv"
    path.write_text(text)
    lake, now = Lake.of(ctx.home, ctx.ledger), at or ctx.now
    ingest(
        lake, model="m", table=table, source=resolve(str(path), Path()), contract=RULES, actor=LOCAL, now=now
    )
    return take_snapshot(lake, model="m", tables=[table], now=now)


@pytest.fixture
def two(ctx: Context, tmp_path: Path) -> Two:
    long_ago = datetime.now(UTC) - timedelta(days=9 * 365)
    first = land(ctx, tmp_path, "id,s\n1,a\n2,b\n", at=long_ago)
    return first, land(ctx, tmp_path, "id,s\n2,x\n3,c\n", at=long_ago + timedelta(days=1))


def test_snapshots_are_listed_newest_first(ctx: Context, two: Two, say: Said) -> None:
    listed = find("tables.snapshots")(ctx, model="m")
    assert [one["digest"] for one in listed] == [two[1].digest, two[0].digest]
    assert listed[0]["tables"] == {"t": two[1].tables["t"]["version"]}
    code, said = say("data", "snapshots")
    assert code == 0
    assert two[0].digest[:12] in said
    with pytest.raises(NotFound, match="no tables of this model"):
        find("tables.snapshots")(ctx, model="n")


def test_a_snapshot_says_where_its_rows_came_from(two: Two, tmp_path: Path) -> None:
    (source,) = two[1].tables["t"]["sources"]
    assert source["uri"] == str(tmp_path / "source.csv")
    assert (source["batches"], source["rows"]) == (1, 2)
    assert source["contract"] == RULES.digest


def test_two_snapshots_are_compared_by_the_contracts_key(two: Two, say: Said) -> None:
    code, said = say("data", "diff", two[0].digest[:10], two[1].digest[:10])
    assert code == 1
    assert "t: 2 → 2 rows (by id): 1 added, 1 removed, 1 changed, 0 the same" in said
    assert "changed: id 2: s b → x" in said
    code, said = say("data", "diff", two[0].digest, two[0].digest)
    assert (code, "the same" in said) == (0, True)


def test_versions_and_files_are_compared_too(ctx: Context, two: Two, tmp_path: Path, say: Said) -> None:
    versions = [one.tables["t"]["version"] for one in two]
    code, said = say("--json", "data", "diff", f"m/t@{versions[0]}", "m/t")
    told = json.loads(said)
    assert (code, told["before"], told["after"]) == (1, f"m/t@{versions[0]}", f"m/t@{versions[1]}")
    assert told["tables"]["t"]["rows"]["changed"] == 1
    (tmp_path / "now.csv").write_text("id,s\n3,c\n2,x\n")
    code, said = say("data", "diff", two[1].digest, str(tmp_path / "now.csv"))
    assert (code, "2 the same" in said, "they differ" in said) == (
        0,
        True,
        False,
    )  # a CSV has no types to differ in
    (tmp_path / "now.csv").write_text("id,s\n3,c\nsecond,x\n")
    code, said = say("data", "diff", two[1].digest, str(tmp_path / "now.csv"))
    assert (code, "column id: type, int64 → string" in said) == (1, True)
    pq.write_table(pa.table({"id": [3, 2], "s": ["c", "x"]}), tmp_path / "now.parquet")
    code, said = say("data", "diff", "m/t", str(tmp_path / "now.parquet"))
    assert (code, "they differ" in said) == (0, False)


def test_a_difference_can_be_drawn(two: Two, tmp_path: Path, say: Said) -> None:
    page = tmp_path / "diff.html"
    code, said = say("data", "diff", two[0].digest, two[1].digest, "--html", str(page))
    assert (code, str(page) in said) == (1, True)
    assert "What changed" in page.read_text()


def test_who_only_looks_is_shown_counts_and_no_rows(ctx: Context, two: Two, tmp_path: Path) -> None:
    vera = ctx.acting_as(VERA)
    told = find("tables.diff")(vera, before=two[0].digest, after=two[1].digest, html=True)
    assert told["tables"]["t"]["rows"]["changed"] == 1
    assert "examples" not in told["tables"]["t"]
    assert "slots" not in json.dumps(told["tables"])
    with pytest.raises(Refused, match="vera may not read a file"):
        find("tables.diff")(vera, before=two[0].digest, after=str(tmp_path / "source.csv"))
    uploaded = ctx.home.artifacts / "x.csv"
    uploaded.parent.mkdir(parents=True, exist_ok=True)
    uploaded.write_text("id,s\n1,a\n")
    lying = next(Path(ctx.home.root / "lake").rglob("silver/m/t/**/*.parquet"))
    for inside in (uploaded, lying, ctx.home.root / "home.json"):
        with pytest.raises(Refused, match="the home's own files"):
            find("tables.diff")(ctx, before=two[0].digest, after=str(inside))


def test_what_nothing_is_called_is_said(ctx: Context, two: Two) -> None:
    with pytest.raises(NotFound, match="nothing is called so"):
        find("tables.diff")(ctx, before="m/t", after="nowhere.csv")
    with pytest.raises(NotFound, match="has no version 99"):
        find("tables.diff")(ctx, before="m/t@99", after="m/t")
    with pytest.raises(NotFound, match="has no version 99999999999999999"):  # and looks for none in between
        find("tables.diff")(ctx, before="m/t@99999999999999999", after="m/t")
    for name in ("a" * 300, "a/" * 5000):
        with pytest.raises(BadInput, match="cannot be a path"):
            find("tables.diff")(ctx, before="m/t", after=name)
        with pytest.raises(BadInput, match="cannot be a path"):
            find("data.check")(ctx, project=name)
        with pytest.raises(BadInput, match="cannot be a path"):
            find("data.check_source")(ctx, uri=name, contract="c.yaml")
    with pytest.raises(BadInput, match="not in both tables"):
        find("tables.diff")(ctx, before=two[0].digest, after="m/t", key=["nope"])


def test_vacuum_lists_first_and_deletes_only_when_told(ctx: Context, two: Two, say: Said) -> None:
    lake = Lake.of(ctx.home, ctx.ledger)
    code, said = say("data", "vacuum", "m", "--older-than", "0s")
    assert (code, "would go; delete them with --yes" in said) == (0, True)
    assert lake.read("silver", "m", "t", version=two[0].tables["t"]["version"]).num_rows == 2
    assert say("data", "vacuum", "--yes", "--dry-run")[0] == 2
    code, said = say("--json", "data", "vacuum", "m", "--older-than", "0s", "--yes")
    told = json.loads(said)
    assert (code, told["deleted"], told["files"]) == (0, True, 1)
    assert told["bytes"] > 0
    (row,) = [one for one in find("audit.show")(ctx, limit=100) if one["action"] == "data.vacuum"]
    assert row["subject"] == "m/t"
    assert row["payload"]["files"] == 1
    code, said = say("data", "show", two[0].digest, "--verify")
    assert (code, "vanished" in said) == (1, True)
    assert say("data", "show", two[1].digest, "--verify")[0] == 0
    assert "nothing may go" in say("data", "vacuum", "m")[1]


def test_less_than_the_policy_keeps_is_an_admins_to_ask(ctx: Context, two: Two) -> None:
    vacuum = find("tables.vacuum")
    dora = ctx.acting_as(DORA)
    assert vacuum(dora, model="m", older_than="30d")["deleted"] is False
    with pytest.raises(Refused, match="below its retention of 7y"):
        vacuum(dora, model="m", older_than="30d", delete=True)
    with pytest.raises(Refused, match="vera may not"):
        vacuum(ctx.acting_as(VERA), model="m")
    assert (
        vacuum(dora, model="m", delete=True)["files"] == 0
    )  # committed today, whatever the ledger's clock said
    assert vacuum(ctx.acting_as(ADA), model="m", older_than="0s", delete=True)["files"] == 1
    with pytest.raises(BadInput, match="not a duration"):
        vacuum(dora, model="m", older_than="soon")


def test_pages_are_written_to_a_folder(ctx: Context, two: Two, tmp_path: Path, say: Said) -> None:
    out = tmp_path / "pages"
    code, said = say("data", "docs", "m", "--out", str(out))
    assert (code, str(out / "index.html") in said) == (0, True)
    assert {path.name for path in out.iterdir()} == {"index.html", "m.t.html"}
    assert 'href="m.t.html"' in (out / "index.html").read_text()
    assert say("data", "docs", "nope", "--out", str(out))[0] == 2
    assert say("data", "docs", "--out", str(tmp_path / "no" / "such"))[0] == 2


def test_the_control_plane_shows_pages_that_run_nothing(ctx: Context, two: Two) -> None:
    with browse(ctx, local=True) as client:
        overview = client.get("/api/v1/data/docs.html")
        assert overview.headers["content-type"].startswith("text/html")
        assert overview.headers["content-disposition"].startswith("inline")
        assert "default-src 'none'" in overview.headers["content-security-policy"]
        assert "/api/v1/data/m/t/docs.html" in overview.text
        page = client.get("/api/v1/data/m/t/docs.html")
        assert (page.status_code, "Snapshots that pin it" in page.text) == (200, True)
        assert client.get("/api/v1/data/m/nope/docs.html").status_code == 404


def test_a_table_that_stands_still_is_not_read_again(
    ctx: Context, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("read again")

    lake = Lake.of(ctx.home, ctx.ledger)
    monkeypatch.setattr(snapshot, "content", read)
    assert take_snapshot(lake, model="m", tables=["t"], now=ctx.now) == two[1]


def test_equal_rows_in_a_table_made_anew_are_read_from_there(ctx: Context, two: Two, tmp_path: Path) -> None:
    lake = Lake.of(ctx.home, ctx.ledger)
    rows = lake.read("silver", "m", "t")
    shutil.rmtree(lake.path("silver", "m", "t"))
    lake.write("silver", "m", "t", rows)
    again = take_snapshot(lake, model="m", tables=["t"], now=ctx.now)
    assert again.digest == two[1].digest
    assert verify_snapshot(lake, again.digest).tables["t"]["version"] == 0


def test_the_revision_a_batch_came_from_is_lineage(ctx: Context, two: Two) -> None:
    entry = two[1].tables["t"]
    (source,) = entry["sources"]
    with ctx.ledger.write() as conn:
        payload = {"source_digest": source["newest_batch"], "origin": {"dvc_rev": "abc123"}}
        ledger_store.append(
            conn, at=ctx.now, actor="ann", action="data.ingest", subject="m/t", payload=payload
        )
        (told,) = versions_store.sources_until(conn, "m/t", entry["version"])
    assert told["origin"] == {"dvc_rev": "abc123"}
