"""Reads `loop.yaml` into a frozen, typed `Spec`; errors name file, line, key path and what is wanted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.project.located import KeyPath, Located, dotted, parse_scalar, read_yaml
from loopwright.project.sections import (
    Data,
    Delivery,
    File,
    Gates,
    Monitoring,
    Name,
    Policy,
    Retraining,
    Search,
    Section,
    Train,
)

FILE = "loop.yaml"
USUAL_METRIC = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "rmse"}


class Spec(Section):
    """A model's whole life as one value."""

    model: Name = Field(description="the registry name: letters, digits, '.', '_' and '-', at most 64")
    team: Name = Field("default", description="letters, digits, '.', '_' and '-', at most 64")
    project: Name = Field("default", description="letters, digits, '.', '_' and '-', at most 64")
    owner: str = Field("", description="an e-mail address or a name")
    task: Literal["binary", "multiclass", "regression"] = Field(
        description="binary, multiclass or regression"
    )
    tags: dict[str, str] = Field({}, description="key: text")
    data: Data = Field(description="{sources: …, label: …}")
    features: File = Field("features.py", description="the path of a Python file, like features.py")
    train: Train = Field(Train(), description="{entry, conf, seed}")
    search: Search | None = Field(None, description="{metric, direction, trials}")
    gates: Gates = Field(Gates(), description="{metrics, latency_p99_ms, baseline, behaviour}")
    policy: Policy = Field(Policy(), description="{tier, approvals, author_may_approve, retain}")
    delivery: Delivery = Field(Delivery(), description="{strategy, shadow_first, steps, rollback}")
    monitoring: Monitoring = Field(Monitoring(), description="{window, drift, quality, slo}")
    retraining: Retraining | None = Field(None, description="{schedule, on, cooldown, budget}")

    @property
    def experiment(self) -> str:
        """MLflow's experiment name: team/project/model."""
        return f"{self.team}/{self.project}/{self.model}"

    @property
    def quality_metric(self) -> str:
        """`monitoring.quality.metric`, or the task's usual one."""
        return self.monitoring.quality.metric or USUAL_METRIC[self.task]

    def to_json(self) -> dict[str, Any]:
        """Return JSON that `from_json` reads back as an equal spec; durations and limits as text."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; raises BadInput."""
        try:
            return cls.model_validate(dict(document))
        except ValidationError as error:
            raise _explain(error, Located(Path("stored spec"), dict(document), {})) from None


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with a `loop.yaml`. `digest` identifies the composed spec, overrides included."""

    dir: Path
    spec: Spec
    digest: str

    def path(self, name: str) -> Path:
        """Return the absolute path of `name`, which must stay inside the project. It need not exist.

        Raises BadInput for a path, or a link, that leads out.
        """
        root = self.dir.resolve()
        inside = (root / name).resolve()
        if not inside.is_relative_to(root):
            raise BadInput("a path that leads out of the project", got=name, wanted=f"a path inside {root}")
        return inside

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield (key path, file name) of every file that `loop.yaml` names."""
        for name, source in self.spec.data.sources.items():
            yield f"data.sources.{name}.contract", source.contract
        yield "features", self.spec.features
        yield "train.entry", self.spec.train.file
        if self.spec.train.conf:
            yield "train.conf", self.spec.train.conf
        if self.spec.gates.behaviour:
            yield "gates.behaviour", self.spec.gates.behaviour

    def check_files(self) -> None:
        """Raise BadInput for the first file that `loop.yaml` names and that is not there."""
        for key, name in self.files():
            if not self.path(name).is_file():
                beside = [str(p.relative_to(self.dir.resolve())) for p in self.path(name).parent.glob("*")]
                raise BadInput(
                    "no such file",
                    where=f"{self.dir / FILE}: {key}",
                    got=name,
                    next=did_you_mean(name, beside),
                )


def load_project(dir: Path, overrides: Sequence[str] = ()) -> Project:
    """Read `dir`/loop.yaml and apply `overrides` ("delivery.steps.0.weight=2%", values as YAML).

    Raises NotFound when there is no loop.yaml, and BadInput naming file, line and key path for anything in it
    that is not understood; an unknown key names the nearest known one.
    """
    file = dir if dir.is_file() else dir / FILE
    try:
        found = read_yaml(file)
    except NotFound:
        raise NotFound(
            f"no {FILE} here",
            where=str(dir),
            next="Name a project's folder, or start one: loopwright init NAME --data FILE --target COLUMN",
        ) from None
    for override in overrides:
        _apply(found, override)
    try:
        spec = Spec.model_validate(found.data)
    except ValidationError as error:
        raise _explain(error, found) from None
    return Project(file.parent.absolute(), spec, digest_json(spec.to_json()))


def _apply(found: Located, override: str) -> None:
    keys, equals, text = override.partition("=")
    path: KeyPath = tuple(int(key) if key.isdecimal() else key for key in keys.strip().split("."))
    if not equals or "" in path:
        raise BadInput("not an override", got=override, wanted="key.path=value, like train.seed=8")
    here: Any = found.data
    for depth, key in enumerate(path):
        is_last = depth == len(path) - 1
        if isinstance(here, list):
            if not isinstance(key, int) or key >= len(here):
                raise BadInput(
                    "no such item",
                    where=f"--set {override}",
                    got=key,
                    wanted=f"a number from 0 to {len(here) - 1}",
                )
        elif isinstance(here, dict):
            key = str(key)
            if not is_last and here.get(key) is None:
                here[key] = {}
        else:
            raise BadInput(f"{dotted(path[:depth])} holds no keys", where=f"--set {override}", got=here)
        if is_last:
            here[key] = parse_scalar(text)
            found.overridden[path] = override
        else:
            here = here[key]


def _explain(error: ValidationError, found: Located) -> BadInput:
    """The first problem as an error; a misspelt key comes before the missing one it causes."""
    problems = sorted(
        error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden"
    )
    first = problems[0]
    path = tuple(part for part in first["loc"] if not _is_union_branch(part))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = found.where(path)
    if first["type"] == "extra_forbidden":
        known = sorted(_known_keys(path[:-1]))
        hint = did_you_mean(str(path[-1]), known)
        wanted = f"one of {', '.join(known)}"
        return BadInput(f"unknown key `{path[-1]}`{more}", where=where, wanted=wanted, next=_sentence(hint))
    if first["type"] == "missing":
        return BadInput(f"missing key `{path[-1]}`{more}", where=where, wanted=_description(path))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, BadInput):
        return BadInput(
            cause.what + more,
            where=where,
            got=_shown(cause.got),
            wanted=cause.wanted or _description(path),
            next=cause.next,
        )
    return BadInput(
        f"{_said(first)}{more}",
        where=where,
        got=_shown(first["input"]),
        wanted=_description(path),
        next=_nearest(first),
    )


def _shown(value: object) -> object:
    return "nothing" if value is None else value


def _said(problem: ErrorDetails) -> str:
    return {
        "literal_error": "not one of the choices",
        "string_type": "not text",
        "string_pattern_mismatch": "not written as it must be",
        "model_type": "not a section of keys",
        "dict_type": "not a section of keys",
        "tuple_type": "not a list",
        "too_short": "empty",
        "int_parsing": "not a whole number",
        "int_type": "not a whole number",
        "int_from_float": "not a whole number",
        "float_parsing": "not a number",
        "float_type": "not a number",
        "bool_type": "neither true nor false",
        "bool_parsing": "neither true nor false",
    }.get(problem["type"], problem["msg"][:1].lower() + problem["msg"][1:])


def _nearest(problem: ErrorDetails) -> str:
    if problem["type"] != "literal_error" or not isinstance(problem["input"], str):
        return ""
    choices = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
    return _sentence(did_you_mean(problem["input"], choices))


def _sentence(hint: str) -> str:
    return hint[:1].upper() + hint[1:]


def _is_union_branch(part: str | int) -> bool:
    # pydantic names the branch it tried inside the location of `Literal["all"] | tuple[...]`.
    return isinstance(part, str) and part.startswith(("literal[", "tuple["))


def _known_keys(path: KeyPath) -> set[str]:
    section = _type_at(path)
    return (
        set(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else set()
    )


def _description(path: KeyPath) -> str:
    """The description of the field at `path`, or of the nearest field above it that has one."""
    for end in range(len(path), 0, -1):
        section, name = _type_at(path[: end - 1]), path[end - 1]
        if isinstance(section, type) and issubclass(section, BaseModel) and name in section.model_fields:
            return section.model_fields[str(name)].description or ""
    return ""


def _type_at(path: KeyPath) -> Any:
    here: Any = Spec
    for part in path:
        here = bare_type(here)
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        else:
            arguments = [argument for argument in get_args(here) if argument is not Ellipsis]
            here = arguments[-1] if arguments else None
    return bare_type(here)


def bare_type(annotation: Any) -> Any:
    """Strip Annotated and `| None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next(branch for branch in get_args(annotation) if branch is not type(None))
        else:
            return annotation
