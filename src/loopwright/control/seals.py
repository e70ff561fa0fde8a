"""Whose seal each registered bundle carries."""

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.control.context import Context
from loopwright.kernel.errors import LoopwrightError
from loopwright.registry import versions


def sealed(ctx: Context, conn: Connection) -> list[tuple[str, str, str]]:
    """(version, bundle, id of the key its seal names) of every registered bundle that lies in the depot."""
    depot = BundleDepot(ctx.home.bundles)
    found = []
    for model in versions.list_models(conn):
        for version in versions.list_versions(conn, model=model):
            if version.bundle and depot.has(version.bundle):
                try:
                    found.append((version.subject, version.bundle, depot.sealed_by(version.bundle)))
                except LoopwrightError:
                    found.append((version.subject, version.bundle, ""))
    return found
