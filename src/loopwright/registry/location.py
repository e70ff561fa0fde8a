"""Where a client may say that files lie, when it is the server that would read or write them there."""

from urllib.parse import unquote, urlsplit

from loopwright.kernel.errors import Refused

OWN = "mlflow-artifacts"
"""The scheme of what the server keeps itself."""

_STORES = frozenset(
    (
        OWN,
        "s3",
        "gs",
        "wasb",
        "wasbs",
        "abfs",
        "abfss",
        "dbfs",
        "r2",
        "b2",
        "oss",
    )
)
"""Schemes that name a store. Others (http, ftp, hdfs …) name a machine that the server would be made to call."""
_SOURCES = _STORES | {"models", "runs"}


def plain_location(location: str, field: str = "artifact_location") -> str:
    """The one spelling of a place on the server: `mlflow-artifacts:/a/b`; any other location as it is.

    What is kept from being overwritten is found by its spelling. Raises Refused for what could be read in two ways.
    """
    parts = urlsplit(location)
    if parts.scheme != OWN or parts.netloc:
        return location
    if any(sign in location for sign in "%?#\\"):
        raise Refused(
            "a place that could be read as another",
            where=field,
            got=location,
            wanted=f"{OWN}:/… without % ? # \\",
        )
    return f"{OWN}:/" + "/".join(part for part in parts.path.split("/") if part not in ("", "."))


def check_location(location: str | None, own: str = "", field: str = "artifact_location") -> None:
    """Refuse a location the server would use on a client's word: its own disk, other machines, or the bundles.

    Raises Refused. None (the server's default) and remote stores are fine, and so is what lies in `own`, the store's
    root: it is a folder only where no server stands between client and store ("file:" is the whole disk).
    """
    if not location:
        return
    parts = urlsplit(location)
    whole_disk = own == "file:" and parts.scheme in ("", "file")
    in_own = whole_disk or (own.startswith("file:") and location.startswith(own.rstrip("/") + "/"))
    if not in_own and (parts.scheme in ("", "file") or len(parts.scheme) == 1):
        raise Refused(
            "a folder of the server is not a place for a client's artifacts",
            where=field, got=location, next="Leave it out: the server stores artifacts itself.",
        )  # fmt: skip
    if not in_own and (
        parts.scheme not in (_SOURCES if field == "source" else _STORES)
        or (parts.scheme == OWN and parts.netloc)
    ):
        raise Refused(
            "the server does not go to other machines on a client's word", where=field, got=location,
            wanted="mlflow-artifacts:/… or an object store",
        )  # fmt: skip
    segments = [part for part in unquote(unquote(parts.path)).split("/") if part not in ("", ".")]
    if "bundles" in {segment.casefold() for segment in segments} or ".." in segments:
        raise Refused("this location belongs to sealed bundles", where=field, got=location)
