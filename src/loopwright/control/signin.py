"""The pages where a session begins and ends: /login, /login/oidc, /auth/callback, /logout."""

import hmac
import secrets
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from html import escape
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from loopwright.control import access, identify, oidc, sessions, store
from loopwright.control.caller import Caller
from loopwright.control.context import Context
from loopwright.control.doorkeeper import extra_headers
from loopwright.control.limits import Limits
from loopwright.control.oidc import SignIn
from loopwright.kernel.actor import Actor
from loopwright.kernel.errors import Lapsed, LoopwrightError, NotFound, Refused, Unauthenticated
from loopwright.ledger import store as ledger_store

FORM_COOKIE = "lw_form"
OIDC_COOKIE = "lw_oidc"
CALLBACK = "/auth/callback"
HOME_PAGE = "/mlflow/"
T = TypeVar("T")

router = APIRouter(include_in_schema=False)


@router.get("/login")
async def login(request: Request) -> Response:
    """Show who is signed in, and the ways to sign in."""
    return await _page(request, next_page=_own_page(request.query_params.get("next")))


@router.post("/login")
async def login_with_token(request: Request) -> Response:
    """Begin a session with a pasted token."""
    caller, limits = _caller(request), _limits(request)
    fields = parse_qs((await request.body()).decode("utf-8", "replace"))
    token, next_page = _one(fields, "token"), _own_page(_one(fields, "next"))
    try:
        expected = caller.cookie(FORM_COOKIE) or ""
        if not expected or not hmac.compare_digest(expected.encode(), _one(fields, "form").encode()):
            raise Refused("this form is stale", next="Try again.")
        limits.check_address(caller.address, token)
        try:
            actor = await _in_thread(
                identify.by_token, _context(request).ledger, token, _context(request).clock
            )
        except Lapsed:
            raise
        except Unauthenticated:
            limits.note_failure(caller.address)
            raise
        limits.note_success(token)
        if actor.service:
            raise Refused(f"{actor.name} is a service account; sessions are for people")
        cookies = await _in_thread(_begin_session, request, actor.name, access.parse(token)[0])
    except LoopwrightError as error:
        return await _page(request, next_page=next_page, error=error)
    return _with_cookies(RedirectResponse(next_page, 303), cookies)


@router.get("/login/oidc")
async def login_at_provider(request: Request) -> Response:
    """Send the browser to the provider named in home.json."""
    caller, flow = _caller(request), _flow(request)
    next_page = _own_page(request.query_params.get("next"))
    redirect = flow.provider.redirect or f"{caller.url}{CALLBACK}"
    try:
        url, sealed = await _in_thread(flow.begin, redirect, next_page)
    except LoopwrightError as error:
        return await _page(request, next_page=next_page, error=error)
    age = int(oidc.PATIENCE.total_seconds())
    cookie = (
        f"{OIDC_COOKIE}={sealed}; Path={CALLBACK}; Max-Age={age}; HttpOnly; SameSite=Lax{_secure(request)}"
    )
    return _with_cookies(RedirectResponse(url, 303), [cookie])


@router.get(CALLBACK)
async def come_back(request: Request) -> Response:
    """Take the provider's answer, and begin a session for whom it vouches."""
    caller, flow = _caller(request), _flow(request)
    try:
        _limits(request).check_address(caller.address, "")
        if len(request.query_params.multi_items()) != len(request.query_params):
            raise Unauthenticated("the answer says something twice", next="Start again at /login.")
        person, next_page = await _in_thread(
            flow.finish, dict(request.query_params), caller.cookie(OIDC_COOKIE)
        )
        cookies = await _in_thread(_begin_session, request, person, None)
        answer: Response = RedirectResponse(next_page, 303)
    except LoopwrightError as error:
        if isinstance(error, Unauthenticated) and not isinstance(error, Lapsed):
            _limits(request).note_failure(caller.address)
        answer, cookies = await _page(request, next_page=HOME_PAGE, error=error), []
    gone = f"{OIDC_COOKIE}=; Path={CALLBACK}; Max-Age=0; HttpOnly; SameSite=Lax{_secure(request)}"
    return _with_cookies(answer, [*cookies, gone])


@router.post("/logout")
async def logout(request: Request) -> Response:
    """End the session; is idempotent."""
    await _in_thread(_end_session, request)
    gone = sessions.clear_cookies(secure=_is_secure(request))
    return _with_cookies(RedirectResponse("/login", 303), gone)


def _begin_session(request: Request, who: str | oidc.Person, token_id: str | None) -> list[str]:
    """Open a session under a new secret, end the one the browser had, and return the cookies."""
    ctx, caller = _context(request), _caller(request)
    now = ctx.now
    with ctx.ledger.write() as conn:
        if isinstance(who, oidc.Person):
            user = oidc.welcome(conn, _flow(request).provider, who, now)
            token = None
        else:
            assert token_id is not None
            found = store.find_token(conn, token_id)
            assert found is not None
            token, user = found
        before = caller.cookie()
        if before is not None:
            store.revoke_sessions(conn, now, hashed=access.hash_secret(before))
        secret, session = sessions.begin(user.name, now, token=token)
        store.add_session(conn, session, forget_before=now - sessions.FORGET_AFTER)
        ledger_store.append(
            conn, at=now, actor=user.name, action="session.opened", subject=f"user/{user.name}",
            payload={"by": f"token {token.id}" if token else user.identity, "address": caller.address},
        )  # fmt: skip
    return sessions.set_cookies(secret, session, now, secure=_is_secure(request))


def _end_session(request: Request) -> None:
    ctx, secret = _context(request), _caller(request).cookie()
    if secret is None:
        return
    hashed = access.hash_secret(secret)
    with ctx.ledger.write() as conn:
        found = store.find_session(conn, hashed)
        if found is not None and store.revoke_sessions(conn, ctx.now, hashed=hashed):
            name = found[1].name
            ledger_store.append(
                conn, at=ctx.now, actor=name, action="session.closed", subject=f"user/{name}", payload={}
            )


async def _page(request: Request, *, next_page: str, error: LoopwrightError | None = None) -> Response:
    caller = _caller(request)
    form = secrets.token_urlsafe(32)
    who = await _signed_in(request, caller)
    flow: SignIn | None = request.app.state.sign_in
    parts = []
    if error is not None:
        # The door writes down why somebody was turned away; the page itself is for people.
        request.scope["state"]["why"] = error.what
        parts.append(f'<p role="alert" class="no">{escape(str(error))}</p>')
    if who is not None:
        parts.append(
            f"<p>You are <b>{escape(who.name)}</b> ({who.role.name.lower()}, by {escape(who.via)}).</p>"
            '<form method="post" action="/logout"><button>Sign out</button></form>'
        )
    elif request.app.state.local and caller.of_this_machine:
        parts.append("<p>On this machine you are <b>local</b>, an admin; no sign-in is needed.</p>")
    if flow is not None:
        place = f"/login/oidc?next={quote(next_page, safe='')}"
        host = escape(flow.provider.issuer.partition("//")[2])
        parts.append(f'<p><a class="button" href="{escape(place)}">Sign in at {host}</a></p>')
    parts.append(
        '<form method="post" action="/login"><label for="token">Sign in with a token</label>'
        '<input id="token" name="token" type="password" autocomplete="current-password" placeholder="lw_…" required>'
        f'<input type="hidden" name="form" value="{form}">'
        f'<input type="hidden" name="next" value="{escape(next_page)}"><button>Sign in</button></form>'
        "<p class=hint>Get a token with <code>loopwright token create USER</code>, or from an admin.</p>"
    )
    status = error.http_status if error is not None else 200
    headers = _HEADERS | (extra_headers(error) if error is not None else {})
    answer = HTMLResponse(_FRAME.format(style=_STYLE, body="".join(parts)), status, headers=headers)
    cookie = f"{FORM_COOKIE}={form}; Path=/login; Max-Age=3600; HttpOnly; SameSite=Strict{_secure(request)}"
    return _with_cookies(answer, [cookie])


async def _signed_in(request: Request, caller: Caller) -> Actor | None:
    ctx = _context(request)
    try:
        secret = caller.cookie()
        if secret is None:
            return None
        return (await _in_thread(identify.by_session, ctx.ledger, secret, ctx.clock))[0]
    except Unauthenticated:
        return None


def _own_page(wanted: str | None) -> str:
    """Where to go after signing in: a page of ours, or the default. Never an address of another site."""
    text = wanted or ""
    plain = text.isprintable() and "\\" not in text and len(text) < 2000
    if not text.startswith("/") or text.startswith(("//", "/log")) or not plain:
        return HOME_PAGE
    return quote(text, safe="/?&=%#:@!$'()*+,;~-._[]")


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """The ledger blocks; other requests must not wait for it."""
    return await to_thread.run_sync(partial(function, *arguments))


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _limits(request: Request) -> Limits:
    limits: Limits = request.app.state.limits
    return limits


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _flow(request: Request) -> SignIn:
    flow: SignIn | None = request.app.state.sign_in
    if flow is None:
        raise NotFound(
            "no OIDC provider is named here",
            wanted='"oidc" in home.json',
            next="Sign in with a token: /login",
        )
    return flow


def _one(fields: dict[str, list[str]], name: str) -> str:
    values = fields.get(name, [])
    return values[0].strip() if len(values) == 1 else ""


def _secure(request: Request) -> str:
    return "; Secure" if _is_secure(request) else ""


def _is_secure(request: Request) -> bool:
    """Whether browsers reach us by https: it came so, or home.json says that people come back to us so."""
    flow: SignIn | None = request.app.state.sign_in
    return _caller(request).secure or (
        flow is not None and (flow.provider.redirect or "").startswith("https:")
    )


def _with_cookies(answer: Response, cookies: list[str]) -> Response:
    for cookie in cookies:
        answer.headers.append("Set-Cookie", cookie)
    answer.headers["Cache-Control"] = "no-store"
    return answer


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:12vh auto;padding:0 1rem;color:#1c2430;"
    "background:#fff}h1{font-size:1.4rem}label,input,button,.button{display:block;width:100%;box-sizing:border-box;"
    "font:inherit;margin:.4rem 0}input{padding:.5rem;border:1px solid #8a94a3;border-radius:6px}"
    "button,.button{padding:.55rem;border:0;border-radius:6px;background:#1d5fd1;color:#fff;text-align:center;"
    "text-decoration:none;cursor:pointer}.no{padding:.6rem;border-left:4px solid #b3261e;background:#fbeceb}"
    ".hint{color:#56606e;font-size:.9rem}"
    "@media(prefers-color-scheme:dark){body{color:#e6e9ee;background:#14181f}input{background:#1d232d;color:inherit}"
    ".no{background:#3a1d1b}.hint{color:#a4adba}}"
)
_FRAME = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sign in · Loopwright</title>'
    '<meta name="viewport" content="width=device-width,initial-scale=1"><style>{style}</style></head>'
    "<body><main><h1>Loopwright</h1>{body}</main></body></html>"
)
_HEADERS = {
    # No script runs here, no other site frames it, and the form posts to us alone.
    "Content-Security-Policy": "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    f"style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # With "no-referrer" browsers would hide our own origin from us too.
    "Referrer-Policy": "same-origin",
}
