"""The signed route table as servers fetch it, twice a second each: read, and written only when there is none."""

from loopwright.bundle.routes import signer_of
from loopwright.control.context import Context
from loopwright.delivery import routes as delivery_routes


def current_routes(ctx: Context) -> bytes:
    """Return the signed bytes of the newest route table."""
    with ctx.ledger.read() as conn:
        standing = delivery_routes.current_routes(conn)
    # A table signed before the keys changed is signed anew: its key may have been revoked.
    if standing is None or signer_of(standing[1]) != ctx.key.public.key_id:
        with ctx.ledger.write() as conn:
            standing = delivery_routes.route_table(conn, ctx.key, ctx.now)
    return standing[1]
