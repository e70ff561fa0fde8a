"""Talks to the control plane over HTTP with the standard library; one connection, kept alive, one thread at a time."""

import http.client
import ssl
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from loopwright.bundle.keys import PublicKey
from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Unauthenticated, Unavailable
from loopwright.serving.wire import CONTENT_TYPE, Accepted

T = TypeVar("T")

MAX_ANSWER = 4 << 30


class _Key(msgspec.Struct):
    key_id: str
    public: str


class _Keys(msgspec.Struct):
    keys: list[_Key]
    keyring: str = ""


class Upstream:
    """The control plane at `url`. Raises Unavailable when it does not answer, Unauthenticated for a wrong token."""

    def __init__(self, url: str, token: str | None, *, timeout: float = 10.0) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput("not a control plane's URL", where="--control", got=url, wanted="http://HOST:PORT")
        try:
            self._port = parts.port
        except ValueError:
            raise BadInput("not a port", where="--control", got=url, wanted="http://HOST:PORT") from None
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._scheme, self._host = parts.scheme, parts.hostname
        self._prefix = parts.path.rstrip("/") + "/api/v1"
        self._token = token
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def keys(self) -> tuple[list[PublicKey], bytes]:
        """Return the public keys the control plane names, and its signed list of keys (empty: it keeps none)."""
        answer = self._decode(self._call("GET", "/keys"), _Keys, "/keys")
        return [PublicKey.from_text(key.public) for key in answer.keys], answer.keyring.encode()

    def routes(self) -> bytes:
        """Return the signed route table as it came."""
        return self._call("GET", "/routes")

    def bundle_file(self, digest: str, name: str) -> bytes:
        """Return one file of a bundle; nothing about it is trusted yet."""
        return self._call("GET", f"/bundles/{digest}/files/{name}")

    def send(self, batch: bytes) -> int:
        """Send packed events; return the offset the control plane has recorded for their segment."""
        body = self._call("POST", "/events", batch, {"Content-Type": CONTENT_TYPE})
        return self._decode(body, Accepted, "/events").accepted

    def close(self) -> None:
        """Drop the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _decode(self, body: bytes, kind: type[T], path: str) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unavailable(
                f"answered something that is no Loopwright control plane's answer ({error})",
                where=f"{self.url}/api/v1{path}",
                next="Check that --control points at `loopwright up`.",
            ) from None

    def _call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> bytes:
        for attempt in (1, 2):
            kept = self._connection is not None
            try:
                status, answer = self._exchange(method, path, body, headers or {})
                break
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # The other side may have closed a kept connection between calls: that alone is worth one new try.
                if attempt == 1 and kept:
                    continue
                raise Unavailable(
                    f"the control plane does not answer ({error or type(error).__name__})",
                    where=self.url,
                    next="Start it (`loopwright up`) or correct --control; serving retries while it runs.",
                ) from error
        if status == 200:
            return answer
        raise self._error(status, answer, f"{self.url}/api/v1{path}")

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        if self._connection is None:
            if self._scheme == "https":
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._timeout, context=ssl.create_default_context()
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        if self._token:
            headers = {**headers, "Authorization": f"Bearer {self._token}"}
        self._connection.request(method, self._prefix + path, body=body, headers=headers)
        response = self._connection.getresponse()
        answer = response.read(MAX_ANSWER)
        return response.status, answer

    def _error(self, status: int, answer: bytes, where: str) -> LoopwrightError:
        text = answer[:300].decode(errors="replace")
        if status in (401, 403):
            return Unauthenticated(
                "the control plane does not accept the token"
                if self._token
                else "the control plane wants a token",
                where=where,
                got=text,
                next="Pass a valid one with --token (make one with `loopwright token create`).",
            )
        if status == 404:
            return NotFound("the control plane has no such thing", where=where, got=text)
        if status == 422:
            return BadInput("the control plane cannot use what was sent", where=where, got=text)
        return Unavailable(f"the control plane answered {status}", where=where, got=text)
