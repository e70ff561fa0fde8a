"""Earlier answers, kept for when no version answers: as many a model as its policy says, the oldest go first."""

from collections import OrderedDict
from collections.abc import Mapping

from loopwright.serving.models import Model
from loopwright.serving.rows import Value


class Kept:
    """One engine's. Rows are told apart by their values in the order of stable's schema."""

    def __init__(self) -> None:
        self._models: dict[str, OrderedDict[tuple[Value, ...], tuple[int, list[float]]]] = {}

    def keep(self, model: Model, values: list[Value], version: int, outputs: list[float]) -> None:
        """Remember an answer. outputs: in the version's own order."""
        kept = self._models.setdefault(model.name, OrderedDict())
        key = tuple(values)
        kept[key] = (version, outputs)
        kept.move_to_end(key)
        if len(kept) > model.policy.cached_answers:
            kept.popitem(last=False)

    def find(self, model: Model, values: list[Value]) -> tuple[int, list[float]] | None:
        """The last answer to the same row, when the version that gave it may still answer."""
        kept = self._models.get(model.name)
        found = kept.get(tuple(values)) if kept is not None and model.policy.cached_answers else None
        return found if found is not None and found[0] in model.versions else None

    def review(self, before: Mapping[str, Model], now: Mapping[str, Model]) -> None:
        """Let go of what no route asks for any more, and of rows whose values would mean something else now."""
        for name, kept in list(self._models.items()):
            most = now[name].policy.cached_answers if name in now else 0
            stable = now[name].stable if name in now else None
            former = before[name].stable if name in before else None
            if not most or stable is None or former is None or stable.schema != former.schema:
                del self._models[name]
            while len(kept) > most:
                kept.popitem(last=False)
