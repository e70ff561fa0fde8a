"""How a view's answer stands: given with every training set that asks, and by online reads in the same words."""

from enum import StrEnum


class Status(StrEnum):
    """`NOT_YET_KNOWN` is told only offline, where it can be seen that a row came later; online it is NOT_FOUND.

    `NULL` is told of one value: the row is there, and the value is not.
    """

    PRESENT = "PRESENT"
    EXPIRED = "EXPIRED"
    NOT_YET_KNOWN = "NOT_YET_KNOWN"
    NOT_FOUND = "NOT_FOUND"
    NULL_KEY = "NULL_KEY"
    NULL = "NULL"
