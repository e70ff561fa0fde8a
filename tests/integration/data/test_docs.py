import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from sqlalchemy import insert

from loopwright.data.content import content_names
from loopwright.data.contract import Contract
from loopwright.data.docs.difference_page import difference_page
from loopwright.data.docs.facts import gather, summaries
from loopwright.data.docs.index_page import index_page
from loopwright.data.docs.table_page import table_page
from loopwright.data.ingest import ingest
from loopwright.data.lake import Lake
from loopwright.data.snapshot import take_snapshot
from loopwright.data.source import Source, resolve
from loopwright.data.versions.difference import compare
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.clock import to_us
from loopwright.kernel.errors import NotFound
from loopwright.ledger.schema import incidents

Csv = Callable[[str], Source]
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
ATTACK = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
CONTRACT = r"""
apiVersion: v3.1.0
kind: DataContract
id: t
version: 2.1.0
status: active
description: {purpose: "Who <b>flew</b> & when"}
schema:
  - name: t
    description: '<script>alert("table")</script>'
    properties:
      - {name: id, logicalType: integer, primaryKey: true, required: true, description: "<i>the</i> number"}
      - {name: s, logicalType: string, description: "words & more"}
      - {name: n, logicalType: number, logicalTypeOptions: {minimum: 0}}
      - {name: mail, logicalType: string, classification: PII}
      - {name: at, logicalType: timestamp, physicalType: timestamp}
    customProperties:
      - {property: owner, value: "ada <ada@example.com>"}
"""
RULES = Contract.parse(CONTRACT, "t.odcs.yaml")
VOID = {"meta", "br", "img", "hr", "input", "link", "line", "rect", "circle", "polyline"}


class Page(HTMLParser):
    """Tags balanced, no script, no handler, nothing fetched from anywhere."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(content)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert tag not in ("script", "img", "iframe", "object", "embed", "link", "form", "base")
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name not in ("src", "srcset", "action", "formaction", "xlink:href"), name
            if name == "href":
                self.links.append(value or "")
            if name == "style":
                assert re.fullmatch(r"width:[0-9.]+%", value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def link(subject: str | None) -> str:
    return "index.html" if subject is None else f"{subject.replace('/', '.')}.html"


def land(lake: Lake, source: Source, *, days: int = 0) -> None:
    ingest(
        lake,
        model="m",
        table="t",
        source=source,
        contract=RULES,
        actor=SYSTEM,
        now=NOON + timedelta(days=days),
    )


def rows(*lines: str) -> str:
    return "\n".join(["id,s,n,mail,at", *lines]) + "\n"


@pytest.fixture
def landed(lake: Lake, csv: Csv) -> Lake:
    quoted = ATTACK.replace('"', '""')
    land(
        lake,
        csv(rows(f'1,"{quoted}",1.5,eve@example.com,2013-01-01T00:00:00Z', "2,b,,x@y,2013-01-02T00:00:00Z")),
    )
    bad = [f"{i},b,-1,x@y,2013-02-01T00:00:00Z" for i in (3, 4)]
    land(lake, csv(rows(*bad, *(f"{i},c,2,x@y,2013-02-01T00:00:00Z" for i in range(5, 9)))), days=1)
    return lake


def made(lake: Lake, **options: bool) -> tuple[Page, str]:
    content = table_page(gather(lake, "m", "t", now=NOON), link=link, **options)
    return Page(content), content


def test_a_table_page_tells_contract_checks_columns_and_where_rows_came_from(landed: Lake) -> None:
    pinned = take_snapshot(landed, model="m", tables=["t"], now=NOON)
    page, content = made(landed)
    for words in (
        "m/t", "contract 2.1.0 (number 1)", "owner ada <ada@example.com>", "status active",
        "2 of 6 rows", "Why rows were set aside", "Violations over batches", "rows set aside, 33.3 % in the last",
        "<i>the</i> number", "promised: integer, required", "Snapshots that pin it", pinned.digest[:12], "source.csv",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.links == ["index.html"]
    assert content.count("<svg") >= 4
    assert "n = -1" in page.text


def test_what_comes_from_data_and_contracts_runs_nowhere(landed: Lake) -> None:
    page, content = made(landed)
    assert ATTACK in page.text
    assert '<script>alert("table")</script>' in page.text
    assert "<script" not in content
    assert "onerror=alert" not in content.replace("onerror=alert(2)&gt;", "")
    assert "Content-Security-Policy" in content


def test_marks_that_turn_the_direction_of_reading_are_not_shown(lake: Lake, csv: Csv) -> None:
    land(lake, csv(rows("1,\u202eevil\u202c,1,x@y,2013-01-01T00:00:00Z")))
    _, content = made(lake)
    assert "\u202e" not in content


def test_who_may_not_see_rows_sees_none(landed: Lake) -> None:
    page, content = made(landed, values=False)
    for hidden in ("onerror", "eve@example.com", "n = -1", "2013-01-01"):
        assert hidden not in content, hidden
    assert "developers of the model only" in page.text
    assert "2 of 6 rows" not in page.text


def test_values_of_classified_columns_are_on_no_page(landed: Lake) -> None:
    page, content = made(landed)
    assert "mail" in page.text
    assert "eve@example.com" not in content
    assert "x@y" not in content


def test_an_overview_puts_first_what_needs_somebody(lake: Lake, csv: Csv) -> None:
    land(lake, csv(rows("1,a,1,x@y,2013-01-01T00:00:00Z")))
    plain = Contract.parse(CONTRACT.replace("name: t\n", "name: z\n"), "z.odcs.yaml")
    ingest(lake, model="m", table="z", source=csv(rows("2,a,1,x@y,2013-01-01T00:00:00Z")), contract=plain,
           actor=SYSTEM, now=NOON)  # fmt: skip
    with lake.ledger.write() as conn:
        conn.execute(
            insert(incidents).values(
                id="inc-1", model="m", table_name="m/z", cause="c", state="open", title="rows <lost>", triage="{}",
                consumers="{}", owner="ann", opened_at=to_us(NOON), changed_at=to_us(NOON),
            )
        )  # fmt: skip
    listed = summaries(lake)
    page = Page(index_page(listed, now=NOON, link=link))
    assert page.links == ["m.z.html", "m.t.html"]
    assert [one.open_incidents for one in listed] == [0, 1]
    told = Page(table_page(gather(lake, "m", "z", now=NOON), link=link))
    assert "rows <lost>" in told.text
    assert "1 open incident" in told.text
    assert Page(index_page([], now=NOON, link=link)).text.count("No batch has landed yet") == 1


def test_a_table_that_never_landed_has_no_page(lake: Lake) -> None:
    with pytest.raises(NotFound, match="nothing has landed"):
        gather(lake, "m", "t", now=NOON)


def test_a_difference_is_drawn_and_runs_nothing(landed: Lake, tmp_path: Path) -> None:
    before, after = (landed.files("silver", "m", "t", version=v) for v in (0, 1))
    assert content_names(after.schema) == ["at", "id", "mail", "n", "s"]
    found = compare(before, after, key=["id"])
    assert (found.added, found.removed, found.changed) == (4, 0, 0)
    content = difference_page(ATTACK, "b", {"t": found}, values=True)
    page = Page(content)
    assert "4 added" in page.text
    assert ATTACK in page.text
    hidden = difference_page("a", "b", {"t": found}, values=False)
    Page(hidden)
    assert "x@y" not in hidden


def test_ninety_columns_of_every_kind_are_described(lake: Lake, csv: Csv) -> None:
    names = [f"c{i}" for i in range(90)]
    text = "apiVersion: v3.1.0\nkind: DataContract\nid: w\nschema:\n  - name: t\n    properties:\n"
    text += "".join(
        f"      - {{name: {n}, logicalType: {'integer' if i % 2 else 'string'}}}\n"
        for i, n in enumerate(names)
    )
    wide = Contract.parse(text, "w.odcs.yaml")
    body = "\n".join(",".join(str(i + r) for i in range(90)) for r in range(20))
    ingest(
        lake,
        model="m",
        table="t",
        source=csv(",".join(names) + f"\n{body}\n"),
        contract=wide,
        actor=SYSTEM,
        now=NOON,
    )
    told = gather(lake, "m", "t", now=NOON)
    assert list(told.columns) == names
    assert {one.distinct for one in told.columns.values()} == {20}
    assert Page(table_page(told, link=link)).text.count("promised: ") == 90


def test_nested_columns_have_a_card(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from loopwright.data.bounded import bounded
    from loopwright.data.docs.pictures import distribution
    from loopwright.data.files import Files
    from loopwright.data.versions.describe import count, describe, even_slots

    table = pa.table({"o": [{"<b>": 1}, None], "l": [["<i>"], []], "t": pa.array([0, 1], pa.time64("us"))})
    pq.write_table(table, tmp_path / "n.parquet")
    with bounded() as engine:
        Files((str(tmp_path / "n.parquet"),), table.schema).view(engine, "rows")
        facts = describe(engine, "rows", table.schema, table.column_names)
        drawn = count(engine, "rows", table.schema, {n: even_slots(f) for n, f in facts.items()})
    assert drawn["o"].counts == (1, 0)
    assert drawn["l"].counts == (1, 1, 0)
    for name, one in facts.items():
        Page(distribution(one, drawn[name]))


def test_a_value_inside_an_object_that_is_classified_is_on_no_page(lake: Lake, tmp_path: Path) -> None:
    contract = Contract.parse(
        CONTRACT.replace(
            "{name: mail, logicalType: string, classification: PII}",
            "{name: who, logicalType: object, properties: [{name: mail, logicalType: string, classification: PII}]}",
        )
    )
    (tmp_path / "t.jsonl").write_text(
        '{"id": 1, "s": "b", "n": 1, "who": {"mail": "eve@example.com"}, "at": null}\n'
    )
    ingest(
        lake,
        model="m",
        table="t",
        source=resolve("t.jsonl", tmp_path),
        contract=contract,
        actor=SYSTEM,
        now=NOON,
    )
    page, _ = made(lake, values=True)
    assert "who" in page.text and "eve@example.com" not in page.text
