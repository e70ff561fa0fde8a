"""Looks at the depot's bundles again, one a round: bytes that changed since they were approved are found in an hour."""

from collections import deque
from datetime import datetime, timedelta
from typing import Any

from loopwright.bundle.depot import BundleDepot
from loopwright.control.context import Context
from loopwright.control.signals import event_time_of
from loopwright.kernel.errors import LoopwrightError
from loopwright.kernel.stage import Stage
from loopwright.monitoring.alerts import Cleared, Condition, Kind, Raised
from loopwright.monitoring.evaluate import apply_conditions
from loopwright.registry import versions
from loopwright.registry.records import Version

EVERY = timedelta(hours=1)


class IntegrityController:
    """Every hour, each bundle in Staging or Production once; a round hashes one bundle at most."""

    def __init__(self, every: timedelta = EVERY) -> None:
        self._every = every
        self._due: datetime | None = None
        self._waiting: deque[Version] = deque()
        self._changed: dict[str, dict[int, str]] = {}

    def tick(self, ctx: Context) -> list[dict[str, Any]]:
        """One round; see `loop.Tick`."""
        now = ctx.now
        if not self._waiting:
            if self._due is None or now - self._due > 2 * self._every:
                # The first look is not at the start, when everybody waits; nor is a leap of the clock made up for.
                self._due = now + self._every if self._due is None else now
            if now < self._due:
                return []
            self._due = now + self._every
            self._waiting.extend(_standing(ctx))
            self._changed = {version.model: {} for version in self._waiting}
        if not self._waiting:
            return []
        version = self._waiting.popleft()
        changed = self._changed[version.model]
        try:
            BundleDepot(ctx.home.bundles).verify(str(version.bundle), ctx.keyring.public)
        except LoopwrightError as error:
            changed[version.version] = str(error)
        last = all(other.model != version.model for other in self._waiting)
        return self._tell(ctx, version.model, changed, last=last)

    def _tell(self, ctx: Context, model: str, changed: dict[int, str], *, last: bool) -> list[dict[str, Any]]:
        if not changed and not last:
            return []
        with ctx.ledger.write() as conn:
            moment = event_time_of(conn, model, ctx.now)
            condition: Condition = Cleared(Kind.INTEGRITY, moment, "every byte is as it was sealed")
            if changed:
                named = ", ".join(map(str, sorted(changed)))
                title = f"{model}: the bundle of version {named} has changed in the depot"
                condition = Raised(
                    Kind.INTEGRITY, max(changed), moment, title,
                    {"versions": {str(version): why for version, why in sorted(changed.items())},
                     "next": "Restore it from a backup, or roll back: loopwright models verify says what differs."},
                )  # fmt: skip
            opened, resolved = apply_conditions(conn, model, [condition], ctx.now)
        return [
            {"model": model, "opened": [alert.title for alert in opened], "resolved": [one.title for one in resolved]}
        ] if opened or resolved else []  # fmt: skip


def _standing(ctx: Context) -> list[Version]:
    with ctx.ledger.read() as conn:
        return [
            version
            for model in versions.list_models(conn)
            for version in versions.list_versions(conn, model=model)
            if version.bundle and version.stage in (Stage.STAGING, Stage.PRODUCTION)
        ]
