"""What a policy says: the `policy:` section of `loop.yaml`, and the documents of the tiers. Nothing said is nothing
changed: the document of the tier holds.
"""

from datetime import UTC, datetime, time, timedelta, tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from loopwright.kernel.clock import format_duration, iso, parse_time
from loopwright.kernel.errors import BadInput
from loopwright.project.explain import explain
from loopwright.project.located import Located, read_yaml
from loopwright.project.sections import Name, Section, Text
from loopwright.project.values import Duration, read_duration

TIERS = ("low", "medium", "high")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_Role = Literal["developer", "approver", "admin"]
_Stage = Literal["staging", "production"]


def read_lifetime(value: object) -> timedelta | Literal["never"]:
    """Read "14d", or "never" for what does not age; raises BadInput, also for nothing at all."""
    if value == "never":
        return "never"
    length = read_duration(value)
    if length <= timedelta():
        raise BadInput("no time at all", got=value, wanted="a duration above zero, like 14d, or never")
    return length


def _write_lifetime(value: Any) -> str:
    return format_duration(value) if isinstance(value, timedelta) else str(value)


Lifetime = Annotated[Any, BeforeValidator(read_lifetime), PlainSerializer(_write_lifetime, return_type=str)]


def read_zone(name: str) -> tzinfo:
    """The IANA time zone; raises BadInput for one this machine does not know. UTC is always known."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadInput("unknown time zone", got=name, wanted="an IANA name, like Europe/Berlin") from None


def read_hour(text: str) -> time | None:
    """Read "17:00" as a local time; None for "24:00", the day's end. Raises BadInput."""
    if text == "24:00":
        return None
    try:
        return datetime.strptime(text, "%H:%M").time()  # noqa: DTZ007 - a time of day, of whichever day and zone
    except ValueError:
        raise BadInput("not a time of day", got=text, wanted='HH:MM in quotes, like "17:00"') from None


class PerStage(Section):
    """How many reviewers each stage needs."""

    staging: int | None = Field(None, ge=0, le=20, description="a whole number from 0")
    production: int | None = Field(None, ge=0, le=20, description="a whole number from 0")


class Reviewer(Section):
    """The least role of a reviewer, by stage."""

    staging: _Role | None = Field(None, description="developer, approver or admin")
    production: _Role | None = Field(None, description="developer, approver or admin")


class Wanted(Section):
    """How fresh, and measured on what, evidence of a kind must be.

    `snapshot: version` refuses what says it was measured on another snapshot than the version's own. `sections` names
    the sections of the card that must be filled; it is for `card` only.
    """

    max_age: Lifetime | None = Field(None, description="a duration, like 90d, or never")
    snapshot: Literal["version", "any"] = Field("any", description="version or any")
    sections: tuple[Name, ...] = Field((), description="a list of the card's sections, like [intended_use]")


Kinds = dict[Name, Wanted]


class Required(Section):
    """The kinds of evidence that each stage needs: gates, fairness, explainability, card, or your own."""

    staging: Kinds = Field({}, description="kind: {max_age, snapshot}, like gates: {max_age: 90d}")
    production: Kinds = Field({}, description="kind: {max_age, snapshot}, like gates: {max_age: 90d}")

    @model_validator(mode="after")
    def _sections_are_the_cards(self) -> Self:
        for kinds in (self.staging, self.production):
            for kind, wanted in kinds.items():
                if wanted.sections and kind != "card":
                    raise BadInput(
                        f"`{kind}` has no sections", got=list(wanted.sections), wanted="sections of card only"
                    )
        return self


class Freeze(Section):
    """A time in which nothing is promoted: once, with two moments; or weekly, with `days` and hours of a zone.

    Weekly: `until` not after `from` is the next day's.
    """

    begins: Text = Field(alias="from", description='a time with a zone; weekly: an hour, like "17:00"')
    ends: Text = Field(alias="until", description='a time with a zone; weekly: an hour, like "08:00"')
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(
        (), description="for a weekly freeze, a list of mon, tue, wed, thu, fri, sat, sun"
    )
    zone: str = Field("UTC", description="for a weekly freeze, an IANA time zone, like Europe/Berlin")
    stages: tuple[_Stage, ...] = Field(("production",), min_length=1, description="[staging, production]")
    why: str = Field("", max_length=500, description="text")

    @model_validator(mode="before")
    @classmethod
    def _moments_are_text(cls, given: object) -> object:
        # YAML reads an unquoted 2013-12-20T00:00:00Z as a time by itself.
        if isinstance(given, dict):
            return {
                key: iso(value) if isinstance(value, datetime) and value.tzinfo else value
                for key, value in given.items()
            }
        return given

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if self.days:
            read_zone(self.zone)
            if read_hour(self.begins) is None:
                raise BadInput("a freeze begins within its day", got=self.begins, wanted='like "00:00"')
            read_hour(self.ends)
        elif parse_time(self.ends) <= parse_time(self.begins):
            raise BadInput(
                "a freeze that ends before it begins", got=f"from {self.begins} until {self.ends}",
                wanted="until after from",
            )  # fmt: skip
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, plainly: SerializerFunctionWrapHandler) -> dict[str, Any]:
        names = {"begins": "from", "ends": "until"}
        written = {names.get(name, name): value for name, value in plainly(self).items()}
        return written if self.days else {k: v for k, v in written.items() if k not in ("days", "zone")}


class Emergency(Section):
    """Who may break the glass, how soon a review must follow, and whether gates that failed may be passed over."""

    allowed: bool | None = Field(None, description="true or false")
    role: _Role | None = Field(None, description="developer, approver or admin")
    review_within: Duration | None = Field(None, gt=timedelta(), description="a duration above zero, like 3d")
    failed_gates: bool | None = Field(None, description="true or false")


class Policy(Section):
    """Who must agree, on what evidence, when, and how long everything is kept.

    What is left out is as the document of the tier says (`loopwright policy show`). What is said may be stricter than
    the document; what is looser takes an admin to apply it.
    """

    tier: Literal["low", "medium", "high"] = Field("high", description="low, medium or high")
    approvals: PerStage = Field(PerStage(), description="{staging: 1, production: 2}")
    reviewer: Reviewer = Field(Reviewer(), description="{staging: approver, production: approver}")
    author_may_approve: bool | None = Field(None, description="true or false")
    requester_may_approve: bool | None = Field(None, description="true or false")
    evidence: Required = Field(Required(), description="{staging: {gates: {max_age: 90d}}, production: …}")
    approvals_expire: Lifetime | None = Field(None, description="a duration, like 14d, or never")
    freeze: tuple[Freeze, ...] = Field((), description="a list of {from, until, days, zone, stages, why}")
    emergency: Emergency = Field(Emergency(), description="{allowed, role, review_within, failed_gates}")
    retain: Duration | None = Field(None, description="a duration, like 7y")

    def to_json(self) -> dict[str, Any]:
        """Only what is said."""
        return self.model_dump(mode="json", exclude_none=True, exclude_unset=True) | {"tier": self.tier}

    @classmethod
    def from_json(cls, document: dict[str, Any], where: str = "policy") -> Self:
        """Read what `to_json` wrote; raises BadInput naming the key."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise explain(error, Located(Path(where), document, {}), cls) from None


def read_policy(file: Path) -> Policy:
    """Read a tier's document from a YAML file; raises BadInput with file, line and key, NotFound without the file."""
    found = read_yaml(file)
    if "tier" not in found.data:
        raise BadInput("missing key `tier`", where=str(file), wanted=f"one of {', '.join(TIERS)}")
    try:
        return Policy.model_validate(found.data)
    except ValidationError as error:
        raise explain(error, found, Policy) from None
