"""Streams of bytes as rows: what is no row is set aside with its line, what cannot be read says where it stopped."""

import csv
import gzip
import io
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwright.data.source import Reading, Source, resolve
from loopwright.data.sources import delimited, jsonl, streams
from loopwright.kernel.errors import BadInput, Conflict, NotFound


def source(path: Path, data: bytes | str, **reading: Any) -> Source:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return resolve(str(path), Path(), reading=Reading(**reading))


def aside(found: Source) -> list[tuple[int | None, str]]:
    return [(line.line, line.why) for line in found.read().malformed]


class TestLinesThatAreNoRows:
    def test_each_is_named_by_its_line_whatever_stands_before_it(self, tmp_path: Path) -> None:
        text = b'x,y\n1,"two\nlines"\n3\n\n\n4,caf\xe9\n5,nul\0\n"a\nb",6,7\n8,9\n10\n'
        found = source(tmp_path / "a.csv", text)
        assert aside(found) == [
            (4, "1 fields, wanted 2"),
            (7, "`y` is not UTF-8 (byte 0xe9)"),
            (8, "`y` has a NUL byte"),
            (9, "3 fields, wanted 2"),
            (12, "1 fields, wanted 2"),
        ]
        assert found.read().rows.to_pydict() == {"x": ["1", "8"], "y": ["two\nlines", "9"]}

    @pytest.mark.parametrize("ends", ["\n", "\r\n"])
    def test_a_quote_that_is_never_closed_costs_the_rest_only(self, tmp_path: Path, ends: str) -> None:
        found = source(tmp_path / "a.csv", ends.join(["x,y", "1,2", '3,"four', "5,6", ""]))
        assert found.read().rows.num_rows == 1 and aside(found) == [(3, "a quote that is never closed")]

    def test_many_are_kept_in_order_and_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(delimited, "HELD_LINES", 3)
        found = source(tmp_path / "a.csv", "x,y\n" + "1\n1,2\n" * 10)
        assert [line for line, _ in aside(found)] == list(range(2, 22, 2))
        blank = source(tmp_path / "b.csv", "x,y\n\n" + "1\n1,2\n" * 10)
        assert [line for line, _ in aside(blank)] == [
            3,
            5,
            7,
            *[None] * 7,
        ]  # not known any more, and so not told

    def test_staged_they_stand_in_a_file_of_their_own(self, tmp_path: Path) -> None:
        found = source(tmp_path / "a.csv", "x,y\n1,2\n" + "z" * 5000 + "\n")
        staged = found.stage(tmp_path / "into")
        (line,) = staged.malformed.table().to_pylist()
        assert line == {"line": 3, "text": "z" * 1000, "why": "1 fields, wanted 2"}
        assert staged.rows.table(["_row", "x"]).to_pydict() == {"_row": [1], "x": ["1"]}
        assert staged.input_rows == 2 and staged.batch_id == found.digest

    def test_of_several_files_they_say_which(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        source(tmp_path / "in" / "1.csv", "x,y\n1,2\n")
        source(tmp_path / "in" / "2.csv", "y,x\n2,1\n9\n")
        whole = resolve("in/*.csv", tmp_path)
        assert whole.read().rows.to_pydict() == {"x": ["1", "1"], "y": ["2", "2"]}
        assert aside(whole) == [(3, "2.csv: 1 fields, wanted 2")]
        assert resolve("in", tmp_path).digest == whole.digest
        source(tmp_path / "in" / "3.csv", "x,z\n1,2\n")
        with pytest.raises(BadInput, match=r"3\.csv: other columns.*lacks y; has besides z"):
            resolve("in", tmp_path).read()
        with pytest.raises(NotFound, match="no file matches"):
            resolve("in/*.parquet", tmp_path)


class TestWhatCannotBeReadToItsEnd:
    def test_a_truncated_gzip_names_the_file_and_how_far_it_came(self, tmp_path: Path) -> None:
        rows = "".join(f"{n},{zlib.crc32(b'%d' % n)}\n" for n in range(200_000))
        whole = gzip.compress(f"x,y\n{rows}".encode(), 1)
        found = source(tmp_path / "a.csv.gz", whole[: len(whole) * 9 // 10])
        with pytest.raises(BadInput, match=r"a\.csv\.gz.*the gzip stream is cut off, after \d{4,6} rows"):
            found.stage(tmp_path / "into")
        assert list((tmp_path / "into").iterdir()) == []

    def test_damage_within_is_told_from_truncation(self, tmp_path: Path) -> None:
        whole = bytearray(gzip.compress(b"x,y\n" + b"1,2\n" * 50_000))
        whole[-6] ^= 1
        with pytest.raises(BadInput, match="is damaged"):
            source(tmp_path / "a.csv.gz", bytes(whole)).read()
        with pytest.raises(BadInput, match="cannot be read as jsonl to its end"):
            source(tmp_path / "a.jsonl.gz", gzip.compress(b'{"x": 1}\n' * 9999)[:-9]).read()

    def test_a_zstandard_file_is_read_and_its_end_is_missed(self, tmp_path: Path) -> None:
        packed = pa.compress(b"x\n" + os.urandom(90_000).hex().encode() + b"\n", codec="zstd", asbytes=True)
        assert source(tmp_path / "a.csv.zst", packed).read().rows.num_rows == 1
        with pytest.raises(BadInput, match="the zstd stream is"):
            source(tmp_path / "b.csv.zst", packed[: len(packed) // 2]).read()

    @pytest.mark.parametrize(
        ("name", "start"), [("a.csv", b"x,y\n1,2\n3,"), ("a.jsonl", b'{"x": 1}\n{"x": "')]
    )
    def test_a_line_without_end_stops_in_bounded_memory(
        self, tmp_path: Path, name: str, start: bytes
    ) -> None:
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(start)
            file.seek(256 << 20)  # as many bytes of nothing, which takes no room on the disk
            file.write(b"\n")
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        line = 3 if name == "a.csv" else 2
        found = resolve(str(path), Path())
        with pytest.raises(BadInput, match=rf"{name}:{line}: a record is too long; got more than 1 MB"):
            found.stage(tmp_path / "into")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10

    def test_what_unpacks_beyond_all_measure_is_not_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streams, "GRACE", 4 << 20)
        bomb = gzip.compress(b"x\n" + b"1\n" * (8 << 20))
        with pytest.raises(BadInput, match="unpacks to more than 250 times its size"):
            source(tmp_path / "a.csv.gz", bomb).stage(tmp_path / "into")
        with zipfile.ZipFile(tmp_path / "b.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("b.csv", b"x\n" + b"1\n" * (8 << 20))
        with pytest.raises(BadInput, match="unpacks to more than 250 times"):
            resolve(str(tmp_path / "b.csv.zip"), Path()).stage(tmp_path / "into")

    def test_a_file_that_is_written_meanwhile_is_not_believed(self, tmp_path: Path) -> None:
        found = source(tmp_path / "a.csv", "x\n1\n")
        (tmp_path / "a.csv").write_text("x\n1\n2\n")
        with pytest.raises(Conflict, match="changed while it was read"):
            found.stage(tmp_path / "into")
        assert list((tmp_path / "into").iterdir()) == []

    def test_a_parquet_file_that_is_cut_names_itself(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        pq.write_table(pa.table({"x": [1]}), tmp_path / "in" / "1.parquet")
        whole = (tmp_path / "in" / "1.parquet").read_bytes()
        for cut in (whole[:-20], whole[:100] + b"PAR1", b"PAR1" + b"\xff" * 60 + b"PAR1"):
            (tmp_path / "in" / "2.parquet").write_bytes(cut)
            with pytest.raises(BadInput, match=r"in: 2\.parquet: cannot be read as parquet"):
                resolve("in", tmp_path).stage(tmp_path / "into")


class TestText:
    @pytest.mark.parametrize("start", [b"\xff\xfe", b""])
    def test_utf_16_says_how_to_convert_it(self, tmp_path: Path, start: bytes) -> None:
        text = start + "x,y\n1,ä\n".encode("utf-16-le")
        with pytest.raises(BadInput, match=r"got UTF-16.*iconv.*encoding: utf-16"):
            source(tmp_path / "a.csv", text).read()

    @pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "cp1252"])
    def test_an_encoding_that_loop_yaml_names_is_read(self, tmp_path: Path, encoding: str) -> None:
        found = source(tmp_path / "a.csv", "x,y\n1,café\n".encode(encoding), encoding=encoding)
        assert found.read().rows.to_pydict() == {"x": ["1"], "y": ["café"]}

    def test_a_delimiter_and_a_format_that_loop_yaml_names(self, tmp_path: Path) -> None:
        found = source(tmp_path / "a.dat", "x:y,z\n1:2\n", format="csv", delimiter=":")
        assert found.read().rows.to_pydict() == {"x": ["1"], "y,z": ["2"]}

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"format": "cvs"}, "did you mean `csv`"),
            ({"delimiter": '"'}, "not a delimiter"),
            ({"encoding": "hex"}, "enc"),
        ],
    )
    def test_what_cannot_be_said_of_a_source(self, wrong: dict[str, str], said: str) -> None:
        with pytest.raises(BadInput, match=said):
            Reading(**wrong)

    def test_a_header_may_have_line_ends_within_quotes(self, tmp_path: Path) -> None:
        found = source(tmp_path / "a.csv", '"x\nlong",y\r\n1,2\r\n3\r\n')
        assert found.read().rows.to_pydict() == {"x\nlong": ["1"], "y": ["2"]}
        assert aside(found) == [(4, "1 fields, wanted 2")]

    def test_old_line_ends_and_a_last_line_without_one(self, tmp_path: Path) -> None:
        found = source(tmp_path / "a.csv", "x,y\r1,2\r3\r4,5")
        assert found.read().rows.to_pydict() == {"x": ["1", "4"], "y": ["2", "5"]}
        assert aside(found) == [(3, "1 fields, wanted 2")]


CELLS = st.text(st.sampled_from('ab,"\n é'), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.lists(CELLS, min_size=2, max_size=3), min_size=1, max_size=30), st.integers(5, 64))
def test_rows_and_lines_are_those_of_pythons_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[list[str]], block: int
) -> None:
    monkeypatch.setattr(delimited, "BLOCK", max(block, 64) * 8)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["x", "y"], *rows])
    reader, good, bad = csv.reader(io.StringIO(text.getvalue(), newline="")), [], []
    before = 0
    for number, fields in enumerate(reader):
        if number and len(fields) == 2:
            good.append([cell or None for cell in fields])
        elif number and fields:
            bad.append(before + 1)
        before = reader.line_num
    found = source(tmp_path / "a.csv", text.getvalue())
    raw = found.read([""])
    assert [list(row.values()) for row in raw.rows.to_pylist()] == good
    assert [line.line for line in raw.malformed] == bad


class TestJsonLines:
    def test_nested_values_keep_their_shape_and_times_stay_text(self, tmp_path: Path) -> None:
        lines = '{"a": {"b": [1, 2]}, "at": "2026-01-01T00:00:00Z", "n": 1}\n'
        lines += '{"a": {"c": null}, "n": 1.5, "new": true}\n'
        rows = source(tmp_path / "a.jsonl", lines).read().rows
        assert rows.schema.field("n").type == pa.float64() and rows.schema.field("at").type == pa.string()
        assert rows.to_pylist() == [
            {"a": {"b": [1, 2], "c": None}, "at": "2026-01-01T00:00:00Z", "n": 1.0, "new": None},
            {"a": {"b": None, "c": None}, "at": None, "n": 1.5, "new": True},
        ]

    def test_a_column_of_several_types_is_text_as_it_was_written(self, tmp_path: Path) -> None:
        lines = [
            '{"x": 1.10, "y": 1}',
            '{"x": "a", "y": 2}',
            '{"x": {"b": [1]}, "y": 3}',
            '{"x": null, "y": 4}',
        ]
        rows = source(tmp_path / "a.jsonl", "\n".join(lines)).read().rows
        assert rows.to_pydict() == {"x": ["1.10", "a", '{"b": [1]}', None], "y": [1, 2, 3, 4]}

    def test_types_are_settled_over_the_whole_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jsonl, "BLOCK", 100)
        lines = [json.dumps({"x": n}) for n in range(50)] + ['{"x": "late", "y": [1]}']
        staged = source(tmp_path / "a.jsonl", "\n".join(lines)).stage(tmp_path / "into")
        rows = staged.rows.table(["x", "y"]).to_pylist()
        assert rows[0] == {"x": "0", "y": None} and rows[-1] == {"x": "late", "y": [1]}

    def test_lines_that_are_no_objects_are_set_aside(self, tmp_path: Path) -> None:
        lines = b'{"x": 1}\n\nnot json\n[1]\n'
        lines += b'{"x": 2}{"x": 3}\r\n{"x": "\xff"}\n{"x": "\\ud800"}\r\n{"x": 4}\nnull\n{"x": 5'
        found = source(tmp_path / "a.jsonl", lines)
        assert [line for line, _ in aside(found)] == [3, 4, 5, 6, 7, 9, 10]
        assert found.read().rows.to_pydict() == {"x": [1, 4]}

    def test_a_document_that_is_one_array_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r":1: cannot be read as jsonl; got an array.*jq -c"):
            source(tmp_path / "a.jsonl", '[\n{"x": 1},\n{"x": 2}\n]\n').read()

    def test_numbers_beyond_64_bits_and_keys_named_twice(self, tmp_path: Path) -> None:
        big = 123456789012345678901234567890
        rows = (
            source(tmp_path / "a.jsonl", f'{{"x": {big}, "y": 1, "y": 2}}\n{{"x": 1, "y": 3}}\n').read().rows
        )
        assert rows.column("x").to_pylist() == [str(big), "1"]

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from("abc"),
                st.recursive(
                    st.none() | st.booleans() | st.integers(-9, 9) | st.text("xé\"\\", max_size=3) | st.just(1.5),
                    lambda inner: (
                        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("pq"), inner, max_size=2)
                    ),
                    max_leaves=4,
                ),
                min_size=1,
            ),
            min_size=1,
            max_size=8,
        )
    )  # fmt: skip
    def test_nothing_that_was_written_gets_lost(self, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
        found = (
            source(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows)).read().rows.to_pylist()
        )
        assert len(found) == len(rows)
        for written, read in zip(rows, found, strict=True):
            for name, value in written.items():
                assert same(value, read[name]), (value, read[name])


def same(written: Any, read: Any) -> bool:
    """Equal, but for the text that a mixed column is kept as, and nulls that a shape adds."""
    if isinstance(read, str) and not isinstance(written, str):
        return bool(json.loads(read) == written)
    if isinstance(written, dict) and isinstance(read, dict):
        return all(same(written.get(name), read.get(name)) for name in {*written, *read})
    if isinstance(written, list) and isinstance(read, list):
        return len(written) == len(read) and all(map(same, written, read))
    return bool(written == read)
