"""`loopwright up`: one process with API, MLflow app and controllers."""

import logging
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn

from loopwright.control import store
from loopwright.control.access import LOCAL, mint
from loopwright.control.app import create_app
from loopwright.control.caller import Network, is_loopback, parse_networks
from loopwright.control.context import Context, open_context
from loopwright.control.controllers.standard import standard_controllers
from loopwright.control.doorkeeper import App, check_binding
from loopwright.kernel.actor import SYSTEM
from loopwright.kernel.clock import Clock, utc_now
from loopwright.kernel.errors import BadInput, Conflict, Unavailable

Say = Callable[[str], None]


def up(
    folder: Path,
    host: str,
    port: int,
    *,
    require_token: bool = False,
    behind_proxy: Sequence[str] = (),
    clock: Clock = utc_now,
    say: Say | None = None,
) -> int:
    """Serve the home in `folder` at host:port until stopped by a signal; returns the exit code.

    Everything that can be wrong is found before the first request is taken: a port in use (Conflict), a disk that
    cannot be written (Unavailable), an address open to others while there is no token (Refused).

    `behind_proxy`: addresses or networks of proxies that end TLS in front of us; whoever comes through one needs a
    token, and so does everybody else.
    """
    tell = say or _say
    proxies = parse_networks(behind_proxy)
    listener = bind(host, port)
    try:
        context = open_context(folder, LOCAL, clock=clock, create=True)
        with context.ledger.read() as conn:
            anyone = store.anyone(conn)
        require_token = require_token or bool(proxies)
        local = is_loopback(host) and not require_token
        check_binding(host, anyone=anyone, local=local)
        if require_token and not anyone:
            tell(
                "no token exists yet: nobody can get in. Make one: loopwright user add …, loopwright token create …"
            )
        _log_to(context.home.logs / "control.log")
        return _serve(context, listener, local=local, proxies=proxies, tell=tell)
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at host:port; raises Conflict when it is taken, BadInput for no such host."""
    if not 0 <= port <= 65535:
        raise BadInput("not a port", got=port, wanted="0 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise BadInput(f"no such host ({error.strerror or error})", got=host) from None
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == 98:
            raise Conflict(
                f"port {port} is in use", where=host, next="Name another with --port, or stop what holds it."
            ) from None
        raise Unavailable(f"cannot listen at port {port} ({error.strerror or error})", where=host) from None
    return listener


class _Server(uvicorn.Server):
    """Ends in order on a signal. uvicorn's own raises the signal again afterwards, as if we had been killed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield


def _serve(
    context: Context, listener: socket.socket, *, local: bool, proxies: Sequence[Network], tell: Say
) -> int:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    # Known to this process and the runs it starts only; gone with it.
    own_token = mint()[1]
    context = replace(context, tracking_uri=f"{url}/mlflow")
    controllers = standard_controllers(context.acting_as(SYSTEM), token=own_token)
    context = replace(context, ticker=controllers)

    def greet() -> None:
        who = (
            "no token needed from this machine (you are `local`, an admin)"
            if local
            else f"tokens required; people sign in at {url}/login"
        )
        tell(
            f"loopwright control plane ready at {url} · MLflow at {url}/mlflow · home {context.home.root} · {who}"
        )

    app = create_app(
        context,
        local=local,
        own_token=own_token,
        make_mlflow=lambda: _mlflow(context, host),
        controllers=controllers,
        greeting=greet,
        proxies=proxies,
    )
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=5,
            # uvicorn believes what anybody on this machine forwards; our door believes named proxies only.
            proxy_headers=False,
        )
    )
    server.run(sockets=[listener])
    context.ledger.dispose()
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _mlflow(context: Context, host: str) -> App:
    from loopwright.registry.mlflow_app import create_mlflow_app  # imports MLflow: seconds, and 150 MB

    app: App = create_mlflow_app(
        context.home, context.ledger, allowed_hosts=["*"] if not is_loopback(host) else []
    )
    return app


def _log_to(path: Path) -> None:
    handler: logging.Handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("loopwright")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    on_screen = logging.StreamHandler()
    on_screen.setLevel(logging.WARNING)
    logger.addHandler(on_screen)
    # MLflow still builds on parts of Starlette that are to go; nobody here can act on that.
    warnings.filterwarnings("ignore", module=r"mlflow\b")
