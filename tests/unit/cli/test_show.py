"""Tables for pipes and people; label files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.cli.label_file import read
from loopwright.cli.progress import Lines
from loopwright.cli.show import pairs, share, table, text
from loopwright.kernel.errors import BadInput

cells = (
    st.none()
    | st.integers(-(10**6), 10**6)
    | st.text(st.characters(codec="ascii", exclude_characters="\n\r"), max_size=12)
)


@given(st.lists(st.fixed_dictionaries({"a": cells, "b": cells}), min_size=1, max_size=8))
def test_a_piped_table_has_one_line_per_row_and_columns_that_stand_under_each_other(
    rows: list[dict[str, object]],
) -> None:
    lines = table(rows, [("first", "a"), ("second", "b")]).split("\n")
    assert len(lines) == len(rows) + 1
    assert lines[0].split() == ["first", "second"]


def test_an_empty_table_says_so() -> None:
    assert table([], [("a", "a")], empty="no models yet") == "no models yet"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), ([], "–"), (0.75312, "0.7531"), (12345.6, "12,346"), (True, "yes"),
     ("2013-04-01T05:00:00Z", "2013-04-01 05:00"),
     ([1, 2], "1, 2"), ({"P1": 2}, "P1 2"), (3, "3"), ("plain", "plain")],
)  # fmt: skip
def test_values_are_shown_as_people_read_them(value: object, shown: str) -> None:
    assert text(value) == shown


def test_shares_are_percent() -> None:
    assert (share(0.25), share(0.01), share(None)) == ("25 %", "1 %", "–")
    assert pairs({"a": 1, "long": 2}) == "a     1\nlong  2"


def test_progress_in_a_pipe_is_one_line_per_finished_step(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines() as watch:
        watch.step("Ingest")
        watch.update(0.5, "half")
        watch.note("flights: 10 rows")
        watch.done("10 good rows")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("    flights: 10 rows\n✓ Ingest: 10 good rows (")


def test_a_step_that_broke_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="x"), Lines() as watch:
        watch.step("Ingest")
        raise ValueError("x")
    assert "✗ Ingest" in capsys.readouterr().err


def test_a_label_file_is_read_with_numbers_words_and_times(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(
        "id,label,known\na,1,2013-04-01T05:00:00Z\nb,,2013-04-01 06:00:00\n"
        "c,true,2013-04-01T05:00:00+02:00\nd,late,2013-04-01\n"
    )
    rows = read(file, "id", "label", "known")
    assert [row["label"] for row in rows] == [1.0, None, 1.0, "late"]
    assert [row["available_at"] for row in rows] == [
        "2013-04-01T05:00:00Z", "2013-04-01T06:00:00Z", "2013-04-01T03:00:00Z", "2013-04-01T00:00:00Z",
    ]  # fmt: skip


def test_a_label_file_without_the_column_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("id,lable\na,1\n")
    with pytest.raises(BadInput, match="did you mean `lable`"):
        read(file, "id", "label", None)
    odd = tmp_path / "labels.xls"
    odd.write_text("x")
    with pytest.raises(BadInput, match="not known"):
        read(odd, "id", "label", None)
