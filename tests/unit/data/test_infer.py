from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright.data.contract import Contract
from loopwright.data.infer import Facts, Inferred, infer, infer_contract, to_yaml
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
