"""A project's features brought online: its code, its tables and its home put to work together."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from loopwright.data.lake import Lake
from loopwright.features.materialize import Done, Work, materialize
from loopwright.features.module import FeatureModule, load_features
from loopwright.features.online import open_store
from loopwright.kernel.actor import Actor
from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import LoopwrightError
from loopwright.kernel.home import Home
from loopwright.kernel.progress import Progress
from loopwright.ledger.engine import Ledger
from loopwright.project.spec import Project


@contextmanager
def online_work(
    project: Project,
    home: Home,
    ledger: Ledger,
    actor: Actor,
    clock: Clock,
    *,
    watch: Progress | None = None,
    module: FeatureModule | None = None,
) -> Iterator[Work]:
    """What `features.materialize` works with, for this project; its store is closed at the end."""
    store = open_store(home.online_url)
    staging = home.cache / "online"
    staging.mkdir(parents=True, exist_ok=True)
    try:
        yield Work(
            module=module or load_features(project), model=project.spec.model, lake=Lake.of(home, ledger),
            store=store, actor=actor, clock=clock, staging=staging, watch=watch,
            label_available_after=project.spec.data.label.available_after,
        )  # fmt: skip
    finally:
        store.close()


def materialize_project(
    project: Project,
    home: Home,
    ledger: Ledger,
    actor: Actor,
    clock: Clock,
    *,
    watch: Progress | None = None,
    as_of: datetime | None = None,
    views: Sequence[str] | None = None,
    full: bool = False,
    since: datetime | None = None,
    entities: Sequence[Mapping[str, Any]] | None = None,
    dry_run: bool = False,
) -> list[Done]:
    """Bring the online store of `home` up to what is known at `as_of` (now); see `features.materialize`."""
    with online_work(project, home, ledger, actor, clock, watch=watch) as work:
        return materialize(
            work, as_of=as_of, views=views, full=full, since=since, entities=entities, dry_run=dry_run
        )


def after_run(
    project: Project, home: Home, ledger: Ledger, actor: Actor, clock: Clock, watch: Progress
) -> None:
    """Materialise where the project asks for it after each run (`online: {after_run: true}`).

    A store that is away does not undo a run: what went wrong is noted, stands in the ledger, and the next one goes on.
    """
    if project.spec.online is None or not project.spec.online.after_run:
        return
    try:
        materialize_project(project, home, ledger, actor, clock, watch=watch)
    except LoopwrightError as error:
        watch.note(f"the features are not online: {error}")
