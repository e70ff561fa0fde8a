"""An OpenID Connect provider that lies as told, to see what a sign-in believes. It checks PKCE and uses codes once."""

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey


@dataclass
class Liar:
    """claims: laid over the honest ones; None leaves one out. alg: how the id token is signed."""

    url: str = ""
    claims: dict[str, Any] = field(default_factory=dict)
    userinfo: dict[str, Any] = field(default_factory=dict)
    alg: str = "RS256"
    issuer: str | None = None
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one"}))
    other_key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one"}))
    signs_with_other_key: bool = False
    asked: dict[str, dict[str, str]] = field(default_factory=dict)
    auth: list[str] = field(default_factory=list)

    def authorize(self, url: str) -> str:
        """What the person's click does: returns a code for the request in `url`."""
        code = secrets.token_urlsafe(16)
        self.asked[code] = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        return code

    def id_token(self, nonce: str | None) -> str:
        now = int(time.time())
        honest = {
            "iss": self.url, "sub": "4711", "aud": "loopwright", "iat": now, "exp": now + 300, "nonce": nonce,
            "preferred_username": "ada", "email": "ada@example.com", "groups": ["ml"],
        }  # fmt: skip
        claims = {name: value for name, value in (honest | self.claims).items() if value is not None}
        if self.alg in ("none", "HS256"):
            head, body = (
                _base64(json.dumps(part).encode()) for part in ({"alg": self.alg, "kid": "one"}, claims)
            )
            # The public key, which everybody has, taken as a password; RFC 8725, 2.1.
            signed = hmac.new(self.key.as_pem(private=False), f"{head}.{body}".encode(), "sha256").digest()
            return f"{head}.{body}.{'' if self.alg == 'none' else _base64(signed)}"
        key = self.other_key if self.signs_with_other_key else self.key
        return jwt.encode({"alg": self.alg, "kid": "one"}, claims, key, algorithms=[self.alg])

    def token(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        asked = self.asked.pop(form.get("code", ""), None)
        digest = _base64(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if (
            asked is None
            or asked.get("code_challenge") != digest
            or asked.get("code_challenge_method") != "S256"
        ):
            return 400, {"error": "invalid_grant"}
        if asked["redirect_uri"] != form.get("redirect_uri"):
            return 400, {"error": "invalid_grant"}
        token = self.id_token(asked.get("nonce"))
        return 200, {"access_token": "at", "token_type": "Bearer", "expires_in": 300, "id_token": token}

    def document(self, path: str) -> dict[str, Any] | None:
        if path == "/.well-known/openid-configuration":
            return {
                "issuer": self.issuer or self.url, "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token", "jwks_uri": f"{self.url}/jwks",
                "userinfo_endpoint": f"{self.url}/userinfo",
            }  # fmt: skip
        if path == "/jwks":
            return {"keys": [self.key.as_dict(private=False)]}
        return self.userinfo if path == "/userinfo" else None


@contextmanager
def running(liar: Liar) -> Iterator[Liar]:
    """Serve it on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = liar.document(urlsplit(self.path).path)
            self._answer(404 if found is None else 200, found or {})

        def do_POST(self) -> None:
            liar.auth.append(self.headers.get("Authorization", ""))
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._answer(*liar.token({name: values[0] for name, values in parse_qs(body).items()}))

        def _answer(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    liar.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield liar
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
