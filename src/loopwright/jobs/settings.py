"""What home.json says about jobs, and what may be read, written and called for whom.

"jobs": {
  "places":  ["/data/batches", "s3://bucket/batches"],   where people other than admins may read and write
  "output":  "s3://bucket/results",                      where results lie when a job names no place
  "secrets": {"billing": "BILLING_WEBHOOK_SECRET"},      what webhooks are signed with: name → variable
  "allow":   ["10.0.0.0/8"],                             networks near us that may be called after all
  "max_queued": 1000, "max_rows": 100000000, "keep": "30d"
}
"""

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from loopwright.data.sources.reading import public_uri
from loopwright.kernel.clock import parse_duration
from loopwright.kernel.errors import BadInput, Refused, Unavailable, did_you_mean
from loopwright.kernel.home import Home
from loopwright.kernel.webhook import Network, check_url, guard

MAGIC = "*?["
MAX_URI = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """`output`: a folder or s3:// prefix. `places`: likewise, absolute. `secrets`: name → environment variable."""

    output: str
    places: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    allow: tuple[Network, ...] = ()
    max_queued: int = 1000
    max_rows: int = 100_000_000
    keep: timedelta = timedelta(days=30)

    @classmethod
    def of(cls, home: Home) -> "Settings":
        """What home.json says; raises BadInput for what cannot be used."""
        named = home.setting("jobs")
        where = f"{home.config}: jobs"
        default = str(home.artifacts / "jobs")
        if named is None:
            return cls(default)
        if not isinstance(named, dict):
            raise BadInput("not an object", where=where, got=named, wanted='{"places": ["/data"]}')
        known = ("allow", "keep", "max_queued", "max_rows", "output", "places", "secrets")
        if unknown := sorted(set(named) - set(known)):
            raise BadInput(
                f"unknown setting `{unknown[0]}`", where=where, wanted=", ".join(known),
                next=did_you_mean(unknown[0], known),
            )  # fmt: skip
        return cls(
            output=_place(str(named.get("output", default)), f"{where}.output"),
            places=tuple(
                _place(text, f"{where}.places") for text in _texts(named, "places", f"{where}.places")
            ),
            secrets=_secrets(named.get("secrets", {}), f"{where}.secrets"),
            allow=tuple(
                _network(text, f"{where}.allow") for text in _texts(named, "allow", f"{where}.allow")
            ),
            max_queued=_count(named, "max_queued", 1000, where),
            max_rows=_count(named, "max_rows", 100_000_000, where),
            keep=parse_duration(str(named.get("keep", "30d"))),
        )

    def input(self, uri: str, *, anywhere: bool) -> str:
        """`uri` when it may be read for whoever asks; anywhere: they may name every place (an admin).

        Raises BadInput for what no job reads, Refused for what these people may not.
        """
        scheme = _scheme(uri)
        if scheme in ("http", "https"):
            check_url(uri, "input", allowed=self.allow)
            return uri
        if scheme == "s3":
            self._within(uri, "input", anywhere=anywhere)
            return uri
        return str(self._path(uri, "input", anywhere=anywhere))

    def output_at(self, uri: str | None, *, anywhere: bool) -> str:
        """The folder or s3:// prefix for results; raises as `input` does."""
        if uri is None:
            return self.output
        if _scheme(uri) in ("http", "https"):
            raise BadInput(
                "results are not written here", where="output", got=public_uri(uri),
                wanted="a folder or s3://BUCKET/PREFIX",
            )  # fmt: skip
        if any(sign in uri for sign in MAGIC):
            raise BadInput(
                "a pattern is no place", where="output", got=uri, wanted="a folder or s3://BUCKET/PREFIX"
            )
        if _scheme(uri) == "s3":
            self._within(uri, "output", anywhere=anywhere)
            return uri.rstrip("/")
        return str(self._path(uri, "output", anywhere=anywhere))

    def check_file(self, path: Path, *, anywhere: bool) -> None:
        """Raise Refused unless the file that `path` really is may be read: a link may lead elsewhere."""
        if not anywhere and not any(
            path.resolve().is_relative_to(Path(place).resolve()) for place in self._folders
        ):
            raise self._refused("input", str(path))

    def check_host(self, host: str) -> None:
        """Raise Refused when a download from `host` would come from near us, Unavailable when it has no address."""
        check = guard(self.allow, "input")
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unavailable(f"no such host ({error.strerror or error})", where="input", got=host) from None
        except UnicodeError:
            raise BadInput(
                "not the name of a host", where="input", got=host[:80].encode(errors="replace").decode()
            ) from None
        for entry in found:
            check(str(entry[4][0]))

    def webhook(self, url: str, secret: str) -> None:
        """Raise BadInput or Refused for a webhook that cannot be called, or not signed."""
        check_url(url, "webhook.url", allowed=self.allow)
        if "@" in urlsplit(url).netloc:
            raise BadInput(
                "a webhook with a password in it", where="webhook.url", wanted="http(s)://HOST/…",
                next="The signature says who calls.",
            )  # fmt: skip
        if secret not in self.secrets:
            raise BadInput(
                "no such secret to sign with", where="webhook.secret", got=secret,
                wanted=", ".join(sorted(self.secrets)) or "a name that home.json knows",
                next=did_you_mean(secret, self.secrets)
                or 'An admin names them in home.json: "jobs": {"secrets": {"NAME": "VARIABLE"}}',
            )  # fmt: skip

    def secret(self, name: str) -> bytes | None:
        """What the name stands for in this process's environment; None when it stands for nothing."""
        return os.environ.get(self.secrets.get(name, ""), "").encode() or None

    @property
    def _folders(self) -> list[str]:
        return [place for place in self.places if not place.startswith("s3://")]

    def _path(self, uri: str, where: str, *, anywhere: bool) -> Path:
        path = Path(unquote(urlsplit(uri).path)) if _scheme(uri) == "file" else Path(uri)
        if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise BadInput("not an absolute path", where=where, got=uri, wanted="/DIR/FILE, without ..")
        if not anywhere:
            fixed = path
            while any(sign in str(fixed) for sign in MAGIC):
                fixed = fixed.parent
            folders = [Path(place).resolve() for place in self._folders]
            try:
                real = fixed.resolve()
            except (OSError, RuntimeError):  # links that lead in a circle
                raise self._refused(where, uri) from None
            if not any(real.is_relative_to(folder) for folder in folders):
                raise self._refused(where, uri)
        return path

    def _within(self, uri: str, where: str, *, anywhere: bool) -> None:
        bucket = urlsplit(uri).netloc
        if not bucket or "@" in bucket:
            raise BadInput("not a bucket", where=where, got=public_uri(uri), wanted="s3://BUCKET/PREFIX")
        allowed = any(
            uri == place or uri.startswith(f"{place}/") for place in self.places if place.startswith("s3://")
        )
        if ".." in uri.split("/") or not (anywhere or allowed):
            raise self._refused(where, uri)

    def _refused(self, where: str, uri: str) -> Refused:
        return Refused(
            "not a place for jobs", where=where, got=public_uri(uri),
            wanted=" or ".join(self.places) or "rows in the request, or http(s)",
            next='An admin names places in home.json: "jobs": {"places": [...]}',
        )  # fmt: skip


def _scheme(uri: str) -> str:
    """http, https, s3, file or "" for a path; raises BadInput for another."""
    if len(uri) > MAX_URI or not uri.isprintable():
        raise BadInput(
            "not a place", got=f"{len(uri)} characters", wanted=f"at most {MAX_URI}, all of them printable"
        )
    if "://" not in uri:
        return ""
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise BadInput(
            "not an address", wanted="an absolute path, file:///…, s3://… or http(s)://…"
        ) from None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https", "s3", "file") or (scheme == "file" and parts.netloc):
        raise BadInput(
            "no job reads or writes that", got=f"{scheme}://", wanted="an absolute path, file:///…, s3://… or http(s)://…"
        )  # fmt: skip
    return scheme


def _texts(named: Mapping[str, Any], name: str, where: str) -> list[str]:
    listed = named.get(name, [])
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise BadInput("not a list of texts", where=where, got=listed)
    return listed


def _place(text: str, where: str) -> str:
    if text.startswith("s3://") and urlsplit(text).netloc:
        return text.rstrip("/")
    if "://" in text or not Path(text).is_absolute():
        raise BadInput(
            "not a place", where=where, got=text, wanted="an absolute folder or s3://BUCKET/PREFIX"
        )
    return text


def _secrets(named: object, where: str) -> dict[str, str]:
    if not isinstance(named, dict) or not all(isinstance(one, str) and one for one in named.values()):
        raise BadInput("not names of variables", where=where, wanted='{"NAME": "VARIABLE"}')
    return {str(name): str(variable) for name, variable in named.items()}


def _network(text: str, where: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadInput("not a network", where=where, got=text, wanted="like 10.0.0.0/8") from None


def _count(named: Mapping[str, Any], name: str, default: int, where: str) -> int:
    value = named.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput("not a count", where=f"{where}.{name}", got=value, wanted="a whole number from 1 on")
    return value
