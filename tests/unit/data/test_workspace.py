import os
import time
from pathlib import Path

import pytest

from loopwright.data.workspace import YOUNG, workspace
from loopwright.kernel.errors import Unavailable


def age(folder: Path) -> None:
    then = time.time() - YOUNG - 1
    os.utime(folder, (then, then))


def test_a_workspace_is_its_owners_and_gone_afterwards(tmp_path: Path) -> None:
    with workspace(tmp_path / "staging") as folder:
        (folder / "rows.parquet").write_bytes(b"rows")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "staging").iterdir()) == []


def test_what_a_dead_process_left_is_deleted_and_a_living_one_keeps_its_own(tmp_path: Path) -> None:
    dead = tmp_path / "landing_dead"
    dead.mkdir()
    (dead / ".alive").touch()
    (dead / "rows.parquet").write_bytes(b"rows")
    age(dead)
    with workspace(tmp_path) as living:
        age(living)
        with workspace(tmp_path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([living, other])


def test_a_folder_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Unavailable, match="file: cannot make a folder"), workspace(tmp_path / "file"):
        pass
