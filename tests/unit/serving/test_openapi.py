"""The server describes itself: a valid document whose every example works, and pages that hold no one else's script."""

import base64
import html
import re
import shlex
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from loopwright.serving.callers import Caller, Callers
from loopwright.serving.protocols.described import DESCRIBED
from tests.unit.serving.inside import ODD, ROW, Inside, model_of, odd_bundle, tiny

TOKEN = {"Authorization": "Bearer open sesame"}


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    folder = tmp_path_factory.mktemp("inside")
    late, odd = model_of("late", {1: tiny(folder / "late")}), model_of(ODD, {1: odd_bundle(folder / "odd")})
    site = Inside(folder / "w", late, odd)
    yield site
    site.close()


@pytest.fixture(scope="module")
def document(inside: Inside) -> dict[str, Any]:
    answer = inside.call("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    return answer.json()  # type: ignore[no-any-return]


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, one) for path, item in document["paths"].items() for method, one in item.items()]


def fits(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    """What of `value` breaks the schema; references are to the document."""
    absolute = msgspec.json.decode(msgspec.json.encode(schema).replace(b'"#/', b'"urn:document#/'))
    inner = msgspec.json.decode(msgspec.json.encode(document).replace(b'"#/', b'"urn:document#/'))
    registry = Registry().with_resource("urn:document", Resource.opaque(inner))
    return [error.message for error in Draft202012Validator(absolute, registry=registry).iter_errors(value)]


def test_the_document_is_valid_openapi_with_valid_schemas(document: dict[str, Any]) -> None:
    OPENAPI_31_VALIDATOR.validate(document)
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    text = msgspec.json.encode(document).decode()
    for place in set(re.findall(r'"\$ref":"#/([^"]+)"', text)):
        found: Any = document
        for part in place.split("/"):
            found = found[part]


def test_every_address_is_described(inside: Inside, document: dict[str, Any]) -> None:
    served = {(route.method, route.template) for route in inside.app.routes if route.method != "WEBSOCKET"}
    assert served - DESCRIBED.keys() == set()
    for name in ("late", quote(ODD, safe="")):
        for place in ("predict", "versions/1/predict", "invocations", "versions/1/invocations"):
            assert f"/models/{name}/{place}" in document["paths"]
    assert "/v2/models/{model}/infer" in document["paths"]
    assert "/invocations" not in document["paths"]  # two models: no address without a name


def test_every_example_fits_its_schema_and_is_answered_as_it_says(
    inside: Inside, document: dict[str, Any]
) -> None:
    tried = 0
    for path, method, operation in operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            for example in content.get("examples", {}).values():
                name = example.get("summary", "") if "{model}" in path else ""
                version = {"version": "1"} if "{version}" in path else {}
                place = path.replace("{model}", quote(name)).replace("{version}", version.get("version", ""))
                assert fits(example["value"], content["schema"], document) == []
                answer = inside.call(
                    method.upper(), place, json=example["value"], headers={"content-type": media_type}
                )
                assert answer.status_code == 200, (place, answer.text)
                good = operation["responses"]["200"]["content"]["application/json"]
                assert fits(answer.json(), good["schema"], document) == []
                for said in good.get("examples", {}).values():
                    assert fits(said["value"], good["schema"], document) == []
                    if "predictions" in said["value"] and place.endswith("predict"):
                        assert outputs(said["value"]) == pytest.approx(outputs(answer.json()))
                tried += 1
    assert tried >= 12


def outputs(answer: dict[str, Any]) -> list[float]:
    return [value for row in answer["predictions"] for value in row["outputs"].values()]


def test_a_body_that_breaks_the_schema_is_refused(inside: Inside, document: dict[str, Any]) -> None:
    schema = document["paths"]["/models/late/predict"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    for body in (
        {"inputs": {**ROW, "hour": 6.5}},
        {"inputs": []},
        {"inputs": ROW, "x": 1},
        {"inputs": {"hour": 6}},
    ):
        assert fits(body, schema, document) != []
        assert inside.post("/models/late/predict", body).status_code == 422
    assert fits({"inputs": [ROW, {**ROW, "distance": None}]}, schema, document) == []


def test_the_document_is_made_again_only_when_what_is_served_changes(tmp_path: Path) -> None:
    one, two = tiny(tmp_path / "one"), tiny(tmp_path / "two", bias=1.0)
    site = Inside(tmp_path, model_of("late", {1: one}))
    first = site.call("GET", "/openapi.json").content
    assert site.call("GET", "/openapi.json").content == first
    site.serve(model_of("late", {1: one, 2: two}))
    changed = site.call("GET", "/openapi.json").json()
    assert "/models/late/versions/2/predict" in changed["paths"]
    assert "/invocations" in changed["paths"]
    site.serve(model_of("late", {1: one}))
    assert site.call("GET", "/openapi.json").content == first
    site.close()


def test_golden_rows_are_shown_to_those_who_may_predict(tmp_path: Path) -> None:
    digest = sha256(b"open sesame").hexdigest()
    callers = Callers((Caller("shop", digest), Caller("ops", sha256(b"x").hexdigest(), may=("admin",))))
    site = Inside(tmp_path, model_of("late", {1: tiny(tmp_path / "b")}), callers=callers)
    for path, golden in (("/openapi.json", b'"carrier":"UA"'), ("/docs/late", b"UA")):
        seen = {
            name: site.call("GET", path, headers=headers).content
            for name, headers in (
                ("nobody", {}), ("shop", TOKEN), ("ops", {"Authorization": "Bearer x"}), ("bad", {"Authorization": "x"})
            )
        }  # fmt: skip
        assert [golden in seen[name] for name in ("nobody", "shop", "ops", "bad")] == [
            False,
            True,
            False,
            False,
        ]
        assert b"made up" in seen["nobody"]
        assert b"made up" not in seen["shop"]
    document = site.call("GET", "/openapi.json").json()
    OPENAPI_31_VALIDATOR.validate(document)
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert document["paths"]["/models/late/predict"]["post"]["security"] == [{"token": []}]
    assert "401" in document["paths"]["/models/late/predict"]["post"]["responses"]
    assert "security" not in document["paths"]["/healthz"]["get"]
    assert site.post("/models/late/predict", {"inputs": ROW}).status_code == 401
    assert site.post("/models/late/predict", {"inputs": ROW}, **TOKEN).status_code == 200
    page = html.unescape(site.call("GET", "/docs/late").text)
    assert '-H "Authorization: Bearer $TOKEN"' in page
    site.close()


def test_what_the_document_guards_is_guarded_and_nothing_else(tmp_path: Path) -> None:
    callers = Callers((Caller("shop", sha256(b"open sesame").hexdigest(), may=("predict", "admin")),))
    site = Inside(tmp_path, model_of("late", {1: tiny(tmp_path / "b")}), callers=callers)
    for path, method, operation in operations(site.call("GET", "/openapi.json").json()):
        place = path.replace("{model}", "late").replace("{version}", "1").replace("{key}", "late")
        nobody = site.call(method.upper(), place)
        assert (nobody.status_code == 401) == ("security" in operation), place
        assert site.call(method.upper(), place, headers=TOKEN).status_code not in (401, 403), place
    site.close()


def test_an_empty_server_describes_itself(tmp_path: Path) -> None:
    site = Inside(tmp_path)
    OPENAPI_31_VALIDATOR.validate(site.call("GET", "/openapi.json").json())
    assert "No model is served here yet" in site.call("GET", "/docs").text
    assert site.call("GET", "/docs/late").status_code == 404
    site.close()


# Pages.


def commands(page: str) -> list[list[str]]:
    return [
        shlex.split(html.unescape(text)) for text in re.findall(r"<pre>(curl .*?)</pre>", page, re.DOTALL)
    ]


def asked(inside: Inside, command: list[str]) -> Any:
    address = urlsplit(next(word for word in command if "://" in word))
    headers = dict(command[i + 1].split(": ", 1) for i, word in enumerate(command) if word == "-H")
    body = command[command.index("--data-raw") + 1]
    return inside.call("POST", address.path, content=body.encode(), headers=headers)


@pytest.mark.parametrize("name", ["late", ODD])
def test_every_command_of_a_page_works_and_the_answer_is_the_golden_one(inside: Inside, name: str) -> None:
    page = inside.call("GET", f"/docs/{quote(name)}").text
    answers = [asked(inside, command) for command in commands(page)]
    assert [answer.status_code for answer in answers] == [200] * 5
    shown = re.findall(r"<pre>(\{.*?)</pre>", page, re.DOTALL)
    (said,) = [msgspec.json.decode(html.unescape(text)) for text in shown]
    assert outputs(said) == pytest.approx(outputs(answers[0].json()))


def test_names_out_of_bundles_are_text_on_a_page(inside: Inside) -> None:
    for path in ("/docs", f"/docs/{quote(ODD)}"):
        page = inside.call("GET", path).text
        assert "<b>{breed}" not in page
        assert page.count("<script>") == 1  # an output has this name too
        assert html.escape(ODD) in page


def test_a_page_takes_nothing_from_elsewhere_and_runs_only_its_own_script(inside: Inside) -> None:
    answer = inside.call("GET", "/docs/late")
    policy = answer.headers["content-security-policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    for text, what in ((script, "script-src"), (style, "style-src")):
        allowed = base64.b64encode(sha256(text.encode()).digest()).decode()
        assert f"{what} 'sha256-{allowed}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert re.findall(r"""(?:src|href)\s*=\s*["']?(?!["'/])""", answer.text) == []
    assert re.findall(r"\son\w+\s*=", answer.text) == []


@pytest.mark.parametrize("host", ["evil'<script>", "a b", "x" * 300, "h:99999999", "[::1"])
def test_a_host_that_is_none_is_not_repeated(inside: Inside, host: str) -> None:
    page = inside.call("GET", "/docs/late", headers={"host": host}).text
    assert html.escape(host) not in page
    assert all(asked(inside, command).status_code == 200 for command in commands(page))
