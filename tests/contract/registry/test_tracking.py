"""MLflow's tracking store on the ledger's database: whole, except for what registered versions rest on."""

import time
from datetime import UTC, datetime

import pytest
from mlflow.entities import Metric, Param, RunStatus, RunTag, TraceInfo, TraceLocation, TraceState, ViewType
from mlflow.exceptions import MlflowException

from loopwright.kernel.actor import Actor, Role, Scope
from loopwright.ledger.engine import Ledger
from loopwright.registry import versions
from loopwright.registry.identity import current_actor
from loopwright.registry.tracking_store import GuardedTracking

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def tracking(registry_url: str) -> GuardedTracking:
    return GuardedTracking(registry_url, "mlflow-artifacts:/")


def a_run(tracking: GuardedTracking, experiment: str) -> str:
    return str(tracking.create_run(experiment, "ana", 0, [], "run").info.run_id)


def test_runs_are_logged_in_batches_and_found_again(tracking: GuardedTracking) -> None:
    experiment = tracking.create_experiment("e")
    run = a_run(tracking, experiment)
    metrics = [Metric("auc", step / 1000, step, step) for step in range(900)]
    tracking.log_batch(run, metrics, [Param("depth", "3")], [])
    # Again, as a client that lost the answer does.
    tracking.log_batch(run, metrics, [Param("depth", "3")], [])
    tracking.update_run_info(run, RunStatus.FINISHED, 5, "run")
    found = tracking.search_runs(
        [experiment], "metrics.auc > 0.89 and params.depth LIKE '3%'", ViewType.ACTIVE_ONLY
    )
    assert [one.info.run_id for one in found] == [run]
    assert len(tracking.get_metric_history(run, "auc")) == 900


def test_the_run_of_a_version_outlives_every_way_to_delete_it(
    tracking: GuardedTracking, ledger: Ledger
) -> None:
    experiment = tracking.create_experiment("e")
    run, other = a_run(tracking, experiment), a_run(tracking, experiment)
    with ledger.write() as conn:
        versions.register_version(
            conn, model="m", bundle="a" * 64, run_id=run, snapshot=None, author=Actor("ana", Role.DEVELOPER),
            metrics={}, now=NOON,
        )  # fmt: skip
    for delete, what in (
        (tracking.delete_run, run),
        (tracking._hard_delete_run, run),
        (tracking.delete_experiment, experiment),
    ):
        with pytest.raises(MlflowException, match="m/1 was trained in it"):
            delete(what)
    tracking.delete_run(other)
    assert tracking.get_run(run).info.lifecycle_stage == "active"
    assert tracking.get_run(other).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize(
    "location",
    [
        "/srv/x",
        "file:///srv/x",
        "bundles",
        "mlflow-artifacts:/bundles/x",
        "mlflow-artifacts:/1/%2e%2e/Bundles",
        "s3://b/../x",
    ],
)
def test_a_place_on_the_server_or_among_bundles_is_no_artifact_location(
    tracking: GuardedTracking, location: str
) -> None:
    with pytest.raises(MlflowException) as refused:
        tracking.create_experiment("e", location)
    assert refused.value.get_http_status_code() == 403
    tracking.create_experiment("e", "s3://team/experiments")


@pytest.mark.parametrize("spelled", [" {}", "0{}", "{}.0", "+{}", "{} ", "１{}"])
def test_an_experiment_is_named_in_one_way_only(
    tracking: GuardedTracking, ledger: Ledger, spelled: str
) -> None:
    """SQLite takes " 7" for 7 where it deletes, and a check of the text would not have."""
    experiment = tracking.create_experiment("e")
    run = a_run(tracking, experiment)
    with ledger.write() as conn:
        versions.register_version(
            conn, model="m", bundle="a" * 64, run_id=run, snapshot=None, author=Actor("ana", Role.DEVELOPER),
            metrics={}, now=NOON,
        )  # fmt: skip
    with pytest.raises(MlflowException) as refused:
        tracking.delete_experiment(spelled.format(experiment))
    assert 400 <= refused.value.get_http_status_code() < 500
    assert tracking.get_experiment(experiment).lifecycle_stage == "active"


def test_a_run_is_whose_token_made_it_and_an_admin_may_speak_for_others(tracking: GuardedTracking) -> None:
    experiment = tracking.create_experiment("e")
    claims = [RunTag("mlflow.user", "bo")]
    for actor, expected in (
        (Actor("eve", Role.DEVELOPER), "eve"),
        (Actor("root", Role.ADMIN), "bo"),
        (None, "bo"),
    ):
        token = current_actor.set(actor)
        try:
            run = tracking.create_run(experiment, "bo", 0, claims, "run")
        finally:
            current_actor.reset(token)
        assert (run.info.user_id, run.data.tags["mlflow.user"]) == (expected, expected)
    token = current_actor.set(Actor("eve", Role.DEVELOPER))
    try:
        for call in (
            lambda: tracking.set_tag(run.info.run_id, RunTag("mlflow.user", "eve")),
            lambda: tracking.log_batch(run.info.run_id, [], [], [RunTag("mlflow.user", "eve")]),
            lambda: tracking.delete_tag(run.info.run_id, "mlflow.user"),
        ):
            with pytest.raises(MlflowException, match="stays with it"):
                call()
        tracking.set_tag(run.info.run_id, RunTag("mlflow.user", "bo"))
    finally:
        current_actor.reset(token)


def test_no_call_carries_more_than_a_thousand_tags(tracking: GuardedTracking) -> None:
    experiment = tracking.create_experiment("e")
    many = [RunTag(f"k{number}", "v") for number in range(1001)]
    for call in (
        lambda: tracking.create_run(experiment, "ana", 0, many, "run"),
        lambda: tracking.create_experiment("f", None, many),
        lambda: tracking.create_logged_model(experiment, "m", None, many),
        lambda: tracking.create_dataset("d", {tag.key: "v" for tag in many}),
    ):
        with pytest.raises(MlflowException, match="at most 1,000"):
            call()
    assert len(tracking.create_run(experiment, "ana", 0, many[:1000], "run").data.tags) >= 1000


def test_an_admins_token_to_write_speaks_for_nobody_else(tracking: GuardedTracking) -> None:
    experiment = tracking.create_experiment("e")
    token = current_actor.set(Actor("ada", Role.ADMIN, scopes=(Scope("write"),)))
    try:
        run = tracking.create_run(experiment, "bob", 0, [], "run").info
        assert run.user_id == "ada"
        with pytest.raises(MlflowException, match="who made a run stays with it"):
            tracking.set_tag(run.run_id, RunTag("mlflow.user", "bob"))
    finally:
        current_actor.reset(token)


def test_an_experiment_keeps_its_files_at_a_place_of_one_spelling(tracking: GuardedTracking) -> None:
    made = tracking.create_experiment("plain", "mlflow-artifacts:///runs//mine/")
    assert tracking.get_experiment(made).artifact_location == "mlflow-artifacts:/runs/mine"
    with pytest.raises(MlflowException, match="could be read as another"):
        tracking.create_experiment("not", "mlflow-artifacts:/runs/mi%6ee")


def test_no_pattern_of_a_client_holds_the_server(tracking: GuardedTracking) -> None:
    """Python's own engine would try for longer than the sun shines, and answer nobody else meanwhile."""
    experiment = tracking.create_experiment("e")
    found = TraceInfo(
        trace_id="tr-1", trace_location=TraceLocation.from_experiment_id(experiment), request_time=0,
        state=TraceState.OK, tags={"x": "a" * 40 + "!"},
    )  # fmt: skip
    tracking.start_trace(found)

    def search(pattern: str) -> list[str]:
        traces, _ = tracking.search_traces([experiment], f"tags.x RLIKE '{pattern}'")
        return [trace.trace_id for trace in traces]

    assert search("a!$") == ["tr-1"]  # what is loaded once is loaded now
    since = time.monotonic()
    assert search("(a+)+$") == []
    assert time.monotonic() - since < 10
    with pytest.raises(MlflowException) as refused:
        search("(a")
    assert refused.value.get_http_status_code() == 400, "no client should try that again"
