"""SQL on MLflow's rows for what a client's call may not do: overwrite, forge, exceed, reuse."""

from datetime import datetime

from sqlalchemy import Connection, column, func, insert, select, table

from loopwright.kernel.clock import to_us
from loopwright.registry.store import (
    ML_DELETED,
    WORKSPACE,
    ml_aliases,
    ml_model_tags,
    ml_runs,
    ml_tags,
    ml_versions,
    next_version,
)

ml_logged = table(
    "logged_models",
    *map(column, ("name", "artifact_location", "source_run_id", "lifecycle_stage", "creation_timestamp_ms")),
)


def has_ml_versions(conn: Connection, model: str) -> bool:
    """Whether MLflow has a row of any version under the name, those that keep a number only included."""
    query = select(ml_versions.c.version).where(
        ml_versions.c.workspace == WORKSPACE, ml_versions.c.name == model
    )
    return conn.execute(query.limit(1)).first() is not None


def keep_counting(conn: Connection, model: str, now: datetime) -> None:
    """Let MLflow's next number come after ours: it counts its own rows, and a model made again has none."""
    theirs = select(func.max(ml_versions.c.version)).where(
        ml_versions.c.workspace == WORKSPACE, ml_versions.c.name == model
    )
    last = next_version(conn, model) - 1
    if last > (conn.execute(theirs).scalar() or 0):
        moment = to_us(now) // 1000
        conn.execute(
            insert(ml_versions).values(
                workspace=WORKSPACE, name=model, version=last, creation_time=moment, last_updated_time=moment,
                current_stage=ML_DELETED, status="READY",
            )
        )  # fmt: skip


def count_ml_tags(conn: Connection, model: str, version: int | None = None, *, besides: str = "") -> int:
    """How many tags MLflow keeps on a model or a version, not counting the key `besides`."""
    rows = ml_model_tags if version is None else ml_tags
    query = select(func.count()).where(
        rows.c.workspace == WORKSPACE, rows.c.name == model, rows.c.key != besides
    )
    if version is not None:
        query = query.where(ml_tags.c.version == version)
    return int(conn.execute(query).scalar_one())


def ml_tags_of(conn: Connection, model: str, version: int) -> dict[str, str]:
    """The tags on MLflow's row of the version."""
    query = select(ml_tags.c.key, ml_tags.c.value).where(
        ml_tags.c.workspace == WORKSPACE, ml_tags.c.name == model, ml_tags.c.version == version
    )
    return {str(key): str(value) for key, value in conn.execute(query)}


def ml_alias(conn: Connection, model: str, alias: str) -> int | None:
    """The version that MLflow's alias names."""
    where = (ml_aliases.c.workspace == WORKSPACE, ml_aliases.c.name == model, ml_aliases.c.alias == alias)
    return conn.execute(select(ml_aliases.c.version).where(*where)).scalar_one_or_none()


def files_of_run(conn: Connection, run_id: str, path: str) -> str | None:
    """Where `runs:/RUN/PATH` lies: in the run's logged model of this name, else among its artifacts."""
    logged = select(ml_logged.c.artifact_location).where(
        ml_logged.c.source_run_id == run_id,
        ml_logged.c.name == path.split("/")[0],
        ml_logged.c.lifecycle_stage == "active",
    )
    found = conn.execute(
        logged.order_by(ml_logged.c.creation_timestamp_ms.desc()).limit(1)
    ).scalar_one_or_none()
    if found is not None:
        return "/".join([str(found).rstrip("/"), *path.split("/")[1:]])
    root = conn.execute(
        select(ml_runs.c.artifact_uri).where(ml_runs.c.run_uuid == run_id)
    ).scalar_one_or_none()
    return None if root is None else f"{str(root).rstrip('/')}/{path}"


def is_run_deleted(conn: Connection, run_id: str) -> bool:
    """Whether tracking has marked the run as deleted: it and its files may go at any time."""
    query = select(ml_runs.c.lifecycle_stage).where(ml_runs.c.run_uuid == run_id)
    return conn.execute(query).scalar_one_or_none() == "deleted"


def user_of_run(conn: Connection, run_id: str) -> str | None:
    """Who made the run, as tracking keeps it."""
    return conn.execute(select(ml_runs.c.user_id).where(ml_runs.c.run_uuid == run_id)).scalar_one_or_none()


def ml_sources_at(conn: Connection, uris: list[str], below: str) -> list[tuple[str, int]]:
    """Versions whose files lie at one of `uris` or under the prefix `below`, in any case: some disks know none."""
    place = func.lower(func.coalesce(ml_versions.c.storage_location, ml_versions.c.source))
    # Compared as text ranges, not LIKE: no wildcard to escape, and the prefix is exact on both engines.
    under = func.substr(place, 1, len(below)) == func.lower(below)
    at = place.in_([func.lower(uri) for uri in uris])
    query = select(ml_versions.c.name, ml_versions.c.version).where(at | under).limit(5)
    return [(str(name), int(version)) for name, version in conn.execute(query)]


def ml_sources_in_run(conn: Connection, run_id: str) -> list[tuple[str, int]]:
    """Versions whose files lie among the artifacts of the run."""
    place = func.coalesce(ml_versions.c.storage_location, ml_versions.c.source)
    query = select(ml_versions.c.name, ml_versions.c.version).where(
        place.contains(f"/{run_id}/artifacts", autoescape=True)
    )
    return [(str(name), int(version)) for name, version in conn.execute(query.limit(5))]


def runs_of_experiment(conn: Connection, experiment_id: str) -> list[str]:
    query = select(ml_runs.c.run_uuid).where(ml_runs.c.experiment_id == int(experiment_id))
    return [str(run) for run in conn.execute(query).scalars()]
