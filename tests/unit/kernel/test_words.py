"""Ids, digests, actors, stages."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.actor import SYSTEM, Actor, Role, Scope, require
from loopwright.kernel.digest import canonical_json, digest_json, sha256_bytes, sha256_file
from loopwright.kernel.errors import BadInput, Refused
from loopwright.kernel.ids import new_id
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_ids_sort_in_the_order_they_were_made() -> None:
    ids = [new_id("ro") for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert ids[0].startswith("ro_")


@given(documents)
def test_canonical_json_reads_back_as_the_same_document(document: object) -> None:
    try:
        text = canonical_json(document)
    except BadInput:  # lone surrogates have no UTF-8
        assert "surrogates" in repr(document) or "\\ud" in json.dumps(document)
        return
    assert json.loads(text) == document


@given(st.dictionaries(st.text("abc"), st.integers()))
def test_the_order_of_keys_does_not_change_the_digest(document: dict[str, int]) -> None:
    assert digest_json(document) == digest_json(dict(reversed(document.items())))


@pytest.mark.parametrize("document", [float("nan"), float("inf"), {"x": {1}}, b"bytes"])
def test_what_json_cannot_hold_is_refused(document: object) -> None:
    with pytest.raises(BadInput):
        canonical_json(document)


def test_digests_are_sha256(tmp_path: Path) -> None:
    data = b"x" * 100_000
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("role", list(Role))
def test_a_role_may_do_what_lower_roles_may(role: Role) -> None:
    actor = Actor("ada", role)
    for needed in Role:
        if needed <= role:
            require(actor, needed, "look")
        else:
            with pytest.raises(Refused, match=f"ada may not look; got role {role.name.lower()}, wanted role"):
                require(actor, needed, "look")


def test_the_system_may_do_everything() -> None:
    require(SYSTEM, Role.ADMIN, "anything")


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.NOBODY])
def test_roles_are_read_in_any_case(role: Role) -> None:
    assert Role.parse(role.name.title()) is role


def test_nobody_is_no_role_to_give() -> None:
    with pytest.raises(BadInput):
        Role.parse("nobody")


REACHES = ["read", "write", "approve", "admin"]
scopes = st.just(Scope("serve")) | st.builds(
    Scope, st.sampled_from(REACHES), st.sampled_from([None, "late", "early"])
)
teams = st.lists(st.tuples(st.just("flights"), st.sampled_from(Role))).map(tuple)
actors = st.builds(Actor, st.just("ada"), st.sampled_from(Role), teams)


@given(actor=actors, held=st.lists(scopes).map(tuple), model=st.sampled_from([None, "late"]))
def test_scopes_take_away_and_never_give(actor: Actor, held: tuple[Scope, ...], model: str | None) -> None:
    limited = replace(actor, scopes=held)
    for team in (None, "flights"):
        assert limited.role_on(model=model, team=team) <= actor.role_on(model=model, team=team)


@given(own=scopes, other=scopes, model=st.sampled_from([None, "late", "early", "new"]))
def test_a_scope_that_another_covers_gives_no_more_than_it(
    own: Scope, other: Scope, model: str | None
) -> None:
    if own.covers(other):
        whole, part = (Actor("ada", Role.ADMIN, scopes=(scope,)) for scope in (own, other))
        assert part.role_on(model=model) <= whole.role_on(model=model)
        assert whole.may_serve() or not part.may_serve()
        assert whole.may_change(model=model) or not part.may_change(model=model)


@given(scopes)
def test_a_scope_is_read_as_it_is_written(scope: Scope) -> None:
    assert Scope.parse(str(scope)) == scope


@pytest.mark.parametrize("text", ["", "wirte", "write:", ":late", "all", "serve:late"])
def test_an_unknown_scope_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="scope"):
        Scope.parse(text)


def test_an_unknown_role_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean `approver`"):
        Role.parse("aprover")


@pytest.mark.parametrize("stage", list(Stage))
def test_stages_are_read_in_any_case(stage: Stage) -> None:
    assert Stage.parse(stage.value.upper()) is stage


def test_an_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean `Production`"):
        Stage.parse("prodution")


def test_a_verdict_is_its_word() -> None:
    assert [str(verdict) for verdict in Verdict] == ["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]
