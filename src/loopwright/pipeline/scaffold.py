"""`loopwright init`: a whole project around a file of rows, ready for `loopwright run`.

What the file shows is not asked: the task, the column that says when, the column that names a row, the types. Whatever
was decided is in `ScaffoldReport.notes` and in the files, where it can be changed.
"""

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from loopwright.data.contract import Contract
from loopwright.data.infer import Facts, Inferred, infer, infer_contract, to_yaml
from loopwright.data.source import public_uri, resolve
from loopwright.data.sql import quote as _quote
from loopwright.features.module import load_features
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Unavailable, did_you_mean
from loopwright.pipeline.scaffold_files import render
from loopwright.project.spec import load_project

Task = Literal["binary", "multiclass", "regression"]
TIME_NAMES = (
    "event_time",
    "event_timestamp",
    "event_date",
    "timestamp",
    "datetime",
    "date",
    "time",
    "ts",
    "occurred_at",
    "created_at",
    "created",
    "order_date",
    "transaction_date",
    "time_hour",
)
NOT_AN_EVENT = re.compile(r"birth|dob|expir|valid|until|end|updated|modified", re.IGNORECASE)
KEY_NAME = re.compile(
    r"(^|[_\s-])(id|key|uuid|guid|no|nr|number|index)$|[a-z](Id|ID)$|^unnamed$", re.IGNORECASE
)
MOST_CLASSES = 50
MOST_INTEGER_CLASSES = 10
FEWEST_ROWS = 130


@dataclass(frozen=True, slots=True)
class ScaffoldReport:
    """What was written where, and what was decided. `notes` are sentences for the person who asked."""

    path: Path
    model: str
    task: Task
    target: str
    classes: tuple[str, ...]
    time: str | None
    key: tuple[str, ...]
    inputs: dict[str, str]
    rows: int
    files: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "model": self.model,
            "task": self.task,
            "target": self.target,
            "classes": list(self.classes),
            "time": self.time,
            "key": list(self.key),
            "inputs": dict(self.inputs),
            "rows": self.rows,
            "files": list(self.files),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the files are rendered from."""

    model: str
    table: str
    uri: str
    task: Task
    target: str
    label: str
    classes: tuple[str, ...]
    time: str | None
    key: tuple[str, ...]
    numbers: dict[str, str]
    texts: tuple[str, ...]
    columns: dict[str, str]
    rows: int
    deviation: float
    low: float
    high: float

    @property
    def inputs(self) -> dict[str, str]:
        """Input name → dtype, in the file's order."""
        given = {**self.numbers, **dict.fromkeys(self.texts, "string")}
        return {name: given[name] for name in self.columns}


def init_project(
    dest: Path,
    *,
    name: str,
    data: Path | str,
    target: str,
    time: str | None = None,
    task: str | None = None,
    key: Sequence[str] | None = None,
) -> ScaffoldReport:
    """Write a project for the rows in `data` into the new folder `dest`: all of it, or nothing.

    `data` may also be a URI that sources understand. `time`, `task` and `key` override what is inferred; `time=""` and
    `key=()` say that there is none. Raises Conflict when `dest` holds something, BadInput or NotFound for what cannot
    be read or a column that is not there.
    """
    model = _model_name(name)
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise Conflict(
            "is there already", where=str(dest), wanted="a new or empty folder", next="Choose another name"
        )
    if task is not None and task not in get_args(Task):
        raise BadInput(
            "unknown task",
            where="--task",
            got=task,
            wanted=", ".join(get_args(Task)),
            next=did_you_mean(task, get_args(Task)),
        )
    uri = _standing(str(data))
    source = resolve(uri, Path.cwd())
    seen = infer(source)
    notes: list[str] = []
    named = public_uri(uri)
    plan = replace(_decide(seen, model, named, source.title, target, time, task, key, notes), uri=uri)
    if named != uri and source.query is None:
        notes.append(
            "the uri carries a key, and loop.yaml holds it now: keep it out of git, or name another uri"
        )
    document = infer_contract(seen, table=plan.table, key=plan.key, required=[plan.time] if plan.time else [])
    files = render(plan) | {f"contracts/{plan.table}.odcs.yaml": _CONTRACT_HEAD + to_yaml(document)}
    _write(dest, files, plan)
    return ScaffoldReport(
        path=dest,
        model=model,
        task=plan.task,
        target=target,
        classes=plan.classes,
        time=plan.time,
        key=plan.key,
        inputs=plan.inputs,
        rows=seen.rows,
        files=tuple(sorted(files)),
        notes=tuple(notes),
    )


_CONTRACT_HEAD = (
    "# What the data promises (Open Data Contract Standard 3.1), inferred from the file. Rows that break it are set\n"
    "# aside with their reasons. Add what you know: required: true, logicalTypeOptions: {minimum: 0, maximum: 9}, …\n"
)


def _standing(data: str) -> str:
    """The URI as it can be read from the project's folder too, without a password that loop.yaml would show."""
    if "://" not in data:
        return str((Path.cwd() / Path(data).expanduser()).resolve())
    if urlsplit(data).password:
        raise BadInput(
            "a password would stand in loop.yaml", where=f"--data {public_uri(data)}",
            next="Leave it out: set PGPASSWORD, or say ?password_env=NAME" if data.startswith("postgres")
            else "Name a uri that needs none",
        )  # fmt: skip
    if data.startswith("dvc://"):
        place = data.removeprefix("dvc://")
        repository, double, path = place.partition("//")
        return f"dvc://{(Path.cwd() / (repository if double else '')).resolve()}//{path if double else place}"
    return data


def _decide(
    seen: Inferred,
    model: str,
    uri: str,
    file: str,
    target: str,
    time: str | None,
    task: str | None,
    key: Sequence[str] | None,
    notes: list[str],
) -> Plan:
    names = [column.name for column in seen.columns]
    goal = _column(seen, target, "--target", uri)
    if goal.distinct < 2:
        raise BadInput(
            "the target never changes",
            where=f"{uri}: {target}",
            got=f"{goal.distinct} different values",
            wanted="at least two",
            next="Choose another column",
        )
    found_task = _task(goal, task, uri)
    if task is None:
        notes.append(f"{found_task}: `{target}` has {goal.distinct} different values ({goal.type})")
    moment = _time(seen, time, target, uri, notes)
    chosen_key = _key(seen, key, (target, moment), uri, notes)
    numbers: dict[str, str] = {}
    texts: list[str] = []
    columns: dict[str, str] = {}
    for column in seen.columns:
        if column.name in (target, moment, *chosen_key):
            continue
        why = _unusable(column, seen.rows)
        if why:
            notes.append(f"`{column.name}` is left out: {why}")
            continue
        name = column.name.lstrip("_") or "column"
        if name in columns or name.startswith("@"):
            notes.append(f"`{column.name}` is left out: its name cannot be used for an input")
            continue
        columns[name] = column.name
        if column.type == "string":
            texts.append(name)
        else:
            numbers[name] = {"boolean": "bool", "integer": "int64"}.get(column.type, "float64")
    if not columns:
        raise BadInput(
            "no column is left to predict from",
            where=uri,
            got=", ".join(names),
            wanted="columns besides target, time and key",
            next="; ".join(notes),
        )
    if seen.rows - goal.nulls < FEWEST_ROWS:
        notes.append(f"{seen.rows - goal.nulls} rows with a target are few: a run wants about {FEWEST_ROWS}")
    for column in seen.columns:
        if column.misfits:
            values = "1 value is" if column.misfits == 1 else f"{column.misfits} values are"
            notes.append(f"`{column.name}`: {values} no {column.type}; such rows are quarantined")
    if seen.malformed:
        notes.append(f"{seen.malformed} lines have the wrong number of fields; they will be quarantined")
    label, classes = _label(goal, found_task)
    if found_task == "binary":
        yes = classes[1] if classes else "true" if goal.type == "boolean" else "1"
        notes.append(f"the model gives the probability that `{target}` is {yes}")
    return Plan(
        model=model,
        table=_slug(Path(file).name.split(".")[0], "data"),
        uri=uri,
        task=found_task,
        target=target,
        label=label,
        classes=classes,
        time=moment,
        key=chosen_key,
        numbers=numbers,
        texts=tuple(texts),
        columns=columns,
        rows=seen.rows,
        deviation=goal.deviation or 0.0,
        low=goal.minimum or 0.0,
        high=goal.maximum or 0.0,
    )


def _column(seen: Inferred, name: str, flag: str, uri: str) -> Facts:
    column = seen.column(name)
    if column is None:
        names = [c.name for c in seen.columns]
        raise NotFound(
            f"no column `{name}`",
            where=f"{flag}, {uri}",
            got=name,
            wanted=f"one of {', '.join(names[:40])}",
            next=did_you_mean(name, names),
        )
    return column


def _task(goal: Facts, asked: str | None, uri: str) -> Task:
    where = f"{uri}: {goal.name}"
    numeric = goal.type in ("integer", "number")
    if asked is None:
        if goal.distinct == 2 and goal.type != "number":
            return "binary"
        if goal.type == "number" or (goal.type == "integer" and goal.distinct > MOST_INTEGER_CLASSES):
            return "regression"
        asked = "multiclass"
    if asked == "regression" and not numeric:
        raise BadInput(
            "regression wants numbers", where=where, got=goal.type, next="Choose --task binary or multiclass"
        )
    if asked == "binary" and goal.distinct != 2:
        raise BadInput(
            "a binary target has two values",
            where=where,
            got=f"{goal.distinct} values",
            next="Choose --task multiclass",
        )
    if asked == "multiclass" and (goal.distinct > MOST_CLASSES or goal.type in ("timestamp", "date", "time")):
        raise BadInput(
            "too many classes to tell apart",
            where=where,
            got=f"{goal.distinct} different values ({goal.type})",
            wanted=f"at most {MOST_CLASSES}",
            next="Group the values, or choose another target",
        )
    if asked == "multiclass" and goal.distinct == 2:
        raise BadInput(
            "two values make a binary task", where=where, got="2 values", next="Choose --task binary"
        )
    return asked  # type: ignore[return-value]  # checked against Task by the caller


def _label(goal: Facts, task: Task) -> tuple[str, tuple[str, ...]]:
    """SQL of the label, and the classes in index order (none where the label is a number already)."""
    cell = _quote(goal.name)
    if task == "regression" or (
        task == "binary" and (goal.type == "boolean" or set(goal.values) == {"0", "1"})
    ):
        return cell, ()
    return f"CAST({cell} AS VARCHAR)", tuple(sorted(goal.values, key=_natural))


def _time(seen: Inferred, asked: str | None, target: str, uri: str, notes: list[str]) -> str | None:
    times = [c for c in seen.columns if c.type in ("timestamp", "date") and c.name != target]
    if asked == "":
        return None
    if asked is not None:
        column = _column(seen, asked, "--time", uri)
        if column.type not in ("timestamp", "date"):
            raise BadInput(
                "not a time",
                where=f"--time, {uri}: {asked}",
                got=column.type,
                wanted="dates or ISO 8601 times in every row",
                next=f"Columns of times: {', '.join(c.name for c in times) or 'none'}",
            )
        if column.nulls:
            notes.append(f"{column.nulls} rows have no `{asked}`; they will be quarantined")
        return asked
    whole = [c for c in times if not c.nulls and not NOT_AN_EVENT.search(c.name)]
    named = sorted(
        (c for c in whole if c.name.lower() in TIME_NAMES), key=lambda c: TIME_NAMES.index(c.name.lower())
    )
    chosen = named[0] if named else whole[0] if len(whole) == 1 else None
    if chosen is not None:
        notes.append(
            f"`{chosen.name}` says when a row happened: the newest fifth is held out to judge the model"
        )
        return chosen.name
    notes.append(
        "no column says when a row happened: a fifth of the rows, drawn by hash, is held out to judge the model"
    )
    if len(whole) > 1:
        notes.append(f"more than one could: {', '.join(c.name for c in whole)}; name one with --time")
    return None


def _key(
    seen: Inferred, asked: Sequence[str] | None, taken: Sequence[str | None], uri: str, notes: list[str]
) -> tuple[str, ...]:
    if asked is not None:
        for name in asked:
            _column(seen, name, "--key", uri)
        return tuple(asked)
    for column in seen.columns:
        if (
            column.unique
            and column.name not in taken
            and column.type in ("integer", "string")
            and KEY_NAME.search(column.name)
        ):
            notes.append(f"`{column.name}` names a row")
            return (column.name,)
    return ()


def _unusable(column: Facts, rows: int) -> str:
    if column.type in ("object", "array"):
        return "it is nested; take what you need of it in features.py"
    if column.distinct < 2:
        return "it never changes" if column.distinct else "it is empty"
    if column.type in ("timestamp", "date", "time"):
        return "a time; make it a number in features.py if it helps"
    if column.type == "string" and column.distinct > max(50, 0.5 * rows):
        return "nearly every row has its own text"
    return ""


def _write(dest: Path, files: dict[str, str], plan: Plan) -> None:
    """Write beside `dest`, read it back as a project, and only then move it there."""
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    except OSError as error:
        raise Unavailable(
            "cannot write here",
            where=str(dest.parent),
            got=error.strerror,
            next="Check free space and permissions",
        ) from error
    try:
        for name, text in files.items():
            path = building / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        project = load_project(building)
        project.check_files()
        load_features(project)
        Contract.load(building / f"contracts/{plan.table}.odcs.yaml")
        building.chmod(0o755)
        building.rename(dest)
    except OSError as error:
        raise Unavailable(
            "cannot write the project",
            where=str(dest),
            got=error.strerror,
            next="Check free space and permissions",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _model_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise BadInput(
            "not a name for a model",
            got=name,
            wanted="letters, digits, `.`, `_`, `-`; at most 64",
            next="Choose another name",
        )
    return name


def _slug(text: str, default: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()
    return slug[:40] if slug and slug[0].isalpha() else f"{default}_{slug}"[:40].rstrip("_")


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)
