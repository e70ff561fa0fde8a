"""The semantic version a new bundle deserves, from what changed in it. Pure.

- major: whoever calls the model, or reads its answers, must change something (inputs, outputs, classes, task, label);
- minor: it was made another way (features, transform, training code, hyperparameters that a person chose);
- patch: the same recipe on other data, or with another seed: a retrain.

Each number of a model is greater than all before it, those of deleted versions included. What changed is looked at
from two sides, and the larger change counts: from the version in Production, whose callers will meet the new one, and
from the version with the highest number, because that is the number the new one follows.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from loopwright.bundle.manifest import Manifest
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Conflict, Refused

_NUMBER = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})")

Triple = tuple[int, int, int]


class Bump(IntEnum):
    """How large a change is."""

    PATCH = 0
    MINOR = 1
    MAJOR = 2


@dataclass(frozen=True, slots=True)
class Change:
    """How a bundle differs from an earlier one. `why` names the differences that make it this large."""

    bump: Bump
    why: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """The number a new version gets: "1.4.0", the change that asks for it, and why in words."""

    version: str
    bump: Bump
    why: str


def parse(text: str) -> Triple:
    """Read "1.4.0"; raises BadInput for anything else, pre-releases included."""
    found = _NUMBER.fullmatch(text.strip())
    if not found:
        raise BadInput("not a semantic version", got=text, wanted="MAJOR.MINOR.PATCH, like 1.4.0")
    major, minor, patch = map(int, found.groups())
    return major, minor, patch


def compare(previous: Manifest, new: Manifest) -> Change:
    """How `new` differs from `previous`, by what both manifests say of themselves."""
    broken = _broken(previous, new)
    if broken:
        return Change(Bump.MAJOR, "; ".join(broken))
    remade = _remade(previous, new)
    if remade:
        return Change(Bump.MINOR, "; ".join(remade))
    return Change(Bump.PATCH, "; ".join(_retrained(previous, new)))


def propose(taken: Iterable[str], changes: Mapping[str, Change]) -> Proposal:
    """The next number after all of `taken`, for the largest of `changes`, each by what it was compared with.

    Without numbers it is 1.0.0. Without anything to compare with, what changed cannot be told: that is minor.
    """
    numbers = [parse(text) for text in taken]
    if not numbers:
        return Proposal("1.0.0", Bump.MAJOR, "the first version")
    if not changes:
        change, against = Change(Bump.MINOR, "no earlier bundle is here to compare with"), ""
    else:
        against, change = max(changes.items(), key=lambda item: item[1].bump)
    following = _after(max(numbers), change.bump)
    why = f"{change.bump.name.lower()} over {against}: {change.why}" if against else change.why
    return Proposal(_text(following), change.bump, why)


def choose(asked: str, proposal: Proposal, taken: Sequence[str], *, actor: Actor, admin: bool) -> Proposal:
    """The number that `actor` asked for in the place of `proposal`.

    Raises Conflict unless it is higher than all of `taken`, and Refused when it promises less than changed and the
    actor is no `admin`. A first version may be 0.1.0: nobody relies on a number yet.
    """
    wanted = parse(asked)
    check_free(asked, taken)
    if taken and wanted < parse(proposal.version) and not admin:
        raise Refused(
            f"{asked} promises less than changed", got=asked, wanted=f"{proposal.version} or above ({proposal.why})",
            next=f"Leave --semver out, or ask somebody with the role {Role.ADMIN.name.lower()}.",
        )  # fmt: skip
    return Proposal(
        _text(wanted),
        proposal.bump,
        f"chosen by {actor.name}; proposed was {proposal.version} ({proposal.why})",
    )


def check_free(asked: str, taken: Iterable[str]) -> None:
    """Raise Conflict unless `asked` is higher than every number of `taken`."""
    highest = max((parse(text) for text in taken), default=None)
    if highest is not None and parse(asked) <= highest:
        raise Conflict(
            "a semantic version that does not follow the ones there are", got=asked, wanted=f"above {_text(highest)}"
        )  # fmt: skip


def _after(number: Triple, bump: Bump) -> Triple:
    major, minor, patch = number
    if bump is Bump.MAJOR:
        return major + 1, 0, 0
    return (major, minor + 1, 0) if bump is Bump.MINOR else (major, minor, patch + 1)


def _text(number: Triple) -> str:
    return ".".join(map(str, number))


def _broken(previous: Manifest, new: Manifest) -> list[str]:
    """What callers trip over. Serving refuses a request with an input too many or too few, null or not."""
    old, now = previous.schema, new.schema
    found = []
    if old.task != now.task:
        found.append(f"the task is {now.task} instead of {old.task}")
    if old.outputs != now.outputs or old.classes != now.classes:
        found.append(f"it answers {_listed(now.classes or now.outputs)} instead of "
                     f"{_listed(old.classes or old.outputs)}")  # fmt: skip
    before, after = {f.name: f for f in old.inputs}, {f.name: f for f in now.inputs}
    if before.keys() - after.keys():
        found.append(f"requests no longer bring {_listed(sorted(before.keys() - after.keys()))}")
    if after.keys() - before.keys():
        found.append(f"requests must bring {_listed(sorted(after.keys() - before.keys()))}")
    for name in sorted(before.keys() & after.keys()):
        was, becomes = before[name], after[name]
        # Wherever whole numbers were taken, numbers with a fraction are read from the same requests.
        if was.dtype != becomes.dtype and (was.dtype, becomes.dtype) != ("int64", "float64"):
            found.append(f"input {name} is {becomes.dtype} instead of {was.dtype}")
        if was.nullable and not becomes.nullable:
            found.append(f"input {name} may no longer be null")
    labels = _recipe(previous).get("label"), _recipe(new).get("label")
    if None not in labels and labels[0] != labels[1]:
        found.append(f"it predicts {labels[1]} instead of {labels[0]}")
    return found


def _remade(previous: Manifest, new: Manifest) -> list[str]:
    old, now = previous.schema, new.schema
    found = []
    if old.features != now.features:
        added, gone = set(now.features) - set(old.features), set(old.features) - set(now.features)
        found += [f"features added: {_listed(sorted(added))}"] if added else []
        found += [f"features removed: {_listed(sorted(gone))}"] if gone else []
        found += [] if added or gone else ["features in another order"]
    if old.inputs != now.inputs and {f.name: f for f in old.inputs} != {f.name: f for f in now.inputs}:
        found.append("inputs take more than before")
    before, after = _recipe(previous), _recipe(new)
    made = previous.provenance.get("algorithm"), new.provenance.get("algorithm")
    if None not in made and made[0] != made[1]:
        found.append(f"{made[1]} instead of {made[0]}")
    if before and after:
        files = before.get("files", {}), after.get("files", {})
        changed = sorted(name for name in {*files[0], *files[1]} if files[0].get(name) != files[1].get(name))
        found += [f"changed: {_listed(changed)}"] if changed else []
        found += [f"another {key}" for key in ("entry", "search") if before.get(key) != after.get(key)]
        return found
    # A bundle that does not say how it was made: what it holds has to tell.
    if previous.files.get("transform.py") != new.files.get("transform.py"):
        found.append("changed: transform.py")
    if previous.provenance.get("params") != new.provenance.get("params"):
        found.append("other hyperparameters")
    return found


def _retrained(previous: Manifest, new: Manifest) -> list[str]:
    old, now = previous.provenance, new.provenance
    told = {"snapshot": "another snapshot", "trained_until": "trained on another span", "seed": "another seed",
            "params": "the search found other hyperparameters"}  # fmt: skip
    found = [words for key, words in told.items() if old.get(key) != now.get(key)]
    return ["the same recipe", *found] if found else ["the same recipe on the same data"]


def _recipe(manifest: Manifest) -> Mapping[str, Any]:
    recipe = manifest.provenance.get("recipe")
    return recipe if isinstance(recipe, Mapping) else {}


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
