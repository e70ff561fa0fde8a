"""What every protocol asks of a worker: find a model, read who asks and how long they wait, get an answer."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Protocol
from urllib.parse import quote

from loopwright.kernel.errors import BadInput, NotFound
from loopwright.serving.callers import Callers, Right
from loopwright.serving.counters import Counters
from loopwright.serving.engine import Answer, Call, Engine
from loopwright.serving.entities import EntityFeatures
from loopwright.serving.http import Bounds, Headers, encode
from loopwright.serving.models import Model, Served
from loopwright.serving.rows import MAX_ID, PartialRows, Rows
from loopwright.serving.watching import Answered, Watcher, answered, caller

ARM, TIMEOUT, AUTHORIZATION = b"x-loopwright-arm", b"x-loopwright-timeout-ms", b"authorization"
REQUEST_ID, UNIT = b"x-request-id", b"x-loopwright-unit"
_ASKED = frozenset((ARM, TIMEOUT, AUTHORIZATION, REQUEST_ID, UNIT))
_SPEAKS_FOR = frozenset((b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via", b"origin"))
MIXED = "mixed"
"""The arm of an answer whose rows were answered by several."""

LONGEST_MS = 86_400_000.0


class Host(Protocol):
    """What the protocols need from the process around them."""

    def not_started(self) -> str:
        """Why it has not begun to serve yet, or ""; once "", always ""."""
        ...

    def not_ready(self) -> str:
        """Why no traffic should come, or ""."""
        ...

    def warnings(self) -> list[str]:
        """What a person should know though all answers are right."""
        ...

    def gauges(self) -> Mapping[str, float]:
        """Numbers for /metrics that are not counters."""
        ...

    async def ask(self, what: str) -> tuple[int, dict[str, Any]]:
        """Ask the supervisor ("flush" or "refresh"); return status and answer."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """A model, or one version of it, that requests at one address are for. served: whose schema they must meet."""

    model: Model
    version: int | None
    served: Served
    plain: Call
    """The call of a request that asks for nothing special."""


class Front:
    """One worker's. `host`, `bounds` and `callers` are the process's; the engine's models are looked at as they are."""

    def __init__(
        self, engine: Engine, counters: Counters, host: Host, bounds: Bounds, callers: Callers | None = None
    ) -> None:
        self.engine = engine
        self.counters = counters
        self.host = host
        self.bounds = bounds
        self.callers = callers or Callers()
        self.entities: EntityFeatures | None = None
        """Looks up what requests leave to the online store; None where the server has none."""
        self.watchers: list[Watcher] = []
        """Who is told of every request; while there is one, none takes the hot way."""
        self._latency_keys: dict[tuple[str, int, str], tuple[str, str, str, str]] = {}

    @property
    def models(self) -> Mapping[str, Model]:
        """What is served, by name."""
        return self.engine.models

    def find(self, name: str, version: str | None = None) -> Target:
        """Return whom a request is for. Raises NotFound, and Unavailable for what may not answer."""
        model = self.engine.model(name)
        number: int | None = None
        if version is not None:
            if not version.isdecimal() or len(version) > 9:
                raise NotFound("not a version", got=version, wanted="a whole number")
            number = int(version)
        return self.target(model, number)

    def target(self, model: Model, version: int | None) -> Target:
        """`find` for a model at hand."""
        return Target(model, version, self.engine.target(model, version), Call(version))

    def only(self) -> Target:
        """The target where an address names no model: the one that is served. Raises NotFound, BadInput for several."""
        names = sorted(self.engine.models)
        if len(names) == 1:
            return self.find(names[0])
        if not names:
            raise NotFound("no model is served here yet")
        raise BadInput(
            "several models are served here", got=", ".join(names), wanted="an address that names one"
        )

    def call(self, target: Target, headers: Iterable[tuple[bytes, bytes]], client: str) -> Call:
        """Read who asks, which arm they force, how long they wait, and what request and unit are called.

        Raises Unauthenticated, Refused, TooFast, BadInput.
        """
        asked = {name: value for name, value in headers if name in _ASKED}
        if not asked and self.callers.open:
            return target.plain
        now = asyncio.get_running_loop().time()
        self._check("predict", asked, client, now)
        arm, until = "", target.plain.until
        if ARM in asked:
            arm = asked[ARM].decode("latin-1")
            if arm:
                self._check("override", asked, client, now, counted=False)
                if target.version is not None:
                    raise BadInput(
                        "an arm and a version at once", where=ARM.decode(), got=arm, wanted="one of them"
                    )
        if TIMEOUT in asked:
            until = now + _milliseconds(asked[TIMEOUT]) / 1000
        request_id = _name(REQUEST_ID, asked) if REQUEST_ID in asked else ""
        return Call(target.version, arm, until, request_id, _name(UNIT, asked) if UNIT in asked else "")

    def allow(self, right: Right, headers: Iterable[tuple[bytes, bytes]], client: str) -> str:
        """Return the caller's name when they have the right. Raises Unauthenticated, Refused, TooFast."""
        asked = {name: value for name, value in headers if name == AUTHORIZATION}
        return self._check(right, asked, _asker(client, headers), asyncio.get_running_loop().time())

    async def complete(self, target: Target, asked: PartialRows, call: Call) -> Rows:
        """Look up what rows leave out and name entities for; see `EntityFeatures.complete`."""
        if self.entities is None:
            raise BadInput(
                "entities are not looked up here", where="entities", wanted="every input",
                next="Send every input, or start the server with --online URL.",
            )  # fmt: skip
        chosen = self.engine.place(target.model, asked, call)
        return await self.entities.complete(target.model, target.served, chosen, asked, call)

    async def answer_entities(self, target: Target, asked: PartialRows, call: Call) -> Answer:
        """`complete`, and answer."""
        rows = await self.complete(target, asked, call)
        answer = await self.engine.infer(target.model, rows, call)
        answer.looked_up = rows.looked_up
        return answer

    async def answer(self, target: Target, rows: Rows, call: Call) -> Answer:
        """Answer rows and measure how long it took; see `Engine.infer`."""
        started = perf_counter_ns()
        answer = await self.engine.infer(target.model, rows, call)
        self.observe(target.model, answer, (perf_counter_ns() - started) // 1000)
        return answer

    def observe(self, model: Model, answer: Answer, us: int) -> None:
        """Count how long a request took, inside the worker, and tell the watchers who answered it."""
        version, arm = answerer(model, answer)
        key = self._latency_keys.get((model.name, version, arm))
        if key is None:
            key = self._latency_keys[model.name, version, arm] = ("latency", model.name, str(version), arm)
        self.counters.observe(key, us, round(model.policy.slo_ms * 1000))
        if self.watchers:
            answered.set(
                Answered(model.name, version, arm, answer.request_id, len(answer.arms), any(answer.fallbacks))
            )

    def describe(self, model: Model) -> dict[str, Any]:
        """What is routed where, for people and tools."""
        return {
            "model": model.name,
            "arms": [{"arm": arm.name, "version": arm.version, "weight": arm.weight} for arm in model.arms],
            "bundles": {str(version): served.digest for version, served in model.versions.items()},
            "refused": {str(version): why for version, why in model.refused.items()},
        }

    def _check(
        self, right: Right, asked: Mapping[bytes, bytes], client: str, now: float, *, counted: bool = True
    ) -> str:
        authorization = asked.get(AUTHORIZATION)
        text = None if authorization is None else authorization.decode("latin-1")
        name = self.callers.check(right, text, client, now, counted=counted)
        if self.watchers:
            caller.set(name)
        return name


def _asker(client: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Who asks: the peer, unless it is a proxy that speaks for another machine, or a browser for another page."""
    spoken = next((name for name, _ in headers if name in _SPEAKS_FOR), None)
    return client if spoken is None else f"{client} for somebody else ({spoken.decode()})"


def _name(header: bytes, asked: Mapping[bytes, bytes]) -> str:
    text = asked[header].decode("latin-1")
    if len(text) > MAX_ID or not (text.isascii() and text.isprintable()):
        raise BadInput(
            "not a name",
            where=header.decode(),
            got=text[:80],
            wanted=f"at most {MAX_ID} printable characters of ASCII",
        )
    return text


def answerer(model: Model, answer: Answer) -> tuple[int, str]:
    """Return the version and arm that answered; stable's version and MIXED when rows were answered by several."""
    version, arm = answer.versions[0], answer.arms[0]
    if len(answer.arms) == 1 or len(set(zip(answer.versions, answer.arms, strict=True))) == 1:
        return version, arm
    stable = model.stable
    return stable.version if stable else version, MIXED


def answer_parameters(model: Model, answer: Answer) -> tuple[int, dict[str, Any], dict[str, list[str]]]:
    """Return an answer's version, its parameters, and the tensors _version and _arm when its rows differ in them.

    The version of a mixed answer is stable's. feature_ages, feature_statuses: JSON of `LookedUp` where rows named
    entities.
    """
    version, arm = answerer(model, answer)
    parameters: dict[str, Any] = {"arm": arm, "request_id": answer.request_id}
    if any(source != "model" for source in answer.sources):
        parameters["fallback"] = True
    if answer.looked_up is not None:
        # As text: a parameter of the protocol is a text, a number or a boolean.
        parameters["feature_ages"] = encode(answer.looked_up.ages).decode()
        parameters["feature_statuses"] = encode(answer.looked_up.statuses).decode()
    if arm != MIXED:
        return version, parameters, {}
    return version, parameters, {"_version": list(map(str, answer.versions)), "_arm": answer.arms}


def answer_headers(model: Model, answer: Answer) -> Headers:
    """Return x-loopwright-model, -version, -arm, -request-id, and -fallback when another answered in an arm's place.

    They say what `answer_parameters` says. Characters beyond ASCII are percent-encoded.
    """
    version, parameters, _ = answer_parameters(model, answer)
    headers = [
        (b"x-loopwright-model", _header(model.name)),
        (b"x-loopwright-version", b"%d" % version),
        (b"x-loopwright-arm", _header(parameters["arm"])),
        (b"x-loopwright-request-id", _header(answer.request_id)),
    ]
    if parameters.get("fallback"):
        headers.append((b"x-loopwright-fallback", b"true"))
    return headers


def _header(text: str) -> bytes:
    return text.encode() if text.isascii() and text.isprintable() else quote(text, safe="/ ").encode()


def _milliseconds(text: bytes) -> float:
    try:
        asked = float(text)
    except ValueError:
        asked = -1.0
    if not 0.0 < asked <= LONGEST_MS:
        raise BadInput(
            "not a time to wait",
            where=TIMEOUT.decode(),
            got=text.decode("latin-1"),
            wanted="milliseconds above 0",
        )
    return asked
