"""How new the newest row is that a view could know at a moment."""

from datetime import datetime

from loopwright.features.duck import Tables, check_source, engine, register, rows_of, run
from loopwright.features.lookup import MICROSECOND
from loopwright.features.module import FeatureModule
from loopwright.features.view import FeatureView
from loopwright.kernel.clock import from_us, to_us


def newest_known(module: FeatureModule, tables: Tables, *, as_of: datetime) -> dict[str, datetime]:
    """View → event time of its newest row that was known at `as_of`.

    Views without an event time, and those without such a row, are left out. Of files only the columns asked for are
    read.
    """
    found: dict[str, datetime] = {}
    views = [view for view in module.views if isinstance(view, FeatureView) and view.event_time is not None]
    with engine() as duck:
        for name in dict.fromkeys(table for view in views for table in view.tables()):
            register(duck.con, name, tables[name])
        for index, view in enumerate(views):
            where = f"{module.where}: view {view.name}"
            rows = rows_of(duck.con, view, index, tables, where)
            check_source(duck.con, view, index, where)
            happened = duck.dialect.moment(str(view.event_time), where)
            known, available = f"t + {view.available_after // MICROSECOND}", happened
            if view.available_at is not None:
                available = duck.dialect.moment(view.available_at, where)
                known = f"CASE WHEN a IS NOT NULL THEN greatest(a, {known}) END"
            newest = run(
                duck.con,
                f"SELECT max(t) FROM (SELECT {happened} AS t, {available} AS a "
                f"FROM {rows} AS {duck.dialect.name(view.table)}) WHERE {known} <= {to_us(as_of)}",
                where,
            ).fetchall()[0][0]
            if newest is not None:
                found[view.name] = from_us(int(newest))
    return found
