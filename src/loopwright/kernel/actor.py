"""Who acts, and what their role allows."""

from dataclasses import dataclass
from enum import IntEnum

from loopwright.kernel.errors import BadInput, Refused, did_you_mean


class Role(IntEnum):
    """Each role may do all that the ones before it may."""

    VIEWER = 1
    DEVELOPER = 2
    APPROVER = 3
    ADMIN = 4

    @classmethod
    def parse(cls, text: str) -> "Role":
        """Read "approver" in any case; raises BadInput naming the roles."""
        try:
            return cls[text.strip().upper()]
        except KeyError:
            names = [role.name.lower() for role in cls]
            raise BadInput(
                "unknown role", got=text, wanted=", ".join(names), next=did_you_mean(text, names)
            ) from None


@dataclass(frozen=True, slots=True)
class Actor:
    """A person or a process, by the name the audit log will carry."""

    name: str
    role: Role


SYSTEM = Actor("loopwright", Role.ADMIN)


def require(actor: Actor, role: Role, act: str) -> None:
    """Raise Refused unless `actor` holds at least `role`. `act` completes "may not …"."""
    if actor.role < role:
        raise Refused(
            f"{actor.name} may not {act}",
            got=f"role {actor.role.name.lower()}",
            wanted=f"role {role.name.lower()} or above",
            next=f"An admin can change it: loopwright user set {actor.name} --role {role.name.lower()}",
        )
