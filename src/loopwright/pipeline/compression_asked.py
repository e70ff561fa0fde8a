"""What is asked of a compression, and what came of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from loopwright.compression.constraints import Constraints
from loopwright.compression.ladder import MAX_MINUTES
from loopwright.compression.recipe import Recipe
from loopwright.compression.subject import Production
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput
from loopwright.project.sections import Compression

SEED = 7
MOST_ROWS, MOST_THREADS = 10_000, 256
"""Of production, as loop.yaml has them too."""
_FORMAT = 1

Steps = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked for: a recipe, or the ladder where `recipe` is None. Version None: see `chosen_version`."""

    model: str
    version: int | None = None
    wanted: Constraints = field(default_factory=Constraints)
    recipe: Steps | None = None
    explore: bool = False
    budget: timedelta = timedelta(minutes=20)
    production: Production = field(default_factory=Production)
    reason: str = "compressed by hand"

    @staticmethod
    def of(section: Compression, model: str, version: int, reason: str) -> "Asked":
        """What a project's `compression` section asks for."""
        return Asked(
            model=model, version=version, recipe=section.recipe, budget=section.budget, reason=reason,
            wanted=Constraints(section.target_size, section.max_latency, section.max_loss),
            production=Production(section.batch, section.threads),
        )  # fmt: skip

    def checked(self) -> Recipe | None:
        """The recipe, if one is asked for; raises BadInput or Unavailable for one that nobody can follow.

        And BadInput for more rows, threads or time than any machine here is asked for: before work, not in its midst.
        """
        most: tuple[tuple[str, float, float], ...] = (
            ("batch", self.production.batch, MOST_ROWS), ("threads", self.production.threads, MOST_THREADS),
            ("budget, in minutes", self.budget.total_seconds() / 60, MAX_MINUTES),
        )  # fmt: skip
        for name, value, limit in most:
            if not 0 < value <= limit:
                raise BadInput(
                    "out of range", where=f"compression: {name}", got=f"{value:,.10g}",
                    wanted=f"above 0, to {limit:,}",
                )  # fmt: skip
        if self.recipe is None:
            return None
        recipe = Recipe.from_json(named(self.recipe), self.recipe, "compression: recipe")
        if not recipe.steps:
            raise BadInput("a recipe without steps", where="compression: recipe", wanted="at least one step")
        return recipe

    def key(self, bundle: str) -> str:
        """Equal for equal requests of one bundle."""
        recipe = self.checked()
        return digest_json({
            "format": _FORMAT, "bundle": bundle, "wanted": self.wanted.to_json(), "explore": self.explore,
            "recipe": recipe.to_json() if recipe else None, "batch": self.production.batch,
            "threads": self.production.threads, "lengths": dict(self.production.lengths),
        })  # fmt: skip


@dataclass(frozen=True, slots=True)
class CompressReport:
    """What came of it. `version` is None when nothing was registered; `refused` then says why.

    again: the version was there already, made by the same compression. `folder`: where report and pictures lie.
    """

    model: str
    parent: int
    version: int | None
    bundle: str | None
    run_id: str | None
    name: str
    ladder: Mapping[str, Any]
    gates: Mapping[str, Any] | None
    folder: str
    said: str
    needed: tuple[str, ...] = ()
    refused: str | None = None
    again: bool = False

    def to_json(self) -> dict[str, Any]:
        """In JSON's own types."""
        return {
            "model": self.model, "parent": self.parent, "version": self.version, "bundle": self.bundle,
            "run_id": self.run_id, "name": self.name, "said": self.said, "refused": self.refused,
            "needed": list(self.needed), "again": self.again, "gates": self.gates, "ladder": finite(self.ladder),
            "folder": self.folder,
        }  # fmt: skip


def named(steps: Steps) -> str:
    """What a recipe is called: its steps in order."""
    return " + ".join(str(one.get("step")) for one in steps)


def finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): finite(inside) for name, inside in value.items()}
    return [finite(inside) for inside in value] if isinstance(value, list | tuple) else value
