"""What serving asks of the control plane: keys, routes, bundles; and what it ships: events."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from loopwright.bundle.depot import BundleDepot
from loopwright.control.api import context_of
from loopwright.control.context import Context
from loopwright.control.intake import take_in
from loopwright.control.routes import current_routes
from loopwright.kernel.actor import Actor, Role, beyond_token, require
from loopwright.kernel.errors import NotFound, Refused

router = APIRouter(tags=["data plane"])
Here = Annotated[Context, Depends(context_of)]
_SERVE = "the scope serve"


@router.get("/keys")
def keys(ctx: Here) -> JSONResponse:
    """The public keys that sign routes and bundles, the current one first, and the signed list that endorses them.

    Servers pin them at first sight, and take new ones only as that list continues the one they know.
    """
    _check_fetch(ctx.actor, "fetch the public keys")
    return JSONResponse({
        "keys": [{"key_id": key.key_id, "public": key.to_text()} for key in ctx.keyring.public],
        "keyring": ctx.keyring.document.decode(),
    })  # fmt: skip


@router.get("/routes")
def routes(ctx: Here) -> Response:
    """The signed route table: models, arms, weights, approval records."""
    _check_fetch(ctx.actor, "fetch routes")
    return Response(current_routes(ctx), media_type="application/json")


@router.get("/bundles/{digest}/files/{path:path}")
def bundle_file(digest: str, path: str, ctx: Here) -> FileResponse:
    """One file of a bundle, as its manifest names it."""
    _check_fetch(ctx.actor, "fetch bundles")
    depot = BundleDepot(ctx.home.bundles)
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef") or not depot.has(digest):
        raise NotFound("no such bundle", got=digest)
    root = depot.path(digest).resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        raise NotFound("no such file in the bundle", got=path)
    return FileResponse(file, media_type="application/octet-stream")


async def _body(request: Request) -> bytes:
    """The request's body; the door bounds it."""
    return await request.body()


@router.post("/events")
def events(ctx: Here, body: Annotated[bytes, Depends(_body)]) -> JSONResponse:
    """Take in a batch of prediction events exactly once; answers the offset reached.

    They are what a canary is judged by, so they come from servers' accounts: whoever built the canary does not write
    its figures.
    """
    if not ctx.actor.may_serve():
        raise beyond_token(ctx.actor, "ship prediction events", _SERVE)
    # The account's own role: the scope `serve` is for this, and leaves no role for anything else.
    account = replace(ctx.actor, scopes=None)
    require(account, Role.DEVELOPER, "ship prediction events")
    if not account.service and account.role_on() < Role.ADMIN:
        raise Refused(
            f"{account.name} is a person; prediction events come from servers", wanted="a service account's token",
            next="An admin makes one: loopwright user add NAME --role developer --service, "
            "loopwright token create NAME --scope serve",
        )  # fmt: skip
    return JSONResponse({"accepted": take_in(ctx, body)})


def _check_fetch(actor: Actor, act: str) -> None:
    """Data planes fetch with a token for serving; whoever may read may look at the same."""
    if actor.role_on() < Role.VIEWER and not actor.may_serve():
        raise beyond_token(actor, act, _SERVE)
