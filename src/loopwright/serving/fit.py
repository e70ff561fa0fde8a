"""How rows of one version's schema are given to another, and its answers back: by name, never by place.

A request that asks for no version meets stable's schema, whichever arm answers it. A version trained later may have the
same inputs in another order, or fewer of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loopwright.bundle.signature import Schema
from loopwright.serving.rows import Value


@dataclass(frozen=True, slots=True)
class Fit:
    """inputs: for each input of the version, its place in a row that was asked, -1 where no row brings it. outputs: for
    each output that was asked, its place in the version's answer. strict: inputs of the version that may not be null
    though those asked may, by place. why: why it can answer no row at all, or ""."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    strict: tuple[tuple[int, str], ...] = ()
    why: str = ""

    def row(self, values: Sequence[Value]) -> list[Value]:
        """A row that was asked, as the version has it; null where the row brings nothing."""
        return [values[place] if place >= 0 else None for place in self.inputs]

    def answer(self, outputs: Sequence[float]) -> list[float]:
        """The version's outputs, as they were asked."""
        return [outputs[place] for place in self.outputs]

    def misfit(self, row: Sequence[Value]) -> str:
        """Why the version cannot answer `row` (as `row` gives it), or ""."""
        if self.why:
            return self.why
        return next((f"takes no null as `{name}`" for place, name in self.strict if row[place] is None), "")


def fit_of(asked: Schema, own: Schema) -> Fit | None:
    """How rows of `asked` fit a version with the schema `own`; None where they are the same to it."""
    places = {field.name: (place, field) for place, field in enumerate(asked.inputs)}
    strict, reasons = [], []
    for place, field in enumerate(own.inputs):
        _, given = places.get(field.name, (-1, None))
        if given is None:
            reasons.append(f"takes `{field.name}`, which requests do not bring")
        elif (given.dtype == "string") != (field.dtype == "string"):
            reasons.append(f"takes {field.dtype} as `{field.name}`, and requests bring {given.dtype}")
        elif given.nullable and not field.nullable:
            strict.append((place, field.name))
    wanted, offered = _outputs(asked), _outputs(own)
    if asked.task != own.task or set(wanted) != set(offered):
        reasons.append("answers something else than requests ask for")
    inputs = tuple(places.get(field.name, (-1,))[0] for field in own.inputs)
    if reasons:
        return Fit(inputs, (), (), f"it {reasons[0]}")
    outputs = tuple(map(offered.index, wanted))
    same = inputs == tuple(range(len(asked.inputs))) and outputs == tuple(range(len(wanted)))
    return None if same and not strict else Fit(inputs, outputs, tuple(strict))


def _outputs(schema: Schema) -> list[tuple[str, str]]:
    """Outputs by name, and by the class each stands for."""
    classes = schema.classes if len(schema.classes) == len(schema.outputs) else ("",) * len(schema.outputs)
    return list(zip(schema.outputs, classes, strict=True))
