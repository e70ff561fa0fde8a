"""V2's model repository extension: which versions are in memory, and bringing them there or letting them go.

The repository is the signed route table. Nothing else can be loaded whatever is asked, and what is unloaded comes back
with the next request for it: who answers at all is decided by promotion, not here.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from loopwright.kernel.errors import BadInput, LoopwrightError, Refused
from loopwright.serving.front import Front
from loopwright.serving.http import HttpError, Reply, Request, Route, json_reply
from loopwright.serving.protocols.parsing import parse_json
from loopwright.serving.residency import Residency, Standing

Act = Literal["load", "unload"]
_STATES = {"loaded": "READY", "loading": "LOADING", "cold": "UNAVAILABLE", "failed": "UNAVAILABLE"}
COLD = "not in memory: the next request for it, or loading it, brings it there"


class Entry(msgspec.Struct):
    """A version's line in the index. reason: why it is not ready, "" when it is."""

    name: str
    version: str
    state: str
    reason: str = ""


class Repository:
    """The extension, for REST and gRPC."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> Iterable[Route]:
        """Where it answers."""
        yield Route("POST", "/v2/repository/index", self._index)
        yield Route("POST", "/v2/repository/models/{model}/load", self._load)
        yield Route("POST", "/v2/repository/models/{model}/unload", self._unload)

    def index(self, *, ready: bool = False) -> list[Entry]:
        """Every version that routes name, as this worker has it; ready: only those in memory."""
        entries = [
            Entry(name, str(version), "UNAVAILABLE", why)
            for name, model in self._front.models.items()
            for version, why in model.refused.items()
        ]
        entries += [
            Entry(
                at.model, str(at.version), _STATES[at.state], at.why or (COLD if at.state == "cold" else "")
            )
            for at in self._standings()
        ]
        entries.sort(key=lambda entry: (entry.name, int(entry.version)))
        return [entry for entry in entries if entry.state == "READY" or not ready]

    async def act(self, act: Act, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model's versions into memory, or let go of them, in every worker. Is idempotent.

        Raises NotFound, Refused for parameters that would change what is served, and what the workers raise.
        """
        model = self._front.engine.model(name)
        for parameter in parameters:
            if parameter != "unload_dependents":  # nothing depends on a model here
                raise Refused(
                    "what is served is decided by promotion", where=f"parameters.{parameter}"[:200],
                    next=f"Promote a version: loopwright promote {name} VERSION --to production",
                )  # fmt: skip
        if act == "load" and not model.versions:
            reasons = "; ".join(f"version {version}: {why}" for version, why in sorted(model.refused.items()))
            raise Refused(f"{name} has no version that may be loaded", got=reasons)
        status, answer = await self._front.host.ask(f"{act} {name}")
        if status != 200:
            raise HttpError(status, str(answer.get("error", "it could not be done")))

    def _standings(self) -> list[Standing]:
        warmer = self._front.engine.warmer
        if isinstance(warmer, Residency):
            return warmer.index()
        return [
            Standing(name, version, "loaded" if served.bundle else "cold", 0, pinned=True)
            for name, model in self._front.models.items()
            for version, served in model.versions.items()
        ]

    async def _index(self, request: Request, names: Mapping[str, str]) -> Reply:
        self._front.allow("predict", request.headers, request.client)
        ready = _asked(await request.body()).get("ready", False)
        if not isinstance(ready, bool):
            raise BadInput("not true or false", where="ready", got=ready)
        return json_reply(self.index(ready=ready))

    async def _load(self, request: Request, names: Mapping[str, str]) -> Reply:
        return await self._act("load", request, names["model"])

    async def _unload(self, request: Request, names: Mapping[str, str]) -> Reply:
        return await self._act("unload", request, names["model"])

    async def _act(self, act: Act, request: Request, name: str) -> Reply:
        self._front.allow("admin", request.headers, request.client)
        parameters = _asked(await request.body()).get("parameters")
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, dict):
            raise BadInput("not an object", where="parameters", got=parameters)
        await self.act(act, name, parameters)
        return json_reply({})


def _asked(body: bytes) -> dict[str, Any]:
    document = parse_json(body) if body else {}
    if not isinstance(document, dict):
        raise BadInput("not an object", where="body", got=document, wanted="{} or nothing")
    return document


async def carry_out(residency: Residency, act: Act, model: str) -> tuple[int, str]:
    """Load or unload in this worker; return a status and, unless it is 200, why."""
    try:
        if act == "load":
            await residency.load(model)
        else:
            residency.unload(model)
    except LoopwrightError as error:
        return error.http_status, str(error)
    return 200, ""
