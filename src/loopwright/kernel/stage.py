"""What governance allows a version to be; spelled as MLflow spells it."""

from enum import StrEnum

from loopwright.kernel.errors import BadInput, did_you_mean


class Stage(StrEnum):
    """None → Staging → Production → Archived."""

    NONE = "None"
    STAGING = "Staging"
    PRODUCTION = "Production"
    ARCHIVED = "Archived"

    @classmethod
    def parse(cls, text: str) -> "Stage":
        """Read a stage in any case; raises BadInput naming the stages."""
        for stage in cls:
            if stage.value.lower() == text.strip().lower():
                return stage
        names = [stage.value for stage in cls]
        raise BadInput("unknown stage", got=text, wanted=", ".join(names), next=did_you_mean(text, names))
