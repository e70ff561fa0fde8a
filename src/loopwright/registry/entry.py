"""MLflow's door to the governed stores. Imports nothing: MLflow loads entry points while it imports itself."""

import os
from typing import Any

ARTIFACT_ROOT = "LOOPWRIGHT_ARTIFACT_ROOT"
"""Environment: where runs keep artifacts when no server stands between client and store."""

SCHEMES = ("gov+sqlite", "gov+postgresql")


def registry(store_uri: str | None = None, **_: Any) -> Any:
    """Return the governed model registry for a `gov+sqlite:///` or `gov+postgresql://` URL."""
    # A top-level import would be circular, and MLflow then forgets the scheme without a word.
    from loopwright.registry.mlflow_store import GovernedRegistry

    return GovernedRegistry(plain_url(store_uri))


def tracking(store_uri: str | None = None, artifact_uri: str | None = None, **_: Any) -> Any:
    """Return the guarded tracking store for the same URLs."""
    from loopwright.registry.tracking_store import GuardedTracking

    # MLflow names no artifact root where a client opens the store by itself: `loopwright run` on a folder.
    return GuardedTracking(plain_url(store_uri), artifact_uri or os.environ.get(ARTIFACT_ROOT))


def governed_url(ledger_url: str) -> str:
    """The URL under which MLflow finds our stores on the ledger's database."""
    scheme, mark, rest = ledger_url.partition("://")
    return f"gov+{scheme.partition('+')[0]}{mark}{rest}"


def plain_url(store_uri: str | None) -> str:
    """The inverse of `governed_url`."""
    return (store_uri or "").removeprefix("gov+")
