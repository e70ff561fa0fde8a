"""Frames of training rows, built once per snapshot and feature code, and cut from the cache afterwards.

What is known about a row does not depend on when it is asked: its inputs come from before its own event time. So the
frame of all rows serves every `data.as_of`; only which rows and labels are there yet is cut for each.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopwright import __version__
from loopwright.data.files import Files
from loopwright.data.lake import Lake
from loopwright.data.snapshot import snapshot_files
from loopwright.features.frame import Frame
from loopwright.features.module import FeatureModule
from loopwright.features.offline import build_frame
from loopwright.kernel.clock import to_us
from loopwright.kernel.digest import digest_json
from loopwright.kernel.files import write_atomic
from loopwright.project.spec import Project
from loopwright.training.code import code_digest

KEPT = 4
"""Cached frames of a home; the least recently written ones beyond are deleted."""


def frame_of(
    project: Project, module: FeatureModule, lake: Lake, snapshot: str, *, cache: Path | None
) -> Frame:
    """All rows of the snapshot with what was known about each; `cache` is a folder, None builds afresh.

    A cached frame that cannot be read is built again. Raises Refused where a view fails a test that blocks.
    """
    label_after = project.spec.data.label.available_after

    def build() -> Frame:
        return build_frame(module, pinned_files(lake, snapshot, module), label_available_after=label_after)

    if cache is None:
        return build()
    key = digest_json(
        {
            "snapshot": snapshot,
            "code": code_digest(project.dir),
            "features": project.spec.features,
            "label_after": label_after.total_seconds(),
            "version": __version__,
        }
    )
    path = cache / f"{key}.arrow"
    found = _read(path)
    if found is not None:
        return Frame(found, dict(module.inputs))
    frame = build()
    if not frame.classes:  # classes are read off the labels: they stay with the frame that was built
        cache.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _bytes(frame.table))
        _prune(cache)
    return frame


def known_rows(
    project: Project,
    module: FeatureModule,
    lake: Lake,
    snapshot: str,
    *,
    until: datetime | None,
    cache: Path | None,
    told: Callable[[Frame], None] | None = None,
) -> Frame:
    """The rows a run may learn from: event times before `until`, with labels known by then.

    `told` gets the frame of all rows, where that is what the answer was cut from.
    """
    simple = is_simple(module)
    if simple or until is None:
        whole = frame_of(project, module, lake, snapshot, cache=cache if simple else None)
        if told is not None:
            told(whole)
        if not whole.classes or until is None:
            return as_known(whole, until)  # else classes of later labels would be known too early
    return build_frame(
        module,
        pinned_files(lake, snapshot, module),
        label_available_after=project.spec.data.label.available_after,
        until=until,
        require_label=True,
    )


def is_simple(module: FeatureModule) -> bool:
    """Whether the rows of every `as_of` are cut from one frame: no class that is known only later changes it."""
    return (
        bool(module.spine.key and module.spine.event_time)
        and not module.classes
        and module.task != "multiclass"
    )


def pinned_files(lake: Lake, snapshot: str, module: FeatureModule) -> dict[str, Files]:
    """The tables a module reads as the snapshot pins them; nothing is read yet."""
    return {name: snapshot_files(lake, snapshot, name) for name in module.tables()}


def as_known(whole: Frame, until: datetime | None) -> Frame:
    """Rows of `whole` with event times before `until` whose label was known by then."""
    if until is None:
        return whole.labelled()
    part = whole.slice(None, until)
    known = part.label_times() <= np.datetime64(to_us(until), "us")
    return part.take(known & ~np.isnan(part.labels()))


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _read(path: Path) -> pa.Table | None:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            return reader.read_all()
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def _prune(cache: Path) -> None:
    files = sorted(cache.glob("*.arrow"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in files[KEPT:]:
        old.unlink(missing_ok=True)
