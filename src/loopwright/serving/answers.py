"""What a caller asks beside rows, and what the engine answers."""

from dataclasses import dataclass
from typing import Literal

from loopwright.kernel.errors import LoopwrightError
from loopwright.serving.lanes import Overloaded
from loopwright.serving.models import Model
from loopwright.serving.rows import LookedUp, PartialRows, Rows

Source = Literal["model", "stable", "cache", "default"]
"""What gave an answer: the version asked, stable in a failing arm's place, an earlier answer, or the configured one."""

_FOREVER = float("inf")


class ModelFailed(LoopwrightError):
    """No version gave an answer for a row."""

    http_status = 500


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller asks beside rows. version: that one, and no other; arm: in the place of the one the unit would get;
    until: the event loop's time after which nobody waits for the answer; request_id, unit: for a request and for rows
    that name none themselves."""

    version: int | None = None
    arm: str = ""
    until: float = _FOREVER
    request_id: str = ""
    unit: str = ""

    def name(self, rows: Rows | PartialRows) -> None:
        """Give `rows` what they do not say themselves."""
        rows.request_id = rows.request_id or self.request_id
        if self.unit:
            rows.units = [given or self.unit for given in rows.units]


PLAIN = Call()


@dataclass(slots=True)
class Answer:
    """Per row: outputs ([] where there is no answer), the version, the arm, what gave the answer, and why none came."""

    request_id: str
    ids: list[str]
    outputs: list[list[float]]
    versions: list[int]
    arms: list[str]
    sources: list[Source]
    errors: list[str]
    retry_after: float = 0.0
    """Seconds after which an arm that was left alone may be asked again; 0 when all were asked."""
    looked_up: LookedUp | None = None
    """What online views said of rows that named entities."""

    @property
    def fallbacks(self) -> list[bool]:
        """True for rows that another answered in a failing arm's place."""
        return [source != "model" for source in self.sources]

    def raise_for_rows(self, model: Model) -> None:
        """Raise ModelFailed when a row got no answer, for protocols that cannot give a part."""
        failed = [row for row, why in enumerate(self.errors) if why]
        if failed and self.retry_after:
            raise Overloaded(f"{model.name}: {self.errors[failed[0]]}", retry_after=self.retry_after)
        if failed and len(self.errors) == 1:
            raise ModelFailed(
                f"version {self.versions[0]} of {model.name} gave no answer", got=self.errors[0]
            )
        if failed:
            raise ModelFailed(
                f"{model.name} gave no answer for {len(failed)} of {len(self.errors)} rows",
                where=f"row {failed[0]}",
                got=self.errors[failed[0]],
            )
