"""The demo's last chapter: the run repeats, the audit chain holds, and the picture of why the loop exists."""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.open import open_bundle
from loopwright.demo.setting import MODEL, month
from loopwright.demo.traffic import Traffic
from loopwright.features.frame import Frame
from loopwright.monitoring.labels import LabelLog, outcomes
from loopwright.monitoring.log import PredictionLog
from loopwright.pipeline.lifecycle import RunReport
from loopwright.pipeline.reproduce import reproduce
from loopwright.stats.metrics import roc_auc

if TYPE_CHECKING:
    from loopwright.demo.flights import Stage

FIRST_LIVE_MONTH = 4
PICTURE = "flights.png"


@dataclass(frozen=True)
class Month:
    """AUC of one month's flights: `frozen` by the first model alone, `maintained` as users were answered."""

    number: int
    flights: int
    frozen: float
    maintained: float
    versions: dict[str, int]


def prove(stage: Stage, year: Frame, first: RunReport, traffic: Traffic) -> bool:
    """Reproduce, verify, compare months, draw; returns whether the first two held."""
    tell = stage.narrator
    again = reproduce(
        home=stage.context.home, ledger=stage.context.ledger, run_id=first.run_id, progress=tell
    )
    tell.say(f"loopwright reproduce {first.run_id}: {again.verdict} ({again.comparison.why})")
    tell.found("reproduce", again.to_json())

    chain = stage.clients["admin"].call("audit.verify")
    tell.say(f"loopwright audit verify: {chain['rows']:,} rows, {'whole' if chain['ok'] else chain['why']}")
    tell.found("audit", chain)

    _versions(stage, traffic)
    months = by_month(stage, year, first, traffic.now)
    tell.say("quality per month (ROC AUC): the frozen first model beside the maintained one")
    tell.table(
        ["month", "flights", "frozen version 1", "maintained", "gain", "answered by"],
        [
            (
                calendar.month_name[m.number],
                m.flights,
                m.frozen,
                m.maintained,
                m.maintained - m.frozen,
                ", ".join(f"v{v}: {n:,}" for v, n in sorted(m.versions.items())),
            )
            for m in months
        ],
    )
    picture = stage.home / PICTURE
    draw(months, picture)
    tell.say(f"the picture of why this exists: {picture}")
    tell.found(
        "quality",
        {
            "months": [
                {
                    "month": m.number,
                    "flights": m.flights,
                    "frozen": m.frozen,
                    "maintained": m.maintained,
                    "versions": m.versions,
                }
                for m in months
            ],
            "picture": str(picture),
        },
    )
    return again.agrees and bool(chain["ok"])


def _versions(stage: Stage, traffic: Traffic) -> None:
    shown = stage.clients["ana"].call("models.show", model=MODEL)
    approvers: dict[int, list[str]] = {}
    for promotion in shown["promotions"]:
        approvers.setdefault(promotion["version"], []).extend(
            a["reviewer"] for a in promotion["approvals"] if a["decision"] == "approve"
        )
    answered = traffic.answered.by_version
    rows = [
        (
            f"v{v['version']}",
            v["stage"],
            ", ".join(approvers.get(v["version"], [])) or "–",
            answered.get(str(v["version"]), 0),
            v["metrics"].get("roc_auc", float("nan")),
            str(v["annotations"].get("reason", "")),
        )
        for v in shown["versions"]
    ]
    stage.narrator.table(["version", "stage", "approved by", "answers", "holdout AUC", "why"], rows)
    stage.narrator.found(
        "versions",
        {
            "versions": [
                {"version": v["version"], "stage": v["stage"], "approvers": approvers.get(v["version"], [])}
                for v in shown["versions"]
            ]
        },
    )


def by_month(stage: Stage, year: Frame, first: RunReport, until: datetime) -> list[Month]:
    """Both qualities for each whole live month before `until`, from the prediction log and the labels that arrived."""
    home = stage.context.home
    log, labels = PredictionLog(home.predictions), LabelLog(home.labels)
    frozen = open_bundle(
        BundleDepot(home.bundles).path(first.bundle), stage.context.keyring.public, threads=2
    )
    found = []
    for number in range(FIRST_LIVE_MONTH, 13):
        start, end = month(number), month(number + 1)
        if end > until:
            break
        part = year.slice(start, end).labelled()
        alone = roc_auc(part.labels(), frozen.predict(part.inputs())[:, 0])
        served = outcomes(log, labels, model=MODEL, start=start, end=end, until=until)
        versions = {
            str(v): outcomes(log, labels, model=MODEL, start=start, end=end, until=until, version=v).answered
            for v in _known_versions(stage)
        }
        found.append(
            Month(
                number=number,
                flights=served.answered,
                frozen=float(alone),
                maintained=float(roc_auc(served.y, served.p[:, 0])),
                versions={v: n for v, n in versions.items() if n},
            )
        )
    return found


def _known_versions(stage: Stage) -> list[int]:
    return [v["version"] for v in stage.clients["ana"].call("models.show", model=MODEL)["versions"]]


def draw(months: list[Month], path: Path) -> None:
    """Write the comparison as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [calendar.month_abbr[m.number] for m in months]
    frozen = np.array([m.frozen for m in months])
    maintained = np.array([m.maintained for m in months])
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    axes.plot(names, frozen, color="#9a9a9a", marker="o", label="first model, frozen")
    axes.plot(names, maintained, color="#0b6e4f", marker="o", label="maintained by the loop")
    axes.fill_between(
        names, frozen, maintained, where=maintained >= frozen, color="#0b6e4f", alpha=0.15, interpolate=True
    )
    axes.fill_between(
        names, frozen, maintained, where=maintained < frozen, color="#b3261e", alpha=0.15, interpolate=True
    )
    for i, m in enumerate(months):
        main = max(m.versions, key=lambda v: m.versions[v], default="")
        axes.annotate(
            f"v{main}", (i, maintained[i]), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8
        )
    axes.set_ylabel("ROC AUC of answered flights")
    axes.set_title("Late flights out of New York, 2013: quality month by month", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
