"""`http(s)://`: a download that goes on where it broke off, also in a later process.

User and password of the URL go to its own server only; a redirect elsewhere takes none along, and none leads from
https to http.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import stamina

from loopwright.data.sources import scratch
from loopwright.data.sources.files import Delivery, deliver
from loopwright.data.sources.reading import FORMATS, Reading, first_line, public_uri
from loopwright.kernel.errors import BadInput, NotFound, Unavailable

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0
ATTEMPTS = 5
"""In a row without a single byte more."""
PAUSE = 0.3
MAX_REDIRECTS = 5
PIECES = 1000
MOVES = 1 << 20
"""Bytes that count as something coming: a server that sends one now and then holds nobody for ever."""

_TYPES = {
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/x-ndjson": ".jsonl",
    "application/jsonl": ".jsonl",
    "application/jsonlines": ".jsonl",
    "application/vnd.apache.parquet": ".parquet",
}


class _Broken(Exception):
    """The server or the way to it failed before it sent a byte."""


@dataclass(slots=True)
class _Download:
    client: httpx.Client
    uri: str
    path: Path
    validator: str = ""
    kind: str = ""
    check_host: Callable[[str], None] | None = None
    moved: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return public_uri(self.uri)

    @property
    def have(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def remember(self) -> None:
        self.path.with_suffix(".json").write_text(
            json.dumps({"validator": self.validator, "kind": self.kind})
        )

    def recall(self) -> None:
        """Take up what an earlier process left; only what the server can vouch for."""
        with suppress(OSError, ValueError, KeyError):
            known = json.loads(self.path.with_suffix(".json").read_text())
            self.validator, self.kind = str(known["validator"]), str(known["kind"])
        if not self.validator:
            self.path.unlink(missing_ok=True)

    def forget(self) -> None:
        self.path.with_suffix(".json").unlink(missing_ok=True)

    def fetch(self) -> bool:
        """One request's worth; True when the file is whole. Raises _Broken when nothing came."""
        have = self.have if self.validator else 0
        asked = {"Range": f"bytes={have}-", "If-Range": self.validator} if have else {}
        got = told = 0
        try:
            answer = self._answer(asked)
            try:
                if answer.status_code == 416:
                    self.path.unlink(missing_ok=True)
                    raise _Broken("the file is shorter than it was")
                self._accept(answer)
                goes_on = answer.status_code == 206 and _starts_at(answer, have)
                size = int(answer.headers.get("content-length") or 0)
                scratch.require_room(size, self.name)
                with self.path.open("ab" if goes_on else "wb") as file:
                    self._learn(answer)
                    for chunk in answer.iter_raw():
                        got += file.write(chunk)
                        if self.moved is not None and got - told >= MOVES:
                            told = got
                            self.moved()
                        if file.tell() > scratch.MAX_DOWNLOAD:
                            raise BadInput("too large to download", where=self.name,
                                           wanted=f"at most {scratch.MAX_DOWNLOAD} bytes")  # fmt: skip
            finally:
                answer.close()
        except (httpx.TransportError, httpx.StreamError) as error:
            if got and self.validator:
                return False
            raise _Broken(first_line(error) or type(error).__name__) from None
        return True

    def _answer(self, headers: dict[str, str]) -> httpx.Response:
        url = httpx.URL(self.uri)
        own, auth = url, (url.username, url.password) if url.userinfo else None
        for _ in range(MAX_REDIRECTS + 1):
            bare = url.copy_with(userinfo=b"")
            if self.check_host is not None:
                self.check_host(url.host)
            watched = {"trace": self._check_connected} if self.check_host is not None else {}
            request = self.client.build_request("GET", bare, headers=headers, extensions=watched)
            answer = self.client.send(
                request, stream=True, auth=auth if _origin(url) == _origin(own) else None
            )
            if not answer.has_redirect_location:
                return answer
            answer.close()
            to = url.join(answer.headers["location"])
            if to.scheme not in ("http", "https") or (url.scheme == "https" and to.scheme == "http"):
                raise BadInput(
                    "a redirect that is not followed", where=self.name, got=public_uri(str(to)),
                    wanted="https" if url.scheme == "https" else "http or https", next="Name the right address",
                )  # fmt: skip
            url = to
        raise BadInput("too many redirects", where=self.name, got=public_uri(str(url)),
                       wanted=f"at most {MAX_REDIRECTS}", next="Name the file's own address")  # fmt: skip

    def _check_connected(self, event: str, told: Mapping[str, Any]) -> None:
        """A name may mean another machine when it is called than when it was asked about: before a byte is sent."""
        if event != "connection.connect_tcp.complete":
            return
        assert self.check_host is not None
        stream = told["return_value"]
        try:
            self.check_host(str(stream.get_extra_info("server_addr")[0]))
        except BaseException:
            stream.close()
            raise

    def _accept(self, answer: httpx.Response) -> None:
        code = answer.status_code
        if code in (200, 206):
            return
        if code in (408, 425, 429) or code >= 500:
            raise _Broken(f"HTTP {code}")
        denied = code in (401, 403)
        raise NotFound(
            "the server does not hand it out", where=self.name, got=f"HTTP {code}",
            next="Check user and password, or whether the link has run out" if denied else "Check the uri",
        )  # fmt: skip

    def _learn(self, answer: httpx.Response) -> None:
        tag = answer.headers.get("etag", "")
        strong = tag if tag and not tag.startswith("W/") else ""
        ranges = answer.status_code == 206 or answer.headers.get("accept-ranges") == "bytes"
        self.validator = (strong or answer.headers.get("last-modified", "")) if ranges else ""
        self.kind = answer.headers.get("content-type", "").split(";")[0].strip().lower()
        self.remember()


def download(
    uri: str,
    reading: Reading,
    check_host: Callable[[str], None] | None = None,
    moved: Callable[[], None] | None = None,
) -> tuple[Delivery, "tempfile.TemporaryDirectory[str]"]:
    """The file at `uri`, in a temporary folder. `check_host` raises for servers that may not be called; `moved` is
    called while something comes, and ends the download when it raises.

    Raises NotFound for what the server does not hand out, Unavailable when it does not answer or breaks off for good:
    what came so far is kept for the next try.
    """
    name = public_uri(uri)
    folder = scratch.folder()
    timeout = httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
    headers = {"Accept-Encoding": "identity", "User-Agent": "loopwright"}
    try:
        with (
            scratch.unfinished(uri) as kept,
            httpx.Client(timeout=timeout, headers=headers, follow_redirects=False) as client,
        ):
            task = _Download(
                client, uri, kept or Path(folder.name) / "download.part", check_host=check_host, moved=moved
            )
            task.recall()
            _persist(task)
            target = Path(folder.name) / _called(task, reading)
            task.path.replace(target)  # both lie in the folder for temporary files
            task.forget()
    except httpx.InvalidURL as error:
        raise BadInput("not an address", where=name, got=str(error), next="Mend the uri") from None
    return deliver([(name, target)], reading), folder


def _persist(task: _Download) -> None:
    try:
        for _ in range(PIECES):
            for attempt in stamina.retry_context(
                on=_Broken,
                attempts=ATTEMPTS,
                wait_initial=PAUSE,
                wait_max=5.0,
                wait_jitter=PAUSE,
                timeout=None,
            ):
                with attempt:
                    whole = task.fetch()
            if whole:
                return
    except _Broken as error:
        raise Unavailable(
            "the server does not answer" if not task.have else "the server breaks off",
            where=task.name, got=f"{error}, after {task.have} bytes",
            next="Try again later" + ("; it goes on from there" if task.have and task.validator else ""),
        ) from None  # fmt: skip
    raise Unavailable("the server breaks off again and again", where=task.name, got=f"{task.have} bytes",
                      next="Try again later")  # fmt: skip


def _called(task: _Download, reading: Reading) -> str:
    name = scratch.file_name(unquote(httpx.URL(task.uri).path))
    known = any(suffix.lower() in FORMATS for suffix in Path(name).suffixes) or name.lower().endswith(".zip")
    return name if known or reading.format else name + _TYPES.get(task.kind, "")


def _starts_at(answer: httpx.Response, have: int) -> bool:
    if answer.headers.get("content-range", "").startswith(f"bytes {have}-"):
        return True
    raise _Broken("the server sent another part than was asked for")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
