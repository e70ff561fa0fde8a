"""Training sets for rows of one's own: each with what feature views knew at its moment, in the order given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from loopwright.features.duck import Tables, check_source, engine, register, require_tables, rows_of
from loopwright.features.lookup import DUCKDB, Dialect, Engine, answers, asked_side, look_up
from loopwright.features.status import Status
from loopwright.features.view import FeatureView, as_mapping, quoted
from loopwright.features.viewtests import ViewTestResult, require_passed, run_tests, with_results
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean

Entities: TypeAlias = pa.Table | Path | str
"""Rows, or a file of them: .parquet or .csv, whose empty cells are null."""

FailedTests = Literal["refuse", "tell"]


def training_set(
    entities: Entities,
    views: Sequence[FeatureView],
    tables: Tables,
    timestamp: str = "event_time",
    *,
    status: bool = False,
    full_names: bool = False,
    failed_tests: FailedTests = "refuse",
    dialect: Dialect = DUCKDB,
    memory_limit: str | None = None,
) -> pa.Table:
    """Each row of `entities` with what the views knew at `timestamp`, on DuckDB.

    Gives every row of `entities` once, unchanged and in the order given, duplicates too, and beside it the views'
    columns and aggregations: null where nothing was known (0 for counts). No row that became known after `timestamp`
    counts. `entities` has the columns, or what the SQL is made of, that the views' `entity` names. `timestamp`: a
    column or SQL; times without a zone are UTC, what is finer than a microsecond is cut off; null is an error.

    `status`: also VIEW_status of each view: PRESENT, EXPIRED (older than the TTL), NOT_YET_KNOWN (the entity's rows
    all became known later), NOT_FOUND (it has none) or NULL_KEY. `full_names`: columns are called VIEW__NAME.
    `tables`: Arrow tables or `Files` by name. Raises BadInput for tables, columns or names that do not fit; Refused
    where a row fails a view's test that blocks, unless `failed_tests` is "tell"; `viewtests.results_of`
    has the results either way.
    `memory_limit`: how much DuckDB may hold of the tables ("512MB"); the rows asked and their answers come on top.
    """
    asked = read_entities(entities)
    plan = Plan.of(asked, views, timestamp, status=status, full_names=full_names)
    for view in plan.views:
        require_tables(view.tables(), tables, f"feature view {view.name}")
    with engine(dialect, memory_limit=memory_limit) as duck:
        for name in dict.fromkeys(name for view in plan.views for name in view.tables()):
            register(duck.con, name, tables[name])
        duck.con.register(ASKED, plan.numbered())
        sources = []
        for index, view in enumerate(plan.views):
            where = f"feature view {view.name}"
            sources.append(rows_of(duck.con, view, index, tables, where))
            check_source(duck.con, view, index, where)
        plan.look_up(duck, sources)
        found: Any = duck.con.sql(plan.answer(dialect))
        return plan.finish(found.to_arrow_table(), failed_tests)


ASKED = "_asked"
NUMBER = "_number"


@dataclass(frozen=True, slots=True)
class Plan:
    """A training set to be made on some engine: `look_up`, then run `answer`, then `finish`.

    `asked`: the rows. The engine needs them as the relation ASKED, as `numbered` gives them.
    """

    asked: pa.Table
    views: tuple[FeatureView, ...]
    timestamp: str
    status: bool
    full_names: bool

    @classmethod
    def of(
        cls, asked: pa.Table, views: Sequence[FeatureView], timestamp: str, *, status: bool, full_names: bool
    ) -> "Plan":
        """Raises BadInput for views that are none, and for names that collide."""
        for view in views:
            if not isinstance(view, FeatureView):
                raise BadInput(
                    "not a feature view", got=view, wanted="FeatureView",
                    next="A WindowedRate is made of a model's own spine: say it as an aggregation of a view.",
                )  # fmt: skip
            _check_named(asked, view)
        plan = cls(asked, tuple(views), timestamp, status, full_names)
        names = [*asked.column_names, *(name for each in plan.names() for name in each)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BadInput(
                "two columns of the training set have one name", where="training set", got=twice,
                wanted="each name once", next="Rename one, or ask for full names.",
            )  # fmt: skip
        if reserved := [name for name in names if name.startswith("_")]:
            raise BadInput(
                "names that start with `_` are reserved",
                where="training set",
                got=reserved,
                wanted="other names",
            )
        if timestamp in asked.column_names:
            return cls(asked, plan.views, quoted(timestamp), status, full_names)
        if timestamp.isidentifier():
            raise BadInput(
                f"the rows have no column `{timestamp}`", where="training set: timestamp", got=asked.column_names,
                wanted="a column with the moment of each question", next=did_you_mean(timestamp, asked.column_names),
            )  # fmt: skip
        return plan

    def numbered(self) -> pa.Table:
        """The rows with their number, from 0."""
        return self.asked.append_column(NUMBER, pa.array(range(self.asked.num_rows), pa.int64()))

    def names(self) -> list[list[str]]:
        """The columns that each view adds."""
        added = []
        for view in self.views:
            names = [f"{view.name}__{name}" if self.full_names else name for name in view.names()]
            added.append([*names, *([f"{view.name}_status"] if self.status else [])])
        return added

    def look_up(self, engine: Engine, sources: Sequence[str]) -> None:
        """Ask every view; `sources`: SQL for a FROM, one per view."""
        d, where = engine.dialect, "training set"
        cells = [NUMBER, f"{d.moment(self.timestamp, f'{where}: timestamp')} AS _e"]
        for index, view in enumerate(self.views):
            place = f"feature view {view.name}: entity"
            cells += [
                f"({d.translate(sql, place)}) AS _k{index}_{n}" for n, sql in enumerate(asked_side(view))
            ]
        engine.make("_rows", f"SELECT {', '.join(cells)} FROM {ASKED}", where)
        if lost := engine.count("SELECT count(*) FROM _rows WHERE _e IS NULL"):
            raise BadInput(
                f"{lost} of {self.asked.num_rows} rows have no moment", where=f"{where}: timestamp",
                wanted="a time in every row", next="Leave such rows out, or give them a time.",
            )  # fmt: skip
        for index, view in enumerate(self.views):
            keys = [f"_k{index}_{n} AS _key{n}" for n in range(len(asked_side(view)))]
            asked = ", ".join([*keys, *(["_e"] if view.event_time else [])])
            place = f"feature view {view.name}"
            engine.make(f"_p{index}", f"SELECT DISTINCT {asked} FROM _rows", place)
            look_up(engine, view, index, sources[index], where=place, status=self.status)

    def answer(self, d: Dialect) -> str:
        """SQL of all views' columns, in the order of the rows."""
        given, joins = [], []
        for index, (view, names) in enumerate(zip(self.views, self.names(), strict=True)):
            relation = f"_f{index}"
            keys = [f"_rows._k{index}_{n}" for n in range(len(asked_side(view)))]
            found = answers(view, relation, d)
            if self.status:
                null = " OR ".join(f"{key} IS NULL" for key in keys)
                found.append(f"CASE WHEN {null} THEN '{Status.NULL_KEY}' ELSE {relation}._status END")
            given += [f"{sql} AS {d.name(name)}" for sql, name in zip(found, names, strict=True)]
            same = [f"{key} = {relation}._key{n}" for n, key in enumerate(keys)]
            same += [f"_rows._e = {relation}._e"] if view.event_time else []
            joins.append(f"LEFT JOIN {relation} ON {' AND '.join(same)}")
        columns = ", ".join([f"_rows.{NUMBER}", *given])
        return f"SELECT {columns} FROM _rows {' '.join(joins)} ORDER BY _rows.{NUMBER}"

    def finish(self, answered: pa.Table, failed_tests: FailedTests) -> pa.Table:
        """The rows with their answers beside them; raises as `training_set` does where tests fail."""
        numbers = answered.column(NUMBER).to_numpy()
        if len(numbers) != self.asked.num_rows or (numbers != np.arange(len(numbers))).any():
            raise AssertionError(f"asked {self.asked.num_rows} rows, got {len(numbers)} answers")
        table = self.asked
        for name in answered.column_names[1:]:
            table = table.append_column(name, answered.column(name))
        tested = self._test(answered)
        if failed_tests == "refuse":
            require_passed(tested, "the training set")
        return with_results(table, tested)

    def _test(self, answered: pa.Table) -> list[ViewTestResult]:
        results = []
        for view, names in zip(self.views, self.names(), strict=True):
            if view.tests:
                given = [f"{quoted(n)} AS {quoted(own)}" for own, n in zip(view.names(), names, strict=False)]
                rows = (
                    f"SELECT {', '.join([f'{NUMBER} AS _name', f'{NUMBER} AS _order', *given])} FROM answered"
                )
                with engine() as duck:
                    duck.con.register("answered", answered)
                    results += run_tests(duck.con, view, rows, f"feature view {view.name}")
        return results


def _check_named(asked: pa.Table, view: FeatureView) -> None:
    """Raise BadInput where the rows lack a column that the view's entity names; SQL is the engine's to judge."""
    if isinstance(view.entity, Mapping):
        return
    held = {name.casefold() for name in asked.column_names}
    if lacking := [name for name in as_mapping(view.entity) if name.casefold() not in held]:
        raise BadInput(
            f"the rows do not name the entity of the view `{view.name}`: no column `{'`, `'.join(lacking)}`",
            where="training set", got=asked.column_names, wanted=", ".join(as_mapping(view.entity)),
            next=did_you_mean(lacking[0], asked.column_names) or "Add the column, or leave the view out: --view NAME.",
        )  # fmt: skip


def read_entities(entities: Entities) -> pa.Table:
    """The rows of a training set; raises NotFound or BadInput for a file that cannot be read."""
    if isinstance(entities, pa.Table):
        return entities
    path = Path(entities)
    if not path.is_file():
        raise NotFound("the rows are not there", where=str(path), wanted="a .parquet or .csv file")
    try:
        if path.suffix in (".parquet", ".pq"):
            return pa_parquet.read_table(path)
        if path.suffix == ".csv":
            # An empty cell is null, in columns of text too; a text like NA is what it says.
            empty = pa_csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
            return pa_csv.read_csv(path, convert_options=empty)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"the rows cannot be read: {error}", where=str(path)) from error
    raise BadInput("not a file of rows", where=str(path), wanted="a .parquet or .csv file")
