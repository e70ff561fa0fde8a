"""The evidence `explainability` of a run: what drives the sealed model, on rows it was not trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwright.bundle.open import Bundle
from loopwright.features.frame import Frame
from loopwright.kernel.errors import LoopwrightError
from loopwright.kernel.verdict import Verdict
from loopwright.quality.explain import explainer_for, native_text
from loopwright.quality.explain_report import importance, importance_svg


@dataclass(frozen=True, slots=True)
class Explainability:
    """PASS with the payload, or ERROR with `why` in it: a model nobody can explain is registered, and says so."""

    verdict: Verdict
    payload: Mapping[str, Any]

    @property
    def picture(self) -> str | None:
        """The bars as SVG; None when there is nothing to draw."""
        return importance_svg(self.payload) if self.verdict is Verdict.PASS else None

    def summary(self) -> str:
        if self.verdict is not Verdict.PASS:
            return f"not explained ({self.payload['why']})"
        strongest = ", ".join(one["name"] for one in self.payload["features"][:3])
        return f"explained on {self.payload['rows']:,} rows, driven most by {strongest}"


def explain_bundle(bundle: Bundle, folder: Path, holdout: Frame, *, rows: int) -> Explainability:
    """Explain the bundle opened from `folder` on up to `rows` rows of `holdout`. Never raises for what a model does."""
    try:
        explainer = explainer_for(bundle, native_text(folder, bundle.manifest))
        found = importance(
            bundle, explainer, holdout.inputs(), rows=rows, ids=[str(one) for one in holdout.ids()]
        )
    except LoopwrightError as error:
        return Explainability(Verdict.ERROR, {"why": str(error)})
    except Exception as error:  # noqa: BLE001 - the transform is the project's: anything may come out of it
        return Explainability(Verdict.ERROR, {"why": f"{type(error).__name__}: {error}"})
    return Explainability(Verdict.PASS, found)
