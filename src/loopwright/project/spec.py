"""Reads `loop.yaml` into a frozen, typed `Spec`; errors name file, line, key path and what is wanted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.project.explain import explain
from loopwright.project.located import KeyPath, Located, dotted, parse_scalar, read_yaml
from loopwright.project.policy import Policy
from loopwright.project.sections import (
    Compression,
    Data,
    Delivery,
    Explain,
    File,
    Gates,
    Monitoring,
    Name,
    Online,
    Retraining,
    Search,
    Section,
    Serving,
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
    card: File | None = Field(None, description="the path of a Markdown file, like card.md")
    online: Online | None = Field(None, description="{every, after_run}")
    train: Train = Field(Train(), description="{entry, conf, seed}")
    search: Search | None = Field(None, description="{metric, direction, trials}")
    gates: Gates = Field(Gates(), description="{metrics, latency_p99_ms, baseline, behaviour}")
    explain: Explain = Field(Explain(), description="{log, rows}")
    compression: Compression | None = Field(
        None, description="{recipe} or {target_size, max_latency}, {max_loss}"
    )
    policy: Policy = Field(Policy(), description="{tier, and what is to be stricter than its document}")
    delivery: Delivery = Field(Delivery(), description="{strategy, shadow_first, steps, rollback}")
    serving: Serving = Field(Serving(), description="{timeout_ms, breaker, batching, log, default}")
    monitoring: Monitoring = Field(Monitoring(), description="{window, drift, quality, slo}")
    retraining: Retraining | None = Field(None, description="{schedule, on, cooldown, budget}")

    @model_validator(mode="after")
    def _default_answers_the_task(self) -> Self:
        default = self.serving.default
        if default is not None and (self.task == "multiclass") != isinstance(default, dict):
            wanted = "a number for each class" if self.task == "multiclass" else "one number"
            raise BadInput(
                f"serving.default: not an answer of a {self.task} model", got=default, wanted=wanted
            )
        if self.task == "binary" and isinstance(default, float) and not 0 <= default <= 1:
            raise BadInput("serving.default: not a probability", got=default, wanted="0 to 1")
        return self

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
            raise explain(error, Located(Path("stored spec"), dict(document), {}), cls) from None


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
        if self.spec.card:
            yield "card", self.spec.card

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
        raise explain(error, found, Spec) from None
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
