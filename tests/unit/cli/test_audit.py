"""audit verify|anchor|export|report as a person types them."""

import json
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
