"""Homes, whole files and locks."""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.kernel.files import lock, write_atomic
from loopwright.kernel.home import Home


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "f"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match=r"f: cannot write \(No space left on device\)"):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_explained(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(Unavailable, match="cannot write"):
        write_atomic(tmp_path / "f", b"")


def test_a_private_file_is_never_readable_by_others(tmp_path: Path) -> None:
    write_atomic(tmp_path / "key", b"secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def _add_one(folder: str) -> None:
    counter = Path(folder) / "count"
    for _ in range(50):
        with lock(Path(folder) / "lock"):
            counter.write_text(str(int(counter.read_text()) + 1))


def test_a_lock_keeps_processes_apart(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_one, args=[str(tmp_path)]) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "count").read_text() == "200"


def test_a_home_is_only_a_name_until_it_is_created(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    assert not home.exists()
    assert home.ledger_url == f"sqlite:///{tmp_path}/home/ledger.db"
    assert list(tmp_path.iterdir()) == []


def test_creating_a_home_twice_is_the_same_as_once(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home").create()
    (home.lake / "kept").touch()
    assert home.create().exists()
    assert (home.lake / "kept").exists()
    assert home.bundles.is_dir()
    assert stat.S_IMODE(home.keys.stat().st_mode) == 0o700


def test_a_home_may_name_another_database(tmp_path: Path) -> None:
    home = Home.at(tmp_path).create()
    home.config.write_text(json.dumps({"ledger_url": "postgresql://ada@db/loopwright"}))
    assert home.ledger_url == "postgresql://ada@db/loopwright"


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_broken_home_json_is_explained(tmp_path: Path, text: str) -> None:
    home = Home.at(tmp_path).create()
    home.config.write_text(text)
    with pytest.raises(BadInput, match=r"home\.json"):
        _ = home.ledger_url


def test_a_home_where_a_file_stands_is_explained(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(Unavailable, match="cannot create a home here"):
        Home.at(tmp_path / "home").create()
