"""Where a client may say that files lie, when it is the server that would read or write them there."""

from urllib.parse import unquote, urlsplit

from loopwright.kernel.errors import Refused

_STORES = frozenset(
    (
        "mlflow-artifacts",
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
        or (parts.scheme == "mlflow-artifacts" and parts.netloc)
    ):
        raise Refused(
            "the server does not go to other machines on a client's word", where=field, got=location,
            wanted="mlflow-artifacts:/… or an object store",
        )  # fmt: skip
    segments = [part for part in unquote(unquote(parts.path)).split("/") if part not in ("", ".")]
    if "bundles" in {segment.casefold() for segment in segments} or ".." in segments:
        raise Refused("this location belongs to sealed bundles", where=field, got=location)
