"""What serving asks of the control plane: keys, routes, bundles; and what it ships: events."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from loopwright.bundle.depot import BundleDepot
from loopwright.control.api import context_of
from loopwright.control.context import Context
from loopwright.control.intake import take_in
from loopwright.control.routes import current_routes
from loopwright.kernel.actor import Role, require
from loopwright.kernel.errors import BadInput, NotFound

MAX_BATCH = 64 * 1024 * 1024

router = APIRouter(tags=["data plane"])
Here = Annotated[Context, Depends(context_of)]


@router.get("/keys")
def keys(ctx: Here) -> JSONResponse:
    """The public keys that sign routes and bundles, the current one first, and the signed list that endorses them.

    Servers pin them at first sight, and take new ones only as that list continues the one they know.
    """
    return JSONResponse({
        "keys": [{"key_id": key.key_id, "public": key.to_text()} for key in ctx.keyring.public],
        "keyring": ctx.keyring.document.decode(),
    })  # fmt: skip


@router.get("/routes")
def routes(ctx: Here) -> Response:
    """The signed route table: models, arms, weights, approval records."""
    return Response(current_routes(ctx), media_type="application/json")


@router.get("/bundles/{digest}/files/{path:path}")
def bundle_file(digest: str, path: str, ctx: Here) -> FileResponse:
    """One file of a bundle, as its manifest names it."""
    depot = BundleDepot(ctx.home.bundles)
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef") or not depot.has(digest):
        raise NotFound("no such bundle", got=digest)
    root = depot.path(digest).resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        raise NotFound("no such file in the bundle", got=path)
    return FileResponse(file, media_type="application/octet-stream")


async def _body(request: Request) -> bytes:
    """The request's body, refused once it is larger than `MAX_BATCH`."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BATCH:
            raise BadInput("too much at once", got=f"more than {MAX_BATCH} bytes", wanted="smaller batches")
        parts.append(part)
    return b"".join(parts)


@router.post("/events")
def events(ctx: Here, body: Annotated[bytes, Depends(_body)]) -> JSONResponse:
    """Take in a batch of prediction events exactly once; answers the offset reached."""
    require(ctx.actor, Role.DEVELOPER, "ship prediction events")
    return JSONResponse({"accepted": take_in(ctx, body)})
