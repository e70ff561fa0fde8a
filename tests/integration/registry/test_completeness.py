"""A user's scripts, unchanged but for URL and token: every documented call of MLflow's tracking and registry."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException, RestException
from mlflow.genai import datasets
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from tests.integration.registry.plane import Plane, digest_of

pytestmark = [
    # What we call is what users' scripts call, old names included.
    pytest.mark.filterwarnings("ignore:.*get_latest_versions.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
    pytest.mark.filterwarnings("ignore:.*y_pred.*:FutureWarning"),
]

ROWS = pd.DataFrame({"distance": [1.0, 10.0], "hour": [0.0, 1.0]})


@pytest.fixture(autouse=True)
def as_a_user(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", plane.tokens["ana"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", plane.mlflow)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    monkeypatch.setattr("mlflow.tracking._model_registry.utils._registry_uri", None)
    yield
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.tracking.fluent._active_experiment_id = None


@pytest.fixture
def client(plane: Plane) -> MlflowClient:
    return MlflowClient()


@pytest.fixture(scope="module")
def sealed(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with three sealed versions: 1 archived by 2, which is in Production; 3 in Staging."""
    tmp = tmp_path_factory.mktemp("sealed")
    for weight in (2.0, 4.0, 6.0):
        plane.register("speedy", plane.seal(tmp, (weight, 3.0)))
    plane.promote("speedy", 2)
    plane.promote("speedy", 3, to="staging")
    return "speedy"


def small_model() -> Any:
    from sklearn.linear_model import LinearRegression

    return LinearRegression().fit(ROWS, [1.0, 2.0])


def denied(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(RestException) as caught:
        call(*args, **kwargs)
    assert caught.value.get_http_status_code() in (400, 403, 404, 409)
    return str(caught.value.message)


# Tracking


def test_experiments_are_made_found_renamed_tagged_deleted_and_restored(client: MlflowClient) -> None:
    made = client.create_experiment("team/project/first", tags={"owner": "ana"})
    other = client.create_experiment("team/project/second")
    assert client.get_experiment_by_name("team/project/first").experiment_id == made
    client.set_experiment_tag(made, "stage", "try")
    client.rename_experiment(made, "team/project/renamed")
    found = client.get_experiment(made)
    assert (found.name, found.tags["owner"], found.tags["stage"]) == ("team/project/renamed", "ana", "try")
    assert found.artifact_location == f"mlflow-artifacts:/{made}"
    client.delete_experiment_tag(made, "stage")
    assert "stage" not in client.get_experiment(made).tags
    names = [
        e.name
        for e in client.search_experiments(filter_string="name LIKE 'team/project/%'", order_by=["name ASC"])
    ]
    assert names == ["team/project/renamed", "team/project/second"]
    first = client.search_experiments(max_results=1)
    assert (
        len(first) == 1
        and client.search_experiments(max_results=1, page_token=first.token)[0].name != first[0].name
    )
    client.delete_experiment(other)
    assert client.get_experiment(other).lifecycle_stage == "deleted"
    assert other in {e.experiment_id for e in client.search_experiments(view_type=ViewType.DELETED_ONLY)}
    client.restore_experiment(other)
    assert client.get_experiment(other).lifecycle_stage == "active"
    with pytest.raises(MlflowException, match="already exists"):
        client.create_experiment("team/project/second")


def test_a_run_keeps_all_that_is_logged_to_it(client: MlflowClient) -> None:
    experiment = client.create_experiment("runs")
    run = client.create_run(experiment, run_name="first", tags={"a": "b"}).info.run_id
    client.log_metric(run, "auc", 0.5, step=0)
    client.log_param(run, "depth", 3)
    client.set_tag(run, "note", "x")
    client.log_batch(
        run, [Metric("auc", 0.5 + step / 100, 1000 + step, step) for step in range(1, 1000)],
        [Param(f"p{n}", str(n)) for n in range(99)], [RunTag(f"t{n}", "v") for n in range(100)],
    )  # fmt: skip
    client.log_inputs(
        run,
        [DatasetInput(Dataset("flights", "d1", "code", "{}"), [InputTag("mlflow.data.context", "train")])],
    )
    client.update_run(run, name="renamed")
    client.delete_tag(run, "note")
    client.set_terminated(run, "FINISHED")
    found = client.get_run(run)
    assert (found.info.status, found.info.run_name, found.info.user_id) == ("FINISHED", "renamed", "ana")
    assert found.data.metrics["auc"] == pytest.approx(0.5 + 999 / 100) and len(found.data.params) == 100
    assert "note" not in found.data.tags and found.data.tags["t99"] == "v"
    assert found.inputs.dataset_inputs[0].dataset.name == "flights"
    history = client.get_metric_history(run, "auc")
    assert sorted(point.step for point in history) == list(range(1000))
    with pytest.raises(MlflowException, match=r"already logged|Changing param"):
        client.log_param(run, "depth", 4)
    client.delete_run(run)
    assert client.get_run(run).info.lifecycle_stage == "deleted"
    client.restore_run(run)
    assert client.get_run(run).info.lifecycle_stage == "active"


def test_runs_are_searched_by_filter_order_and_page(client: MlflowClient) -> None:
    experiment = client.create_experiment("searched")
    for number in range(25):
        run = client.create_run(
            experiment, run_name=f"r{number:02}", tags={"even": str(number % 2 == 0)}
        ).info.run_id
        client.log_batch(run, [Metric("auc", number / 25, 0, 0)], [Param("depth", str(number))])
        client.set_terminated(run, "FINISHED" if number % 5 else "FAILED")

    def names(text: str, **further: Any) -> list[str]:
        return [run.info.run_name for run in client.search_runs([experiment], text, **further)]

    assert names("metrics.auc > 0.9", order_by=["metrics.auc DESC"]) == ["r24", "r23"]
    assert names("params.depth = '7'") == ["r07"]
    assert names("params.depth LIKE '1%' AND tags.even = 'True'", order_by=["attributes.run_name ASC"]) == [
        "r10", "r12", "r14", "r16", "r18",
    ]  # fmt: skip
    assert len(names("attributes.status = 'FAILED'")) == 5
    assert names("attributes.run_name ILIKE 'R0%' and metrics.auc < 0.05", order_by=["start_time ASC"]) == [
        "r00",
        "r01",
    ]
    assert len(names("attributes.user_id = 'ana'")) == 25
    pages, token = [], None
    while token or not pages:
        page = client.search_runs(
            [experiment], max_results=10, order_by=["attributes.run_name"], page_token=token
        )
        pages.append([run.info.run_name for run in page])
        token = page.token
    assert [len(page) for page in pages] == [10, 10, 5] and [name for page in pages for name in page] == [
        f"r{n:02}" for n in range(25)
    ]
    frame = mlflow.search_runs([experiment], "metrics.auc > 0.5")
    assert len(frame) == 12 and set(frame["params.depth"]) == {str(n) for n in range(13, 25)}
    assert "Invalid" in denied(client.search_runs, [experiment], "nonsense ~ 3")


def test_metric_histories_come_in_bulk_and_pages(client: MlflowClient, plane: Plane) -> None:
    experiment = client.create_experiment("histories")
    runs = [client.create_run(experiment).info.run_id for _ in range(3)]
    for run in runs:
        client.log_batch(run, [Metric("loss", step, step, step) for step in range(50)])
    for route, name in (("get-history-bulk", "run_id"), ("get-history-bulk-interval", "run_ids")):
        query = "&".join(f"{name}={run}" for run in runs)
        path = f"/ajax-api/2.0/mlflow/metrics/{route}?{query}&metric_key=loss&max_results=2500"
        status, text = plane.raw("GET", path, who="ana")
        assert status == 200 and len(json.loads(text)["metrics"]) == 150, text
    status, text = plane.raw(
        "GET",
        f"/api/2.0/mlflow/metrics/get-history?run_id={runs[0]}&metric_key=loss&max_results=20",
        who="ana",
    )
    page = json.loads(text)
    assert status == 200 and len(page["metrics"]) == 20 and page["next_page_token"]


def test_artifacts_are_logged_listed_read_and_deleted(
    client: MlflowClient, plane: Plane, tmp_path: Path
) -> None:
    run = client.create_run(mlflow.set_experiment("artifacts").experiment_id).info.run_id
    (tmp_path / "in" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "er" / "ä b.txt").write_text("hello")
    (tmp_path / "in" / "big.bin").write_bytes(os.urandom(9_000_000))
    client.log_artifacts(run, str(tmp_path / "in"), "data")
    client.log_artifact(run, str(tmp_path / "in" / "big.bin"))
    client.log_text(run, "text", "notes/a.txt")
    client.log_dict(run, {"a": [1]}, "notes/a.json")
    client.log_table(run, ROWS, "tables/rows.json")
    client.log_image(run, np.zeros((4, 4, 3), np.uint8), "pictures/p.png")
    listed = {item.path: item.is_dir for item in client.list_artifacts(run)}
    assert listed == {"data": True, "big.bin": False, "notes": True, "tables": True, "pictures": True}
    assert [item.path for item in client.list_artifacts(run, "data/deep/er")] == ["data/deep/er/ä b.txt"]
    got = Path(client.download_artifacts(run, "data", str(tmp_path)))
    assert digest_of(got) == digest_of(tmp_path / "in")
    assert mlflow.artifacts.load_text(f"runs:/{run}/notes/a.txt") == "text"
    assert mlflow.artifacts.load_dict(f"runs:/{run}/notes/a.json") == {"a": [1]}
    assert mlflow.load_table("tables/rows.json", [run]).shape == (2, 2)
    status, text = plane.raw("GET", f"/get-artifact?run_uuid={run}&path=notes/a.txt", who="ana")
    assert (status, text) == (200, "text")
    assert plane.raw("POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=notes/b.txt", b"x", who="ana",
                     headers={"Content-Type": "application/octet-stream"})[0] == 200  # fmt: skip
    get_artifact_repository(client.get_run(run).info.artifact_uri).delete_artifacts("notes")
    assert "notes" not in {item.path for item in client.list_artifacts(run)}


@pytest.mark.parametrize("flavor", ["sklearn", "lightgbm"])
def test_autolog_works_as_everywhere(client: MlflowClient, flavor: str) -> None:
    mlflow.set_experiment(f"autolog {flavor}")
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(rng.normal(size=(80, 3)), columns=["a", "b", "c"])
    target = (frame["a"] > 0).astype(int)
    if flavor == "sklearn":
        from sklearn.linear_model import LogisticRegression

        mlflow.sklearn.autolog(log_datasets=True)
        try:
            with mlflow.start_run() as run:
                LogisticRegression().fit(frame, target)
        finally:
            mlflow.sklearn.autolog(disable=True)
    else:
        import lightgbm

        mlflow.lightgbm.autolog()
        try:
            with mlflow.start_run() as run:
                lightgbm.train(
                    {"objective": "binary", "verbose": -1, "num_threads": 1},
                    lightgbm.Dataset(frame, target),
                    5,
                )
        finally:
            mlflow.lightgbm.autolog(disable=True)
    found = client.get_run(run.info.run_id)
    assert found.info.status == "FINISHED" and len(found.data.params) >= 5 and found.inputs.dataset_inputs
    assert found.outputs.model_outputs


def test_a_logged_model_is_found_loaded_tagged_and_deleted(client: MlflowClient) -> None:
    mlflow.set_experiment("logged models")
    with mlflow.start_run() as run:
        info = mlflow.sklearn.log_model(
            small_model(),
            name="linear",
            input_example=ROWS,
            serialization_format="cloudpickle",
            pip_requirements=["scikit-learn"],
            params={"depth": "1"},
        )
    loaded = mlflow.pyfunc.load_model(info.model_uri)
    assert loaded.predict(ROWS).shape == (2,)
    assert mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/linear").predict(ROWS).shape == (2,)
    found = mlflow.get_logged_model(info.model_id)
    assert found.source_run_id == run.info.run_id and found.params["depth"] == "1"
    mlflow.set_logged_model_tags(info.model_id, {"team": "ops"})
    client.delete_logged_model_tag(info.model_id, "team")
    mlflow.log_metric("auc", 0.7, model_id=info.model_id, run_id=run.info.run_id)
    (one,) = mlflow.search_logged_models([found.experiment_id], "name = 'linear'", output_format="list")
    assert one.model_id == info.model_id
    empty = mlflow.initialize_logged_model(name="empty")
    mlflow.finalize_logged_model(empty.model_id, "READY")
    client.delete_logged_model(empty.model_id)
    with pytest.raises(MlflowException, match="not found"):
        mlflow.get_logged_model(empty.model_id)


def test_traces_and_data_sets(client: MlflowClient) -> None:
    mlflow.set_experiment("traces")

    @mlflow.trace
    def answer(question: str) -> str:
        return question.upper()

    assert answer("why") == "WHY"
    mlflow.flush_trace_async_logging()
    experiment = client.get_experiment_by_name("traces").experiment_id
    (trace,) = mlflow.search_traces(locations=[experiment], return_type="list")
    assert trace.info.state == "OK" and trace.data.spans[0].name == "answer"
    client.set_trace_tag(trace.info.trace_id, "kind", "test")
    assert client.get_trace(trace.info.trace_id).info.tags["kind"] == "test"
    client.delete_trace_tag(trace.info.trace_id, "kind")
    mlflow.log_feedback(trace_id=trace.info.trace_id, name="good", value=True)
    assert client.get_trace(trace.info.trace_id).info.assessments[0].name == "good"
    assert client.delete_traces(experiment, trace_ids=[trace.info.trace_id]) == 1
    made = datasets.create_dataset(name="questions", experiment_id=[experiment], tags={"a": "b"})
    made.merge_records([{"inputs": {"question": "why"}, "expectations": {"answer": "WHY"}}])
    found = datasets.get_dataset(dataset_id=made.dataset_id)
    assert len(found.to_df()) == 1
    datasets.delete_dataset(dataset_id=made.dataset_id)


# The registry


def test_models_are_made_described_tagged_and_searched_over_pages(client: MlflowClient) -> None:
    for number in range(130):
        client.create_registered_model(
            f"fleet-{number:03}", tags={"even": str(number % 2 == 0)}, description="d"
        )
    client.update_registered_model("fleet-001", "better")
    client.set_registered_model_tag("fleet-001", "owner", "ana")
    found = client.get_registered_model("fleet-001")
    assert (found.description, found.tags["owner"]) == ("better", "ana")
    client.delete_registered_model_tag("fleet-001", "owner")
    assert "owner" not in client.get_registered_model("fleet-001").tags
    pages, token = [], None
    while token or not pages:
        page = client.search_registered_models("name LIKE 'fleet-%'", 50, ["name ASC"], token)
        pages.append([model.name for model in page])
        token = page.token
    assert [len(page) for page in pages] == [50, 50, 30] and [name for page in pages for name in page] == [
        f"fleet-{n:03}" for n in range(130)
    ]
    assert len(client.search_registered_models("name LIKE 'fleet-%' AND tags.even = 'True'", 200)) == 65
    assert [m.name for m in client.search_registered_models("name ILIKE 'FLEET-00%'", 2, ["name DESC"])] == [
        "fleet-009", "fleet-008",
    ]  # fmt: skip
    assert [m.name for m in client.search_registered_models("name = 'fleet-007'")] == ["fleet-007"]
    assert (
        len(client.search_registered_models("name LIKE 'fleet-%'", 5, ["last_updated_timestamp DESC"])) == 5
    )
    client.delete_registered_model("fleet-129")
    assert "not found" in denied(client.get_registered_model, "fleet-129")
    assert "already exists" in denied(client.create_registered_model, "fleet-001")


def test_versions_are_registered_from_a_run_and_found_by_every_filter(client: MlflowClient) -> None:
    mlflow.set_experiment("registered")
    with mlflow.start_run() as run:
        info = mlflow.sklearn.log_model(
            small_model(), name="linear", serialization_format="cloudpickle", pip_requirements=["scikit-learn"],
            registered_model_name="through log_model",
        )  # fmt: skip
    assert client.get_model_version("through log_model", "1").current_stage == "None"
    first = mlflow.register_model(f"runs:/{run.info.run_id}/linear", "by hand", tags={"n": "1"})
    second = mlflow.register_model(info.model_uri, "by hand", tags={"n": "2"})
    third = client.create_model_version("by hand", info.model_uri, run.info.run_id, {"n": "3"}, description="third",
                                        model_id=info.model_id)  # fmt: skip
    assert [int(v.version) for v in (first, second, third)] == [1, 2, 3]

    def found(text: str, **further: Any) -> list[int]:
        return [int(v.version) for v in client.search_model_versions(text, **further)]

    assert found("name = 'by hand'", order_by=["version_number ASC"]) == [1, 2, 3]
    assert found("name = 'by hand' and tags.n = '2'") == [2]
    assert len(client.search_model_versions(f"run_id = '{run.info.run_id}'")) == 4
    page = client.search_model_versions("name = 'by hand'", 2, ["version_number ASC"])
    rest = client.search_model_versions("name = 'by hand'", 2, ["version_number ASC"], page.token)
    assert ([int(v.version) for v in page], [int(v.version) for v in rest]) == ([1, 2], [3])
    client.update_model_version("by hand", "3", "better")
    client.set_model_version_tag("by hand", "3", "checked", "yes")
    client.delete_model_version_tag("by hand", "3", "n")
    changed = client.get_model_version("by hand", "3")
    assert (changed.description, dict(changed.tags)) == ("better", {"checked": "yes"})
    client.set_registered_model_alias("by hand", "candidate", "3")
    client.set_registered_model_alias("by hand", "candidate", "2")
    assert client.get_model_version_by_alias("by hand", "candidate").version in ("2", 2)
    assert mlflow.pyfunc.load_model("models:/by hand@candidate").predict(ROWS).shape == (2,)
    assert mlflow.pyfunc.load_model("models:/by hand/1").predict(ROWS).shape == (2,)
    assert mlflow.sklearn.load_model("models:/by hand/latest").coef_.shape == (2,)
    client.delete_registered_model_alias("by hand", "candidate")
    assert client.get_registered_model("by hand").aliases == {}
    assert [v.version for v in client.get_latest_versions("by hand")] in (["3"], [3])
    moved = client.transition_model_version_stage("by hand", "2", "Archived")
    assert moved.current_stage == "Archived"
    assert client.transition_model_version_stage("by hand", "2", "None").current_stage == "None"
    assert client.get_model_version_download_uri("by hand", "3").startswith("mlflow-artifacts:/")


def test_a_sealed_bundle_loads_and_predicts_by_number_alias_and_stage(sealed: str, tmp_path: Path) -> None:
    """In a process of its own, which knows nothing of Loopwright: what a user's notebook is."""
    script = (
        "import sys, json, mlflow, pandas as pd\n"
        "rows = pd.DataFrame({'distance': [1.0, 10.0], 'hour': [0.0, 1.0]})\n"
        "for uri in ('models:/speedy/Production', 'models:/speedy@champion', 'models:/speedy/2',"
        " 'models:/speedy/Staging', 'models:/speedy@staging', 'models:/speedy/1', 'models:/speedy/latest'):\n"
        "    found = mlflow.pyfunc.load_model(uri).predict(rows)\n"
        "    print(json.dumps(pd.DataFrame(found).to_numpy().ravel().tolist()))\n"
        "assert not any(name.startswith('loopwright.bundle') for name in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert said == [[4.0, 43.0]] * 3 + [[6.0, 63.0]] * 2 + [[2.0, 23.0]] + [[6.0, 63.0]]


def test_an_approved_version_is_moved_by_the_plain_client(
    client: MlflowClient, plane: Plane, tmp_path: Path
) -> None:
    version = plane.register("moved", plane.seal(tmp_path, (9.0, 3.0)))
    assert "missing" in denied(client.transition_model_version_stage, "moved", str(version), "Staging")
    plane.promote("moved", version, to="staging")
    for _ in range(2):
        moved = client.transition_model_version_stage(
            "moved", str(version), "Staging", archive_existing_versions=True
        )
        assert moved.current_stage == "Staging" and moved.aliases == ["staging"]
    assert [v.version for v in client.get_latest_versions("moved", ["Staging"])] in (
        [version],
        [str(version)],
    )
    assert (
        client.transition_model_version_stage("moved", str(version), "Archived").current_stage == "Archived"
    )
    assert "rollback" in denied(client.transition_model_version_stage, "speedy", "2", "Archived")


def test_a_copy_loads_like_the_original_and_has_no_seal(
    client: MlflowClient, sealed: str, tmp_path: Path
) -> None:
    copied = client.copy_model_version(f"models:/{sealed}/Production", "speedy-elsewhere")
    assert (copied.version in ("1", 1), copied.current_stage, copied.source) == (
        True,
        "None",
        f"models:/{sealed}/2",
    )
    assert not [key for key in copied.tags if key.startswith("loopwright.")]
    again = client.copy_model_version(f"models:/{sealed}@champion", "speedy-elsewhere")
    assert int(again.version) == 2
    one = mlflow.artifacts.download_artifacts(f"models:/{sealed}/2", dst_path=str(tmp_path / "a"))
    other = mlflow.artifacts.download_artifacts("models:/speedy-elsewhere/1", dst_path=str(tmp_path / "b"))
    ours, theirs = digest_of(Path(one)), digest_of(Path(other))
    same = {name for name in ours if name != "registered_model_meta"}
    assert {name: theirs[name] for name in same} == {name: ours[name] for name in same}
    said = denied(client.transition_model_version_stage, "speedy-elsewhere", "1", "Staging")
    assert "a sealed bundle" in said


def test_prompts_are_registered_loaded_aliased_and_deleted(client: MlflowClient) -> None:
    made = mlflow.genai.register_prompt(
        "greet", "Hello {{name}}", commit_message="first", tags={"lang": "en"}
    )
    mlflow.genai.register_prompt("greet", "Hi {{name}}")
    mlflow.genai.set_prompt_alias("greet", alias="production", version=2)
    assert made.version == 1
    assert mlflow.genai.load_prompt("prompts:/greet@production").format(name="Ana") == "Hi Ana"
    assert mlflow.genai.load_prompt("prompts:/greet/1").template == "Hello {{name}}"
    assert [prompt.name for prompt in mlflow.genai.search_prompts("name = 'greet'")] == ["greet"]
    client.set_prompt_tag("greet", "owner", "ana")
    client.delete_prompt_tag("greet", "owner")
    mlflow.genai.delete_prompt_alias("greet", alias="production")
    for version in ("1", "2"):
        client.delete_prompt_version("greet", version)
    client.delete_prompt("greet")
    assert mlflow.genai.search_prompts("name = 'greet'") == []
    assert "greet" not in {model.name for model in client.search_registered_models()}


def test_webhooks_are_an_admins(plane: Plane, monkeypatch: pytest.MonkeyPatch, client: MlflowClient) -> None:
    assert "may not" in denied(client.list_webhooks)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", plane.tokens["root"])
    # An address and no name, so that nobody is asked: 1.1.1.1 is public.
    made = client.create_webhook("w", "https://1.1.1.1/x", ["model_version.created"])
    assert [hook.webhook_id for hook in client.list_webhooks()] == [made.webhook_id]
    assert client.update_webhook(made.webhook_id, status="DISABLED").status == "DISABLED"
    client.delete_webhook(made.webhook_id)
    assert list(client.list_webhooks()) == []


def test_the_command_line_works_by_environment_alone(
    tmp_path: Path, client: MlflowClient, sealed: str
) -> None:
    experiment = client.create_experiment("command line")
    client.create_run(experiment, run_name="by script")

    def run_mlflow(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mlflow", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "by script" in run_mlflow("runs", "list", "--experiment-id", experiment)
    run_mlflow(
        "artifacts",
        "download",
        "--artifact-uri",
        f"models:/{sealed}/Production",
        "--dst-path",
        str(tmp_path / "m"),
    )
    assert (tmp_path / "m" / "MLmodel").exists()


def test_a_script_with_a_wrong_token_is_told_so_at_once(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "lw_aaaaaaaaaaaa_wrong")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    with pytest.raises(MlflowException, match="wrong token"):
        client.search_experiments()
