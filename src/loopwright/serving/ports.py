"""Opens the serving port once for each worker."""

import socket

from loopwright.kernel.errors import Unavailable


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """Return `count` listening sockets on one port; raises Unavailable when it is taken."""
    sockets: list[socket.socket] = []
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Without SO_REUSEPORT the port is refused when anyone has it, also another of our servers.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            address = probe.getsockname()
        for _ in range(count):
            listener = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(2048)
    except OSError as error:
        for listener in sockets:
            listener.close()
        raise Unavailable(
            f"cannot listen ({error.strerror or error})",
            where=f"{host}:{port}",
            next="Another process may use the port: stop it, or choose another with --port.",
        ) from error
    return sockets
