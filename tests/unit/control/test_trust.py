"""Trust in pickled models: who asks, who says yes, and what it does to what is served."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sklearn.linear_model import LogisticRegression

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import Golden
from loopwright.bundle.open import open_bundle
from loopwright.bundle.pickles import scan_bytes
from loopwright.bundle.routes import open_routes
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.trust import SignedTrust, load_trusted
from loopwright.cli.edge import run
from loopwright.control.context import Context
from loopwright.control.explaining import open_version
from loopwright.control.operation import find
from loopwright.control.routes import current_routes
from loopwright.delivery.evidence import smoke_test
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, Tampered
from loopwright.kernel.verdict import Verdict
from loopwright.ledger import store as ledger_store
from loopwright.pipeline.baseline import stable_baseline
from loopwright.registry.evidence import record_evidence
from loopwright.registry.versions import register_version

from .conftest import AUTHOR

DATA = pickle.dumps(LogisticRegression().fit([[0.0], [1.0]], [0, 1]))
FOUND = scan_bytes(DATA)


def do(ctx: Context, name: str, /, **arguments: Any) -> Any:
    return find(name)(ctx, **arguments)


def ask(ctx: Context, **changes: Any) -> Any:
    given = {
        "digest": FOUND.digest,
        "name": "model.pkl",
        "globals": list(FOUND.globals),
        "reason": "no converter",
    }
    return do(ctx, "trust.request", **{**given, **changes})


def in_force(ctx: Context) -> tuple[str, ...]:
    return open_routes(current_routes(ctx), ctx.keyring.public).trusted


def test_one_asks_another_approves_and_the_record_loads_the_file(people: dict[str, Context]) -> None:
    assert ask(people["dora"])["state"] == "pending"
    assert in_force(people["ada"]) == ()
    answer = do(people["ada"], "trust.approve", digest=FOUND.digest[:12])
    assert (answer["state"], answer["decided_by"]) == ("approved", "ada")
    assert in_force(people["ada"]) == (FOUND.digest,)
    signed = msgspec.convert(answer["record"], SignedTrust)
    model = load_trusted(DATA, signed, people["ada"].keyring.public)
    assert model.predict([[1.0]]).tolist() == [1]
    with people["ada"].ledger.read() as conn:
        actions = [row.action for row in ledger_store.rows(conn, subject=f"trust/{FOUND.digest}")]
    assert actions == ["trust.requested", "trust.approved"]


def test_nobody_approves_what_they_asked_for_themselves(people: dict[str, Context]) -> None:
    ask(people["ada"])
    with pytest.raises(Refused, match="who asks for trust does not give it"):
        do(people["ada"], "trust.approve", digest=FOUND.digest)
    robot = people["ada"].acting_as(Actor("robot", Role.ADMIN, service=True))
    with pytest.raises(Refused, match="a machine's account"):
        do(robot, "trust.approve", digest=FOUND.digest)
    with pytest.raises(Refused, match="role approver"):
        do(people["dora"], "trust.approve", digest=FOUND.digest)
    assert do(people["bob"], "trust.approve", digest=FOUND.digest)["state"] == "approved"


def test_withdrawn_trust_leaves_the_route_table_at_once_and_can_be_asked_for_again(
    people: dict[str, Context],
) -> None:
    ask(people["dora"])
    do(people["ada"], "trust.approve", digest=FOUND.digest)
    answer = do(people["bob"], "trust.revoke", digest=FOUND.digest, reason="a gadget was found")
    assert (answer["state"], answer["stops"]) == ("revoked", [])
    assert in_force(people["ada"]) == ()
    ask(people["dora"])
    assert in_force(people["ada"]) == (), "asking alone brings nothing back"
    do(people["ada"], "trust.approve", digest=FOUND.digest)
    assert in_force(people["ada"]) == (FOUND.digest,)


def test_a_request_is_turned_down_and_nothing_happens_twice(people: dict[str, Context]) -> None:
    ask(people["dora"])
    with pytest.raises(Conflict, match="pending already"):
        ask(people["dora"])
    assert do(people["ada"], "trust.revoke", digest=FOUND.digest, reason="use ONNX")["state"] == "rejected"
    for name, arguments in (("trust.approve", {}), ("trust.revoke", {"reason": "again"})):
        with pytest.raises(Conflict, match="rejected"):
            do(people["ada"], name, digest=FOUND.digest, **arguments)


def test_what_cannot_be_asked_for_is_said(people: dict[str, Context]) -> None:
    for changes, error, message in (
        ({"digest": "abc"}, BadInput, "not a digest"),
        ({"reason": " "}, BadInput, "with a reason"),
        ({"globals": ["posix.system"]}, Refused, "nobody can be trusted with"),
        ({"globals": ["numpy os.system"]}, Refused, "dotted"),
        ({"globals": ["a.b"] * 3000}, BadInput, "more than any plain model"),
    ):
        with pytest.raises(error, match=message):
            ask(people["dora"], **changes)
    with pytest.raises(NotFound, match="nobody asked"):
        do(people["ada"], "trust.approve", digest="0" * 64)
    with pytest.raises(NotFound):
        do(people["ada"], "trust.approve", digest="")


def registered(ctx: Context, tmp_path: Path, signed: SignedTrust) -> str:
    """A version of `late` whose bundle holds the pickled model; returns its digest."""
    schema = Schema(inputs=(Field("x", "float64"),), features=("x",), outputs=("probability",), task="binary")
    built = build_bundle(
        tmp_path / "built", model="late", schema=schema, transform=None, state={}, golden=Golden({"x": [0.0]}, [[0.5]]),
        reference={}, card="", provenance={}, created_at=ctx.now, key=ctx.key, pickled=DATA, trust=signed,
    )  # fmt: skip
    digest = BundleDepot(ctx.home.bundles).add(built.path)
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
        register_version(
            conn,
            model="late",
            bundle=digest,
            run_id=None,
            snapshot=None,
            author=AUTHOR,
            metrics={},
            now=ctx.now,
        )
    return digest


def test_withdrawing_trust_names_the_versions_it_stops(
    ctx: Context, people: dict[str, Context], tmp_path: Path
) -> None:
    ask(people["dora"])
    record = do(people["ada"], "trust.approve", digest=FOUND.digest)["record"]
    registered(ctx, tmp_path, msgspec.convert(record, SignedTrust))
    assert do(people["ada"], "trust.revoke", digest=FOUND.digest, reason="a gadget")["stops"] == ["late/1"]


def test_withdrawn_trust_stops_the_control_plane_too(
    ctx: Context, people: dict[str, Context], tmp_path: Path
) -> None:
    """Explaining, the smoke test of a rollout and a baseline load models as servers do."""
    ask(people["dora"])
    record = do(people["ada"], "trust.approve", digest=FOUND.digest)["record"]
    digest = registered(ctx, tmp_path, msgspec.convert(record, SignedTrust))
    path, keys = BundleDepot(ctx.home.bundles).path(digest), ctx.keyring.public

    def open_it() -> object:
        return open_version(ctx, "late", 1).bundle.pickled

    def baseline() -> object:
        return stable_baseline(ctx.ledger, ctx.home, keys, "late")

    do(ctx, "models.break_glass", model="late", version=1, reason="nothing else answers today")
    assert open_it() == FOUND.digest
    assert baseline() is not None
    assert smoke_test(path, keys, [FOUND.digest]) is not Verdict.ERROR
    do(people["bob"], "trust.revoke", digest=FOUND.digest, reason="a gadget was found")
    for act in (open_it, baseline):
        with pytest.raises(Refused, match="nobody trusts this model"):
            act()
    assert smoke_test(path, keys, []) is Verdict.ERROR


def test_a_new_seal_does_not_renew_trust_that_a_revoked_key_signed(
    ctx: Context, people: dict[str, Context], tmp_path: Path
) -> None:
    ask(people["dora"])
    record = do(people["ada"], "trust.approve", digest=FOUND.digest)["record"]
    digest = registered(ctx, tmp_path, msgspec.convert(record, SignedTrust))
    old = ctx.key.public.key_id
    do(ctx, "keys.rotate")
    do(ctx, "keys.revoke", key_id=old, reason="stolen")
    answer = do(ctx, "keys.reseal")
    assert answer["resealed"] == [digest]
    assert "its pickled model is not trusted" in answer["refused"]["late/1"]
    with pytest.raises(Tampered, match="does not trust"):
        open_bundle(BundleDepot(ctx.home.bundles).path(digest), ctx.keyring.public)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_trust_by_command_line(
    people: dict[str, Context], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(people["dora"].home.root)]
    good, evil = tmp_path / "model.pkl", tmp_path / "evil.pkl"
    good.write_bytes(DATA)
    evil.write_bytes(pickle.dumps(Evil()))

    assert run(["trust", "scan", str(good), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trustable"] is True
    assert run(["trust", "scan", str(evil)]) == 1
    assert "never    posix.system: nothing of posix may be had" in capsys.readouterr().out
    assert run(["trust", "request", str(evil), "--reason", "please", "--as", "dora", *home]) == 1
    assert "nobody can be trusted with this file" in capsys.readouterr().err

    assert run(["trust", "request", str(good), "--reason", "no converter", "--as", "dora", *home]) == 0
    assert f"trust approve {FOUND.digest[:12]}" in capsys.readouterr().out
    assert run(["trust", "approve", FOUND.digest[:12], "--as", "ada", *home]) == 0
    assert run(["trust", "revoke", FOUND.digest[:12], "--reason", "enough", "--as", "bob", *home]) == 0
    capsys.readouterr()
    assert run(["trust", "list", *home]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert all(word in line for word in ("model.pkl", "revoked", "dora", "bob"))
