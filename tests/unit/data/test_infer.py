from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright.data.contract import Contract
from loopwright.data.infer import Facts, Inferred, infer, infer_contract, to_yaml
from loopwright.data.inferred import annotated
from loopwright.data.source import resolve


def seen(tmp_path: Path, text: str) -> Inferred:
    path = tmp_path / "a.csv"
    path.write_text(text)
    return infer(resolve(str(path), Path()))


def column(tmp_path: Path, *values: str) -> Facts:
    return seen(tmp_path, "x,y\n" + "".join(f"{value},1\n" for value in values)).columns[0]


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        (["1", "2"], "integer"),
        (["1", "2.5"], "number"),
        (["1.0", "2.0"], "integer"),
        (["00501", "10001"], "string"),
        (["true", "False"], "boolean"),
        (["yes", "no"], "string"),
        (["2013-01-01", "2013-01-02"], "timestamp"),
        (["2013-01-01T10:00:00Z", "2013-01-02T10:00:00+02:00"], "timestamp"),
        (["31.12.2013", "01.01.2014"], "timestamp"),
        (["a", "1"], "string"),
        (["NA", ""], "string"),
        (["1e400", "1"], "string"),
    ],
)
def test_types_are_read_off_the_values(tmp_path: Path, values: list[str], type_: str) -> None:
    assert column(tmp_path, *values).type == type_


def test_a_few_values_that_do_not_fit_are_defects_of_the_data(tmp_path: Path) -> None:
    found = column(tmp_path, *map(str, range(200)), "oops")
    assert (found.type, found.misfits) == ("integer", 1)


def test_a_question_mark_among_numbers_means_null(tmp_path: Path) -> None:
    found = seen(tmp_path, "a,b\n1,?\n?,x\n3,y\n")
    assert found.null_tokens == ("?",)
    assert found.columns[0].nulls == 1


def test_a_typed_file_keeps_its_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"a": [1.5, None], "b": [True, False], "c": pa.array(["u", "v"]).dictionary_encode()}), path
    )
    assert [c.type for c in infer(resolve(str(path), Path())).columns] == ["number", "boolean", "string"]


def test_the_inferred_contract_is_a_contract(tmp_path: Path) -> None:
    found = seen(tmp_path, "id,when\n1,31.12.2013\n2,01.01.2014\n")
    text = to_yaml(infer_contract(found, table="t", key=["id"], required=["when"]))
    contract = Contract.parse(text, "t")
    assert contract.key == ("id",)
    assert contract.loading == "full"
    assert contract.columns[1].format == "%d.%m.%Y"
    assert [r.name for r in contract.rules if r.kind == "required"] == ["id present", "when present"]


def test_nested_columns_are_inferred_from_their_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"x": 1, "y": [{"z": "a"}]}, None]
    table = pa.table({"o": rows, "l": [[1.5], []], "day": pa.array([1, 2], pa.date32())})
    pq.write_table(table, path)
    found = infer(resolve(str(path), Path()))
    contract = Contract.parse(to_yaml(infer_contract(found, table="t")), "t")
    wanted = {"o": "object", "o.x": "integer", "o.y[].z": "string", "l[]": "number", "day": "date"}
    assert {name: contract.column(name).type for name in wanted} == wanted  # type: ignore[union-attr]
    assert found.columns[0].nulls == 1


def test_candidates_stand_as_comments_and_are_taken_when_asked(tmp_path: Path) -> None:
    found = seen(tmp_path, "id,kind,v\n" + "".join(f"{i},{'ab'[i % 2]},{i % 7}\n" for i in range(80)))
    text = annotated(found, infer_contract(found, table="t"))
    assert "# every value is another: a candidate for primaryKey: true\n  - name: id" in text
    assert "# 2 values, a candidate for a list of valid ones: a, b\n  - name: kind" in text
    assert Contract.parse(text, "t").key == ()
    suggested = Contract.parse(annotated(found, infer_contract(found, table="t", suggest=True)), "t")
    assert suggested.key == ("id",)
    assert {rule.kind for rule in suggested.rules} >= {"unique", "required", "enum"}
    assert not [rule for rule in suggested.rules if rule.kind == "range"]
    ranged = Contract.parse(to_yaml(infer_contract(found, table="t", ranges=True)), "t")
    assert [rule.name for rule in ranged.rules if rule.columns == ("v",) and rule.kind == "range"] == [
        "v >= 0", "v <= 6",
    ]  # fmt: skip


def test_dates_that_read_two_ways_are_pointed_out(tmp_path: Path) -> None:
    found = seen(tmp_path, "when,v\n01/02/2013,1\n03/04/2013,2\n")
    assert found.columns[0].formats == ("%m/%d/%Y", "%d/%m/%Y")
    assert "which day and which month? The values also read as %d/%m/%Y" in annotated(
        found, infer_contract(found, table="t")
    )


def test_a_column_name_cannot_write_lines_of_the_contract(tmp_path: Path) -> None:
    found = seen(tmp_path, '"a\n  - name: b",c\n1,2\n3,4\n')
    assert [c.name for c in Contract.parse(annotated(found, infer_contract(found, table="t")), "t").columns] == [
        "a\n  - name: b", "c",
    ]  # fmt: skip


def test_memory_stays_bounded_as_rows_grow(tmp_path: Path) -> None:
    path = tmp_path / "big.parquet"
    with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
        for start in range(0, 600_000, 100_000):
            ids = list(range(start, start + 100_000))
            writer.write_table(pa.table({"id": ids, "text": [f"{i:040d}" for i in ids]}))
    found = infer(resolve(str(path), Path()), memory_limit="64MB")
    assert [(c.distinct, c.unique) for c in found.columns] == [(600_000, True)] * 2
