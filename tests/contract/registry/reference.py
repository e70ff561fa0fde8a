"""What the documents say may happen to a model's versions, small enough to read: the oracle of the state machine.

Written from the policy documents and from what the functions promise. It calls nothing of what it is held against.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from loopwright.kernel.actor import Actor, Role

NONE, STAGING, PRODUCTION, ARCHIVED = "None", "Staging", "Production", "Archived"
NEVER = timedelta.max
SKEW = timedelta(minutes=5)
SYSTEM = "loopwright"
DAY = timedelta(days=1)
SECTIONS = frozenset({"intended_use", "limitations", "training_data", "risks"})

Rules = dict[str, Any]


class No(Exception):
    """The documents refuse it."""


def must(condition: object) -> None:
    if not condition:
        raise No


def _asked(
    *, age: timedelta, sections: frozenset[str], all_kinds: bool
) -> dict[str, tuple[timedelta, frozenset[str]]]:
    bare: frozenset[str] = frozenset()
    asked = {"gates": (age, bare)}
    if all_kinds:
        asked |= {"fairness": (age, bare), "explainability": (age, bare)}
    return asked | ({"card": (NEVER, sections)} if sections else {})


def _tier(rank: int, staging: int, age: timedelta, sections: frozenset[str], **points: Any) -> Rules:
    return {
        "tier": rank, "staging": staging, "author": False, "requester": False, "glass": True, "failed_gates": False,
        "retain": timedelta(days=365.25 * 7), "freeze": frozenset(),
        "evidence": {
            STAGING: _asked(age=age, sections=frozenset(), all_kinds=False),
            PRODUCTION: _asked(age=age, sections=sections, all_kinds=rank == 2),
        },
        **points,
    }  # fmt: skip


TIERS: dict[str, Rules] = {
    "high": _tier(
        2, 1, 90 * DAY, SECTIONS,
        production=2, lasts=14 * DAY, breaker=Role.ADMIN, review_within=3 * DAY,
    ),
    "medium": _tier(
        1, 1, 180 * DAY, frozenset({"intended_use", "limitations"}),
        production=1, lasts=30 * DAY, breaker=Role.APPROVER, review_within=7 * DAY,
    ),
    "low": _tier(
        0, 0, NEVER, frozenset(),
        production=1, lasts=NEVER, breaker=Role.APPROVER, review_within=14 * DAY, author=True, requester=True,
    ),
}  # fmt: skip
STRICTER_IS_MORE = ("tier", "staging", "production", "breaker", "retain")
STRICTER_IS_LESS = ("author", "requester", "lasts", "glass", "failed_gates", "review_within")


def strictest(one: Rules, other: Rules) -> Rules:
    """In every point what the stricter of the two asks."""
    picked = {point: max(one[point], other[point]) for point in STRICTER_IS_MORE}
    picked |= {point: min(one[point], other[point]) for point in STRICTER_IS_LESS}
    picked["freeze"] = one["freeze"] | other["freeze"]
    picked["evidence"] = {}
    for stage in (STAGING, PRODUCTION):
        asked = dict(one["evidence"][stage])
        for kind, (age, sections) in other["evidence"][stage].items():
            mine, written = asked.get(kind, (NEVER, frozenset()))
            asked[kind] = (min(mine, age), written | sections)
        picked["evidence"][stage] = asked
    return picked


@dataclass
class Version:
    number: int
    bundle: str | None
    snapshot: str | None
    author: str
    used: datetime
    stage: str = NONE
    deleted: bool = False


@dataclass(frozen=True)
class Evidence:
    kind: str
    bundle: str
    verdict: str
    at: datetime
    snapshot: str | None = None
    sections: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Yes:
    who: str
    role: Role
    at: datetime
    seen: int


@dataclass
class Ask:
    version: int
    stage: str
    bundle: str
    by: str
    rules: Rules
    state: str = "pending"
    yes: list[Yes] = field(default_factory=list)
    decided: int | None = None
    review: str | None = None
    broken_by: str = ""
    due: datetime | None = None
    seen: int = 0


@dataclass
class Rollout:
    version: int
    baseline: int | None
    ask: Ask | None
    phases: list[str]
    paused: bool = False


PLANS: dict[str, list[str]] = {
    "careful": ["shadow", "canary", "canary", "canary"],
    "quick": ["canary"],
    "instant": [],
}


@dataclass
class Reference:
    """One model's governance. Every act either changes it or raises No."""

    now: datetime
    documents: dict[str, Rules] = field(default_factory=lambda: dict(TIERS))
    section: Mapping[str, Any] | None = None
    waived: frozenset[str] = frozenset()
    plan: str = "careful"
    versions: dict[int, Version] = field(default_factory=dict)
    evidence: dict[Evidence, int] = field(default_factory=dict)
    """In the order of its recording; with how many moments the log had told by then."""
    moments: list[datetime] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)
    running: Rollout | None = None
    answered: list[int] = field(default_factory=list)
    """Versions that all traffic came to, oldest first, without those that a rollback left; the last one answers."""
    completed: list[int] = field(default_factory=list)
    acts: list[tuple[str, str, str]] = field(default_factory=list)
    """(action, subject, actor): the rows the audit log must have, one for each."""

    # What follows from what is there

    @property
    def stable(self) -> int | None:
        return self.answered[-1] if self.answered else None

    def get(self, number: int) -> Version:
        found = self.versions.get(number)
        must(found is not None and not found.deleted)
        assert found is not None
        return found

    def rules(self) -> Rules:
        """The tier's document, with what the project says: only stricter, but where an admin waived it."""
        said = self.section or {}
        tier = said.get("tier", "high") if "tier" in self.waived else "high"
        rules = dict(self.documents[tier])
        for point in (*STRICTER_IS_MORE[1:], *STRICTER_IS_LESS):
            if point not in said:
                continue
            stricter = strictest(rules, {**rules, point: said[point]})
            rules[point] = said[point] if point in self.waived else stricter[point]
        return {**rules, "freeze": rules["freeze"] | said.get("freeze", frozenset())}

    def current(self, stage: str) -> int | None:
        """Of the versions in the stage the one promoted there last."""
        there = [
            ask for ask in self.asks
            if ask.state == "effective" and ask.stage == stage and self._in(ask.version, stage)
        ]  # fmt: skip
        return max(there, key=lambda ask: ask.decided or 0).version if there else None

    def pending(self, number: int, stage: str | None = None) -> list[Ask]:
        return [
            ask for ask in self.asks
            if ask.version == number and ask.state == "pending" and stage in (None, ask.stage)
        ]  # fmt: skip

    def granted(self, number: int) -> list[Ask]:
        """Promotions to Production of exactly the version's bytes that stand, the latest first."""
        mine = [
            ask for ask in self.asks
            if ask.version == number and ask.stage == PRODUCTION and ask.state == "effective"
            and ask.bundle == self.versions[number].bundle
        ]  # fmt: skip
        return sorted(mine, key=lambda ask: ask.decided or 0, reverse=True)

    def returnable(self, number: int) -> bool:
        """Whether traffic may come back to it: still there, still approved, its broken glass not revoked."""
        standing = [ask for ask in self.granted(number) if ask.review != "revoked"]
        return bool(standing) and not self.versions[number].deleted

    def targets(self) -> list[int]:
        """What a rollback goes to, nearest first."""
        return [number for number in self.answered[-2::-1] if self.returnable(number)]

    def passed(self, seen: int) -> datetime:
        """How late it is, for what was written when the log had told `seen` moments: no clock set back undoes it."""
        return max([self.now, *self.moments[seen:]])

    def set_clock(self, now: datetime) -> None:
        """The clock says another time, and something happens then."""
        self.now = now
        self.moments.append(now)

    def overdue(self) -> bool:
        return any(
            ask.review == "open" and ask.due is not None and self.passed(ask.seen) > ask.due
            for ask in self.asks
        )

    def counting(self, ask: Ask, rules: Rules) -> set[str]:
        """Who has said yes in a way that counts now."""
        version = self.versions[ask.version]
        return {
            yes.who for yes in ask.yes
            if yes.role >= Role.APPROVER and yes.at - self.now <= SKEW
            and self.passed(yes.seen) - yes.at <= rules["lasts"]
            and (rules["author"] or yes.who != version.author) and (rules["requester"] or yes.who != ask.by)
        }  # fmt: skip

    def satisfied(self, version: Version, stage: str, ask: Ask | None, rules: Rules) -> bool:
        if version.bundle is None:
            return False
        for kind, (age, sections) in rules["evidence"][stage].items():
            latest = self.latest(kind, version.bundle)
            if latest is None or latest.verdict != "PASS" or not sections <= latest.sections:
                return False
            if latest.at - self.now > SKEW or self.passed(self.evidence[latest]) - latest.at > age:
                return False
            if kind != "card" and latest.snapshot not in (None, version.snapshot):
                return False
        needed = rules[stage.lower()]
        if needed and (ask is None or len(self.counting(ask, rules)) < needed):
            return False
        if stage == PRODUCTION and any(start <= self.now < until for start, until in rules["freeze"]):
            return False
        return not self.overdue()

    def latest(self, kind: str, bundle: str) -> Evidence | None:
        found = [one for one in self.evidence if (one.kind, one.bundle) == (kind, bundle)]
        return found[-1] if found else None

    def due(self) -> list[Ask]:
        """Of every version in Production its last promotion there, if that has had no rollout; in their order."""
        begun = [rollout.ask for rollout in self.rollouts]
        last = [self.granted(number)[0] for number in self.versions if self._in(number, PRODUCTION)]
        waiting = [ask for ask in last if not any(ask is one for one in begun)]
        return sorted(waiting, key=lambda ask: ask.decided or 0)

    def arms(self) -> dict[str, int]:
        """Who answers: the route table, without weights."""
        if self.stable is None:
            return {}
        if self.running is None:
            return {"stable": self.stable}
        return {"stable": self.stable, self.running.phases[0]: self.running.version}

    def _in(self, number: int, stage: str) -> bool:
        version = self.versions[number]
        return version.stage == stage and not version.deleted

    # Acts of the registry

    def register(self, author: Actor, bundle: str | None, snapshot: str | None) -> None:
        must(author.role >= Role.DEVELOPER)
        standing = [one for one in self.versions.values() if one.bundle == bundle and not one.deleted]
        if bundle is not None and standing:
            return
        number = max(self.versions, default=0) + 1
        self.versions[number] = Version(number, bundle, snapshot, author.name, self.now)
        self._note("version.registered", number if bundle else None, author.name)

    def record(self, found: Evidence) -> None:
        self.moments.append(found.at)
        self.evidence.setdefault(found, len(self.moments))

    def request(self, actor: Actor, number: int, stage: str) -> None:
        must(actor.role >= Role.DEVELOPER)
        version = self.get(number)
        must(version.stage != stage and version.bundle is not None)
        must(not self.overdue() and not self.pending(number, stage))
        ask = Ask(number, stage, version.bundle or "", actor.name, self.rules())
        self.asks.append(ask)
        self._note("promotion.requested", number, actor.name)
        self.settle(ask, actor.name)

    def settle(self, ask: Ask, by: str) -> None:
        version = self.get(ask.version)
        must(not (ask.stage == STAGING and version.stage == PRODUCTION))
        if self.satisfied(version, ask.stage, ask, strictest(ask.rules, self.rules())):
            self._take_effect(ask, by)

    def promote(self, actor: Actor, number: int, stage: str) -> None:
        """`loopwright promote`: asks, and begins the rollout of what takes effect."""
        must(stage != PRODUCTION or self.running is None)
        self.request(actor, number, stage)
        self.deliver_due()

    def meant(self, number: int, to: str | None) -> Ask:
        """Which of a version's waiting requests is spoken of: of two, the one that is named."""
        self.get(number)
        waiting = self.pending(number, to)
        must(len(waiting) == 1)
        return waiting[0]

    def speak(self, actor: Actor, number: int, yes: bool, looked_at: str | None, to: str | None) -> None:
        version, ask = self.get(number), self.meant(number, to)
        rules = strictest(ask.rules, self.rules())
        must(actor.role >= Role.APPROVER and not actor.service)
        must(actor.name not in self.counting(ask, rules))
        must(rules["author"] or actor.name != version.author)
        must(rules["requester"] or actor.name != ask.by)
        must(looked_at in (None, ask.bundle))
        if not yes:
            ask.state, ask.decided = "rejected", len(self.acts)
            self._note("promotion.rejected", number, actor.name)
            return
        ask.yes.append(Yes(actor.name, actor.role, self.now, len(self.moments)))
        self._note("approval.given", number, actor.name)
        self.settle(ask, actor.name)
        self.deliver_due()

    def withdraw(self, actor: Actor, number: int, to: str | None) -> None:
        ask = self.meant(number, to)
        must(actor.role >= (Role.DEVELOPER if actor.name == ask.by else Role.ADMIN))
        self._withdraw(ask, actor.name)

    def transition(self, actor: Actor, number: int, stage: str) -> None:
        """What MLflow's client asks for."""
        must(actor.role >= Role.DEVELOPER)
        version = self.get(number)
        if stage in (NONE, ARCHIVED):
            must(version.stage != PRODUCTION)
            self._restage(version, stage, actor.name)
            return
        if version.stage == stage:
            return
        waiting = self.pending(number, stage)
        ask = waiting[-1] if waiting else None
        rules = strictest(ask.rules, self.rules()) if ask else self.rules()
        must(self.satisfied(version, stage, ask, rules))
        if ask is not None:
            self.settle(ask, actor.name)
        else:
            self.request(actor, number, stage)

    def restage(self, actor: Actor, number: int, stage: str) -> None:
        """Archive or demote: nobody takes a version out of Production so."""
        must(actor.role >= Role.DEVELOPER)
        version = self.get(number)
        must(version.stage != PRODUCTION)
        self._restage(version, stage, actor.name)

    def break_glass(self, actor: Actor, number: int, *, reasoned: bool) -> None:
        version, rules = self.get(number), self.rules()
        must(actor.role >= max(Role.DEVELOPER, rules["breaker"]) and not actor.service)
        must(rules["glass"] and reasoned and self.running is None)
        must(version.stage != PRODUCTION and version.bundle is not None and not self.overdue())
        gates = self.latest("gates", version.bundle or "")
        must(gates is None or gates.verdict != "FAIL" or rules["failed_gates"])
        for ask in self.pending(number, PRODUCTION):
            self._withdraw(ask, actor.name)
        ask = Ask(number, PRODUCTION, version.bundle or "", actor.name, rules)
        ask.review, ask.broken_by, ask.due = "open", actor.name, self.now + rules["review_within"]
        ask.seen = len(self.moments)
        self.asks.append(ask)
        self._note("promotion.break_glass", number, actor.name)
        self._take_effect(ask, actor.name)
        self.deliver_due()

    def reviews(self, number: int) -> list[Ask]:
        waiting = [ask for ask in self.asks if ask.version == number and ask.review == "open"]
        return sorted(waiting, key=lambda ask: ask.due or self.now)

    def review(self, actor: Actor, number: int, *, uphold: bool, reasoned: bool) -> None:
        version = self.get(number)
        must(self.reviews(number))
        ask = self.reviews(number)[0]
        must(actor.role >= Role.APPROVER and not actor.service and reasoned)
        must(actor.name != ask.broken_by and (self.rules()["author"] or actor.name != version.author))
        ask.review = "upheld" if uphold else "revoked"
        self._note(f"review.{ask.review}", number, actor.name)
        if uphold:
            return
        rolling = self.running is not None and self.running.version == number
        must(rolling or self.running is None or self.stable != number)
        if rolling or (self.stable == number and self.targets()):
            self.rollback(actor, None)

    def set_document(self, actor: Actor, tier: str, changes: Mapping[str, Any], *, reasoned: bool) -> None:
        must(actor.role >= Role.ADMIN and reasoned)
        document = {**TIERS[tier], **{key: value for key, value in changes.items() if key != "gates_age"}}
        if "gates_age" in changes:
            asked = {"gates": (changes["gates_age"], frozenset[str]())}
            document["evidence"] = {**document["evidence"], PRODUCTION: asked}
        if document != self.documents[tier]:
            self.documents[tier] = document
            self.acts.append(("policy.set", f"policy {tier}", actor.name))

    def apply(self, actor: Actor, section: Mapping[str, Any], plan: str) -> None:
        """`loopwright apply`: an admin's waives what is looser; a developer's only tightens."""
        must(actor.role >= Role.DEVELOPER)
        must(actor.role >= Role.ADMIN or self.section is not None)
        document = self.documents[section["tier"]]
        looser = {
            point for point in (*STRICTER_IS_MORE[1:], *STRICTER_IS_LESS)
            if point in section and strictest(document, {**document, point: section[point]})[point] != section[point]
        }  # fmt: skip
        if section["tier"] != "high":
            looser.add("tier")
        before = (self.section, self.plan)
        waived = self.waived
        self.section, self.plan = section, plan
        if actor.role < Role.ADMIN:
            governed = Reference.rules(self._seen(before[0], waived))
            wanted = Reference.rules(self._seen(section, frozenset(looser)))
            must(strictest(wanted, governed) == wanted)
            looser &= waived
        self.waived = frozenset(looser)
        if before != (self.section, self.plan):
            self.acts.append(("project.applied", "flights", actor.name))
        if self.waived != waived:
            self.acts.append(("policy.waived", "flights", actor.name))

    def delete(self, actor: Actor, number: int) -> None:
        must(actor.role >= Role.ADMIN)
        version = self.versions[number]
        if version.deleted:
            return
        running = self.running
        must(version.stage in (NONE, ARCHIVED) and not self.pending(number) and not self.reviews(number))
        must(running is None or number not in (running.version, running.baseline))
        approved = sorted(
            (ask for one in self.versions for ask in self.granted(one) if self.returnable(one)),
            key=lambda ask: ask.decided or 0, reverse=True,
        )  # fmt: skip
        before = [ask.version for ask in approved if ask.version != self.current(PRODUCTION)]
        must(before[:1] != [number])
        answered = [one for one in self.completed[::-1] if one != self.stable and self.returnable(one)]
        must(answered[:1] != [number])
        must(self.now >= version.used + self.rules()["retain"])
        version.deleted = True
        self._note("version.deleted", number, actor.name)

    # Acts of delivery

    def deliver_due(self) -> None:
        for ask in self.due():
            if self.running is None:
                self._begin(ask)

    def govern(self) -> None:
        """One round of the controller that settles what has waited."""
        ready = [
            ask for ask in self.asks
            if ask.state == "pending" and not (ask.stage == STAGING and self._in(ask.version, PRODUCTION))
            and self.satisfied(
                self.versions[ask.version], ask.stage, ask, strictest(ask.rules, self.rules())
            )
        ]  # fmt: skip
        for ask in ready:
            if ask.state != "pending" or (ask.stage == PRODUCTION and self.running is not None):
                continue
            with suppress(No):
                self.settle(ask, SYSTEM)
                self.deliver_due()

    def step(self, seen: str) -> None:
        """The controller looks at what the arms answered: nothing yet, no harm, or harm."""
        running = self.running
        if running is None:
            return
        if seen == "harm":
            self._note("rollout.moved", running.version, SYSTEM)
            self._end(running, SYSTEM)
        elif seen == "good" and not running.paused:
            self._note("rollout.moved", running.version, SYSTEM)
            running.phases = running.phases[1:]
            if not running.phases:
                self._complete(running, SYSTEM)

    def pause(self, actor: Actor, *, paused: bool) -> None:
        must(actor.role >= Role.APPROVER and self.running is not None and self.running.paused != paused)
        assert self.running is not None
        self.running.paused = paused
        self._note("rollout.paused" if paused else "rollout.resumed", self.running.version, actor.name)

    def abort(self, actor: Actor) -> None:
        must(actor.role >= Role.APPROVER and self.running is not None)
        assert self.running is not None
        self._note("rollout.aborted", self.running.version, actor.name)
        self._end(self.running, actor.name)

    def finish(self, actor: Actor) -> None:
        must(actor.role >= Role.APPROVER and self.running is not None)
        assert self.running is not None
        self._note("rollout.promoted", self.running.version, actor.name)
        self._complete(self.running, actor.name)

    def rollback(self, actor: Actor, to: int | None) -> None:
        must(actor.role >= Role.APPROVER)
        if self.running is not None:
            baseline = self.running.baseline
            self.abort(actor)
            if to in (None, baseline):
                return
        leaving, targets = self.stable, self.targets()
        must(leaving is not None and targets)
        target = targets[0] if to is None else to
        must(target in targets)
        assert leaving is not None
        self.answered = self.answered[: self.answered.index(target) + 1]
        self.completed.append(target)
        self._note("rollout.rolled_back", target, actor.name)
        self._revert(leaving, target, actor.name)

    # What acts are made of

    def _note(self, action: str, number: int | None, by: str) -> None:
        self.acts.append((action, "flights" if number is None else f"flights/{number}", by))

    def _seen(self, section: Mapping[str, Any] | None, waived: frozenset[str]) -> "Reference":
        return Reference(self.now, self.documents, section, waived)

    def _take_effect(self, ask: Ask, by: str) -> None:
        version = self.versions[ask.version]
        ask.state, ask.decided = "effective", len(self.acts)
        self._note("promotion.effective", ask.version, by)
        version.stage, version.used = ask.stage, max(version.used, self.now)

    def _withdraw(self, ask: Ask, by: str) -> None:
        ask.state, ask.decided = "withdrawn", len(self.acts)
        self._note("promotion.withdrawn", ask.version, by)

    def _restage(self, version: Version, stage: str, by: str) -> None:
        if version.stage == stage:
            return
        version.stage, version.used = stage, max(version.used, self.now)
        self._note("version.archived" if stage == ARCHIVED else "version.demoted", version.number, by)

    def _begin(self, ask: Ask) -> None:
        baseline = self.stable if self.stable != ask.version else None
        phases = PLANS[self.plan] if baseline is not None else []
        rollout = Rollout(ask.version, baseline, ask, phases)
        self.rollouts.append(rollout)
        self._note("rollout.started", ask.version, SYSTEM)
        if phases:
            self.running = rollout
        else:
            self._complete(rollout, SYSTEM)

    def _complete(self, rollout: Rollout, by: str) -> None:
        self.running = None
        self.answered = [one for one in self.answered if one != rollout.version] + [rollout.version]
        self.completed.append(rollout.version)
        self._note("rollout.completed", rollout.version, by)
        if rollout.baseline is not None:
            assert self.current(PRODUCTION) != rollout.baseline
            self._restage(self.versions[rollout.baseline], ARCHIVED, SYSTEM)

    def _end(self, rollout: Rollout, by: str) -> None:
        self.running = None
        if rollout.baseline is not None:
            self._revert(rollout.version, rollout.baseline, by)

    def _revert(self, leaving: int, target: int, by: str) -> None:
        must(self._in(leaving, PRODUCTION) and self.granted(target) and not self.versions[target].deleted)
        self._note("version.reverted", leaving, by)
        for ask in self.granted(leaving):
            ask.state = "reverted"
        for version in self.versions.values():
            if version.stage == PRODUCTION and version.number != target:
                version.stage = ARCHIVED
        self.versions[leaving].used = max(self.versions[leaving].used, self.now)
        self.versions[target].stage = PRODUCTION
        for ask in self.pending(target, PRODUCTION):
            self._withdraw(ask, by)
