"""Keeps a copy of a project's own files with each run, so that the run can be rebuilt when the project has moved on."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from loopwright.kernel.digest import canonical_json, digest_json
from loopwright.kernel.errors import BadInput, NotFound
from loopwright.kernel.files import write_atomic
from loopwright.kernel.home import Home
from loopwright.project.spec import Project, Spec

MAX_FILE = 5_000_000
MAX_TOTAL = 50_000_000
SUFFIXES = frozenset({".py", ".yaml", ".yml", ".json", ".toml", ".sql", ".md", ".txt", ".cfg"})


@dataclass(frozen=True)
class Kept:
    """Where a run's project lies, and its composed loop.yaml as text."""

    folder: Path
    composed: str


def keep_project(project: Project, home: Home, run_id: str) -> Kept:
    """Copy the project's code and configuration (never its data) to the home's `runs/<run>/project`.

    Raises BadInput when code and configuration exceed 50 MB: that is data in the wrong place.
    """
    folder = home.root / "runs" / run_id / "project"
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for source in _own_files(project.dir):
        total += source.stat().st_size
        if total > MAX_TOTAL:
            raise BadInput(
                "the project's code and configuration are too large to keep with a run",
                where=str(project.dir),
                got=f"more than {MAX_TOTAL // 1_000_000} MB",
                wanted="code and configuration only",
                next="Move data files out of the project's folder.",
            )
        target = folder / source.relative_to(project.dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    write_atomic(folder.parent / "spec.json", canonical_json(project.spec.to_json()))
    return Kept(folder, yaml.safe_dump(project.spec.to_json(), sort_keys=False, allow_unicode=True))


def kept_project(home: Home, run_id: str) -> Project:
    """The project as it was when the run started; raises NotFound when the run kept none."""
    folder = home.root / "runs" / run_id / "project"
    document = folder.parent / "spec.json"
    if not document.is_file():
        raise NotFound(
            "this run kept no project",
            where=str(folder),
            wanted="a run made by `loopwright run` on this home",
            next="loopwright runs list",
        )
    spec = Spec.from_json(json.loads(document.read_bytes()))
    return Project(folder, spec, digest_json(spec.to_json()))


def _own_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and f not in {"__pycache__", "data", "node_modules"}
        )
        for name in sorted(files):
            path = Path(folder) / name
            if path.suffix in SUFFIXES and not path.is_symlink() and path.stat().st_size <= MAX_FILE:
                yield path
