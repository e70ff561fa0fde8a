"""Who acts, and what role, teams and scopes allow. `require` is the one place that decides."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from typing import Literal, get_args

from loopwright.kernel.errors import BadInput, Refused, did_you_mean


class Role(IntEnum):
    """Each role may do all that the ones before it may. NOBODY is what a token's scopes may leave of a person."""

    NOBODY = 0
    VIEWER = 1
    DEVELOPER = 2
    APPROVER = 3
    ADMIN = 4

    @classmethod
    def parse(cls, text: str) -> "Role":
        """Read "approver" in any case; raises BadInput naming the roles."""
        names = [role.name.lower() for role in cls if role is not cls.NOBODY]
        if text.strip().lower() not in names:
            raise BadInput("unknown role", got=text, wanted=", ".join(names), next=did_you_mean(text, names))
        return cls[text.strip().upper()]


Reach = Literal["serve", "read", "write", "approve", "admin"]
"""How far a scope reaches. `serve` is a data plane's: routes, bundles and its event log, and nothing else."""

_CAPS: dict[Reach, Role] = {
    "serve": Role.NOBODY,
    "read": Role.VIEWER,
    "write": Role.DEVELOPER,
    "approve": Role.APPROVER,
    "admin": Role.ADMIN,
}


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token is for: "read", "write", "approve", "admin" or "serve"; "approve:flight-late" for one model."""

    reach: Reach
    model: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Scope":
        """Read "write" or "write:MODEL"; raises BadInput naming the scopes."""
        reach, mark, model = text.strip().partition(":")
        known: tuple[Reach, ...] = get_args(Reach)
        found = next((each for each in known if each == reach.lower()), None)
        if found is None or (mark and not model):
            raise BadInput(
                "unknown scope", got=text, wanted=f"{', '.join(known)}, or one of them for one model: write:MODEL",
                next=did_you_mean(reach, known),
            )  # fmt: skip
        if found == "serve" and model:
            raise BadInput(
                "a data plane serves every model", got=text, wanted="the scope serve, for no one model"
            )
        return cls(found, model or None)

    def covers(self, other: "Scope") -> bool:
        """Whether whoever holds this scope could hand out `other` without giving more than they have."""
        if self.model not in (None, other.model):
            return False
        if "serve" in (self.reach, other.reach):
            return self.reach in (other.reach, "admin")
        return _CAPS[self.reach] >= _CAPS[other.reach]

    def __str__(self) -> str:
        return f"{self.reach}:{self.model}" if self.model else self.reach


@dataclass(frozen=True, slots=True)
class Actor:
    """A person or a process, by the name the audit log will carry.

    role: what they may do everywhere. teams: (team, role) where they may do more. scopes: what the token they came
    with is for; None for no limit. service: an account of a machine, which reviews nothing. via: how they came in, in
    words. until: when the token they came with ends; None for never, and for people who came without one.
    """

    name: str
    role: Role
    teams: tuple[tuple[str, Role], ...] = ()
    scopes: tuple[Scope, ...] | None = None
    service: bool = False
    via: str = field(default="", compare=False)
    until: datetime | None = field(default=None, compare=False)

    def role_on(self, *, model: str | None = None, team: str | None = None) -> Role:
        """The role on a model of `team`; without both, the role everywhere. Scopes only take away."""
        own = max([self.role, *(role for name, role in self.teams if team is not None and name == team)])
        if self.scopes is None:
            return own
        fitting = (_CAPS[scope.reach] for scope in self.scopes if scope.model in (None, model))
        return min(own, max(fitting, default=Role.NOBODY))

    def on(self, *, model: str | None = None, team: str | None = None) -> "Actor":
        """The same actor with what they may do here as their role everywhere: for rooms that know no teams."""
        return replace(self, role=self.role_on(model=model, team=team), scopes=None)

    def may_change(self, *, model: str | None = None) -> bool:
        """Whether the token they came with is for changing anything about the model; without one, everywhere."""
        changing = ("write", "approve", "admin")
        return self.scopes is None or any(
            scope.reach in changing and scope.model in (None, model) for scope in self.scopes
        )

    def may_serve(self) -> bool:
        """Whether a data plane may come with this token."""
        return self.scopes is None or any(
            scope.reach in ("serve", "admin") and scope.model is None for scope in self.scopes
        )


SYSTEM = Actor("loopwright", Role.ADMIN)


def require(actor: Actor, role: Role, act: str, *, model: str | None = None, team: str | None = None) -> None:
    """Raise Refused unless `actor` holds at least `role` on the model (of the team). `act` completes "may not …"."""
    held = actor.role_on(model=model, team=team)
    if held >= role:
        return
    wanted = f"role {role.name.lower()} or above" + (f" in team {team}" if team else "")
    if (
        actor.scopes is not None
        and Actor(actor.name, actor.role, actor.teams).role_on(model=model, team=team) >= role
    ):
        raise beyond_token(actor, act, wanted)
    raise Refused(
        f"{actor.name} may not {act}",
        got=f"role {held.name.lower()}",
        wanted=wanted,
        next=f"An admin can change it: loopwright {_remedy(actor, role, team)}{_and_token(actor, role, model)}",
    )


def beyond_token(actor: Actor, act: str, wanted: str, *, role: Role = Role.NOBODY) -> Refused:
    """What to raise when the actor might, but not with the token they came with.

    `role` is what the act takes: a token alone does not help whom neither their role nor a team's brings that far.
    """
    if max([actor.role, *(held for _, held in actor.teams)]) < role:
        return Refused(
            f"{actor.name} may not {act}", got=f"role {actor.role.name.lower()}",
            wanted=f"role {role.name.lower()} or above",
            next=f"An admin can change it: loopwright {_remedy(actor, role, None)}{_and_token(actor, role, None)}",
        )  # fmt: skip
    return Refused(
        f"{actor.name} may not {act} with this token",
        got=f"scopes {', '.join(map(str, actor.scopes or ())) or 'none'}",
        wanted=wanted,
        next=f"Make a token for it: loopwright token create {actor.name} --scope …",
    )


def _and_token(actor: Actor, role: Role, model: str | None) -> str:
    """What else it takes when the token they came with would not let them use the role either."""
    if replace(actor, role=Role.ADMIN).role_on(model=model) >= role:
        return ""
    return f", and then make a token for it: loopwright token create {actor.name} --scope …"


def _remedy(actor: Actor, role: Role, team: str | None) -> str:
    word = role.name.lower()
    return f"team grant {team} {actor.name} {word}" if team else f"user set {actor.name} --role {word}"
