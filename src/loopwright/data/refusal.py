"""What is written down when a contract keeps a batch out."""

from datetime import datetime

from loopwright.data.check import CheckReport
from loopwright.data.lake import Lake
from loopwright.data.source import Source, public_uri
from loopwright.kernel.actor import Actor
from loopwright.ledger import store as ledger_store


def record_refusal(
    lake: Lake, name: str, source: Source, report: CheckReport, actor: Actor, now: datetime
) -> None:
    """Record that `source` was refused as a batch of the table `name` (MODEL/TABLE), and why."""
    payload = {
        "uri": public_uri(source.uri),
        "source_digest": source.digest,
        "input_rows": report.input_rows,
        "blocked_by": {rule.name: rule.why for rule in report.blocked_by},
    }
    with lake.ledger.write() as conn:
        ledger_store.append(
            conn, at=now, actor=actor.name, action="data.refused", subject=name, payload=payload
        )
