"""What a table looked like in a snapshot, for rules that compare a delivery with it."""

from loopwright.data.checking import Reference
from loopwright.data.files import Files
from loopwright.data.lake import Lake
from loopwright.data.snapshot import load_snapshot, snapshot_files
from loopwright.data.versions.store import list_snapshots

SEARCHED = 50
"""So many of a model's newest snapshots are looked through for one that holds the table."""


def snapshot_reference(lake: Lake, model: str, table: str) -> Reference:
    """Finds the table in the snapshot that starts with some digits, or in the newest one ("previous").

    None from "previous" when no snapshot holds the table yet; raises NotFound for digits that nothing starts with.
    """

    def find(snapshot: str) -> Files | None:
        if snapshot != "previous":
            return snapshot_files(lake, load_snapshot(lake, snapshot).digest, table)
        with lake.ledger.read() as conn:
            newest = list_snapshots(conn, model, SEARCHED)
        digest = next((each["digest"] for each in newest if table in each["tables"]), None)
        return None if digest is None else snapshot_files(lake, digest, table)

    return find
