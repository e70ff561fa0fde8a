"""Follows the control plane: its keys, its route table, and the bundles that the table needs, all kept on disk.

Without the control plane the kept table and the kept bundles are served, for as long as it takes.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from loopwright.bundle.keys import PublicKey
from loopwright.bundle.routes import RouteTable, open_routes, signer_of
from loopwright.kernel.errors import LoopwrightError, NotFound, Refused, Tampered, Unavailable
from loopwright.serving.cache import Cache
from loopwright.serving.complaints import Complaints, in_words
from loopwright.serving.options import ServeOptions
from loopwright.serving.profiles import Profiles
from loopwright.serving.upstream import Upstream

Tell = Callable[[dict[str, Any]], None]
"""Sends a message to every worker."""


class Following:
    """One server's view of its control plane.

    keys: trusted now, the one that signs first. table: in force, None before the first. unfetched: why, by digest, for
    bundles that cannot be trusted. control_up: whether the control plane answered last time.
    """

    def __init__(
        self,
        options: ServeOptions,
        cache: Cache,
        upstream: Upstream,
        keys: list[PublicKey],
        profiles: Profiles,
        complain: Complaints,
        tell: Tell,
    ) -> None:
        self.keys = keys
        self.unfetched: dict[str, str] = {}
        self.control_up = False
        self._options = options
        self._cache = cache
        self._upstream = upstream
        self._profiles = profiles
        self._complain = complain
        self._tell = tell
        self._ring, self._keys_at = b"", 0.0
        self._following = bool(cache.followed())
        self._document = b""
        self._verified: set[str] = set()
        self._doubted = False
        self._polling = asyncio.Lock()
        self.table: RouteTable | None = self._kept_table()

    async def begin(self) -> None:
        """Get a table to start with; the kept one will do when the control plane is away."""
        try:
            await self.poll()
        except (Unavailable, NotFound) as error:
            if self.table is None and not isinstance(error, NotFound):
                raise
            self._complain("control", str(error))
            if self.table is not None:
                self._options.say(f"serving route table {self.table.serial} from {self._cache.folder}")
        except LoopwrightError as error:
            if self.table is None:
                raise
            self._complain("control", str(error))

    async def poll_forever(self) -> None:
        """Follow until cancelled."""
        while True:
            await asyncio.sleep(self._options.poll)
            try:
                await self.poll()
            except Exception as error:  # noqa: BLE001 - without this loop no rollback would ever arrive
                self.control_up = self.control_up and not isinstance(error, Unavailable)
                self._complain("control", f"{in_words(error)} (serving goes on with the last route table)")

    async def poll(self, *, keys: bool = False) -> int:
        """Fetch the table once; when it is new, bring its bundles here and tell the workers. Return the serial.

        keys: ask for the control plane's keys too, whenever that was done last.
        """
        if keys:
            self._keys_at = 0.0
        async with self._polling:
            document = await asyncio.to_thread(self._upstream.routes)
            self.control_up = True
            self._complain.over("control")
            if asyncio.get_running_loop().time() >= self._keys_at:
                try:
                    await self._follow_keys()
                    self._complain.over("keys")
                except LoopwrightError as error:
                    # What is trusted stays, and so does what it signed.
                    self._complain("keys", f"the control plane's keys are not followed: {error}")
            if document == self._document and not self.unfetched and not self._doubted:
                return self.table.serial if self.table else 0
            try:
                table = self._opened(document)
            except Tampered:
                # Signed by a key that came after the last look, or by a stranger's.
                await self._follow_keys()
                table = self._opened(document)
            if self.table is not None and table.serial < self.table.serial:
                raise Refused(
                    "the control plane sent an older route table",
                    got=table.serial,
                    wanted=f"{self.table.serial}",
                )
            doubted, self._doubted = self._doubted, False
            if doubted:
                self._verified.clear()
            try:
                unfetched = await asyncio.to_thread(self._fetch_bundles, table)
            except LoopwrightError:
                self._doubted |= doubted
                raise
            if doubted or document != self._document or unfetched != self.unfetched:
                # What may fail on a full disk comes first: the next poll must find the table still new.
                self._cache.keep_routes(document)
                self._profiles.remember(table)
                self.table, self._document, self.unfetched = table, document, unfetched
                self._tell({"apply": unfetched})
            return table.serial

    def needed(self) -> set[str]:
        """Digests of the bundles that routes need now."""
        return _needed(self.table) if self.table is not None else set()

    def missing(self) -> list[str]:
        """Digests that routes need and that are not on disk: a worker that starts now could not load them."""
        return sorted(digest for digest in self.needed() if not self._cache.depot.has(digest))

    def doubt(self) -> None:
        """Let the next poll look at every bundle again; may be called from another thread."""
        self._doubted = True

    def _opened(self, document: bytes) -> RouteTable:
        """The table, when the key that signs now has signed it; raises Tampered.

        A retired key vouches for what it sealed and for nothing new: who took it away rules nobody's traffic.
        """
        table = open_routes(document, self.keys)
        if self._following and signer_of(document) != self.keys[0].key_id:
            raise Tampered(
                "signed by a key that is retired", where="route table", got=signer_of(document),
                wanted=self.keys[0].key_id,
            )  # fmt: skip
        return table

    def _kept_table(self) -> RouteTable | None:
        """The table kept on disk; one that no trusted key signed (any more) is none."""
        try:
            return self._cache.routes(self.keys)
        except Tampered as error:
            self._complain("kept table", f"the kept route table is not used: {error}")
            return None

    async def _follow_keys(self) -> None:
        """Ask for the control plane's keys, and tell the workers when others are to be trusted from now on.

        Raises Refused or Tampered for keys that do not continue those trusted so far, which stay then.
        """
        self._keys_at = asyncio.get_running_loop().time() + self._options.keys_every
        _, document = await asyncio.to_thread(self._upstream.keys)
        if not document or document == self._ring:
            return
        trusted = await asyncio.to_thread(self._cache.follow, document)
        self._ring, self._following = document, True
        if trusted == self.keys:
            return
        names = ", ".join(key.key_id for key in trusted)
        self._options.say(f"trusting the control plane's keys {names} from now on")
        self.keys = trusted
        self._tell({"keys": [key.to_text() for key in trusted]})
        # What only a dropped key vouched for has to be sealed by another one now.
        self._doubted = True

    def _fetch_bundles(self, table: RouteTable) -> dict[str, str]:
        """Bring what the table needs into the depot; return why by digest for bundles that cannot be trusted."""
        refused: dict[str, str] = {}
        needed = _needed(table)
        for digest in sorted(needed - self._verified):
            try:
                self._cache.fetch_bundle(digest, self.keys, self._upstream.bundle_file)
                self._verified.add(digest)
            except Unavailable:
                raise  # the old table stays until all of the new one is here
            except LoopwrightError as error:
                refused[digest] = str(error)
                self._complain(digest, f"bundle {digest[:12]} is refused: {error}")
        self._verified &= needed
        self._cache.prune(needed)
        return refused


def _needed(table: RouteTable) -> set[str]:
    return {route.versions[str(arm.version)].bundle for route in table.models.values() for arm in route.arms}
