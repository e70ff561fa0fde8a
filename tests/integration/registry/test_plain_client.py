"""What an ordinary MLflow client can do against the mounted app, and what it cannot."""

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as audit
from loopwright.registry import promotion, versions
from loopwright.registry.identity import current_actor

ANA, BO, CY = Actor("ana", Role.DEVELOPER), Actor("bo", Role.APPROVER), Actor("cy", Role.APPROVER)


@pytest.fixture
def client(server) -> MlflowClient:
    return MlflowClient(server.url, server.url)


def refused(call: Callable[..., object], *args: object, **kwargs: object) -> str:
    with pytest.raises(RestException) as caught:
        call(*args, **kwargs)
    assert caught.value.error_code == "PERMISSION_DENIED" and caught.value.get_http_status_code() == 403
    return caught.value.message


def promote(server, model: str, version: int) -> None:
    for step in (
        lambda conn: promotion.request_promotion(
            conn, model=model, version=version, stage=Stage.PRODUCTION, actor=ANA, reason="", now=audit_now()
        ),
        lambda conn: promotion.approve(conn, model=model, version=version, reviewer=BO, now=audit_now()),
        lambda conn: promotion.approve(conn, model=model, version=version, reviewer=CY, now=audit_now()),
    ):
        with server.ledger.write() as conn:
            step(conn)


def audit_now():
    from loopwright.kernel.clock import utc_now

    return utc_now()


def test_production_without_approval_is_refused_and_with_it_loads_and_predicts(
    server, client, tmp_path: Path
) -> None:
    version = server.register("late", server.seal(tmp_path, (2.0, 3.0)))
    said = refused(client.transition_model_version_stage, "late", version, "Production")
    assert "late/1: cannot be moved to Production; missing: a request for Production and 2 approvals" in said
    with server.ledger.write() as conn:
        promotion.request_promotion(
            conn, model="late", version=1, stage=Stage.PRODUCTION, actor=ANA, reason="", now=audit_now()
        )
        promotion.approve(conn, model="late", version=1, reviewer=BO, now=audit_now())
    said = refused(client.transition_model_version_stage, "late", version, "Production")
    assert (
        "one approval more (1 of 2 given; not by the author ana)" in said
        and "loopwright approve late" in said
    )
    with server.ledger.write() as conn:
        promotion.approve(conn, model="late", version=1, reviewer=CY, now=audit_now())
    moved = client.transition_model_version_stage(
        "late", version, "Production", archive_existing_versions=True
    )
    assert moved.current_stage == "Production" and set(moved.aliases) == {"champion", "production"}
    with server.ledger.read() as conn:
        tried = audit.rows(conn, subject="late/1", action="registry.refused")
        assert [row.actor for row in tried] == ["ana", "ana"] and audit.verify(conn).ok
    script = (
        "import sys, json, mlflow, pandas as pd\n"
        "mlflow.set_tracking_uri(sys.argv[1]); mlflow.set_registry_uri(sys.argv[1])\n"
        "rows = pd.DataFrame({'distance': [1.0, 10.0], 'hour': [0.0, 1.0]})\n"
        "for uri in ('models:/late/Production', 'models:/late@champion', 'models:/late/1'):\n"
        "    found = mlflow.pyfunc.load_model(uri).predict(rows)\n"
        "    print(json.dumps(pd.DataFrame(found).to_numpy().ravel().tolist()))\n"
        "assert not any(name.startswith('loopwright.bundle') for name in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, server.url], capture_output=True, text=True, cwd=tmp_path, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")] == [
        [2.0, 23.0]
    ] * 3


def test_a_version_without_passed_gates_is_told_so(server, client, tmp_path: Path) -> None:
    version = server.register("ungated", server.seal(tmp_path, (5.0, 1.0)), gates=False)
    assert "gates: no result is recorded for these bytes" in refused(
        client.transition_model_version_stage, "ungated", version, "Staging"
    )


def test_what_serves_cannot_be_moved_deleted_renamed_or_relabelled(server, client, tmp_path: Path) -> None:
    server.register("kept", server.seal(tmp_path, (7.0, 1.0)))
    promote(server, "kept", 1)
    for alias in ("champion", "Production", "staging"):
        assert "follows its promotion" in refused(client.set_registered_model_alias, "kept", alias, "1")
    assert "follows its promotion" in refused(client.delete_registered_model_alias, "kept", "champion")
    assert "kept" in refused(client.delete_model_version, "kept", "1")
    assert "kept" in refused(client.delete_registered_model, "kept")
    assert "not renamed" in refused(client.rename_registered_model, "kept", "other")
    for stage in ("Archived", "None"):
        assert "rollback" in refused(client.transition_model_version_stage, "kept", "1", stage)
    assert "written by Loopwright only" in refused(
        client.set_model_version_tag, "kept", "1", "loopwright.bundle", "x"
    )
    assert "written by Loopwright only" in refused(
        client.delete_model_version_tag, "kept", "1", "loopwright.bundle"
    )
    assert "hide" in refused(client.set_registered_model_tag, "kept", "mlflow.prompt.is_prompt", "true")
    assert client.get_model_version_by_alias("kept", "champion").current_stage == "Production"


def test_free_tags_aliases_and_descriptions_are_the_clients_and_audited(
    server, client, tmp_path: Path
) -> None:
    server.register("free", server.seal(tmp_path, (8.0, 1.0)))
    client.set_model_version_tag("free", "1", "team", "ops")
    client.set_registered_model_alias("free", "candidate", "1")
    client.update_model_version("free", "1", "A better text.")
    found = client.get_model_version("free", "1")
    assert (found.tags["team"], found.aliases, found.description) == ("ops", ["candidate"], "A better text.")
    assert [v.version for v in client.search_model_versions("name='free' and tags.team='ops'")] == ["1"]
    with server.ledger.read() as conn:
        said = {(row.actor, row.action) for row in audit.rows(conn) if row.subject.startswith("free")}
    assert {("ana", "version.tagged"), ("ana", "alias.set"), ("ana", "version.described")} <= said


def test_the_source_run_of_a_version_is_kept_and_other_runs_are_not(server, client, tmp_path: Path) -> None:
    experiment = client.create_experiment("runs kept")
    run, other = (client.create_run(experiment).info.run_id for _ in range(2))
    server.register("born", server.seal(tmp_path, (9.0, 1.0)), run_id=run)
    assert "born/1 was trained in it" in refused(client.delete_run, run)
    assert "born/1 was trained in it" in refused(client.delete_experiment, experiment)
    client.delete_run(other)
    assert client.get_run(other).info.lifecycle_stage == "deleted"
    assert client.get_run(run).info.lifecycle_stage == "active"


def test_ordinary_tracking_works(server, client, tmp_path: Path) -> None:
    experiment = client.create_experiment("ordinary")
    run = client.create_run(experiment, run_name="first").info.run_id
    client.log_param(run, "depth", 3)
    for step in range(5):
        client.log_metric(run, "auc", 0.1 * step, step=step)
    client.log_text(run, "hello", "notes/a.txt")
    (tmp_path / "b.bin").write_bytes(b"\x00" * 3_000_000)
    client.log_artifact(run, str(tmp_path / "b.bin"))
    client.set_terminated(run)
    found = client.search_runs([experiment], "metrics.auc > 0.3 and params.depth = '3'")
    assert [r.info.run_id for r in found] == [run] and found[0].info.status == "FINISHED"
    assert {item.path for item in client.list_artifacts(run)} == {"notes", "b.bin"}
    path = client.download_artifacts(run, "notes/a.txt", str(tmp_path))
    assert Path(path).read_text() == "hello"
    assert len(client.get_metric_history(run, "auc")) == 5


def test_a_plain_client_registers_what_it_logged_but_cannot_promote_it(server, client) -> None:
    experiment = client.create_experiment("plain")
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "artifact_path: model\n", "model/MLmodel")
    client.create_registered_model("plain", tags={"a": "b"}, description="mine")
    made = client.create_model_version("plain", f"runs:/{run}/model", run)
    assert made.current_stage == "None"
    said = refused(client.transition_model_version_stage, "plain", made.version, "Production")
    assert "a sealed bundle (it was registered by a plain MLflow client" in said
    with server.ledger.read() as conn:
        ours = versions.get_version(conn, model="plain", version=1)
    assert (ours.bundle, ours.author, ours.run_id) == (None, "ana", run)
    assert client.transition_model_version_stage("plain", "1", "Archived").current_stage == "Archived"
    with pytest.raises(RestException, match="already exists"):
        client.create_registered_model("plain")


def test_unknown_names_are_not_found_and_bad_stages_are_named(server, client, tmp_path: Path) -> None:
    with pytest.raises(RestException) as missing:
        client.transition_model_version_stage("nowhere", "1", "Production")
    assert missing.value.get_http_status_code() == 404
    server.register("named", server.seal(tmp_path, (11.0, 1.0)))
    with pytest.raises(RestException, match="unknown stage; got Live") as bad:
        client.transition_model_version_stage("named", "1", "Live")
    assert bad.value.get_http_status_code() == 400


def call(server, method: str, path: str, body: bytes = b"", token: str = "ana:developer") -> tuple[int, str]:
    """Send exactly `path`, undecoded, as an attacker would."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    connection.request(method, place.path + path, body=body, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("api", ["/api", "/ajax-api"])
def test_the_bytes_of_a_bundle_stay_as_they_are(server, tmp_path: Path, method: str, api: str) -> None:
    digest = server.seal(tmp_path, (13.0, 1.0))
    before = {path: path.read_bytes() for path in (server.home.bundles / digest).rglob("*") if path.is_file()}
    root = f"{api}/2.0/mlflow-artifacts/artifacts"
    for path in (
        f"bundles/{digest}/model.onnx", f"%62undles/{digest}/model.onnx", f"1/..%2fbundles/{digest}/model.onnx",
        f"1/%252e%252e/bundles/{digest}/model.onnx", f"./bundles/{digest}/model.onnx", f"//bundles/{digest}",
        f"BUNDLES/{digest}/model.onnx", f"bundles/{digest}", "bundles", ".", "%2e",
    ):  # fmt: skip
        status, body = call(server, method, f"{root}/{path}", b"evil")
        assert 400 <= status < 500 and json.loads(body)["error_code"], (path, status, body)
    after = {path: path.read_bytes() for path in (server.home.bundles / digest).rglob("*") if path.is_file()}
    assert after == before


def test_multipart_uploads_and_server_side_locations_do_not_reach_bundles(
    server, client, tmp_path: Path
) -> None:
    digest = server.seal(tmp_path, (17.0, 1.0))
    for step in ("create", "complete", "abort"):
        status, _ = call(server, "POST", f"/api/2.0/mlflow-artifacts/mpu/{step}/bundles/{digest}/x", b"{}")
        assert status == 403
    for location in (
        f"mlflow-artifacts:/bundles/{digest}",
        str(server.home.bundles),
        server.home.bundles.as_uri(),
    ):
        assert refused(client.create_experiment, "evil", artifact_location=location)
    run = client.create_run(client.create_experiment("sidedoor")).info.run_id
    for path in ("../../../bundles/x", "%2e%2e/x", "/etc/x"):
        status, _ = call(
            server, "POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path={path}", b"evil"
        )
        assert status == 400


def test_files_of_a_plain_version_are_kept_too(server, client) -> None:
    run = client.create_run(client.create_experiment("kept files")).info.run_id
    client.log_text(run, "x", "model/MLmodel")
    client.create_registered_model("filed")
    client.create_model_version("filed", client.get_run(run).info.artifact_uri + "/model", run)
    place = urlsplit(client.get_run(run).info.artifact_uri).path
    for method, path in (("PUT", "/model/MLmodel"), ("DELETE", "/model"), ("DELETE", "")):
        status, body = call(server, method, f"/api/2.0/mlflow-artifacts/artifacts{place}{path}", b"evil")
        assert status == 403 and "filed/1" in body
    status, _ = call(
        server, "POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=model/MLmodel", b"evil"
    )
    assert status == 403


def test_who_is_not_known_or_may_only_look_changes_nothing(
    server, client, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"name": "m"}).encode()
    assert call(server, "POST", "/api/2.0/mlflow/registered-models/create", body, token="")[0] == 401
    status, said = call(server, "POST", "/api/2.0/mlflow/registered-models/create", body, token="vi:viewer")
    assert status == 403 and "wanted role developer" in said
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "vi:viewer")
    assert isinstance(client.search_registered_models(), list)


def test_a_forged_user_and_odd_spellings_of_keys_change_nothing(server, client, tmp_path: Path) -> None:
    server.register("forged", server.seal(tmp_path, (19.0, 1.0)))
    for body in (
        '{"name": "forged", "version": "1", "stage": "Production", "user_id": "cy", "userId": "cy"}',
        '{"name": "forged", "version": "1", "stage": "Staging", "stage": "Production"}',
        '{"name": "forged", "version": "1", "stage": "Production", "archiveExistingVersions": true}',
        '{"name": "forged", "version": 1, "stage": "production"}',
    ):
        status, said = call(server, "POST", "/api/2.0/mlflow/model-versions/transition-stage", body.encode())
        assert 400 <= status < 500, said
    with server.ledger.read() as conn:
        assert versions.get_version(conn, model="forged", version=1).stage is Stage.NONE
        assert {row.actor for row in audit.rows(conn, subject="forged/1", action="registry.refused")} == {
            "ana"
        }


def test_two_processes_write_at_once_without_locking_each_other_out(server, client, tmp_path: Path) -> None:
    """MLflow's sessions and our acts share one SQLite file: each waits for its turn, none fails."""
    server.register("busy", server.seal(tmp_path, (23.0, 1.0)))
    run = client.create_run(client.create_experiment("busy")).info.run_id
    failures: list[Exception] = []

    def through_mlflow(worker: int) -> None:
        try:
            for step in range(10):
                client.set_model_version_tag("busy", "1", f"w{worker}", str(step))
                client.log_metric(run, f"m{worker}", step, step=step)
        except MlflowException as error:
            failures.append(error)

    def through_the_ledger() -> None:
        for step in range(40):
            with server.ledger.write() as conn:
                versions.annotate(
                    conn, model="busy", version=1, key="step", value=str(step), actor=ANA, now=audit_now()
                )

    threads = [threading.Thread(target=through_mlflow, args=(n,)) for n in range(4)]
    threads.append(threading.Thread(target=through_the_ledger))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    tags = client.get_model_version("busy", "1").tags
    assert {tags[f"w{n}"] for n in range(4)} == {"9"} and tags["loopwright.note.step"] == "39"
    with server.ledger.read() as conn:
        assert len(audit.rows(conn, subject="busy/1", action="version.tagged")) == 40
        assert audit.verify(conn).ok
    assert current_actor.get() is None
