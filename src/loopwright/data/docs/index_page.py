"""The overview of tables: which are well, which are not, where to read on."""

from collections.abc import Callable, Sequence
from datetime import datetime

from loopwright.data.docs.facts import Summary
from loopwright.data.docs.layout import facts, moment, number, page, share, state_tone, table, text
from loopwright.data.docs.pictures import trend
from loopwright.kernel.clock import iso


def index_page(tables: Sequence[Summary], *, now: datetime, link: Callable[[str | None], str]) -> str:
    """One line per table, those that need somebody first."""

    def trouble(one: Summary) -> tuple[bool, bool, float, str]:
        return (not one.open_incidents, one.state == "PASS", -one.bad_share, f"{one.model}/{one.table}")

    rows = [
        (
            f'<a href="{text(link(f"{one.model}/{one.table}"))}">{text(f"{one.model}/{one.table}")}</a>',
            f'<span class="{state_tone(one.state)}">{text(one.state or "–")}</span>',
            number(one.open_incidents) if one.open_incidents else "–",
            number(one.rows), share(one.bad_share), trend(one.bad_shares, width=140, height=34),
            number(one.batches), moment(one.last), text(one.owner),
        )
        for one in sorted(tables, key=trouble)
    ]  # fmt: skip
    body = [
        "<h1>Data</h1>",
        facts({
            "tables": number(len(tables)),
            "passed their last check": number(sum(one.state == "PASS" for one in tables)),
            "with an open incident": number(sum(one.open_incidents > 0 for one in tables)),
            "models": number(len({one.model for one in tables})),
        }),
        "<section><h2>Tables</h2>"
        + (
            table(
                ("table", "last check", "#incidents", "#rows of the last batch", "#set aside", "set aside over batches",
                 "#batches", "last batch", "owner"),
                rows,
            )
            or '<p class="note">No batch has landed yet.</p>'
        )
        + "</section>",
    ]  # fmt: skip
    return page("Data", body, footer=f"Made {iso(now)[:16].replace('T', ' ')} UTC from the ledger.")
