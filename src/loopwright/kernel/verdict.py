"""The answer of a judgement. No evidence is never PASS."""

from enum import StrEnum


class Verdict(StrEnum):
    """ERROR: the judgement itself could not be made; it never counts as PASS."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"
