"""What left the routes last stays loaded, so that a rollback waits for nothing; nothing is answered from there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import route_for, table_of, tiny_bundle
from loopwright.serving import loading
from loopwright.serving.engine import Model
from loopwright.serving.loading import load_models

KEY = SigningKey.generate()
Apply = Callable[..., Model]


@pytest.fixture
def depot(tmp_path: Path) -> BundleDepot:
    return BundleDepot(tmp_path / "depot")


@pytest.fixture
def apply(depot: BundleDepot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apply:
    """Route traffic to `arms` as the next table; `apply.opened` counts the bundles read from disk so far."""
    digests = {n: depot.add(tiny_bundle(tmp_path / str(n), KEY, bias=n / 10).path) for n in (1, 2, 3)}
    real, state = loading.open_bundle, {"serial": 0, "models": {}, "opened": []}

    def open_(path: Path, keys: object, **options: object) -> object:
        state["opened"].append(path.name)
        return real(path, keys, **options)

    monkeypatch.setattr(loading, "open_bundle", open_)

    def apply(*arms: Arm, key: SigningKey = KEY) -> Model:
        state["serial"] += 1
        route = route_for(key, {arm.version: digests[arm.version] for arm in arms}, list(arms))
        state["models"] = load_models(
            table_of(state["serial"], route), [KEY.public], depot, state["models"], {}
        )
        return state["models"]["late"]

    apply.opened = state["opened"]  # type: ignore[attr-defined]
    return apply


def stable(version: int, weight: float = 1.0) -> Arm:
    return Arm("stable", version, weight)


def test_the_version_before_comes_back_without_being_read_again(apply: Apply) -> None:
    apply(stable(1))
    apply(stable(1, 0.9), Arm("canary", 2, 0.1))
    after = apply(stable(2))
    assert set(after.versions) == {2}
    assert set(after.standby) == {1}
    read = len(apply.opened)  # type: ignore[attr-defined]
    back = apply(stable(1))
    assert set(back.versions) == {1} and set(back.standby) == {2}
    assert len(apply.opened) == read  # type: ignore[attr-defined]


def test_a_version_that_stands_by_answers_nothing(apply: Apply) -> None:
    apply(stable(1))
    after = apply(stable(2))
    assert all(arm.version == 2 for arm in after.arms)
    assert 1 not in after.versions


def test_only_the_former_stable_one_stands_by(apply: Apply) -> None:
    apply(stable(1))
    apply(stable(1, 0.9), Arm("canary", 2, 0.1))
    after = apply(stable(3))
    assert set(after.standby) == {1}


def test_standing_by_is_no_approval(apply: Apply) -> None:
    apply(stable(1))
    apply(stable(2))
    refused = apply(stable(1), key=SigningKey.generate())
    assert "not key" in refused.refused[1] or "key" in refused.refused[1]
    assert refused.stable is not None and refused.stable.version == 2
