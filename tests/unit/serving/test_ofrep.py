"""What a flag client is told is what the router does."""

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.open import Bundle
from loopwright.bundle.routes import Arm
from loopwright.serving.callers import Caller, Callers
from loopwright.serving.models import Model
from tests.unit.serving.inside import ROW, STABLE, Inside, model_of, tiny

FLAGS = "/ofrep/v1/evaluate/flags"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {1: tiny(folder / "one"), 2: tiny(folder / "two", bias=1.0), 3: tiny(folder / "three", bias=2.0)}


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory, bundles: dict[int, Bundle]) -> Iterator[Inside]:
    site = Inside(tmp_path_factory.mktemp("site"), *models(bundles, 0.3, 0.2))
    yield site
    site.close()


def models(bundles: dict[int, Bundle], blue: float, red: float) -> list[Model]:
    arms = (
        Arm("stable", 1, max(0.0, 1 - blue - red)), Arm("blue", 2, blue), Arm("red", 3, red),
        Arm("shadow", 3, 1.0),
    )  # fmt: skip
    return [model_of("late", bundles, *arms), model_of("alone", {1: bundles[1]}, STABLE)]


def told(
    inside: Inside, key: str = "/late", context: Any = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    body = {} if context is None else {"context": context}
    reply = inside.post(FLAGS + key, body, **headers)
    return reply.status_code, reply.json()


def test_the_arm_that_is_told_is_the_arm_that_answers(inside: Inside) -> None:
    arms = set()
    for unit in (f"u{number}" for number in range(40)):
        status, flag = told(inside, context={"targetingKey": unit, "plan": "gold"})
        answer = inside.post("/models/late/predict", {"inputs": ROW, "unit": unit}).json()
        assert (status, flag["key"], flag["reason"], flag["value"]) == (200, "late", "SPLIT", answer["arm"])
        assert flag["variant"] == flag["value"]
        assert flag["metadata"] == {"model": "late", "version": answer["version"]}
        arms.add(answer["arm"])
    assert arms == {"stable", "blue", "red"}


def test_variants_are_logged_under_their_own_names(inside: Inside) -> None:
    before = len(inside.events())
    units = [f"v{number}" for number in range(40)]
    given_arms = [told(inside, context={"targetingKey": unit})[1]["value"] for unit in units]
    for unit in units:
        inside.post("/models/late/predict", {"inputs": ROW, "unit": unit})
    logged = [event for event in inside.events()[before:] if event.arm != "shadow"]
    assert [(event.unit, event.arm) for event in logged] == list(zip(units, given_arms, strict=True))
    assert {event.arm: event.version for event in logged} == {"stable": 1, "blue": 2, "red": 3}


@given(unit=st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=20),
       one=st.floats(0, 0.6), other=st.floats(0, 0.6), red=st.floats(0, 0.4))  # fmt: skip
def test_who_has_an_arm_keeps_it_while_it_grows(
    unit: str, one: float, other: float, red: float, bundles: dict[int, Bundle], inside: Inside
) -> None:
    small, large = sorted((one, other))
    seen = []
    for blue in (small, large):
        inside.serve(*models(bundles, blue, red))
        seen.append(told(inside, context={"targetingKey": unit})[1]["value"])
    inside.serve(*models(bundles, 0.3, 0.2))
    assert seen[0] == seen[1] or seen == ["stable", "blue"]


def test_one_arm_needs_no_user_and_a_forced_one_asks_for_none(inside: Inside) -> None:
    status, flag = told(inside, "/alone")
    assert (status, flag["value"], flag["reason"]) == (200, "stable", "STATIC")
    status, flag = told(inside, context={}, **{"x-loopwright-arm": "red"})
    assert (status, flag["value"], flag["reason"]) == (200, "red", "TARGETING_MATCH")
    status, flag = told(inside, **{"x-loopwright-arm": "shadow"})
    assert (status, flag["errorCode"]) == (403, "GENERAL")


@pytest.mark.parametrize(
    ("key", "body", "status", "code", "details"),
    [
        ("/early", b"{}", 404, "FLAG_NOT_FOUND", "no model `early` is served here"),
        ("/late", b"{}", 400, "TARGETING_KEY_MISSING", "context.targetingKey: late splits users"),
        ("/late", b'{"context": {"targetingKey": ""}}', 400, "TARGETING_KEY_MISSING", ""),
        (
            "/late",
            b'{"context": {"targetingKey": 7}}',
            400,
            "INVALID_CONTEXT",
            "context.targetingKey: not text",
        ),
        ("/late", b'{"context": []}', 400, "INVALID_CONTEXT", "context: not an object"),
        ("/late", b"[1]", 400, "INVALID_CONTEXT", ""),
        ("/late", b"{", 400, "PARSE_ERROR", "not JSON"),
        ("/late", b'{"context": {"targetingKey": "a\\nb"}}', 400, "INVALID_CONTEXT", "cannot be printed"),
        ("", b"{", 400, "PARSE_ERROR", "not JSON"),
        ("", b'{"context": 1}', 400, "INVALID_CONTEXT", "context"),
    ],
)
def test_a_mistake_has_the_protocols_code(
    inside: Inside, key: str, body: bytes, status: int, code: str, details: str
) -> None:
    reply = inside.post(FLAGS + key, body)
    assert reply.status_code == status
    document = reply.json()
    assert document["errorCode"] == code
    assert details in document["errorDetails"]
    assert document.get("key") == (key[1:] or None)


def test_all_flags_come_at_once_and_not_again_while_they_are_the_same(inside: Inside) -> None:
    def ask(unit: str | None, **headers: str) -> Any:
        return inside.post(FLAGS, {"context": {"targetingKey": unit} if unit else {}}, **headers)

    reply = ask("ana")
    flags = {flag["key"]: flag for flag in reply.json()["flags"]}
    assert flags["late"] == told(inside, context={"targetingKey": "ana"})[1]
    assert flags["alone"]["reason"] == "STATIC"
    tag = reply.headers["etag"]
    for header in (tag, f'"other", W/{tag}', "*"):
        again = ask("ana", **{"if-none-match": header})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert ask("ana", **{"if-none-match": '"other"'}).status_code == 200
    nobody = {flag["key"]: flag for flag in ask(None).json()["flags"]}
    assert nobody["late"]["errorCode"] == "TARGETING_KEY_MISSING"
    assert nobody["alone"]["value"] == "stable"


def test_only_callers_are_told(tmp_path_factory: pytest.TempPathFactory, bundles: dict[int, Bundle]) -> None:
    callers = Callers((Caller("shop", sha256(b"secret").hexdigest(), per_second=1.0),))
    site = Inside(tmp_path_factory.mktemp("closed"), *models(bundles, 0.5, 0.0), callers=callers)
    try:
        for key in ("/late", ""):
            status, document = told(site, key, {"targetingKey": "u"})
            assert (status, document["errorCode"]) == (401, "GENERAL")
        context = {"targetingKey": "u"}
        assert told(site, "/late", context, authorization="Bearer secret")[0] == 200
        reply = site.post(FLAGS, {"context": context}, authorization="Bearer secret")
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
        assert json.loads(reply.content)["errorCode"] == "GENERAL"
    finally:
        site.close()
