"""What passes before MLflow's app, decided from method and path."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.actor import Actor, Role, Scope
from loopwright.kernel.errors import BadInput, NotFound
from loopwright.registry.guard import API_LIMIT, ARTIFACT_LIMIT, Guard, below_mount, clean_path, judge
from loopwright.registry.identity import acting, current_actor

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
DEV = Actor("ana", Role.DEVELOPER)
Message = MutableMapping[str, Any]


class Backend:
    """An app that reads its whole body, then answers 200 with who it thinks acts."""

    def __init__(self) -> None:
        self.scopes: list[Message] = []

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": acting().name.encode()})


def ask(
    method: str,
    path: str,
    *,
    actor: Actor | None = DEV,
    chunks: tuple[bytes, ...] = (b"",),
    headers: tuple[tuple[bytes, bytes], ...] = (),
    registered: Any = (),
    root_path: str = "/mlflow",
    refused: Any = lambda *_: None,
) -> tuple[int, str, Backend]:
    backend = Backend()
    found = registered if callable(registered) else lambda uris, below: list(registered)
    guard = Guard(backend, registered=found, fallback=actor, refused=refused)
    waiting = list(chunks)
    said: list[Message] = []

    async def receive() -> Message:
        body = waiting.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        said.append(message)

    scope = {
        "type": "http", "method": method, "path": root_path + path.partition("?")[0], "root_path": root_path,
        "query_string": path.partition("?")[2].encode(), "headers": list(headers),
    }  # fmt: skip
    asyncio.run(guard(scope, receive, send))
    return said[0]["status"], said[1]["body"].decode(), backend


def test_an_ordinary_call_passes_with_its_actor_and_sees_itself_at_the_root() -> None:
    status, body, backend = ask("POST", "/api/2.0/mlflow/runs/create")
    assert (status, body) == (200, "ana")
    assert backend.scopes[0]["path"] == "/api/2.0/mlflow/runs/create" and backend.scopes[0]["root_path"] == ""


def test_nobody_gets_in_without_a_name() -> None:
    status, body, backend = ask("GET", "/api/2.0/mlflow/experiments/search", actor=None)
    assert status == 401 and json.loads(body)["error_code"] == "UNAUTHENTICATED" and not backend.scopes


def test_who_authentication_named_comes_before_the_fallback() -> None:
    token = current_actor.set(Actor("bo", Role.DEVELOPER))
    try:
        assert ask("POST", "/api/2.0/mlflow/runs/create")[1] == "bo"
    finally:
        current_actor.reset(token)
    assert current_actor.get() is None


def test_a_viewer_reads_but_does_not_write() -> None:
    viewer = Actor("vi", Role.VIEWER)
    assert ask("GET", "/api/2.0/mlflow/runs/get", actor=viewer)[0] == 200
    assert ask("POST", "/api/2.0/mlflow/runs/search", actor=viewer)[0] == 200
    status, body, _ = ask("POST", "/api/2.0/mlflow/runs/create", actor=viewer)
    assert status == 403 and "wanted role developer" in json.loads(body)["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/ajax-api/3.0/mlflow/assistant/message",
        "/gateway/chat/mlflow/invocations",
        "/api/3.0/mlflow/gateway/secrets/create",
        "/ajax-api/3.0/jobs/",
        "/api/3.0/mlflow/prompt-optimization/jobs",
        "/api/2.0/mlflow/artifacts/presigned-upload-url",
        "/ajax-api/2.0/mlflow/runs/create-promptlab-run",
        "/api/3.0/mlflow/workspaces",
        "/api/2.0/mlflow-something/else",
        "/admin",
    ],
)
def test_what_runs_code_or_keeps_secrets_is_not_offered(path: str) -> None:
    with pytest.raises(NotFound, match="not offered"):
        judge("POST", path)


@pytest.mark.parametrize(
    "path", ["bundles/x/MLmodel", "bundles", "%62undles/x", "%2562undles/x", "BUNDLES/x"]
)
def test_nothing_below_bundles_is_written(path: str) -> None:
    for method in ("PUT", "DELETE"):
        status, body, backend = ask(method, f"{ARTIFACTS}/{path}")
        assert status == 403 and "immutable" in json.loads(body)["message"] and not backend.scopes
    for method in ("POST", "PATCH"):
        assert ask(method, f"{ARTIFACTS}/{path}")[0] == 404


def test_a_refusal_is_handed_on_to_be_kept() -> None:
    told: list[tuple[str, str, str]] = []

    def note(who: Actor, method: str, path: str, error: Exception) -> None:
        told.append((who.name, method, path))

    ask("PUT", f"{ARTIFACTS}/bundles/x", refused=note)
    ask("POST", "/api/2.0/mlflow/webhooks", refused=note)
    ask("PUT", f"{ARTIFACTS}/a/../b", refused=note)
    assert told == [
        ("ana", "PUT", "/mlflow-artifacts/artifacts/bundles/x"),
        ("ana", "POST", "webhooks"),
    ]


def test_a_role_in_one_team_or_for_one_model_lets_through_to_where_the_model_is_known() -> None:
    in_a_team = Actor("vi", Role.VIEWER, teams=(("ops", Role.DEVELOPER),))
    for_one_model = Actor("ci", Role.DEVELOPER, scopes=(Scope.parse("write:late"),))
    for actor in (in_a_team, for_one_model):
        for path in ("runs/create", "model-versions/create", "runs/search"):
            assert ask("POST", f"/api/2.0/mlflow/{path}", actor=actor)[0] == 200
    reading = Actor("ci", Role.DEVELOPER, scopes=(Scope.parse("read:late"),))
    assert ask("POST", "/api/2.0/mlflow/runs/create", actor=reading)[0] == 403
    serving = Actor("sv", Role.ADMIN, scopes=(Scope.parse("serve"),))
    assert ask("GET", "/api/2.0/mlflow/runs/get", actor=serving)[0] == 403


@pytest.mark.parametrize("path", ["x" * 256, "/".join(["x" * 200] * 11), "é" * 128])
def test_a_path_no_disk_could_hold_is_refused(path: str) -> None:
    assert ask("PUT", f"{ARTIFACTS}/{path}")[0] == 400
    with pytest.raises(BadInput, match="too long"):
        judge("GET", "/get-artifact", f"run_uuid=a&path={path}")


@pytest.mark.parametrize("step", ["create", "complete", "abort"])
def test_multipart_uploads_below_bundles_are_refused(step: str) -> None:
    assert ask("POST", f"/ajax-api/2.0/mlflow-artifacts/mpu/{step}/bundles/x")[0] == 403


@pytest.mark.parametrize(
    "path", [".", "..", "1/../bundles", "1//x", "1/%2e%2e/bundles", "1\\bundles", "/bundles", "a%00b"]
)
def test_a_path_that_could_name_another_place_is_refused(path: str) -> None:
    status, _, backend = ask("DELETE", f"{ARTIFACTS}/{path}")
    assert status == 400 and not backend.scopes


@pytest.mark.parametrize(
    "query",
    ["run_uuid=a&run_uuid=b&path=x", "run_uuid=a&path=x&path=y", "run_uuid=&run_uuid=b&path=x", "path=x"],
)
def test_an_upload_names_its_run_and_its_path_once(query: str) -> None:
    # MLflow reads the first, so a check of the last would let any run's files be overwritten.
    with pytest.raises(BadInput, match="once each"):
        judge("POST", "/ajax-api/2.0/mlflow/upload-artifact", query)


def test_reading_a_bundle_is_open_to_viewers() -> None:
    assert ask("GET", f"{ARTIFACTS}/bundles/x/MLmodel", actor=Actor("vi", Role.VIEWER))[0] == 200


def test_files_a_version_was_registered_from_are_not_overwritten() -> None:
    status, body, _ = ask("PUT", f"{ARTIFACTS}/1/models/m-1/artifacts/MLmodel", registered=(("flights", 1),))
    assert status == 403 and "flights/1" in json.loads(body)["message"]


def test_a_name_with_a_percent_sign_of_its_own_is_looked_up_as_it_is_routed() -> None:
    """The path comes decoded once; MLflow writes to that one, whatever it would read as when decoded again."""
    for place in ("a%20b", "a b"):

        def registered(uris: list[str], below: str, place: str = place) -> list[tuple[str, int]]:
            return [("late", 1)] if f"mlflow-artifacts:/1/r/artifacts/{place}" in uris else []

        for method in ("PUT", "DELETE"):
            assert ask(method, f"{ARTIFACTS}/1/r/artifacts/a%20b/MLmodel", registered=registered)[0] == 403


def test_a_token_for_one_model_reads_that_models_bundles_only() -> None:
    ci = Actor("ci", Role.ADMIN, scopes=(Scope.parse("write:late"),))
    listed = "/api/2.0/mlflow-artifacts/artifacts?path="
    for path in (f"{ARTIFACTS}/bundles/x/MLmodel", f"{listed}bundles/x", f"{listed}bundles/x/"):
        assert ask("GET", path, actor=ci, registered=(("late", 1),))[0] == 200
        assert ask("GET", path, actor=ci, registered=(("other", 1),))[0] == 403
        assert ask("GET", path, actor=ci)[0] == 403
    assert ask("GET", f"{listed}bundles", actor=ci, registered=(("late", 1),))[0] == 403
    assert ask("GET", f"{listed}Bundles/x", actor=ci)[0] == 403
    assert ask("GET", f"{listed}1/r/artifacts", actor=ci)[0] == 200, "what is tracked is no model's"
    assert ask("GET", f"{ARTIFACTS}/bundles/x/MLmodel", actor=Actor("vi", Role.VIEWER))[0] == 200


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read() -> None:
    status, _, backend = ask(
        "POST", "/api/2.0/mlflow/runs/create", headers=((b"content-length", str(API_LIMIT + 1).encode()),)
    )
    assert status == 413 and not backend.scopes


def test_a_body_that_grows_too_large_is_stopped_on_the_way() -> None:
    piece = b"x" * (API_LIMIT // 2 + 1)
    assert ask("POST", "/api/2.0/mlflow/runs/create", chunks=(piece, piece))[0] == 413


def test_artifacts_may_be_larger_than_calls() -> None:
    assert judge("PUT", f"{ARTIFACTS}/1/run/artifacts/model").limit == ARTIFACT_LIMIT > API_LIMIT


@given(st.text(max_size=30), st.integers(0, 3))
def test_a_clean_path_has_only_plain_segments_however_it_was_encoded(text: str, times: int) -> None:
    from urllib.parse import quote

    encoded = text
    for _ in range(times):
        encoded = quote(encoded, safe="")
    try:
        clean = clean_path(encoded)
    except BadInput:
        return
    assert all(part not in ("", ".", "..") for part in clean.split("/"))
    assert clean_path(clean) == clean and "\\" not in clean


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/mlflow/api", "/mlflow", "/api"),
        ("/api", "", "/api"),
        ("/mlflow", "/mlflow", "/"),
        ("/mlflowish", "/mlflow", "/mlflowish"),
    ],
)
def test_the_mount_prefix_is_taken_off_only_where_it_stands(path: str, root: str, expected: str) -> None:
    assert below_mount(path, root) == expected
