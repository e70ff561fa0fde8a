"""MLflow's own server inside our process: tracking, registry and artifacts on the home, behind the guard."""

import logging
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from loopwright.bundle.depot import BundleDepot
from loopwright.kernel.actor import Actor
from loopwright.kernel.errors import Refused
from loopwright.kernel.home import Home
from loopwright.ledger.engine import Ledger
from loopwright.registry import entry
from loopwright.registry.guard import App, Guard
from loopwright.registry.mlflow_rows import store as rows
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.retention import drop_bytes

if TYPE_CHECKING:
    from loopwright.registry.mlflow_store import GovernedRegistry  # imports MLflow

_EXPLAINED = "loopwright"
_log = logging.getLogger("loopwright.registry")

# What MLflow answers to by itself: loopback and private addresses, with and without a port.
_NEAR = (
    "localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*", "[::1]", "[[]::1]:*",
    "192.168.*", "10.*", *(f"172.{second}.*" for second in range(16, 32)), "fc00:*", "fd00:*",
)  # fmt: skip


def create_mlflow_app(
    home: Home, ledger: Ledger, *, allowed_hosts: Sequence[str] = (), actor: Actor | None = None
) -> App:
    """Return MLflow's app on `home` and `ledger` as an ASGI app; mount it anywhere, e.g. under /mlflow.

    `allowed_hosts`: further Host headers to answer to, with port ("*": any); loopback and private addresses always are.
    `actor`: who acts when `identity.current_actor` is unset; None answers 401. One app per process: MLflow keeps its
    stores in module globals, so a second call redirects the first.
    """
    ensure_mlflow_tables(ledger)
    url = entry.governed_url(ledger.url)
    # MLflow reads its configuration from the environment, some of it while it is imported.
    os.environ.update(
        {
            "_MLFLOW_SERVER_FILE_STORE": url,
            "_MLFLOW_SERVER_REGISTRY_STORE": url,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": home.artifacts.as_uri(),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join((*_NEAR, *allowed_hosts)),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
    )
    with warnings.catch_warnings():
        # Starlette's WSGI bridge is deprecated; MLflow 3.17 has no other.
        warnings.filterwarnings("ignore", message="starlette.middleware.wsgi")
        from mlflow.server import fastapi_app

    registry = _install(url)
    _explain_bad_input()
    registry.freed = lambda: drop_bytes(ledger, BundleDepot(home.bundles))

    def refused(who: Actor, method: str, path: str, error: Refused) -> None:
        registry.refusals.note(actor=who.name, act=method, subject=path, why=str(error), now=registry.clock())

    return Guard(
        fastapi_app.create_fastapi_app(),
        registered=lambda uris, below: _registered(ledger, uris, below),
        fallback=actor,
        refused=refused,
    )


def _install(url: str) -> "GovernedRegistry":
    """Point MLflow's module globals at our stores, also where MLflow's own client code runs inside the server."""
    from mlflow import set_registry_uri, set_tracking_uri
    from mlflow.server import handlers
    from mlflow.tracking._model_registry.utils import _get_store_registry
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    server: Any = handlers
    for scheme in entry.SCHEMES:
        _tracking_store_registry.register(scheme, entry.tracking)
        _get_store_registry().register(scheme, entry.registry)
        server._tracking_store_registry.register(scheme, entry.tracking)
        server._model_registry_store_registry.register(scheme, entry.registry)
    registry: GovernedRegistry = entry.registry(url)
    registry.takes_files = False
    tracking = entry.tracking(url, "mlflow-artifacts:/")
    tracking.refusals = registry.refusals
    if not callable(server._get_artifact_repository_for_uri):
        raise RuntimeError("this MLflow reaches artifacts by another way than the one that is closed here")
    server._get_artifact_repository_for_uri = _not_on_a_clients_word
    server._tracking_store = tracking
    server._model_registry_store = registry
    # MLflow hands this setting on to child processes by the environment; ours choose their own.
    before = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("MLFLOW_REGISTRY_URI")
    set_tracking_uri(url)
    set_registry_uri(url)
    for name, value in zip(("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"), before, strict=True):
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    return registry


def _not_on_a_clients_word(uri: str) -> NoReturn:
    """Stands for MLflow's opening of artifacts that are not the server's own.

    A client says where an experiment's or a version's files lie. The server would open that place with credentials of
    its own, which may reach further than the client's.
    """
    from loopwright.registry.mlflow_store import (
        as_mlflow,
    )  # imports MLflow: not before its environment is set

    raise as_mlflow(
        Refused(
            "these files are not kept by this server, which does not fetch them on a client's word",
            where="artifacts",
            got=uri,
            next="Fetch them yourself: mlflow.artifacts.download_artifacts, with your credentials.",
        )
    )


def _explain_bad_input() -> None:
    """Let MLflow's pages answer 400 where its code trips over what a client sent: a list for an object, a broken query.

    MLflow answers those with a 500, which its clients take for a reason to try again for minutes.
    """
    from mlflow.server import app as flask
    from mlflow.server.graphql.graphql_no_batching import GraphQLError  # type: ignore[attr-defined]

    if _EXPLAINED in flask.extensions:
        return
    flask.extensions[_EXPLAINED] = True

    def told(error: Exception) -> tuple[dict[str, str], int]:
        _log.info("MLflow could not read a request", exc_info=error)
        what = f"the request could not be understood ({type(error).__name__}: {str(error)[:500]})"
        return {"error_code": "INVALID_PARAMETER_VALUE", "message": what}, 400

    for kind in (GraphQLError, RecursionError, TypeError, ValueError, LookupError, AttributeError):
        flask.register_error_handler(kind, told)


def _registered(ledger: Ledger, uris: list[str], below: str) -> list[tuple[str, int]]:
    with ledger.read() as conn:
        if below.startswith("run:"):
            return rows.ml_sources_in_run(conn, below.removeprefix("run:"))
        return rows.ml_sources_at(conn, uris, below)
