import ast
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from loopwright.bundle.transform import load_transform
from loopwright.data.check import check
from loopwright.data.contract import Contract
from loopwright.data.source import resolve
from loopwright.features.module import load_features
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Unavailable
from loopwright.pipeline.scaffold import ScaffoldReport, init_project
from loopwright.project.spec import load_project
from loopwright.quality.behaviour import load_checks

ROWS = 200


def table(**columns: object) -> dict[str, list[object]]:
    """Some columns every file has, and the given ones: a list, or one value for all rows."""
    base: dict[str, list[object]] = {
        "size": [n * 0.5 for n in range(ROWS)],
        "colour": [("red", "green", None)[n % 3] for n in range(ROWS)],
    }
    return base | {name: v if isinstance(v, list) else [v] * ROWS for name, v in columns.items()}


def csv(path: Path, columns: dict[str, list[object]]) -> Path:
    lines = [",".join(f'"{name}"' for name in columns)]
    lines += [
        ",".join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def scaffold(
    tmp_path: Path, columns: dict[str, list[object]], target: str = "y", **options: object
) -> ScaffoldReport:
    data = csv(tmp_path / "My rows.csv", columns)
    return init_project(tmp_path / "p", name="my-model", data=data, target=target, **options)  # type: ignore[arg-type]


BINARY = [n % 2 for n in range(ROWS)]


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (BINARY, "binary", ()),
        (["yes" if n % 2 else "no" for n in range(ROWS)], "binary", ("no", "yes")),
        (["True" if n % 2 else "False" for n in range(ROWS)], "binary", ()),
        ([1 + n % 2 for n in range(ROWS)], "binary", ("1", "2")),
        ([float(n % 2) for n in range(ROWS)], "binary", ()),
        (["abc"[n % 3] for n in range(ROWS)], "multiclass", ("a", "b", "c")),
        ([n % 11 for n in range(ROWS)], "regression", ()),
        ([(n % 10) + 1 for n in range(ROWS)], "multiclass", tuple(map(str, range(1, 11)))),
        ([n * 0.25 for n in range(ROWS)], "regression", ()),
        (["it's" if n % 2 else 'a ""b""' for n in range(ROWS)], "binary", ('a ""b""', "it's")),
    ],
)
def test_the_task_is_read_off_the_target(
    tmp_path: Path, values: list[object], task: str, classes: tuple[str, ...]
) -> None:
    report = scaffold(tmp_path, table(y=values))
    assert (report.task, report.classes) == (task, classes)
    module = load_features(load_project(report.path))
    assert (module.task, module.classes) == (task, classes)


def test_the_project_is_whole_and_understood(tmp_path: Path) -> None:
    report = scaffold(tmp_path, table(y=BINARY))
    project = load_project(report.path)
    project.check_files()
    assert set(report.files) == {
        "loop.yaml", "contracts/my_rows.odcs.yaml", "features.py", "transform.py", "train.py", "conf/train.yaml",
        "tests/behaviour.py", "README.md", ".gitignore", "card.md",
    }  # fmt: skip
    assert all((report.path / name).is_file() for name in report.files)
    assert len(load_checks(report.path / "tests/behaviour.py")) == 3
    for name in ("features.py", "transform.py", "train.py", "tests/behaviour.py"):
        ast.parse((report.path / name).read_text())
    assert yaml.safe_load((report.path / "conf/train.yaml").read_text())["num_boost_round"] > 0


def test_the_contract_holds_for_the_file_it_was_inferred_from(tmp_path: Path) -> None:
    when = [f"2024-01-{1 + n % 28:02d}T{n % 24:02d}:00:00Z" for n in range(ROWS)]
    report = scaffold(tmp_path, table(y=BINARY, when=when, id=list(range(ROWS))))
    source = resolve(str(tmp_path / "My rows.csv"), Path())
    contract = Contract.load(report.path / "contracts/my_rows.odcs.yaml")
    found = check(source.read(contract.nulls).rows, contract)
    assert (found.state, found.good_rows) == ("PASS", ROWS)
    assert (report.time, report.key) == ("when", ("id",))


def test_requests_bring_everything_but_target_time_and_key(tmp_path: Path) -> None:
    when = [f"2024-01-{1 + n % 28:02d}" for n in range(ROWS)]
    odd = {"two words": list(range(ROWS)), "ok": ["true"] * 100 + ["false"] * 100, "_hidden": BINARY}
    report = scaffold(tmp_path, table(y=BINARY, date=when, id=list(range(ROWS)), **odd))  # type: ignore[arg-type]
    assert report.inputs == {
        "size": "float64", "colour": "string", "two words": "int64", "ok": "bool", "hidden": "int64",
    }  # fmt: skip
    assert dict(load_features(load_project(report.path)).inputs) == report.inputs


def test_columns_that_say_nothing_are_left_out_and_named(tmp_path: Path) -> None:
    useless = {
        "always": 1,
        "never": None,
        "note": [f"n{n}" for n in range(ROWS)],
        "birth_date": ["1970-01-01", "1980-01-01"] * 100,
    }
    report = scaffold(tmp_path, table(y=BINARY, **useless))  # type: ignore[arg-type]
    assert list(report.inputs) == ["size", "colour"]
    said = "\n".join(report.notes)
    assert all(f"`{name}` is left out" in said for name in useless)
    assert report.time is None


def test_of_several_times_the_one_with_the_usual_name_is_taken(tmp_path: Path) -> None:
    days = [f"2024-02-{1 + n % 28:02d}" for n in range(ROWS)]
    report = scaffold(tmp_path, table(y=BINARY, shipped=days, created_at=days))
    assert report.time == "created_at"


def test_times_nobody_can_choose_between_are_left_to_the_person(tmp_path: Path) -> None:
    days = [f"2024-02-{1 + n % 28:02d}" for n in range(ROWS)]
    report = scaffold(tmp_path, table(y=BINARY, left=days, arrived=days))
    assert report.time is None
    assert any("name one with --time" in note for note in report.notes)


def test_what_is_said_overrules_what_is_inferred(tmp_path: Path) -> None:
    days = [f"2024-02-{1 + n % 28:02d}" for n in range(ROWS)]
    report = scaffold(
        tmp_path,
        table(y=[n % 5 for n in range(ROWS)], date=days, other=days, id=list(range(ROWS))),
        time="other",
        task="regression",
        key=[],
    )
    assert (report.time, report.task, report.key) == ("other", "regression", ())


def test_the_transform_gives_a_number_for_what_it_has_never_seen(tmp_path: Path) -> None:
    report = scaffold(tmp_path, table(y=BINARY))
    code = load_transform((report.path / "transform.py").read_text())
    assert code.fit is not None
    seen = {"size": np.array([1.0, 2.0, 3.0]), "colour": np.array(["red", "red", "green"], dtype=object)}
    state = json.loads(json.dumps(code.fit(seen)))
    asked = {"size": np.array([np.nan] * 3), "colour": np.array(["green", "blue", None], dtype=object)}
    features = code.transform(asked, state)
    assert all(values.dtype == np.float32 for values in features.values())
    np.testing.assert_array_equal(features["colour"], np.array([1, -1, np.nan], dtype=np.float32))


def test_parquet_is_taken_like_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(table(y=[n * 0.5 for n in range(ROWS)])), path)
    report = init_project(tmp_path / "p", name="m", data=path, target="y")
    assert (report.task, report.inputs) == ("regression", {"size": "float64", "colour": "string"})


def test_a_file_with_a_few_broken_cells_still_makes_a_project(tmp_path: Path) -> None:
    report = scaffold(tmp_path, table(y=BINARY, n=[*range(ROWS - 1), "oops"]))
    assert any("`n`: 1 value is no integer" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"target": "yy"}, NotFound, r"no column `yy`.*did you mean `y`"),
        ({"time": "colour"}, BadInput, "not a time"),
        ({"time": "nope"}, NotFound, "no column `nope`"),
        ({"key": ["nope"]}, NotFound, "no column `nope`"),
        ({"task": "regresion"}, BadInput, "did you mean `regression`"),
        ({"target": "colour", "task": "regression"}, BadInput, "regression wants numbers"),
        ({"target": "size", "task": "multiclass"}, BadInput, "too many classes"),
        ({"target": "size", "task": "binary"}, BadInput, "a binary target has two values"),
        ({"target": "const"}, BadInput, "the target never changes"),
        ({"target": "name"}, BadInput, "too many classes"),
    ],
)
def test_what_cannot_be_done_says_why_and_writes_nothing(
    tmp_path: Path, options: dict[str, object], error: type[Exception], said: str
) -> None:
    columns = table(y=BINARY, const=1, name=[f"n{n}" for n in range(ROWS)])
    with pytest.raises(error, match=said):
        scaffold(tmp_path, columns, **options)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["My rows.csv"]


def test_a_folder_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "precious.txt").write_text("mine")
    with pytest.raises(Conflict, match="is there already"):
        scaffold(tmp_path, table(y=BINARY))
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["precious.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    assert (scaffold(tmp_path, table(y=BINARY)).path / "loop.yaml").is_file()


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    data = csv(tmp_path / "a.csv", table(y=BINARY))
    with pytest.raises(Unavailable, match="cannot write"):
        init_project(data / "inside" / "p", name="m", data=data, target="y")


def test_a_name_that_no_registry_takes_is_refused(tmp_path: Path) -> None:
    data = csv(tmp_path / "a.csv", table(y=BINARY))
    with pytest.raises(BadInput, match="not a name for a model"):
        init_project(tmp_path / "p", name="a/b", data=data, target="y")


def test_a_file_with_nothing_but_the_target_cannot_be_learned_from(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no column is left"):
        scaffold(tmp_path, {"y": BINARY, "id": list(range(ROWS))})


@pytest.mark.parametrize("name", ["order", "select", "2024-05 überblick", "§§"])
def test_any_file_name_makes_a_table(tmp_path: Path, name: str) -> None:
    data = csv(tmp_path / f"{name}.csv", table(y=BINARY))
    report = init_project(tmp_path / "p", name="m", data=data, target="y")
    load_features(load_project(report.path))


def test_the_readme_holds_a_request_that_fits(tmp_path: Path) -> None:
    report = scaffold(tmp_path, table(y=BINARY, **{"it's": BINARY}))  # type: ignore[arg-type]
    line = next(
        line for line in (report.path / "README.md").read_text().splitlines() if line.startswith("curl")
    )
    body = json.loads(line.partition("-d '")[2].removesuffix("'").replace("'\\''", "'"))
    assert {tensor["name"]: tensor["datatype"] for tensor in body["inputs"]} == {
        "size": "FP64",
        "colour": "BYTES",
        "it's": "INT64",
    }


def test_a_uri_starts_a_project_and_no_password_gets_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    csv(tmp_path / "in" / "flights.csv", table(y=BINARY))
    monkeypatch.chdir(tmp_path)
    by_uri = init_project(
        tmp_path / "p", name="m", data=(tmp_path / "in" / "flights.csv").as_uri(), target="y"
    )
    assert load_project(by_uri.path).spec.data.sources["flights"].uri.startswith("file:///")
    by_glob = init_project(tmp_path / "q", name="m", data="in/*.csv", target="y")
    assert load_project(by_glob.path).spec.data.sources["in"].uri == f"{tmp_path}/in/*.csv"
    with pytest.raises(BadInput, match=r"a password would stand in loop\.yaml") as caught:
        init_project(tmp_path / "r", name="m", data="postgresql://a:s3cret@h/d?table=t", target="y")
    assert "s3cret" not in str(caught.value) and not (tmp_path / "r").exists()
