"""The home's keys by operation and by command line."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import SEAL
from loopwright.bundle.routes import open_routes
from loopwright.bundle.testing import tiny_bundle
from loopwright.cli.edge import run
from loopwright.control.context import Context, open_context
from loopwright.control.controllers.integrity import IntegrityController
from loopwright.control.health import examine
from loopwright.control.operation import find
from loopwright.control.routes import current_routes
from loopwright.kernel.errors import LoopwrightError, NotFound, Refused
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as ledger_store
from loopwright.monitoring.store import list_alerts
from loopwright.registry import store as registry_store
from loopwright.registry.evidence import record_evidence
from loopwright.registry.versions import register_version

from .conftest import AUTHOR

Registered = Callable[..., str]


def do(ctx: Context, name: str, /, **arguments: Any) -> Any:
    return find(name)(ctx, **arguments)


def finding(ctx: Context, check: str) -> dict[str, Any]:
    return next(found for found in examine(ctx) if found["check"] == check)


def depot_of(ctx: Context) -> BundleDepot:
    return BundleDepot(ctx.home.bundles)


@pytest.fixture
def registered(ctx: Context, tmp_path: Path) -> Registered:
    """Seal a real bundle, register it as a version of `late` in a stage; returns its digest."""

    def make(bias: float = 0.0, stage: Stage = Stage.STAGING) -> str:
        digest = depot_of(ctx).add(tiny_bundle(tmp_path / f"built{bias}", ctx.key, bias=bias).path)
        with ctx.ledger.write() as conn:
            record_evidence(
                conn,
                kind="gates",
                model="late",
                version=None,
                bundle=digest,
                verdict=Verdict.PASS,
                payload={},
                at=ctx.now,
            )
            version = register_version(
                conn,
                model="late",
                bundle=digest,
                run_id=None,
                snapshot=None,
                author=AUTHOR,
                metrics={},
                now=ctx.now,
            )
            registry_store.set_stage(conn, "late", version.version, stage, ctx.now)
        return digest

    return make


def spoil(ctx: Context, digest: str) -> bytes:
    path = depot_of(ctx).path(digest) / "model.onnx"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\0")
    return good


def test_after_a_rotation_everything_is_signed_by_the_new_key_and_old_bundles_still_open(
    ctx: Context, registered: Registered
) -> None:
    digest = registered()
    before = ctx.key.public
    current_routes(ctx)
    answer = do(ctx, "keys.rotate", reason="yearly")
    assert answer["retired"] == before.key_id
    assert ctx.key.public.key_id == answer["key_id"] != before.key_id
    open_routes(current_routes(ctx), [ctx.key.public])
    depot_of(ctx).verify(digest, ctx.keyring.public)
    assert [row["state"] for row in do(ctx, "keys.list")] == ["current", "retired"]
    with ctx.ledger.read() as conn:
        (row,) = ledger_store.rows(conn, action="key.rotated")
    assert (row.payload["from"], row.payload["to"]) == (before.key_id, answer["key_id"])


def test_a_context_opened_before_a_rotation_signs_with_the_new_key(ctx: Context) -> None:
    other = open_context(ctx.home.root, ctx.actor)
    do(other, "keys.rotate")
    assert ctx.key.public == other.key.public


def test_bundles_of_a_revoked_key_are_named_refused_and_sealed_anew(
    ctx: Context, registered: Registered
) -> None:
    good, bad = registered(0.0), registered(1.0)
    old = ctx.key.public.key_id
    do(ctx, "keys.rotate")
    assert finding(ctx, "seals")["ok"]
    answer = do(ctx, "keys.revoke", key_id=old, reason="stolen")
    assert answer["stranded"] == ["late/1", "late/2"]
    for digest in (good, bad):
        with pytest.raises(LoopwrightError):
            depot_of(ctx).verify(digest, ctx.keyring.public)
    told = finding(ctx, "seals")
    assert not told["ok"]
    assert f"late/1 ({old})" in told["found"]
    assert "keys reseal" in told["next"]

    spoil(ctx, bad)
    answer = do(ctx, "keys.reseal")
    assert answer["resealed"] == [good]
    assert "model.onnx was changed" in answer["refused"]["late/2"]
    depot_of(ctx).verify(good, ctx.keyring.public)
    assert depot_of(ctx).sealed_by(good) == ctx.key.public.key_id
    assert sorted(p.name for p in depot_of(ctx).path(good).iterdir()).count(SEAL) == 1
    assert do(ctx, "keys.reseal")["resealed"] == []
    with ctx.ledger.read() as conn:
        assert ledger_store.rows(conn, action="key.revoked")[0].payload["key_id"] == old
        assert ledger_store.rows(conn, action="bundle.resealed")[0].payload["bundles"] == [good]


def test_a_retired_keys_seals_are_renewed_when_asked_for(ctx: Context, registered: Registered) -> None:
    digest = registered()
    do(ctx, "keys.rotate")
    assert do(ctx, "keys.reseal")["resealed"] == []
    assert do(ctx, "keys.reseal", retired=True)["resealed"] == [digest]


def test_a_table_signed_by_a_key_that_was_rotated_elsewhere_is_signed_anew(ctx: Context) -> None:
    first = open_routes(current_routes(ctx), ctx.keyring.public)
    ctx.keyring.rotate(ctx.now)  # as if killed before the operation came to the table
    after = open_routes(current_routes(ctx), [ctx.key.public])
    assert after.serial == first.serial + 1


def test_only_an_admin_changes_keys(people: dict[str, Context]) -> None:
    for name, arguments in (
        ("keys.rotate", {}),
        ("keys.revoke", {"key_id": "x", "reason": "r"}),
        ("keys.reseal", {}),
    ):
        with pytest.raises(Refused, match="role admin"):
            do(people["ada"], name, **arguments)


# Faults of the key file.


def test_a_home_whose_private_key_is_gone_says_so_and_makes_no_other(
    ctx: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ctx.home.signing_key
    ctx.ledger.dispose()
    key.unlink()
    assert run(["doctor", "--home", str(ctx.home.root)]) == 2
    said = capsys.readouterr().err
    assert "is missing" in said
    assert "Restore it from a backup" in said
    assert not key.exists()


def test_also_without_a_list_of_keys_a_home_that_was_worked_in_gets_no_other_key(ctx: Context) -> None:
    ctx.record("something", subject="x", payload={})
    for path in ctx.home.keys.iterdir():
        path.unlink()
    with pytest.raises(NotFound, match=r"is missing.*backup"):
        open_context(ctx.home.root, ctx.actor)
    assert not ctx.home.signing_key.exists()


@pytest.mark.parametrize(
    ("what", "mode", "command"), [("control.key", 0o644, "chmod 600"), ("", 0o755, "chmod 700")]
)
def test_keys_that_others_may_read_are_not_used(
    ctx: Context, capsys: pytest.CaptureFixture[str], what: str, mode: int, command: str
) -> None:
    (ctx.home.keys / what).chmod(mode)
    assert run(["models", "list", "--home", str(ctx.home.root)]) == 1
    assert command in capsys.readouterr().err


# By command line.


def test_keys_by_command_line(ctx: Context, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(ctx.home.root)]
    old = ctx.key.public.key_id
    assert run(["keys", "rotate", "--reason", "yearly", *home]) == 0
    assert f"{old} is retired" in capsys.readouterr().out
    assert run(["keys", "revoke", ctx.key.public.key_id, "--reason", "x", *home]) == 1
    assert "keys rotate" in capsys.readouterr().err
    assert run(["keys", "revoke", old, "--reason", "stolen", *home]) == 0
    assert run(["keys", "reseal", *home]) == 0
    capsys.readouterr()
    assert run(["keys", "list", "--json", *home]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["state"], row["reason"]) for row in listed] == [("current", None), ("revoked", "stolen")]


def test_a_bundles_folder_is_verified_offline(
    ctx: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tiny_bundle(tmp_path / "b", ctx.key).path)
    home = ["--home", str(ctx.home.root), "--json"]
    nowhere = ["--home", str(tmp_path / "nowhere"), "--json"]
    key = ctx.key.public

    def answer(code: int, *words: str) -> dict[str, Any]:
        assert run(["verify", path, *words]) == code
        out = capsys.readouterr().out
        return json.loads(out) if out else {}

    assert answer(0, *home)["signature"] == "valid"
    assert answer(0, *home)["key"] == key.key_id
    unknown = answer(1, *nowhere)
    assert (unknown["digests"], unknown["ok"]) == ("match", False)
    assert "not checked against a trusted key" in unknown["signature"]
    assert not (tmp_path / "nowhere").exists()
    assert answer(0, "--key", key.to_text(), *nowhere)["ok"]
    (tmp_path / "keys.txt").write_text(f"\n{key.to_text()}\n")
    assert answer(0, "--key", str(tmp_path / "keys.txt"), *nowhere)["ok"]
    assert answer(0, "--key", str(ctx.home.keys / "keyring.json"), *nowhere)["ok"]
    assert answer(2, "--key", str(tmp_path / "no such file"), *nowhere) == {}
    do(ctx, "keys.rotate")
    assert answer(0, *home)["ok"], "a retired key's seal counts"
    do(ctx, "keys.revoke", key_id=key.key_id, reason="stolen")
    assert answer(1, *home) == {}
    Path(path, "card.md").write_text("better than it is")
    assert answer(1, *home) == {}


def test_a_version_is_verified_in_all_its_parts(
    ctx: Context, registered: Registered, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = registered()
    home = ["--home", str(ctx.home.root)]
    assert run(["models", "verify", "late", "1", *home]) == 0
    answer = do(ctx, "models.verify", model="late", version=1)
    assert {check["check"]: check["ok"] for check in answer["checks"]} == {
        "bytes": True, "seal": True, "approval": None, "route": None, "MLflow source": True,
    }  # fmt: skip
    spoil(ctx, digest)
    capsys.readouterr()
    assert run(["models", "verify", "late", "1", *home]) == 1
    assert "model.onnx was changed" in capsys.readouterr().out


def test_a_version_set_to_production_by_hand_fails_its_verification(
    ctx: Context, registered: Registered
) -> None:
    registered(stage=Stage.PRODUCTION)
    answer = do(ctx, "models.verify", model="late", version=1)
    approval = next(check for check in answer["checks"] if check["check"] == "approval")
    assert (approval["ok"], answer["ok"]) == (False, False)
    assert "not in Production by an effective promotion" in approval["found"]


# Every hour.


def test_the_depot_is_looked_at_once_an_hour_one_bundle_a_round(ctx: Context, registered: Registered) -> None:
    registered(0.0)
    bad = registered(1.0)
    good_bytes = spoil(ctx, bad)
    clock: Any = ctx.clock
    controller = IntegrityController()

    def rounds(count: int) -> list[dict[str, Any]]:
        return [done for _ in range(count) for done in controller.tick(ctx)]

    assert rounds(5) == [], "nothing is looked at while everybody starts"
    clock.move(timedelta(hours=1))
    assert rounds(1) == [], "the first is whole"
    (told,) = rounds(1)
    assert told["opened"] == ["late: the bundle of version 2 has changed in the depot"]
    assert rounds(5) == []
    with ctx.ledger.read() as conn:
        (alert,) = list_alerts(conn, "late", standing=True)
    assert (alert.tier.value, alert.kind.value, alert.version) == ("P1", "integrity", 2)
    assert "model.onnx was changed" in alert.detail["versions"]["2"]

    (depot_of(ctx).path(bad) / "model.onnx").write_bytes(good_bytes)
    clock.move(timedelta(hours=1))
    resolved = [title for done in rounds(3) for title in done["resolved"]]
    assert resolved == ["late: the bundle of version 2 has changed in the depot"]
