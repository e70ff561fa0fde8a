"""The way to a home: a folder here, or a control plane's URL. Same operations, same answers, same errors."""

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

from loopwright.control.addresses import Address, address_of
from loopwright.control.plain import plain
from loopwright.kernel import errors
from loopwright.kernel.clock import Clock, utc_now
from loopwright.kernel.errors import BadInput, LoopwrightError, Unavailable

AS_HEADER = "X-Loopwright-As"
"""Whose name a request takes on; only the owner of the machine may."""


class Client(Protocol):
    """Calls operations by name."""

    where: str

    def call(self, operation: str, /, **arguments: Any) -> Any:
        """Do the operation and return its answer in JSON's own types; raises its LoopwrightError."""

    def stream(self, operation: str, /, **arguments: Any) -> Iterator[bytes]:
        """Do an operation that answers with a stream, and yield its bytes as they come."""


class HttpClient:
    """Works on a control plane over HTTP."""

    def __init__(
        self, url: str, token: str | None, as_user: str | None = None, timeout: float = 120.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput("not the URL of a control plane", got=url, wanted="http://HOST:PORT")
        self.where = url.rstrip("/")
        self.timeout = timeout
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        if as_user:
            self._headers[AS_HEADER] = as_user

    def call(self, operation: str, /, **arguments: Any) -> Any:
        with _checked(operation, arguments):
            return self.request(*self._sent(operation, arguments))

    def stream(self, operation: str, /, **arguments: Any) -> Iterator[bytes]:
        with _checked(operation, arguments), self._opened(*self._sent(operation, arguments)) as answer:
            while chunk := answer.read(1 << 16):
                yield chunk

    def _sent(self, operation: str, arguments: dict[str, Any]) -> tuple[str, str, bytes | None]:
        described = address_of(operation)
        path, rest = _address(described, arguments)
        if described.method == "GET":
            query = urlencode(
                {name: _word(value) for name, value in rest.items() if value is not None}, doseq=True
            )
            return "GET", f"{path}?{query}" if query else path, None
        return described.method, path, json.dumps(plain(rest)).encode()

    def request(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Send one request below /api/v1 and return the JSON answer."""
        with self._opened(method, path, body) as answer:
            return json.load(answer)

    @contextlib.contextmanager
    def _opened(self, method: str, path: str, body: bytes | None) -> Iterator[HTTPResponse]:
        """Send one request below /api/v1; whatever goes wrong until the answer is read becomes one of our errors."""
        # S310: the constructor let only http and https through.
        request = urllib.request.Request(  # noqa: S310
            f"{self.where}/api/v1{path}", body, self._headers, method=method
        )
        if body is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with _direct.open(request, timeout=self.timeout) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            raise _rebuilt(error) from None
        except (OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Unavailable(
                f"the control plane does not answer ({reason})",
                where=self.where,
                next="Is it running? Start it with: loopwright up --home DIR",
            ) from None


# No proxy of the environment stands between a person and their own control plane.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def connect(
    home: Path | None,
    url: str | None = None,
    token: str | None = None,
    *,
    as_user: str | None = None,
    create: bool = False,
    clock: Clock = utc_now,
) -> Client:
    """Return a client for `url`, else for the folder `home`.

    On a folder the caller owns the files, and acts as `local` (admin) unless `token` or `as_user` says who they are.
    Raises Unauthenticated for a wrong token and NotFound when the folder is no home and `create` is false.
    """
    if url:
        return HttpClient(url, token, as_user)
    if home is None:
        raise BadInput("neither a folder nor a URL is given", wanted="--home DIR or --url URL")
    # A command that only asks a control plane need not load what works on a folder.
    from loopwright.control.folder import open_folder

    return open_folder(home, token, as_user=as_user, create=create, clock=clock)


@contextlib.contextmanager
def _checked(operation: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Say what does not fit in the words a folder would use, whatever the server said of it."""
    try:
        yield
    except (BadInput, KeyError):
        from loopwright.control.operation import find

        find(operation).checked(arguments)
        raise


def _address(address: Address, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    rest = dict(arguments)
    path = address.path
    for name in address.in_path:
        path = path.replace(f"{{{name}}}", quote(str(plain(rest.pop(name))), safe=""))
    return path, rest


def _word(value: object) -> object:
    flat = plain(value)
    if isinstance(flat, bool):
        return "true" if flat else "false"
    return [str(item) for item in flat] if isinstance(flat, list) else str(flat)


def _rebuilt(error: urllib.error.HTTPError) -> LoopwrightError:
    """Return the error the control plane raised, as if it had been raised here."""
    try:
        document = json.loads(error.read(1_000_000))
        kind = getattr(errors, document["error"])
        fields = {name: document[name] for name in ("where", "got", "wanted", "next") if name in document}
        if kind is errors.TooMany:
            fields = {name: fields[name] for name in ("where", "next") if name in fields}
            fields["retry_after"] = float(error.headers.get("Retry-After", 1))
        built = kind(document["what"], **fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Unavailable(f"the control plane answered {error.code} {error.reason}", where=error.url or "")
    return built if isinstance(built, LoopwrightError) else Unavailable(str(built))
