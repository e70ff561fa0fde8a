"""Versions are kept as long as their policy says, and go by one way only."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, NotFound, Refused
from loopwright.kernel.stage import Stage
from loopwright.ledger import store as audit
from loopwright.ledger.engine import Ledger
from loopwright.registry import promotion, retention, store, versions
from loopwright.registry.identity import current_actor
from loopwright.registry.mlflow_store import GovernedRegistry
from tests.governing import vouch
from tests.integration.registry.plane import seal_into

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
YEARS = timedelta(days=365.25 * 7)
AFTER = NOON + YEARS
ANA, ROOT = Actor("ana", Role.DEVELOPER), Actor("root", Role.ADMIN)
BO, CY = Actor("bo", Role.APPROVER), Actor("cy", Role.APPROVER)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> BundleDepot:
    """Three bundles, sealed once."""
    tmp = tmp_path_factory.mktemp("sealed")
    made, key = BundleDepot(tmp / "bundles"), SigningKey.load_or_create(tmp / "key")
    for number in range(3):
        seal_into(made, tmp, (float(number), 1.0), at=NOON, key=key)
    return made


@pytest.fixture
def depot(sealed: BundleDepot, tmp_path: Path) -> BundleDepot:
    return BundleDepot(Path(shutil.copytree(sealed.root, tmp_path / "bundles")))


@pytest.fixture
def bundles(depot: BundleDepot) -> list[str]:
    return depot.digests()


def register(
    ledger: Ledger, bundle: str, model: str = "late", run_id: str | None = None, at: datetime = NOON
) -> int:
    with ledger.write() as conn:
        vouch(conn, model, bundle, at=at)
        return versions.register_version(
            conn, model=model, bundle=bundle, run_id=run_id, snapshot=None, author=ANA, metrics={}, now=at
        ).version


def delete(
    ledger: Ledger, version: int = 1, *, at: datetime = AFTER, actor: Actor = ROOT, **further: Any
) -> None:
    with ledger.write() as conn:
        retention.delete_version(
            conn,
            model="late",
            version=version,
            actor=actor,
            now=at,
            **{"reason": "its time is over"} | further,
        )


def produce(ledger: Ledger, version: int, at: datetime = NOON) -> None:
    with ledger.write() as conn:
        promotion.request_promotion(
            conn, model="late", version=version, stage=Stage.PRODUCTION, actor=ANA, reason="", now=at
        )
        for reviewer in (BO, CY):
            promotion.approve(conn, model="late", version=version, reviewer=reviewer, now=at)


def test_inside_retention_every_path_refuses_and_names_the_day(
    ledger: Ledger, registry_url: str, bundles: list[str]
) -> None:
    register(ledger, bundles[0])
    with pytest.raises(Refused, match="under retention until 2020-07-01"):
        delete(ledger, at=AFTER - timedelta(seconds=1))
    registry = GovernedRegistry(registry_url)
    registry.clock = lambda: NOON + timedelta(days=30)
    token = current_actor.set(ROOT)
    try:
        for call, words in (
            (registry.delete_model_version, ("late", "1")), (registry.delete_registered_model, ("late",)),
        ):  # fmt: skip
            with pytest.raises(MlflowException, match="under retention until 2020-07-01") as refused:
                call(*words)
            assert refused.value.get_http_status_code() == 403
    finally:
        current_actor.reset(token)
    with ledger.read() as conn:
        assert [v.version for v in versions.list_versions(conn, model="late")] == [1]
        assert {row.payload["act"] for row in audit.rows(conn, action="registry.refused")} == {
            "version.deleted", "model.deleted",
        }  # fmt: skip


def test_afterwards_an_admin_deletes_it_and_what_was_decided_stays(
    ledger: Ledger, registry_url: str, depot: BundleDepot, bundles: list[str]
) -> None:
    register(ledger, bundles[0])
    register(ledger, bundles[1])
    registry = GovernedRegistry(registry_url)
    delete(ledger)
    assert retention.drop_bytes(ledger, depot) == [bundles[0]]
    assert depot.digests() == sorted(bundles[1:]) and not list(depot.root.glob(".*"))
    with ledger.read() as conn:
        assert [v.version for v in versions.list_versions(conn, model="late")] == [2]
        with pytest.raises(NotFound, match="version 1 was deleted on 2020-07-01"):
            versions.get_version(conn, model="late", version=1)
        (row,) = audit.rows(conn, subject="late/1", action="version.deleted")
        assert (row.actor, row.payload["reason"], row.payload["bundle"]) == (
            "root",
            "its time is over",
            bundles[0],
        )
        assert audit.rows(conn, subject="late/1", action="version.registered") and audit.verify(conn).ok
    assert [v.version for v in registry.search_model_versions("name = 'late'")] == [2]
    with pytest.raises(MlflowException, match="not found"):
        registry.get_model_version("late", "1")
    with pytest.raises(NotFound, match="was deleted"):
        delete(ledger)
    assert register(ledger, bundles[2]) == 3


def test_only_admins_and_never_without_a_reason(ledger: Ledger, bundles: list[str]) -> None:
    register(ledger, bundles[0])
    for actor in (ANA, BO, Actor("tom", Role.ADMIN, scopes=())):
        with pytest.raises(Refused, match="may not delete late/1"):
            delete(ledger, actor=actor)
    with pytest.raises(BadInput, match="reason"):
        delete(ledger, reason=" ")
    with pytest.raises(NotFound):
        delete(ledger, 9)


def test_what_is_in_use_never_goes_however_old(ledger: Ledger, bundles: list[str]) -> None:
    for bundle in bundles:
        register(ledger, bundle)
    produce(ledger, 1)
    with pytest.raises(Refused, match="it is in Production"):
        delete(ledger, 1, at=AFTER + YEARS)
    produce(ledger, 2, NOON + timedelta(days=1))
    with ledger.write() as conn:
        promotion.archive(conn, model="late", version=1, why="replaced", now=NOON + timedelta(days=2))
    with pytest.raises(Refused, match="a rollback would go back to it"):
        delete(ledger, 1, at=AFTER + YEARS)
    with ledger.write() as conn:
        promotion.request_promotion(
            conn, model="late", version=3, stage=Stage.STAGING, actor=ANA, reason="", now=NOON
        )
    with pytest.raises(Refused, match="a promotion waits for a decision"):
        delete(ledger, 3, at=AFTER + YEARS)


def test_the_years_count_from_the_last_use(ledger: Ledger, bundles: list[str]) -> None:
    for bundle in bundles:
        register(ledger, bundle)
    for version, year in ((1, 0), (2, 3), (3, 5)):
        produce_at = NOON + timedelta(days=365 * year)
        with ledger.write() as conn:
            vouch(conn, "late", bundles[version - 1], at=produce_at)
        produce(ledger, version, produce_at)
    archived = NOON + timedelta(days=365 * 3)
    with ledger.write() as conn:
        for version in (1, 2):
            promotion.archive(conn, model="late", version=version, why="replaced", now=archived)
    with ledger.read() as conn:
        assert retention.standing(conn, model="late", version=1).kept_until == archived + YEARS
    with pytest.raises(Refused, match="until"):
        delete(ledger, 1, at=AFTER)
    delete(ledger, 1, at=archived + YEARS)


def test_a_bundle_that_another_version_or_a_copy_has_stays(
    ledger: Ledger, registry_url: str, depot: BundleDepot, bundles: list[str]
) -> None:
    register(ledger, bundles[0])
    register(ledger, bundles[0], model="other")
    register(ledger, bundles[1])
    registry = GovernedRegistry(registry_url)
    token = current_actor.set(ANA)
    try:
        registry.create_registered_model("copies")
        registry.create_model_version("copies", "models:/late/2")
    finally:
        current_actor.reset(token)
    delete(ledger, 1)
    delete(ledger, 2)
    assert retention.drop_bytes(ledger, depot) == []
    assert depot.digests() == sorted(bundles)


def test_killed_between_deciding_and_dropping_it_finishes_the_next_time(
    ledger: Ledger, depot: BundleDepot, bundles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for bundle in bundles:
        register(ledger, bundle)
    delete(ledger, 1)
    delete(ledger, 2)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("withdraw", "sweep"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(BundleDepot, place, killed)
            retention.drop_bytes(ledger, depot)
        assert set(depot.digests()) >= {bundles[2]}
    retention.drop_bytes(ledger, depot)
    assert depot.digests() == [bundles[2]] and [path.name for path in depot.root.iterdir()] == [bundles[2]]
    assert retention.drop_bytes(ledger, depot) == []


def test_a_model_goes_with_its_versions_and_goes_on_counting_when_it_comes_back(
    ledger: Ledger, registry_url: str, bundles: list[str]
) -> None:
    registry = GovernedRegistry(registry_url)
    freed: list[bool] = []
    registry.freed = lambda: freed.append(True)
    registry.clock = lambda: AFTER
    for bundle in bundles[:2]:
        register(ledger, bundle)
    token = current_actor.set(ROOT)
    try:
        registry.delete_registered_model("late")
        assert freed == [True] and registry.search_registered_models() == []
        with ledger.read() as conn:
            assert versions.list_models(conn) == []
        registry.create_registered_model("late")
        assert registry.create_model_version("late", "s3://b/x").version == 3
        assert [v.version for v in registry.search_model_versions("name = 'late'")] == [3]
        with pytest.raises(MlflowException, match="under retention until 2027"):
            registry.delete_model_version("late", "3")
    finally:
        current_actor.reset(token)
    assert register(ledger, bundles[2]) == 4


def test_one_version_that_must_stay_keeps_the_model_whole(
    ledger: Ledger, registry_url: str, bundles: list[str]
) -> None:
    register(ledger, bundles[0])
    register(ledger, bundles[1], at=NOON + timedelta(days=30))
    registry = GovernedRegistry(registry_url)
    registry.clock = lambda: AFTER
    token = current_actor.set(ROOT)
    try:
        with pytest.raises(MlflowException, match="late/2: versions are kept"):
            registry.delete_registered_model("late")
    finally:
        current_actor.reset(token)
    with ledger.read() as conn:
        assert [v.version for v in versions.list_versions(conn, model="late")] == [1, 2]


def test_what_may_go_is_listed(ledger: Ledger, bundles: list[str]) -> None:
    register(ledger, bundles[0])
    register(ledger, bundles[1], at=NOON + timedelta(days=30))
    register(ledger, bundles[2], model="other")
    with ledger.read() as conn:
        found = retention.standings(conn)
        assert [(one.version.subject, one.may_go(AFTER)) for one in found] == [
            ("late/1", True), ("late/2", False), ("other/1", True),
        ]  # fmt: skip
        assert [one.version.version for one in retention.standings(conn, model="late")] == [1, 2]
        assert found[0].to_json()["kept_until"] == "2020-07-01T06:00:00Z"


def test_the_run_of_a_deleted_version_is_held_no_longer(ledger: Ledger, bundles: list[str]) -> None:
    register(ledger, bundles[0], run_id="r" * 32)
    with ledger.read() as conn:
        assert store.versions_of_runs(conn, ["r" * 32]) == [("r" * 32, "late", 1)]
    delete(ledger)
    with ledger.read() as conn:
        assert store.versions_of_runs(conn, ["r" * 32]) == []
