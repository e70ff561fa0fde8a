"""What an operation is: one typed function that HTTP, the command line and Python all call."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from loopwright.control.context import Context
from loopwright.control.plain import Json, plain
from loopwright.kernel.actor import Actor, Role, beyond_token, require
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.ledger.engine import Ledger
from loopwright.registry import authority

ROOMS = (
    "access",
    "audit",
    "contracts",
    "data",
    "delivery",
    "documents",
    "experiments",
    "explain",
    "feature_health",
    "feature_tests",
    "features",
    "incidents",
    "jobs",
    "keys",
    "landings",
    "lineage",
    "models",
    "monitoring",
    "policy",
    "projects",
    "retrains",
    "reviews",
    "runs",
    "system",
    "tables",
    "trust",
)
"""The modules of `control.operations`; the part of an operation's name before the dot is its module."""

_REGISTRY: dict[str, "Operation"] = {}
_F = TypeVar("_F", bound=Callable[..., object])


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)


@dataclass(frozen=True)
class Operation:
    """One act: its name, where it lives under /api/v1, who may do it, and the function that does it."""

    name: str
    method: str
    path: str
    role: Role
    function: Callable[..., object]

    def __call__(self, ctx: Context, **arguments: object) -> Json:
        """Check the role and the arguments, act, and answer in JSON's own types; raises as `answer` does."""
        return plain(self.answer(ctx, **arguments))

    def answer(self, ctx: Context, **arguments: object) -> object:
        """Check the role and the arguments, act, and return what the function returns: a document or a Stream.

        Raises Refused when the actor's role on the model, or everywhere when it is about none, is too small, and
        BadInput when an argument does not fit.
        """
        check_texts(self.name, arguments)
        self.authorise(ctx.ledger, ctx.actor, arguments.get("model"))
        if self.changes and ctx.assumed_by is not None:
            ctx.record(
                "user.assumed", subject=ctx.actor.name, payload={"operation": self.name}, by=ctx.assumed_by
            )
        return self.function(ctx, **self.checked(arguments))

    def authorise(self, ledger: Ledger, actor: Actor, model: object = None) -> None:
        """Raise Refused unless `actor` may do this, to `model` when the operation takes one and it is named."""
        act = f"do `{self.name}`"
        named = model if isinstance(model, str) and "model" in self.parameters else None
        if self.changes and not actor.may_change(model=named):
            # Also where the role itself is asked for further in, as by `models.approve`.
            raise beyond_token(actor, act, "a scope that changes something", role=self.role)
        if named is None or actor.role_on(model=named) >= self.role or not actor.teams:
            # Whom no team could help needs no look at whose model it is.
            require(actor, self.role, act, model=named)
            return
        with ledger.read() as conn:
            authority.require_on(conn, actor, self.role, act, model=named)

    @property
    def changes(self) -> bool:
        """Whether it may change anything."""
        return self.method != "GET"

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or self.name).splitlines()[0]

    @cached_property
    def in_path(self) -> tuple[str, ...]:
        """Arguments that stand in the path, e.g. ("model",) for /models/{model}."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))

    @cached_property
    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """Argument name → (type, default or ...), without the context."""
        hints = get_type_hints(self.function)
        signature = inspect.signature(self.function)
        return {
            name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
            for name, parameter in list(signature.parameters.items())[1:]
        }

    @cached_property
    def model(self) -> type[BaseModel]:
        """The arguments as a pydantic model; unknown ones are refused."""
        definitions: Any = self.parameters
        return create_model(self.name.replace(".", "_"), __base__=_Arguments, **definitions)

    @cached_property
    def body(self) -> type[BaseModel]:
        """The arguments that travel in the request's body."""
        definitions: Any = {name: kind for name, kind in self.parameters.items() if name not in self.in_path}
        return create_model(f"{self.name.replace('.', '_')}_body", __base__=_Arguments, **definitions)

    def checked(self, arguments: dict[str, object]) -> dict[str, object]:
        """Return `arguments` with the right types; raises BadInput naming the first that does not fit."""
        try:
            fitted = self.model.model_validate(arguments)
        except ValidationError as error:
            raise misfit(self.name, error, list(self.parameters)) from None
        values = {name: getattr(fitted, name) for name in self.parameters}
        check_numbers(self.name, values)
        return values


def operation(name: str, method: str, path: str, *, role: Role = Role.VIEWER) -> Callable[[_F], _F]:
    """Register the function below as the operation `name`; the function itself stays as it is."""

    def register(function: _F) -> _F:
        if name in _REGISTRY:
            raise ValueError(f"two operations are called {name}")
        _REGISTRY[name] = Operation(name, method, path, role, function)
        return function

    return register


def find(name: str) -> Operation:
    """Return the operation, importing only its own module; raises NotFound with the nearest name."""
    room = name.partition(".")[0]
    if room in ROOMS:
        import_module(f"loopwright.control.operations.{room}")
    if name not in _REGISTRY:
        raise NotFound("no such operation", got=name, next=did_you_mean(name, _REGISTRY))
    return _REGISTRY[name]


def every_operation() -> tuple[Operation, ...]:
    """All operations, in the order of their rooms; imports them all."""
    for room in ROOMS:
        import_module(f"loopwright.control.operations.{room}")
    return tuple(_REGISTRY[name] for name in sorted(_REGISTRY, key=lambda name: name.partition(".")[0]))


def check_texts(where: str, arguments: Mapping[str, object]) -> None:
    """Raise BadInput for texts that are too long to be kept, or that no database holds: NUL, half of a pair.

    Reasons and comments go into the audit log, from which nothing is ever taken out.
    """
    for name, value in arguments.items():
        longest = _LONGEST.get(name, LONGEST_TEXT)
        if isinstance(value, list):  # of names; what are lists of documents is not kept as it came
            parts = [one for one in value if isinstance(one, str)]
        else:
            parts = list(_texts(value)) if isinstance(value, str | dict) else []
        for text in parts:
            if "\0" in text or not _encodes(text):
                raise BadInput(f"`{name}` is no text", where=where, got=text, wanted="Unicode without NUL")
            if len(text) > longest:
                raise BadInput(
                    f"`{name}` is too long", where=where, got=f"{len(text):,} characters", wanted=f"at most {longest:,}"
                )  # fmt: skip
        if isinstance(value, dict) and (size := sum(map(len, parts))) > LARGEST_DOCUMENT:
            raise BadInput(
                f"`{name}` is too large", where=where, got=f"{size:,} characters",
                wanted=f"at most {LARGEST_DOCUMENT:,}",
            )  # fmt: skip


def check_numbers(where: str, values: Mapping[str, object]) -> None:
    """Raise BadInput for numbers and times that no column holds."""
    for name, value in values.items():
        if isinstance(value, int) and abs(value) >= (2**63 if name == "after" else 2**31):
            raise BadInput(f"`{name}` is out of range", where=where, got=value)
        if isinstance(value, datetime):
            try:
                value.astimezone(UTC)
            except OverflowError:
                raise BadInput(f"`{name}` is out of range", where=where, got=value.isoformat()) from None


LONGEST_TEXT = 20_000
LARGEST_DOCUMENT = 2**20
_LONGEST = {"text": 200_000, "document": LARGEST_DOCUMENT, "spec": LARGEST_DOCUMENT}
"""What is longer than a reason: a card, a policy, a loop.yaml."""


def _texts(value: object) -> Iterator[str]:
    """Every text in a document, names included."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def misfit(where: str, error: ValidationError, known: list[str]) -> BadInput:
    """Say in one sentence which argument does not fit, and how."""
    problems = error.errors(include_url=False, include_context=False)
    # A misspelt name comes before the missing one it causes.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    name = ".".join(str(part) for part in first["loc"]) or "arguments"
    if first["type"] == "extra_forbidden":
        return BadInput(f"unknown argument `{name}`", where=where, next=did_you_mean(name, known))
    if first["type"] == "missing":
        return BadInput(f"`{name}` is missing", where=where)
    if first["type"].startswith(("datetime", "timezone")):
        return BadInput(
            f"`{name}` is not a time",
            where=where,
            got=first["input"],
            wanted="ISO 8601, like 2013-04-01T05:00:00Z",
        )
    return BadInput(
        f"`{name}`: {first['msg'][:1].lower()}{first['msg'][1:]}", where=where, got=first["input"]
    )
