"""Amounts of memory and disk as people write them."""

import re

from loopwright.kernel.errors import BadInput

_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})")


def parse_size(text: str, where: str = "") -> int:
    """Return the bytes that `text` names: 800MB, 1.5GiB, 65536. Raises BadInput."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise BadInput(
            "not an amount of bytes", where=where, got=text[:40],
            wanted="a number and a unit, such as 800MB or 1.5GiB",
        )  # fmt: skip
    return int(float(found[1]) * _UNITS[found[2].upper()])


def said_size(count: float) -> str:
    """Return a number of bytes in words, rounded: 1.2 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
