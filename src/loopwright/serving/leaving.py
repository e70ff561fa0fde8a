"""How a worker leaves its clients: none of them sends a request into a connection that is being closed.

Closing an idle connection races with the request that its client sends just then. So a leaving worker accepts no more
and gives every next answer with `Connection: close`; only what stays idle until the end is closed from this side.
"""

import asyncio

import uvicorn

_CLOSE = (b"connection", b"close")


async def see_off(server: uvicorn.Server, seconds: float) -> None:
    """Stop accepting, and wait up to `seconds` for the clients to go after their next answer."""
    while not server.started:  # told to go while it came up
        await asyncio.sleep(0.01)
    for listening in server.servers:
        listening.close()
    # The first is what uvicorn copies into the second, once a second.
    server.config.encoded_headers = [*server.config.encoded_headers, _CLOSE]
    server.server_state.default_headers = [*server.server_state.default_headers, _CLOSE]
    until = asyncio.get_running_loop().time() + seconds
    while server.server_state.connections and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.02)
