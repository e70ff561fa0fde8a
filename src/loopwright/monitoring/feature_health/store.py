"""SQL of the ledger's `feature_statistics`. Every function works in the caller's transaction."""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import cast

from sqlalchemy import Connection, Row, func, insert, select, update

from loopwright.kernel.clock import from_us, parse_time, to_us
from loopwright.kernel.digest import canonical_json
from loopwright.ledger.schema import feature_statistics as table
from loopwright.ledger.schema import folds
from loopwright.monitoring.feature_health.statistics import FeatureStatistics, Source
from loopwright.monitoring.store import NOT_ITS_ANSWERS
from loopwright.monitoring.windows import Window


def save_statistics(
    conn: Connection, model: str, statistics: Iterable[FeatureStatistics], now: datetime
) -> None:
    """Keep statistics; those of the same feature, source and window are replaced."""
    for one in statistics:
        place = (
            (table.c.model == model)
            & (table.c.feature == one.feature)
            & (table.c.source == one.source)
            & (table.c.start == to_us(one.window.start))
        )
        values = {
            "end": to_us(one.window.end), "view": one.view, "rows": one.rows, "nulls": one.nulls,
            "payload": canonical_json(one.payload()).decode(), "at": to_us(now),
        }  # fmt: skip
        if conn.execute(update(table).where(place).values(**values)).rowcount == 0:
            conn.execute(
                insert(table).values(
                    model=model, feature=one.feature, source=one.source, start=to_us(one.window.start), **values
                )
            )  # fmt: skip


def load_statistics(
    conn: Connection,
    model: str,
    *,
    feature: str | None = None,
    source: Source | None = None,
    since: datetime | None = None,
    windows: int = 1,
) -> list[FeatureStatistics]:
    """Statistics of the newest `windows` windows of each source, oldest first."""
    found: list[FeatureStatistics] = []
    for which in (source,) if source else ("requests", "offline"):
        query = select(table.c.start).distinct().where(table.c.model == model, table.c.source == which)
        if since is not None:
            query = query.where(table.c.start >= to_us(since))
        starts = list(conn.execute(query.order_by(table.c.start.desc()).limit(windows)).scalars())
        rows = select(table).where(table.c.model == model, table.c.source == which, table.c.start.in_(starts))
        if feature is not None:
            rows = rows.where(table.c.feature == feature)
        found += [_of(row) for row in conn.execute(rows.order_by(table.c.start, table.c.feature))]
    return found


def main_version(conn: Connection, model: str, window: Window) -> int | None:
    """The version that answered most in the window, shadow traffic aside; None when none did."""
    query = (
        select(folds.c.version)
        .where(
            folds.c.model == model, folds.c.arm.not_in(NOT_ITS_ANSWERS),
            folds.c.bucket >= to_us(window.start), folds.c.bucket < to_us(window.end),
        )
        .group_by(folds.c.version)
        .order_by(func.sum(folds.c.answers).desc(), folds.c.version)
        .limit(1)
    )  # fmt: skip
    return conn.execute(query).scalar_one_or_none()


def newest_end(conn: Connection, model: str, source: Source) -> datetime | None:
    """The end of the newest window that was counted; None before the first."""
    query = select(func.max(table.c.end)).where(table.c.model == model, table.c.source == source)
    end = conn.execute(query).scalar_one_or_none()
    return None if end is None else from_us(end)


def _of(row: Row[tuple[object, ...]]) -> FeatureStatistics:
    kept = json.loads(row.payload)
    return FeatureStatistics(
        feature=row.feature,
        view=row.view,
        source=cast(Source, row.source),
        window=Window(from_us(row.start), from_us(row.end)),
        rows=row.rows,
        nulls=row.nulls,
        distinct=kept["distinct"],
        minimum=kept["minimum"],
        maximum=kept["maximum"],
        mean=kept["mean"],
        deviation=kept["deviation"],
        infinite=kept["infinite"],
        top=tuple((text, count) for text, count in kept["top"]),
        newest=parse_time(kept["newest"]) if kept["newest"] else None,
    )
