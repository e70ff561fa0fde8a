"""Operations as Python calls them: roles, arguments, the road to production."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loopwright.control.context import Context
from loopwright.control.operation import every_operation, find
from loopwright.delivery.routes import stable_version
from loopwright.kernel.errors import BadInput, Conflict, LoopwrightError, NotFound, Refused
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.pipeline.store import save_project
from loopwright.project.spec import Spec
from loopwright.registry.promotion import request_promotion
from tests.governing import ask_for_nothing

Register = Callable[..., int]
People = dict[str, Context]


def to_production(people: People, version: int, model: str = "late") -> None:
    find("models.promote")(people["dora"], model=model, version=version)
    find("models.approve")(people["ada"], model=model, version=version)
    find("models.approve")(people["bob"], model=model, version=version)


def test_every_operation_says_what_it_does_and_has_its_own_address() -> None:
    operations = every_operation()
    assert all(operation.summary.endswith(".") or ":" in operation.summary for operation in operations)
    places = [(operation.method, operation.path) for operation in operations]
    assert len(set(places)) == len(places)
    for operation in operations:
        assert set(operation.in_path) <= set(operation.parameters)


def test_an_unknown_operation_names_the_nearest() -> None:
    with pytest.raises(NotFound, match=r"models\.rollback"):
        find("models.rolback")


def test_an_unknown_argument_names_the_nearest(ctx: Context) -> None:
    with pytest.raises(BadInput, match="did you mean `name`"):
        find("access.add_user")(ctx, nmae="ada")


def test_a_missing_argument_is_named(ctx: Context) -> None:
    with pytest.raises(BadInput, match="`version` is missing"):
        find("models.promote")(ctx, model="late")


def test_a_viewer_may_look_and_nothing_else(people: People, register: Register) -> None:
    register()
    assert find("models.list")(people["vera"])
    with pytest.raises(Refused, match="vera may not"):
        find("models.promote")(people["vera"], model="late", version=1)
    with pytest.raises(Refused, match="vera may not"):
        find("access.add_user")(people["vera"], name="eve", role="admin")


def test_two_reviewers_bring_the_first_version_to_all_traffic(people: People, register: Register) -> None:
    register()
    asked = find("models.promote")(people["dora"], model="late", version=1, reason="first")
    assert isinstance(asked, dict)
    assert asked["state"] == "pending"
    assert asked["missing"]
    once = find("models.approve")(people["ada"], model="late", version=1)
    assert isinstance(once, dict)
    assert once["state"] == "pending"
    twice = find("models.approve")(people["bob"], model="late", version=1)
    assert isinstance(twice, dict)
    assert twice["state"] == "effective"
    assert twice["missing"] == []
    row = find("system.status")(people["vera"])[0]  # type: ignore[index]
    assert row["stable"] == 1  # type: ignore[index,call-overload]
    assert row["production"] == [1]  # type: ignore[index,call-overload]


def test_the_author_and_a_person_twice_are_refused(people: People, register: Register) -> None:
    register()
    find("models.promote")(people["dora"], model="late", version=1)
    find("models.approve")(people["ada"], model="late", version=1)
    with pytest.raises((Refused, Conflict)):
        find("models.approve")(people["ada"], model="late", version=1)
    with pytest.raises(Refused):
        find("models.approve")(people["dora"], model="late", version=1)


def test_a_version_whose_gates_failed_does_not_get_to_production(people: People, register: Register) -> None:
    register(gates=Verdict.FAIL)
    find("models.promote")(people["dora"], model="late", version=1)
    find("models.approve")(people["ada"], model="late", version=1)
    answer = find("models.approve")(people["bob"], model="late", version=1)
    assert isinstance(answer, dict)
    assert answer["state"] == "pending"
    assert any("gates" in lack for lack in answer["missing"])  # type: ignore[union-attr]


def test_the_second_version_goes_through_a_rollout_and_rollback_ends_it(
    people: People, register: Register
) -> None:
    register()
    register()
    to_production(people, 1)
    to_production(people, 2)
    rollout = find("delivery.show")(people["vera"], model="late")
    assert isinstance(rollout, dict)
    assert (rollout["version"], rollout["baseline"], rollout["status"]) == (2, 1, "running")
    paused = find("delivery.pause")(people["ada"], model="late")
    assert isinstance(paused, dict)
    assert paused["status"] == "paused"
    back = find("models.rollback")(people["ada"], model="late", reason="smells")
    assert isinstance(back, dict)
    assert (back["from_version"], back["to_version"]) == (2, 1)
    row = find("system.status")(people["vera"])[0]  # type: ignore[index]
    assert (row["stable"], row["production"], row["canary"]) == (1, [1], None)  # type: ignore[index,call-overload]


def test_while_a_rollout_runs_no_other_promotion_is_taken(people: People, register: Register) -> None:
    for _ in range(3):
        register()
    to_production(people, 1)
    to_production(people, 2)
    with pytest.raises(Conflict, match="being rolled out"):
        find("models.promote")(people["dora"], model="late", version=3)


def test_unknown_models_and_versions_name_the_nearest(people: People, register: Register) -> None:
    register()
    ctx = people["ada"]
    attempts: list[tuple[str, dict[str, object]]] = [
        ("models.show", {"model": "lat"}), ("models.rollback", {"model": "lat"}), ("delivery.show", {"model": "lat"}),
        ("system.status", {"model": "lat"}), ("monitoring.drift", {"model": "lat"}),
        ("monitoring.quality", {"model": "lat"}), ("retrains.list", {"model": "lat"}),
    ]  # fmt: skip
    for name, arguments in attempts:
        with pytest.raises(NotFound, match="did you mean `late`"):
            find(name)(ctx, **arguments)
    with pytest.raises(NotFound):
        find("models.show")(ctx, model="late", version=9)


def test_every_change_leaves_a_row_in_the_audit_log(ctx: Context, people: People, register: Register) -> None:
    register()
    to_production(people, 1)
    rows = find("audit.show")(ctx, limit=1000)
    assert isinstance(rows, list)
    actions = [row["action"] for row in rows]  # type: ignore[index,call-overload]
    for expected in ("user.added", "promotion.requested", "promotion.effective", "rollout.completed"):
        assert expected in actions
    assert find("audit.verify")(ctx)["ok"]  # type: ignore[index,call-overload]


def test_acting_under_a_users_name_is_written_down(ctx: Context, people: People, register: Register) -> None:
    register()
    assumed = ctx.acting_as(people["dora"].actor, assumed_by=ctx.actor)
    find("models.promote")(assumed, model="late", version=1)
    rows = find("audit.show")(ctx, action="user.assumed")
    assert isinstance(rows, list)
    assert [(row["actor"], row["subject"]) for row in rows] == [("local", "dora")]  # type: ignore[index,call-overload]


def test_labels_are_added_once(ctx: Context, register: Register) -> None:
    register()
    add = find("monitoring.add_labels")
    rows = [{"id": "a", "label": 1.0}, {"id": "b", "label": None, "available_at": "2013-07-01T00:00:00Z"}]
    assert add(ctx, model="late", labels=rows) == add(ctx, model="late", labels=rows)
    noted = find("audit.show")(ctx, action="labels.added")
    assert isinstance(noted, list)
    assert len(noted) == 1


@pytest.mark.parametrize(
    "labels",
    [[], [{"id": "a"}], [{"id": "a", "label": 1, "x": 2}],
     [{"id": "a", "label": 1, "available_at": "2013-07-01T00:00:00"}],
     [{"id": "a", "label": "nonsense"}]],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(ctx: Context, register: Register, labels: list[object]) -> None:
    register()
    with pytest.raises(BadInput):
        find("monitoring.add_labels")(ctx, model="late", labels=labels)


def test_a_tick_on_a_bare_folder_moves_rollouts(ctx: Context, people: People, register: Register) -> None:
    register()
    to_production(people, 1)
    assert find("system.tick")(ctx) == []
    with pytest.raises(Refused, match="bob may not"):
        find("system.tick")(people["bob"])


def test_an_error_leaves_nothing_half_written(ctx: Context, people: People, register: Register) -> None:
    register()
    before = find("audit.verify")(ctx)
    with pytest.raises(LoopwrightError):
        find("models.promote")(people["dora"], model="late", version=1, to="archived")
    assert find("audit.verify")(ctx) == before


def a_spec(**policy: object) -> dict[str, object]:
    sources = {"flights": {"uri": "flights.csv", "contract": "flights.yaml"}}
    data = {"sources": sources, "label": {"name": "late"}}
    return Spec.from_json({"model": "late", "task": "binary", "data": data, "policy": policy}).to_json()


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ({"approvals": {"production": 0}}, "production approvals 0 instead of 2"),
        ({"approvals": {"staging": 0}}, "staging approvals 0 instead of 1"),
        ({"author_may_approve": True}, "authors may approve"),
    ],
)
def test_a_developer_does_not_loosen_the_policy_they_work_under(
    ctx: Context, people: People, register: Register, policy: dict[str, object], why: str
) -> None:
    register()
    find("projects.apply")(ctx, model="late", path="/srv/late", spec=a_spec())
    with pytest.raises(Refused, match=why):
        find("projects.apply")(people["dora"], model="late", path="/srv/late", spec=a_spec(**policy))
    asked = find("models.promote")(people["dora"], model="late", version=1)
    assert isinstance(asked, dict)
    assert asked["state"] == "pending"
    find("projects.apply")(ctx, model="late", path="/srv/late", spec=a_spec(**policy))


def test_a_developer_does_not_send_the_control_plane_to_train_elsewhere(ctx: Context, people: People) -> None:
    apply = find("projects.apply")
    with pytest.raises(Refused, match="from where"):
        apply(people["dora"], model="late", path="/tmp/uploaded", spec=a_spec())
    apply(ctx, model="late", path="/srv/late", spec=a_spec())
    with pytest.raises(Refused, match="from where"):
        apply(people["dora"], model="late", path="/tmp/uploaded", spec=a_spec())
    strict = a_spec(approvals={"production": 3})
    changed = apply(people["dora"], model="late", path="/srv/late", spec=strict)
    assert isinstance(changed, dict)
    assert changed["changed"] == ["policy"]
    with pytest.raises(Refused, match="production approvals 2 instead of 3"):
        apply(people["dora"], model="late", path="/srv/late", spec=a_spec())


def test_what_is_wrong_with_one_model_does_not_undo_an_approval_of_another(
    ctx: Context, people: People, register: Register
) -> None:
    register()
    with ctx.ledger.write() as conn:
        ask_for_nothing(conn, "late", at=ctx.now)
        # Made effective by a plain MLflow client, say: its rollout is due, and its stored loop.yaml is no longer read.
        request_promotion(
            conn,
            model="late",
            version=1,
            stage=Stage.PRODUCTION,
            actor=people["dora"].actor,
            reason="",
            now=ctx.now,
        )
        save_project(conn, "late", "/srv/late", {"model": "late", "unknown": 1}, "0", ctx.now)
    to_production(people, register("early"), model="early")
    with ctx.ledger.read() as conn:
        assert stable_version(conn, "early") == 1
        assert stable_version(conn, "late") is None


@pytest.mark.parametrize("operation", ["data.check", "data.snapshot"])
def test_what_an_mlflow_client_uploaded_is_no_project(
    ctx: Context, people: People, tmp_path: Path, operation: str
) -> None:
    (tmp_path / "others.csv").write_text("secret,late\nx,0\n")
    folder = ctx.home.artifacts / "1" / "run" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "loop.yaml").write_text(
        "model: late\ntask: binary\ndata:\n  label: {name: late}\n"
        f"  sources: {{others: {{uri: {tmp_path / 'others.csv'}, contract: others.yaml}}}}\n"
    )
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    for named in (folder, linked, ctx.home.artifacts / ".." / "artifacts" / "1" / "run" / "artifacts"):
        with pytest.raises(Refused, match="uploaded files are no project"):
            find(operation)(people["dora"], project=str(named))
