"""Where tables lie: a folder of this machine, or a prefix of a bucket in S3 (any compatible server).

Credentials and the server come from the environment as AWS's own tools read them: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION (or AWS_DEFAULT_REGION), AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loopwright.kernel.errors import BadInput


@dataclass(frozen=True)
class Storage:
    """`root`: an absolute folder, or s3://BUCKET/PREFIX without a slash at the end."""

    root: str

    @classmethod
    def at(cls, where: Path | str) -> "Storage":
        """A storage at a folder or an s3:// URL; reads and writes nothing. Raises BadInput for another scheme."""
        text = str(where)
        if "://" not in text:
            return cls(str(Path(text).expanduser().absolute()))
        parts = urlsplit(text)
        if parts.scheme != "s3" or not parts.netloc:
            raise BadInput(
                "tables cannot lie here", where=text, wanted="a folder, or s3://BUCKET/PREFIX",
                next="Mend `lake_url` in home.json",
            )  # fmt: skip
        return cls(text.rstrip("/"))

    @property
    def remote(self) -> bool:
        return self.root.startswith("s3://")

    def path(self, *parts: str) -> str:
        """The place of `parts` below the root."""
        return "/".join((self.root, *parts))

    @cached_property
    def options(self) -> Mapping[str, str]:
        """What delta-rs needs to reach the storage."""
        if not self.remote:
            return {}
        found = {key: value for key, value in _environment().items() if value}
        options = {
            "AWS_ACCESS_KEY_ID": found.get("access_key", ""),
            "AWS_SECRET_ACCESS_KEY": found.get("secret_key", ""),
            "AWS_SESSION_TOKEN": found.get("session_token", ""),
            "AWS_REGION": found.get("region", "us-east-1"),
            "AWS_ENDPOINT_URL": found.get("endpoint", ""),
            "AWS_ALLOW_HTTP": "true" if found.get("endpoint", "").startswith("http://") else "",
            # Commits are put only where nobody else's stands; S3 itself and the servers worth using can do that.
            "conditional_put": "etag",
        }
        return {key: value for key, value in options.items() if value}

    def filesystem(self) -> Any:
        """A `pyarrow.fs.FileSystem` whose paths are those of `inner`."""
        from pyarrow import fs

        if not self.remote:
            return fs.LocalFileSystem()
        return s3_filesystem()

    def inner(self, path: str) -> str:
        """The path of `path` (as `path()` makes them, or below) in `filesystem()`."""
        return path.removeprefix("s3://")


def s3_filesystem() -> Any:
    """A `pyarrow.fs.S3FileSystem` by the environment; its paths are BUCKET/KEY."""
    from pyarrow import fs

    found = _environment()
    endpoint = urlsplit(found["endpoint"]) if found["endpoint"] else None
    return fs.S3FileSystem(
        access_key=found["access_key"] or None,
        secret_key=found["secret_key"] or None,
        session_token=found["session_token"] or None,
        region=found["region"] or "us-east-1",
        endpoint_override=endpoint.netloc if endpoint else None,
        scheme=endpoint.scheme if endpoint else None,
        connect_timeout=10,
        request_timeout=60,
    )


def _environment() -> dict[str, str]:
    def first(*names: str) -> str:
        return next((os.environ[name] for name in names if os.environ.get(name)), "")

    return {
        "access_key": first("AWS_ACCESS_KEY_ID"),
        "secret_key": first("AWS_SECRET_ACCESS_KEY"),
        "session_token": first("AWS_SESSION_TOKEN"),
        "region": first("AWS_REGION", "AWS_DEFAULT_REGION"),
        "endpoint": first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    }
