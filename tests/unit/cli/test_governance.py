"""policy, review, promote --break-glass, withdraw and annotate, as a person types them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopwright.control.access import LOCAL
from loopwright.control.context import open_context
from loopwright.kernel.actor import Actor, Role
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.versions import register_version
from tests.governing import vouch

Type = Callable[..., Any]
BYTES = "a" * 64
WHY = "the airport is closed and the model says on time"

HIGH = """\
tier: high
approvals: {production: 3}
freeze:
  - {from: 2035-12-20T00:00:00Z, until: 2036-01-06T00:00:00Z, why: year end}
"""


@pytest.fixture(scope="session")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one version of `late`, vouched for, by dora."""
    folder = tmp_path_factory.mktemp("governed") / "home"
    ctx = open_context(folder, LOCAL, create=True)
    ensure_mlflow_tables(ctx.ledger)
    with ctx.ledger.write() as conn:
        vouch(conn, "late", BYTES, at=ctx.now)
        register_version(
            conn, model="late", bundle=BYTES, run_id=None, snapshot=None, author=Actor("dora", Role.DEVELOPER),
            metrics={}, now=ctx.now,
        )  # fmt: skip
    ctx.ledger.dispose()
    return folder


@pytest.fixture
def late(governed: Path, tmp_path: Path, loopwright: Type) -> Type:
    """The command line on a home of its own, with people in it."""
    shutil.copytree(governed, tmp_path / "home")
    for name, role in (("ada", "approver"), ("bob", "approver"), ("dora", "developer"), ("rita", "admin")):
        loopwright("user", "add", name, "--role", role)
    return loopwright


def document(tmp_path: Path, text: str) -> str:
    (tmp_path / "high.yaml").write_text(text)
    return str(tmp_path / "high.yaml")


def test_policy_test_tells_what_is_missing_and_exits_1(late: Type) -> None:
    answer = late("policy", "test", "late", "1")
    assert answer.code == 1
    assert "late version 1 to Production, by tier high: 1 missing" in answer.out
    assert "next cheapest step: loopwright promote late 1 --to production (a command)" in answer.out
    late("promote", "late", "1", "--as", "dora")
    assert "loopwright approve late 1 (a person's word)" in late("policy", "test", "late", "1").out
    asked = json.loads(late("policy", "test", "late", "1", "--json").out)
    assert [each["kind"] for each in asked["requirements"] if not each["met"]] == ["approvals"]


def test_policy_test_exits_0_when_nothing_is_missing(late: Type, tmp_path: Path) -> None:
    easy = document(tmp_path, "tier: low\napprovals: {production: 0}\n")
    answer = late("policy", "test", "late", "1", "--policy", easy)
    assert answer.code == 0
    assert "by the document given: nothing is missing" in answer.out


def test_what_a_promotion_still_needs_and_of_whom(late: Type) -> None:
    answer = late("promote", "late", "1", "--as", "dora")
    assert answer.code == 0
    assert "still missing:\n  2 approvals by different people" in answer.out
    assert "may approve: ada, bob, rita" in answer.out
    assert "next: loopwright approve late 1" in answer.out


def test_a_policy_is_tried_then_set_then_shown(late: Type, tmp_path: Path) -> None:
    file = document(tmp_path, HIGH)
    dry = late("policy", "set", file, "--dry-run")
    assert "number 1 would become the document in force" in dry.out
    assert "+ stricter than before; before: production approvals 2 instead of 3" in dry.out
    assert "built in" in late("policy", "show").out
    assert late("policy", "set", file, "--as", "bob", "--reason", "decided by the board").code == 1
    assert "no reason is given" in late("policy", "set", file).err
    assert (
        "is now the document in force" in late("policy", "set", file, "--reason", "decided by the board").out
    )
    assert "in force already" in late("policy", "set", file, "--reason", "decided by the board").out
    shown = late("policy", "show", "high").out
    assert "number 1 (set by local" in shown and "3 by role approver" in shown and "year end" in shown
    listed = json.loads(late("policy", "list", "--json").out)
    assert [(one["tier"], one["number"]) for one in listed] == [
        ("low", 0),
        ("medium", 0),
        ("high", 0),
        ("high", 1),
    ]
    governs = json.loads(late("policy", "show", "--model", "late", "--json").out)
    assert governs["document"]["approvals"]["production"] == 3 and governs["waived"] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tier: high\napprovals:\n  produktion: 3\n", ":3: approvals.produktion: unknown key"),
        ("tier: hihg\n", ":1: tier: not one of the choices"),
        (
            "tier: high\nfreeze:\n  - {from: 2036-01-06T00:00:00Z, until: 2035-12-20T00:00:00Z}\n",
            ":3: freeze[0]: a freeze that ends before it begins",
        ),
        (
            "tier: high\nfreeze:\n  - {days: [fri], from: '17:00', until: '9', zone: UTC}\n",
            "not a time of day",
        ),
        ("approvals: {production: 3}\n", "missing key `tier`"),
    ],
)
def test_a_document_that_does_not_read_says_where(late: Type, tmp_path: Path, text: str, said: str) -> None:
    answer = late("policy", "set", document(tmp_path, text), "--reason", "decided by the board")
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_an_unknown_tier_names_the_nearest(late: Type) -> None:
    answer = late("policy", "show", "hihg")
    assert answer.code == 2
    assert "did you mean `high`" in answer.err
    assert "did you mean `late`" in late("policy", "show", "--model", "lat").err


def test_broken_glass_from_the_command_line_to_its_review(late: Type) -> None:
    assert (
        "wanted role admin"
        in late("promote", "late", "1", "--break-glass", "--reason", WHY, "--as", "ada").err
    )
    assert "no reason" in late("promote", "late", "1", "--break-glass", "--as", "rita").err
    assert late("promote", "late", "1", "--to", "staging", "--break-glass").code == 2
    done = late("promote", "late", "1", "--break-glass", "--reason", WHY, "--as", "rita")
    assert f"late version 1 to Production: effective; the glass was broken: {WHY}" in done.out
    assert "by somebody other than rita: loopwright review late 1 --uphold" in done.out
    assert f"THE GLASS WAS BROKEN: {WHY}" in late("models", "show", "late", "1").out
    assert "review of broken glass: 1, due" in late("status").out
    assert WHY in late("review", "list").out
    assert "no decision" in late("review", "late", "1", "--as", "ada").err
    upheld = late("review", "late", "1", "--uphold", "--comment", "looked at the log", "--as", "ada")
    assert upheld.out == "late version 1: the broken glass is upheld\n"
    assert late("review", "list").out == "no review waits\n"
    assert "upheld" in late("review", "list", "--all").out


def test_a_revoked_only_version_says_that_it_keeps_serving(late: Type) -> None:
    late("promote", "late", "1", "--break-glass", "--reason", WHY, "--as", "rita")
    answer = late("review", "late", "1", "--revoke", "--comment", "looked at the log", "--as", "ada")
    assert "it keeps serving until a successor is promoted" in answer.out


def test_a_request_is_withdrawn_and_a_version_annotated(late: Type) -> None:
    late("promote", "late", "1", "--as", "dora")
    assert late("withdraw", "late", "1", "--as", "ada").code == 1
    assert "late version 1 to Production: withdrawn" in late("withdraw", "late", "1", "--as", "dora").out
    noted = late("annotate", "late", "1", "seen", "by the board", "--as", "dora")
    assert noted.out == "late version 1: seen by the board\n"
    assert late("annotate", "late", "1", "seen", "", "--as", "dora").out == "late version 1: –\n"


def test_times_are_told_to_the_minute(late: Type) -> None:
    shown = late("policy", "test", "late", "1", "--to", "staging").out
    assert re.search(r"PASS, \d{4}-\d\d-\d\d \d\d:\d\d\b", shown) and not re.search(r"\dT\d\d:", shown)


@pytest.mark.parametrize("to", ["prod", "prodction", "PRODUCTIO"])
def test_only_the_stages_one_promotes_to_are_named(late: Type, to: str) -> None:
    answer = late("policy", "test", "late", "1", "--to", to)
    assert answer.code == 2 and "wanted staging or production. did you mean `production`?" in answer.err
    assert "Archived" not in answer.err and late("policy", "test", "late", "1", "--to", "none").code == 2


def test_a_reason_that_says_nothing_is_too_short(late: Type, tmp_path: Path) -> None:
    answer = late("policy", "set", document(tmp_path, HIGH), "--reason", "because")
    assert answer.code == 2 and "the reason is too short; got because" in answer.err


def test_the_author_is_not_told_to_take_a_role_that_would_not_help(late: Type) -> None:
    assert late("--as", "dora", "promote", "late", "1", "--to", "production").code == 0
    answer = late("--as", "dora", "approve", "late", "1")
    assert answer.code == 1 and "dora is the author, and another person has to review it" in answer.err
    assert "user set" not in answer.err
