"""`s3://bucket/key`, `s3://bucket/prefix/` or `s3://bucket/prefix/*.csv`: objects as one delivery.

Who asks, and which server, comes from the environment as `data.storage` says. Objects are brought to this machine by
ranges, each tried again when it fails; an object that changes meanwhile is an error.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import stamina

from loopwright.data.sources import scratch
from loopwright.data.sources.files import MAX_FILES, Delivery, deliver
from loopwright.data.sources.reading import Reading, first_line
from loopwright.data.storage import s3_filesystem
from loopwright.kernel.errors import BadInput, Conflict, LoopwrightError, NotFound, Unavailable, did_you_mean

RANGE = 8 << 20
ATTEMPTS = 5
PAUSE = 0.3
_MAGIC = re.compile(r"[*?]")


def fetch(
    uri: str, reading: Reading, moved: Callable[[], None] | None = None
) -> tuple[Delivery, "tempfile.TemporaryDirectory[str]"]:
    """What `uri` names, in a temporary folder; `moved` is called with every range that came.

    Raises NotFound, BadInput or Unavailable.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,62}", bucket):
        raise BadInput("not a bucket", where=uri, got=bucket, wanted="s3://BUCKET/KEY", next="Mend the uri")
    return bring(s3_filesystem(), bucket, key, uri, reading, moved)


def bring(
    filesystem: Any,
    bucket: str,
    key: str,
    name: str,
    reading: Reading,
    moved: Callable[[], None] | None = None,
) -> tuple[Delivery, "tempfile.TemporaryDirectory[str]"]:
    """The objects that `key` names (an object, a prefix, or a glob), in a temporary folder."""
    found = _objects(filesystem, bucket, key, name)
    scratch.require_room(sum(info.size for info in found), name)
    folder = scratch.folder()
    files = []
    for number, info in enumerate(found):
        path = Path(folder.name) / str(number) / scratch.file_name(info.path)
        path.parent.mkdir()
        where = name if len(found) == 1 else f"{name}: {info.path.removeprefix(f'{bucket}/')}"
        copy(filesystem, info, path, where, moved)
        files.append((where, path))
    return deliver(files, reading), folder


def copy(filesystem: Any, info: Any, path: Path, where: str, moved: Callable[[], None] | None = None) -> None:
    """Bring one object to `path`."""
    try:
        with filesystem.open_input_file(info.path) as held, path.open("wb") as file:
            for start in range(0, info.size, RANGE):
                size = min(RANGE, info.size - start)
                for attempt in stamina.retry_context(
                    on=OSError,
                    attempts=ATTEMPTS,
                    wait_initial=PAUSE,
                    wait_max=5.0,
                    wait_jitter=PAUSE,
                    timeout=None,
                ):
                    with attempt:
                        data = held.read_at(size, start)
                if len(data) != size:
                    raise Conflict("changed while it was read", where=where, next="Try again")
                file.write(data)
                if moved is not None:
                    moved()
        after = filesystem.get_file_info(info.path)
    except LoopwrightError:
        raise
    except OSError as error:
        raise told(error, where) from error
    if (after.size, after.mtime_ns) != (info.size, info.mtime_ns):
        raise Conflict("changed while it was read", where=where, next="Try again when nothing writes to it")


def told(error: OSError, where: str) -> LoopwrightError:
    """What an S3 server or its client says, in our words."""
    text = first_line(error)
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text:
        return NotFound("no such bucket", where=where, next="Check the uri, or make the bucket")
    if re.search(r"ACCESS_DENIED|Forbidden|InvalidAccessKeyId|INVALID_ACCESS_KEY|SignatureDoesNotMatch|"
                 r"SIGNATURE_DOES_NOT_MATCH|HTTP response code: 403", text):  # fmt: skip
        return Unavailable(
            "the server does not let us in", where=where,
            next="Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may read",
        )  # fmt: skip
    return Unavailable(
        "the server does not answer",
        where=where,
        got=text,
        next="Check AWS_ENDPOINT_URL_S3, or try again later",
    )


def _objects(filesystem: Any, bucket: str, key: str, name: str) -> list[Any]:
    from pyarrow import fs

    try:
        if key and not key.endswith("/") and not _MAGIC.search(key):
            info = filesystem.get_file_info(f"{bucket}/{key}")
            if info.type == fs.FileType.File:
                return [info]
            if info.type == fs.FileType.NotFound:
                raise _absent(filesystem, bucket, key, name)
        listed = _listed(filesystem, bucket, key)
    except LoopwrightError:
        raise
    except OSError as error:
        raise told(error, name) from error
    if not listed:
        raise NotFound(
            "no object matches", where=name, wanted="CSV, Parquet or JSON lines", next="Check the uri"
        )
    if len(listed) > MAX_FILES:
        raise BadInput("too many objects", where=name, got=len(listed), wanted=f"at most {MAX_FILES}",
                       next="Name fewer")  # fmt: skip
    return listed


def _listed(filesystem: Any, bucket: str, key: str) -> list[Any]:
    from pyarrow import fs

    fixed = _MAGIC.split(key, maxsplit=1)[0]
    prefix = fixed if key == fixed else fixed[: fixed.rfind("/") + 1]
    selector = fs.FileSelector(f"{bucket}/{prefix}".rstrip("/"), recursive=True, allow_not_found=True)
    wanted = _pattern(f"{bucket}/{key}") if key != fixed else None
    found = []
    for info in filesystem.get_file_info(selector):
        below = PurePosixPath(info.path).relative_to(f"{bucket}/{prefix}".rstrip("/"))
        hidden = any(part.startswith((".", "_")) for part in below.parts)
        if info.type == fs.FileType.File and not hidden and (wanted is None or wanted.fullmatch(info.path)):
            found.append(info)
    return sorted(found, key=lambda info: str(info.path))


def _pattern(glob: str) -> re.Pattern[str]:
    """`*` and `?` stay within a folder, `**` does not."""
    spelt = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(spelt.get(p) or re.escape(p) for p in re.split(r"(\*\*|\*|\?)", glob) if p))


def _absent(filesystem: Any, bucket: str, key: str, name: str) -> NotFound:
    from pyarrow import fs

    parent, _, own = f"{bucket}/{key}".rpartition("/")
    beside = filesystem.get_file_info(fs.FileSelector(parent, allow_not_found=True))[:MAX_FILES]
    return NotFound(
        "no such object", where=name,
        next=did_you_mean(own, [info.base_name for info in beside]) or "Check the uri",
    )  # fmt: skip
