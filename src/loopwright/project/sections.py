"""The sections of `loop.yaml`. A field's description is what errors say was wanted; defaults are safe."""

from datetime import timedelta
from itertools import pairwise
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

from loopwright.kernel.errors import BadInput
from loopwright.project.values import (
    Bytes,
    Change,
    Duration,
    Factor,
    Holdout,
    Latency,
    Limit,
    Moment,
    Points,
    Share,
)

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
File = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Frozen, and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class Source(Section):
    """One table's origin. `contract` is a path in the project; `key` names columns that identify a row.

    A path may be a folder or a glob of files with the same columns. `cursor` and `lookback` are for queries: only rows
    beyond the newest value of `cursor` are read, and again those that became visible late, within `lookback`.
    """

    uri: Text = Field(
        description="a path in the project, or file://, http(s)://, s3://bucket/key, "
        "postgresql://user@host/db?table=schema.table (or ?query=SELECT …), dvc://path@rev, "
        "lakefs://repository/ref/path, package://name/path"
    )
    contract: File = Field(description="the path of an ODCS contract, like contracts/flights.odcs.yaml")
    event_time: Text | None = Field(None, description="the column that says when a row happened")
    key: tuple[Text, ...] | None = Field(None, description="a list of columns that identify a row")
    cursor: Text | None = Field(
        None, description="of a query: the column that grows, by which only new rows are read"
    )
    lookback: Duration = Field(
        timedelta(), description="with a cursor of times: how long a row may become visible late, like 10m"
    )
    format: Literal["csv", "parquet", "jsonl"] | None = Field(
        None, description="csv, parquet or jsonl; left out: as the name ends"
    )
    delimiter: Annotated[str, StringConstraints(pattern=r'^[^"\r\n\x00]$')] | None = Field(
        None, description="of CSV: one character; left out: as the header shows"
    )
    encoding: Text | None = Field(None, description="of CSV and JSON lines, like latin-1; left out: UTF-8")

    @field_validator("uri")
    @classmethod
    def _without_a_password(cls, uri: str) -> str:
        # loop.yaml goes into version control, and into the ledger with every run.
        parts = urlsplit(uri) if "://" in uri and not uri.startswith("dvc://") else None
        if parts is not None and (parts.password or "password" in dict(parse_qsl(parts.query))):
            postgres = parts.scheme in ("postgresql", "postgres")
            raise BadInput(
                "a password has no place in loop.yaml",
                got="a uri with one",
                next="Leave it out: set PGPASSWORD, or say ?password_env=NAME"
                if postgres
                else "Leave it out",
            )
        return uri


class Label(Section):
    """`available_after`: how long after its event a label is known at the earliest."""

    name: Text = Field(description="the label's column or name")
    available_after: Duration = Field(timedelta(), description="a duration, like 6h")


class Data(Section):
    """`holdout`: the last part of event time kept for evaluation, a share (float) or a length (timedelta)."""

    sources: dict[Name, Source] = Field(
        min_length=1, description="at least one source: name: {uri, contract}"
    )
    label: Label = Field(description="{name: …, available_after: …}")
    as_of: Moment | None = Field(None, description="a time with a zone, like 2013-04-01T00:00:00Z")
    holdout: Holdout = Field(0.2, description="a share like 20% or a length like 14d")
    engine: Text | None = Field(
        None,
        description="what `data check` runs on: duckdb, spark://HOST:PORT or local[2]; left out, the home's",
    )


class Train(Section):
    """`entry` is FILE:FUNCTION; `conf` a YAML file of parameters."""

    entry: Annotated[str, StringConstraints(pattern=r"^[^:]+\.py:[A-Za-z_]\w*$")] = Field(
        "train.py:train", description="FILE.py:FUNCTION, like train.py:train"
    )
    conf: File | None = Field(None, description="the path of a YAML file, like conf/train.yaml")
    seed: int = Field(0, ge=0, lt=2**32, description="a whole number from 0")

    @property
    def file(self) -> str:
        """The file of `entry`."""
        return self.entry.rpartition(":")[0]

    @property
    def function(self) -> str:
        """The function of `entry`."""
        return self.entry.rpartition(":")[2]


class Search(Section):
    """A hyperparameter search before the final fit. `rows`: search on the newest so many rows only."""

    metric: Text = Field(description="a metric's name, like roc_auc")
    direction: Literal["maximize", "minimize"] = Field("maximize", description="maximize or minimize")
    trials: int = Field(20, ge=1, le=100_000, description="a whole number from 1")
    rows: int | None = Field(None, ge=100, description="a whole number from 100")


class Baseline(Section):
    """The new model may be worse than the one in Production by at most `tolerance`, at this confidence."""

    metric: Text = Field(description="a metric's name, like roc_auc")
    tolerance: float = Field(0.0, ge=0, description="a number from 0, in the metric's unit")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="a number between 0.5 and 1, like 0.95")


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Fairness(Section):
    """How far `metric` may differ between the groups of each attribute, or why the question does not arise.

    Exactly one of `attribute` and `not_applicable`. `min_group`: groups with fewer rows are named, not judged.
    """

    attribute: Annotated[tuple[Text, ...], BeforeValidator(_one_or_more)] = Field(
        (), description="an input's name, or a list of them"
    )
    metric: Text | None = Field(None, description="a fairness metric's name, like equal_opportunity")
    max_gap: float | None = Field(
        None, ge=0, description="a number from 0: of a rate at most 1, of an error in the label's unit"
    )
    min_group: int = Field(100, ge=10, description="a whole number from 10")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="a number between 0.5 and 1, like 0.95")
    not_applicable: (
        Annotated[str, StringConstraints(strip_whitespace=True, min_length=20, max_length=2000)] | None
    ) = Field(None, description="the reason, in at least 20 characters")

    @model_validator(mode="after")
    def _asked_or_excused(self) -> Self:
        if bool(self.attribute) == (self.not_applicable is not None):
            raise BadInput(
                "fairness needs one answer",
                got="both" if self.attribute else "neither",
                wanted="`attribute` with `metric` and `max_gap`, or `not_applicable` with the reason",
            )
        if self.attribute and (self.metric is None or self.max_gap is None):
            raise BadInput(
                "fairness is asked for without its limit",
                got="no metric" if self.metric is None else "no max_gap",
                wanted="{attribute, metric, max_gap}",
            )
        if len(set(self.attribute)) != len(self.attribute):
            raise BadInput("an attribute named twice", got=", ".join(self.attribute))
        return self


class Gates(Section):
    """What a model must show before it is registered."""

    metrics: dict[str, Limit] = Field({}, description='metric: limit, like roc_auc: ">= 0.68"')
    latency_p99_ms: Limit | None = Field(None, description='a limit, like "<= 20"')
    baseline: Baseline | None = Field(None, description="{metric, tolerance, confidence}")
    behaviour: File | None = Field(None, description="the path of a Python file, like tests/behaviour.py")
    fairness: Fairness | None = Field(
        None, description="{attribute, metric, max_gap} or {not_applicable: why}"
    )


class Compression(Section):
    """How every new version is made smaller by itself, as a version of its own: by a recipe, or by limits to keep to.

    `recipe`: steps in order, those on modules first, like {step: prune-structure, ratio: 0.5}, {step: distil},
    {step: qat}, {step: int8-static}. Limits: techniques are tried from the cheapest on, and the first that keeps to all
    of them is taken. `max_loss` counts for both: a share of the uncompressed version's metric, decided on the bound.
    """

    recipe: tuple[dict[Text, JsonValue], ...] | None = Field(
        None, min_length=1, max_length=20, description="a list of {step: NAME, setting: value, …}"
    )
    target_size: Bytes | None = Field(None, description="bytes on disk, like 10MB")
    max_latency: Latency | None = Field(None, description="of the 99th percentile, like 5ms")
    max_loss: Share = Field(0.01, lt=1, description="a percentage, like 1%")
    budget: Duration = Field(timedelta(minutes=20), gt=timedelta(), description="a duration, like 20m")
    batch: int = Field(1, ge=1, le=10_000, description="rows that production asks at once, from 1")
    threads: int = Field(1, ge=1, le=256, description="threads that a prediction has in production, from 1")

    @model_validator(mode="after")
    def _a_recipe_or_limits(self) -> Self:
        limits = self.target_size is not None or self.max_latency is not None
        if limits == (self.recipe is not None):
            raise BadInput(
                "compression needs one of a recipe and limits",
                got="both" if limits else "neither",
                wanted="`recipe`, or `target_size` and/or `max_latency`",
            )
        for one in self.recipe or ():
            if not isinstance(one.get("step"), str):
                raise BadInput("a step without a name", got=one, wanted="{step: NAME, setting: value, …}")
        return self


class Explain(Section):
    """How a model's answers are explained. `log: all` explains every logged prediction in the background."""

    log: Literal["none", "all"] = Field("none", description="none or all")
    rows: int = Field(2000, ge=20, le=1_000_000, description="a whole number from 20")


class Step(Section):
    """A share of traffic, how long (event time) it is held, and what the next step requires."""

    weight: Share = Field(gt=0, description="a percentage, like 5%")
    hold: Duration = Field(timedelta(), description="a duration, like 4h")
    require: Literal["no_harm", "pass"] = Field("no_harm", description="no_harm or pass")


class Rollback(Section):
    """When a canary is worse than stable: error rate (absolute), p99 (factor), business (relative)."""

    error_rate: Points = Field(0.001, gt=0, le=1, description='percentage points, like "+0.1pp"')
    latency_p99: Factor = Field(1.5, gt=1, description='a factor above 1, like "x1.5"')
    business: dict[str, Change] = Field({}, description='metric: change, like on_time_notice: "-2%"')


_DEFAULT_STEPS = (
    Step(weight=0.01, hold=timedelta(hours=1)),
    Step(weight=0.05, hold=timedelta(hours=4)),
    Step(weight=0.25, hold=timedelta(hours=24), require="pass"),
    Step(weight=1.0),
)


class Delivery(Section):
    """How traffic is brought to a version that was promoted.

    `min_requests`: how many requests a step must have answered, besides its hold, before it counts as no harm.
    """

    strategy: Literal["canary", "blue_green", "shadow", "instant"] = Field(
        "canary", description="canary, blue_green, shadow or instant"
    )
    shadow_first: Duration = Field(timedelta(hours=1), description="a duration, like 1h; 0s for none")
    steps: tuple[Step, ...] = Field(
        _DEFAULT_STEPS, min_length=1, description="a list of {weight, hold, require}"
    )
    min_requests: int = Field(20, ge=1, description="a whole number from 1")
    rollback: Rollback = Field(Rollback(), description="{error_rate, latency_p99, business}")

    @model_validator(mode="after")
    def _steps_climb(self) -> Self:
        weights = [step.weight for step in self.steps]
        climbing = all(low < high for low, high in pairwise(weights))
        if not climbing or weights[-1] != 1.0:
            shown = ", ".join(f"{weight:.6g}" for weight in (100 * w for w in weights))
            raise BadInput(
                "steps that do not climb to 100%",
                got=f"{shown} (percent)",
                wanted="rising weights, the last 100%",
            )
        return self


Milliseconds = Annotated[float, Field(gt=0, le=86_400_000, allow_inf_nan=False)]


class Breaker(Section):
    """When an arm that fails or lags is left alone for a while."""

    error_rate: Share = Field(0.5, description="a percentage of failed predictions, like 50%")
    slow_ms: Milliseconds | None = Field(
        None, description="milliseconds above 0; left out: latency does not count"
    )
    requests: int = Field(20, ge=1, le=1_000_000, description="a whole number from 1")
    window: Duration = Field(
        timedelta(seconds=10), gt=timedelta(), description="a duration above zero, like 10s"
    )
    open: Duration = Field(timedelta(seconds=5), gt=timedelta(), description="a duration above zero, like 5s")


class Batching(Section):
    """Whether requests that come together are predicted together; `auto` measures whether the model gains by it."""

    mode: Literal["auto", "on", "off"] = Field("auto", description="auto, on or off")
    max_rows: int = Field(64, ge=1, le=10_000, description="a whole number from 1 to 10000")

    @field_validator("mode", mode="before")
    @classmethod
    def _yaml_says_true(cls, value: object) -> object:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class PredictionLogging(Section):
    """What the prediction log keeps. Every answer is counted; `sample` is of the rows kept beside the counts."""

    sample: Share = Field(1.0, description="a percentage, like 10%")
    redact: tuple[Text, ...] = Field(
        (), max_length=1000, description="a list of inputs that are never written down"
    )
    disk_full: Literal["refuse", "shed"] = Field("refuse", description="refuse or shed")


class OnlineLookup(Section):
    """What is done about inputs that a request leaves to the online store, and that cannot be had from there."""

    missing: Literal["refuse", "nulls"] = Field(
        "refuse", description="refuse, or nulls to answer without them"
    )
    max_age: Duration | None = Field(
        None, gt=timedelta(), description="how long ago the store may have been brought up to date, like 2h"
    )
    timeout_ms: Milliseconds = Field(200.0, description="milliseconds above 0")


class Serving(Section):
    """How the model is answered for; servers take it over with the next route table."""

    timeout_ms: Milliseconds = Field(2000.0, description="milliseconds above 0")
    breaker: Breaker = Field(Breaker(), description="{error_rate, slow_ms, requests, window, open}")
    batching: Batching = Field(Batching(), description="{mode, max_rows}")
    log: PredictionLogging = Field(PredictionLogging(), description="{sample, redact, disk_full}")
    cached_answers: int = Field(0, ge=0, le=1_000_000, description="a whole number; 0 keeps none")
    default: float | dict[Text, float] | None = Field(
        None, description="the answer when nothing else can answer: a number, or one for each class"
    )
    shadow_share: Share = Field(0.25, description="a percentage of a worker's time, like 25%")
    features: OnlineLookup = Field(OnlineLookup(), description="{missing, max_age, timeout_ms}")


class Drift(Section):
    """The PSI (bias-corrected) that alarms, and the features it is watched on."""

    psi: Positive = Field(0.25, description="a number above 0, like 0.2")
    features: Literal["all"] | tuple[Text, ...] = Field("all", description="all, or a list of feature names")


class Quality(Section):
    """How far `metric` may fall below the registered value, relatively."""

    metric: str = Field("", description="a metric's name; empty for the task's usual one")
    drop: Share = Field(0.05, gt=0, description="a percentage, like 5%")


class Slo(Section):
    """What users were promised."""

    latency_p99_ms: Positive = Field(100.0, description="milliseconds above 0")
    availability: Share = Field(0.999, gt=0, description="a percentage, like 99.9%")


class FeatureRule(Section):
    """What a feature must keep to in every window, or (named by its view) all features of a view.

    `freshness`: how old the newest row of the view's table may be; without it, the view's own TTL. `range`: no value
    lies outside.
    """

    freshness: Duration | None = Field(None, gt=timedelta(), description="a duration above zero, like 6h")
    null_rate: Share | None = Field(None, description="a percentage, like 5%")
    distinct: Limit | None = Field(None, description='a limit, like ">= 3"')
    range: tuple[float | None, float | None] | None = Field(
        None, description="[lowest, highest], either of them null for none"
    )


class Monitoring(Section):
    """Windows are of event time."""

    window: Duration = Field(timedelta(days=1), gt=timedelta(), description="a duration above zero, like 1d")
    drift: Drift = Field(Drift(), description="{psi, features}")
    quality: Quality = Field(Quality(), description="{metric, drop}")
    slo: Slo = Field(Slo(), description="{latency_p99_ms, availability}")
    features: dict[Text, FeatureRule] = Field(
        {}, description="feature or view: {freshness, null_rate, distinct, range}"
    )


class Budget(Section):
    """A bound on runs that nobody asked for."""

    runs_per_week: int = Field(4, ge=1, le=10_000, description="a whole number from 1")


class Online(Section):
    """Keeping the online store up to date without being asked. Without this section: only by hand."""

    every: Duration | None = Field(
        None, ge=timedelta(seconds=10), description="a duration from 10s, like 15m"
    )
    after_run: bool = Field(False, description="true or false")


_SCHEDULES = {"daily": timedelta(days=1), "weekly": timedelta(weeks=1), "monthly": timedelta(days=30)}


class Retraining(Section):
    """When to train again. Without this section: never by itself."""

    schedule: Literal["daily", "weekly", "monthly"] | None = Field(
        None, description="daily, weekly or monthly"
    )
    on: tuple[Literal["drift", "quality_drop", "source_change"], ...] = Field(
        ("quality_drop",), description="a list of drift, quality_drop, source_change"
    )
    cooldown: Duration = Field(timedelta(days=2), description="a duration, like 2d")
    budget: Budget = Field(Budget(), description="{runs_per_week: 4}")

    @property
    def every(self) -> timedelta | None:
        """The length of `schedule`; a month is 30 days."""
        return _SCHEDULES[self.schedule] if self.schedule else None
