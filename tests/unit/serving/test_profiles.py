"""What the shipping side knows of versions, also when a bundle is damaged or gone."""

from pathlib import Path

import pytest

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import MANIFEST
from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import route_for, table_of, tiny_bundle
from loopwright.serving.cache import Cache
from loopwright.serving.profiles import Profiles

KEY = SigningKey.generate()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "serving")
    cache.create()
    return cache


def test_a_version_is_known_by_its_inputs_after_a_restart_and_one_that_is_gone_by_nothing(
    cache: Cache, tmp_path: Path
) -> None:
    said: list[str] = []
    digest = cache.depot.add(tiny_bundle(tmp_path / "one", KEY).path)
    table = table_of(
        1, route_for(KEY, {1: digest, 2: "0" * 64}, (Arm("stable", 1, 1.0), Arm("canary", 2, 0.1)))
    )
    Profiles(cache, said.append).remember(table)
    again = Profiles(cache, said.append)
    assert again.inputs("late", 1) == ("distance", "hour", "carrier")
    assert again.profiler("late", 1) is not None
    assert (again.inputs("late", 2), again.profiler("late", 3), said) == (None, None, [])


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_bundle_that_cannot_be_read_holds_up_no_row_and_is_said_once(
    cache: Cache, tmp_path: Path, damage: str
) -> None:
    said: list[str] = []
    digest = cache.depot.add(tiny_bundle(tmp_path / "one", KEY).path)
    profiles = Profiles(cache, said.append)
    profiles.remember(table_of(1, route_for(KEY, {1: digest}, (Arm("stable", 1, 1.0),))))
    file = cache.depot.path(digest) / ("reference.json" if damage == "gone" else MANIFEST)
    whole = file.read_bytes()
    file.chmod(0o600)
    file.parent.chmod(0o700)
    file.unlink() if damage == "gone" else file.write_bytes(whole[:40])
    assert [profiles.profiler("late", 1), profiles.inputs("late", 1)] == [None, None]
    assert len(said) == 1
    assert "cannot be read" in said[0]
    # Brought again, it is looked at again.
    file.write_bytes(whole)
    assert profiles.profiler("late", 1) is not None
