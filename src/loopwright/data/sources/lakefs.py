"""`lakefs://REPOSITORY/REF/PATH`: objects of a lakeFS repository, through its S3 gateway.

Server and keys come from the environment: LAKEFS_ENDPOINT (or LAKECTL_SERVER_ENDPOINT_URL) and
LAKECTL_CREDENTIALS_ACCESS_KEY_ID, LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY (or LAKEFS_ACCESS_KEY_ID,
LAKEFS_SECRET_ACCESS_KEY). Where the server's API answers, REF is resolved to the commit it stands for, that very commit
is read, and lineage remembers it; what is not committed is not read then. Where only the gateway answers, REF is read
as it stands.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from loopwright.data.sources import s3
from loopwright.data.sources.files import Delivery
from loopwright.data.sources.reading import Reading, first_line
from loopwright.kernel.errors import BadInput, NotFound, Unavailable

SECONDS = 15.0
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{2,62}")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.~^@-]*")
_COMMIT = re.compile(r"[0-9a-f]{64}")


def fetch(
    uri: str, reading: Reading
) -> tuple[Delivery, "tempfile.TemporaryDirectory[str]", Mapping[str, Any]]:
    """What `uri` names, in a temporary folder, and what lineage should know."""
    repository, _, rest = uri.removeprefix("lakefs://").partition("/")
    ref, _, path = rest.partition("/")
    if not _NAME.fullmatch(repository) or not _REF.fullmatch(ref) or not path:
        raise BadInput(
            "not a lakeFS source", where=uri, wanted="lakefs://REPOSITORY/REF/PATH", next="Mend the uri"
        )
    endpoint = _first("LAKEFS_ENDPOINT", "LAKECTL_SERVER_ENDPOINT_URL").rstrip("/").removesuffix("/api/v1")
    key = _first("LAKECTL_CREDENTIALS_ACCESS_KEY_ID", "LAKEFS_ACCESS_KEY_ID")
    secret = _first("LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY", "LAKEFS_SECRET_ACCESS_KEY")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BadInput("no lakeFS server", where=uri, got=endpoint or "LAKEFS_ENDPOINT is not set",
                       wanted="http(s)://HOST", next="Set LAKEFS_ENDPOINT")  # fmt: skip
    commit = _commit(endpoint, repository, ref, (key, secret), uri)
    origin = {"lakefs_repository": repository, "lakefs_ref": ref, "lakefs_path": path}
    if commit is not None:
        origin["lakefs_commit"] = commit
    delivery, folder = s3.bring(
        _gateway(parts, key, secret), repository, f"{commit or ref}/{path}", uri, reading
    )
    return delivery, folder, origin


def _gateway(parts: Any, key: str, secret: str) -> Any:
    from pyarrow import fs

    return fs.S3FileSystem(
        access_key=key or None, secret_key=secret or None, region="us-east-1", endpoint_override=parts.netloc,
        scheme=parts.scheme, connect_timeout=10, request_timeout=60,
    )  # fmt: skip


def _commit(endpoint: str, repository: str, ref: str, keys: tuple[str, str], name: str) -> str | None:
    """The commit that `ref` stands for; None where the server has no such API."""
    url = f"{endpoint}/api/v1/repositories/{repository}/refs/{quote(ref, safe='')}/commits?amount=1"
    try:
        answer = httpx.get(url, auth=keys, timeout=SECONDS, follow_redirects=False)
    except httpx.HTTPError as error:
        raise Unavailable("the lakeFS server does not answer", where=name, got=first_line(error),
                          next="Check LAKEFS_ENDPOINT, or try again later") from error  # fmt: skip
    if answer.headers.get("content-type", "").split(";")[0] != "application/json":
        return None
    try:
        body = answer.json()
    except ValueError:
        return None
    if answer.status_code in (401, 403):
        raise Unavailable("the lakeFS server does not let us in", where=name, got=f"HTTP {answer.status_code}",
                          next="Check LAKECTL_CREDENTIALS_ACCESS_KEY_ID and …SECRET_ACCESS_KEY")  # fmt: skip
    if answer.status_code == 404:
        raise NotFound("lakeFS knows no such repository or ref", where=name, got=str(body.get("message", ""))[:200],
                       next="Check the uri")  # fmt: skip
    if answer.status_code != 200:
        raise Unavailable(
            "the lakeFS server fails", where=name, got=f"HTTP {answer.status_code}", next="Try again"
        )
    results = body.get("results") if isinstance(body, dict) else None
    found = (
        results[0].get("id")
        if isinstance(results, list) and results and isinstance(results[0], dict)
        else None
    )
    if not isinstance(found, str) or not _COMMIT.fullmatch(found):
        raise Unavailable("the lakeFS server says no commit", where=name, got=str(body)[:200])
    return found


def _first(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
