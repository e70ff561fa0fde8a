"""audit verify|anchor|export|report as a person types them."""

import json
import sqlite3
from pathlib import Path

import pytest

from loopwright.cli import audit as audit_commands
from tests.unit.cli.conftest import Type


@pytest.fixture
def home(loopwright: Type, tmp_path: Path) -> Path:
    from loopwright.control.client import connect

    client = connect(tmp_path / "home", create=True)
    for name in ("ada", "bob", "cy"):
        client.call("access.add_user", name=name, role="approver")
    return tmp_path / "home"


def test_a_log_without_anchors_says_how_to_make_one(loopwright: Type, home: Path) -> None:
    answer = loopwright("audit", "verify")
    assert answer.code == 0
    assert "the audit log is whole: 3 rows, each following the one before" in answer.out
    assert "loopwright audit anchor" in answer.out


def test_an_anchor_goes_where_it_is_told_and_is_held_against_the_log(
    loopwright: Type, home: Path, tmp_path: Path
) -> None:
    made = loopwright("audit", "anchor", "--to", str(tmp_path / "safe"), "--to", str(tmp_path / "all.jsonl"))
    assert made.code == 0
    assert str(home / "anchors") in made.out and str(tmp_path / "safe") in made.out
    held = loopwright("audit", "verify", "--anchor", str(tmp_path / "safe"))
    assert held.code == 0 and "agree" in held.out
    forged = json.loads((tmp_path / "all.jsonl").read_text()) | {"hash": "f" * 64}
    (tmp_path / "forged.json").write_text(json.dumps(forged))
    found = loopwright("audit", "verify", "--anchor", str(tmp_path / "forged.json"), "--json")
    assert found.code == 1
    told = json.loads(found.out)
    assert not told["ok"] and str(tmp_path / "forged.json") in told["why"]


def test_a_folder_without_anchors_is_no_proof(loopwright: Type, home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answer = loopwright("audit", "verify", "--anchor", str(tmp_path / "empty"))
    assert answer.code == 2 and "no anchors there" in answer.err


def test_an_exported_file_verifies_without_its_home(loopwright: Type, home: Path, tmp_path: Path) -> None:
    file, anchors = tmp_path / "log.jsonl", tmp_path / "anchors.jsonl"
    assert loopwright("audit", "anchor", "--to", str(anchors)).code == 0
    assert "4 rows written" in loopwright("audit", "export", "-o", str(file)).out
    elsewhere = ("--home", str(tmp_path / "nowhere"))
    assert loopwright("audit", "verify", "--file", str(file), *elsewhere).code == 0
    no_key = loopwright("audit", "verify", "--file", str(file), "--anchor", str(anchors), *elsewhere)
    assert no_key.code == 2 and "--key" in no_key.err
    from loopwright.bundle.keyring import Keyring

    key = Keyring.open(home / "keys").signing.public.to_text()
    held = loopwright(
        "audit", "verify", "--file", str(file), "--anchor", str(anchors), "--key", key, *elsewhere
    )
    assert held.code == 0 and "1 anchor agrees" in held.out
    assert not (tmp_path / "nowhere").exists()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], lines[1].replace("approver", "admin"), *lines[2:]]))
    changed = loopwright("audit", "verify", "--file", str(file))
    assert changed.code == 1 and "row 2 was changed" in changed.out


def test_a_selection_is_verified_row_by_row(loopwright: Type, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "bob.jsonl"
    loopwright("audit", "export", "--subject", "user/bob", "-o", str(file))
    loopwright("audit", "export", "--subject", "user/ada", "-o", str(tmp_path / "ada.jsonl"))
    file.write_text((tmp_path / "ada.jsonl").read_text() + json.dumps({}) + "\n")
    assert loopwright("audit", "verify", "--file", str(file)).code == 1
    assert loopwright("audit", "verify", "--selection").code == 2


def test_a_long_walk_shows_how_far_it_is_and_comes_to_the_same_end(
    loopwright: Type, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(loopwright("audit", "verify", "--json").out)
    monkeypatch.setattr(audit_commands, "PART", 1)
    assert json.loads(loopwright("audit", "verify", "--json").out) == whole


def test_a_sheet_goes_to_standard_output(loopwright: Type, home: Path) -> None:
    sheet = loopwright("audit", "export", "--format", "csv", "--actor", "local")
    assert sheet.code == 0
    assert sheet.out.splitlines()[0] == "seq,at,actor,action,subject,payload,prev_hash,hash"
    assert len(sheet.out.splitlines()) == 4


def test_a_month_and_a_period_do_not_go_together(loopwright: Type, home: Path) -> None:
    answer = loopwright("audit", "show", "--month", "2026-01", "--since", "2026-01-01T00:00:00Z")
    assert answer.code == 2 and "both --month and a period" in answer.err
    assert loopwright("audit", "show", "--month", "1999-01").out == "nothing yet\n"


@pytest.mark.parametrize(
    ("format", "begins"), [("md", "# Governance"), ("html", "<!doctype html>"), ("json", "{")]
)
def test_the_report_comes_in_three_forms(
    loopwright: Type, home: Path, tmp_path: Path, format: str, begins: str
) -> None:
    file = tmp_path / "report"
    answer = loopwright("audit", "report", "--month", "1999-01", "--format", format, "-o", str(file))
    assert answer.code == 0
    assert file.read_text().startswith(begins)


def test_anchors_of_a_broken_log_prove_nothing_about_its_rows(loopwright: Type, home: Path) -> None:
    assert loopwright("audit", "anchor").code == 0
    with sqlite3.connect(home / "ledger.db") as db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {trigger}")
        db.execute("UPDATE lw_audit SET actor = 'eve' WHERE seq = 2")
    answer = loopwright("audit", "verify")
    assert answer.code == 1 and answer.out.startswith("BROKEN: row 2")
    assert "1 anchor has the hash that stands in the log" in answer.out and "no proof of what" in answer.out
    assert "agree" not in answer.out


def test_a_filter_that_nothing_fits_names_the_nearest(loopwright: Type, home: Path) -> None:
    slip = loopwright("audit", "show", "--action", "user.aded", "--actor", "locl", "--json")
    assert (slip.code, slip.out) == (0, "[]\n")
    assert "no row with the action user.aded; did you mean `user.added`?" in slip.err
    assert "no row with the actor locl; did you mean `local`?" in slip.err
    quiet = loopwright("audit", "show", "--action", "user.added", "--month", "2001-01")
    assert (quiet.code, quiet.err) == (0, "")


@pytest.mark.parametrize("words", ["audit show --since yesterday", "lineage export --since yesterday"])
def test_what_is_no_time_is_told_with_an_example(loopwright: Type, home: Path, words: str) -> None:
    answer = loopwright(*words.split())
    assert answer.code == 2
    assert "`since` is not a time; got yesterday, wanted ISO 8601, like 2013-04-01T05:00:00Z" in answer.err


def test_a_file_that_was_never_an_export_is_bad_input(loopwright: Type, home: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,amount\n1,2\n")
    answer = loopwright("audit", "verify", "--file", str(tmp_path / "x.csv"))
    assert answer.code == 2 and "no rows of an audit log" in answer.err
    assert loopwright("audit", "export", "--format", "csv", "-o", str(tmp_path / "log.csv")).code == 0
    sheet = loopwright("audit", "verify", "--file", str(tmp_path / "log.csv"))
    assert sheet.code == 2 and "rows exported as CSV cannot be verified" in sheet.err


def test_digests_are_shown_short_and_kept_whole(loopwright: Type, home: Path) -> None:
    assert loopwright("audit", "anchor").code == 0
    (row,) = json.loads(loopwright("audit", "show", "--action", "audit.anchored", "--json").out)
    shown = loopwright("audit", "show", "--action", "audit.anchored").out
    assert f"hash={row['payload']['hash'][:12]}" in shown and row["payload"]["hash"][:13] not in shown


def test_a_report_counts_what_was_done_under_another_name(loopwright: Type, home: Path) -> None:
    for number in range(3):
        loopwright("--as", "ada", "token", "create", "ada", "--note", f"note {number}")
    loopwright("audit", "anchor")
    (row, *_) = json.loads(loopwright("audit", "show", "--action", "user.assumed", "--json").out)
    month = row["at"][:7]
    page = loopwright("audit", "report", "--month", month).out
    assert "| local | ada | 3 | access.create_token (3) |" in page and "user.assumed" not in page
    assert "1 anchor was held against it, the newest that agrees at row" in page
