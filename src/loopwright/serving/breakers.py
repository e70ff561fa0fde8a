"""The breakers of one engine, by model, version and arm, and what the metrics say of them."""

from collections.abc import Callable
from functools import partial

from loopwright.serving.breaker import Breaker, State
from loopwright.serving.counters import Counters
from loopwright.serving.models import Model

Key = tuple[str, int, str]


class Breakers(dict[Key, Breaker]):
    """Made as they are asked for. One that goes takes its gauge with it: it is open nowhere any more."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def of(self, model: Model, version: int, arm: str) -> Breaker:
        """The arm's breaker."""
        key = (model.name, version, arm)
        found = self.get(key)
        if found is None:
            found = self[key] = Breaker(model.policy.breaker, partial(self._count, key))
        return found

    def drop(self, goes: Callable[[Key], bool]) -> None:
        """Forget those for whose key `goes` is true."""
        for key in [key for key in self if goes(key)]:
            if self.pop(key).state != "closed":
                self._count(key, "closed")

    def _count(self, key: Key, state: State) -> None:
        labels = (key[0], str(key[1]), key[2])
        if state == "open":
            self._counters.add(("breaker_opened", *labels))
        self._counters.put(("breaker_open", *labels), int(state != "closed"))
