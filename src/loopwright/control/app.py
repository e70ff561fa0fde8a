"""The control plane as one ASGI app: /api/v1, /mlflow, /healthz, /readyz, /metrics, /docs."""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from loopwright import __version__
from loopwright.control import data_plane, metrics, signin
from loopwright.control.api import operations_router
from loopwright.control.api_page import HEADERS, api_page
from loopwright.control.caller import Network
from loopwright.control.context import Context
from loopwright.control.controllers.loop import Controllers
from loopwright.control.denials import Denials
from loopwright.control.doorkeeper import App, Doorkeeper, Receive, Scope, Send, extra_headers, refuse
from loopwright.control.faults import explain
from loopwright.control.limits import Limits, Settings
from loopwright.control.oidc import Provider, SignIn
from loopwright.control.operation import every_operation
from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Unavailable

log = logging.getLogger("loopwright.control")


@dataclass
class Mounted:
    """An app that is loaded behind our back; until it is there, requests are told to come again."""

    name: str
    app: App | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def load(self, make: Callable[[], App]) -> None:
        """Make the app; keeps the error when that fails."""
        try:
            self.app = make()
        except BaseException as error:  # kept and shown by /readyz: the process must not look healthy
            self.error = error
            log.error("%s could not start", self.name, exc_info=error)
        finally:
            self.done.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is None:
            why = f"{self.name} could not start ({self.error})" if self.error else f"{self.name} is starting"
            await refuse(send, Unavailable(why, next="Try again in a moment."), scope)
            return
        await self.app(scope, receive, send)


def create_app(
    context: Context,
    *,
    local: bool,
    own_token: str | None = None,
    make_mlflow: Callable[[], App],
    controllers: Controllers,
    greeting: Callable[[], None] = lambda: None,
    proxies: Sequence[Network] = (),
) -> App:
    """Return the app. MLflow is loaded in a thread when the app starts; /readyz answers 200 once it is there.

    `own_token` lets in the processes that this one starts. `controllers` run while the app runs. `greeting` is
    called once, when everything is ready. `proxies` stand in front, and their forwarded headers count.

    Raises BadInput when home.json's "oidc" or "limits" cannot be used.
    """
    mlflow = Mounted("MLflow")
    denials = Denials(context.ledger, context.clock)
    limits = Limits(_limits_of(context), context.clock)
    app = FastAPI(
        title="Loopwright",
        version=__version__,
        description="One operation per act; the command line and Python call the same functions.",
        lifespan=_lifespan(mlflow, make_mlflow, controllers, greeting, denials),
        docs_url=None,  # FastAPI's own fetches its scripts from elsewhere
        redoc_url=None,
    )
    app.state.context = context
    app.state.controllers = controllers
    app.state.limits = limits
    app.state.local = local
    app.state.sign_in = _sign_in_of(context)
    app.add_exception_handler(LoopwrightError, _told)
    app.add_exception_handler(RequestValidationError, _unfit)
    app.add_exception_handler(Exception, _told)
    app.include_router(signin.router)
    app.include_router(data_plane.router, prefix="/api/v1")
    app.include_router(operations_router(every_operation()), prefix="/api/v1")
    app.mount("/mlflow", mlflow)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/readyz", include_in_schema=False)
    def readyz() -> PlainTextResponse:
        missing = _missing(mlflow, context, controllers)
        return PlainTextResponse("\n".join(missing) or "ready", status_code=503 if missing else 200)

    @app.get("/docs", include_in_schema=False)
    def show_api() -> HTMLResponse:
        return HTMLResponse(api_page(every_operation()), headers=HEADERS)

    @app.get("/metrics", include_in_schema=False)
    def show_metrics() -> PlainTextResponse:
        return PlainTextResponse(metrics.render(context, controllers), media_type=metrics.MEDIA_TYPE)

    @app.api_route(
        "/api/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
    )
    def unknown(rest: str) -> None:
        raise NotFound("no such address", got=f"/api/{rest}", next="All addresses are listed at /docs.")

    return Doorkeeper(
        app, context.ledger, context.clock, local=local, limits=limits, denials=denials, own_token=own_token,
        proxies=proxies,
    )  # fmt: skip


def _limits_of(context: Context) -> Settings:
    section = context.home.setting("limits")
    return Settings() if section is None else Settings.read(section, where=f"{context.home.config}: limits")


def _sign_in_of(context: Context) -> SignIn | None:
    section = context.home.setting("oidc")
    if section is None:
        return None
    return SignIn(Provider.read(section, where=f"{context.home.config}: oidc"), context.clock)


def _lifespan(
    mlflow: Mounted,
    make: Callable[[], App],
    controllers: Controllers,
    greeting: Callable[[], None],
    denials: Denials,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    def prepare() -> None:
        mlflow.load(make)
        if mlflow.error is None:
            controllers.start()
            greeting()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Importing MLflow takes seconds; health and the API answer meanwhile.
        thread = threading.Thread(target=prepare, name="mlflow-start", daemon=True)
        thread.start()
        denials.start()
        yield
        controllers.stop()
        denials.stop()

    return lifespan


def _missing(mlflow: Mounted, context: Context, controllers: Controllers) -> Sequence[str]:
    missing: list[str] = []
    if mlflow.error is not None:
        # Whoever asks need not have signed in: the kind of fault, not its words.
        missing.append(f"MLflow could not start ({type(mlflow.error).__name__}); the log has the details")
    elif not mlflow.done.is_set():
        missing.append("MLflow is starting")
    elif not controllers.started:
        missing.append("controllers are starting")
    try:
        with context.ledger.read() as conn:
            conn.exec_driver_sql("SELECT 1")
    except LoopwrightError as error:
        missing.append(error.what)
    return missing


async def _told(request: Request, error: Exception) -> JSONResponse:
    known = explain(error)
    if known is None:
        text = f"an unexpected error, {type(error).__name__}; the control plane's log has the details"
        return JSONResponse({"error": "LoopwrightError", "what": text, "message": text}, status_code=500)
    return JSONResponse(known.to_json(), status_code=known.http_status, headers=extra_headers(known))


async def _unfit(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "the body"
    fault = BadInput(f"`{name}`: {first['msg']}", where=request.url.path, got=first.get("input"))
    return JSONResponse(fault.to_json(), status_code=fault.http_status)
