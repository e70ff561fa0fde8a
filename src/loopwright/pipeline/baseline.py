"""The version that a new one must not be worse than."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.delivery.routes import stable_version
from loopwright.kernel.clock import parse_time
from loopwright.kernel.home import Home
from loopwright.ledger.engine import Ledger
from loopwright.registry.trust.store import approved
from loopwright.registry.versions import Version, current, get_version


@dataclass(frozen=True)
class Baseline:
    """A version, opened. `trained_until`: event time up to which it saw data."""

    version: int
    bundle: Bundle
    trained_until: datetime | None


def stable_baseline(ledger: Ledger, home: Home, trusted: Sequence[PublicKey], model: str) -> Baseline | None:
    """The version that answers as stable, opened; before anything is served, the one approved for Production.

    A version still in its canary is no baseline: it has to prove itself first. None when there is no version yet.
    """
    with ledger.read() as conn:
        stable = stable_version(conn, model)
        if stable is not None:
            version: Version | None = get_version(conn, model=model, version=stable)
        else:
            version = current(conn, model=model)
        pickles = approved(conn)
    if version is None or version.bundle is None:
        return None
    bundle = open_bundle(BundleDepot(home.bundles).path(version.bundle), trusted, trusted=pickles)
    return Baseline(version.version, bundle, trained_until(bundle))


def trained_until(bundle: Bundle) -> datetime | None:
    """Event time up to which a bundle says it saw data; None where it does not say."""
    until = bundle.manifest.provenance.get("trained_until")
    return parse_time(until) if until else None
