"""A version made smaller and faster, and governed: from the version over its run's rows to gates and a new version.

Nothing is registered that its gates did not pass. The same compression asked for again gives the version that is there.
A killed one leaves no version; the next goes on from the candidates that were measured.
"""

import fcntl
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loopwright.bundle.keys import PublicKey, SigningKey
from loopwright.compression.facts import floor
from loopwright.compression.ladder import climb, keep
from loopwright.compression.plan import Family, Rung, Traits, arithmetic, controlled, plan
from loopwright.compression.recipe import Recipe
from loopwright.compression.report import LadderReport
from loopwright.compression.tradeoff import ORIGINAL
from loopwright.kernel.actor import Actor, Role, require
from loopwright.kernel.clock import Clock
from loopwright.kernel.errors import BadInput, LoopwrightError
from loopwright.kernel.files import lock
from loopwright.kernel.home import Home
from loopwright.kernel.progress import Progress, Silent
from loopwright.kernel.sizes import said_size
from loopwright.ledger import store as ledger_store
from loopwright.ledger.engine import Ledger
from loopwright.pipeline.compression_asked import SEED, Asked, CompressReport
from loopwright.pipeline.compression_registering import closed_without, judged
from loopwright.pipeline.compression_subject import (
    NOTE,
    Source,
    check_can,
    chosen_version,
    open_source,
    subject_of,
)
from loopwright.pipeline.compression_tracking import (
    Children,
    close_interrupted,
    end_registered,
    mark_running,
    unmark,
)
from loopwright.pipeline.keep import keep_project
from loopwright.pipeline.tracked import Setting, recorded, tracked
from loopwright.registry import store as registry_store
from loopwright.registry.documents.sections import read_card
from loopwright.registry.evidence import evidence_of
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.versions import Version
from loopwright.training.recorder import Recorder

KEPT = 4
"""Working folders of a home, one for each compressed bundle; the least recently used ones beyond are deleted."""


@dataclass(frozen=True)
class Place:
    """Whose home it is, and who works on it."""

    home: Home
    ledger: Ledger
    actor: Actor
    clock: Clock
    key: SigningKey
    tracking_uri: str
    trusted: tuple[PublicKey, ...] = ()

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """Whose seals count."""
        return (self.key.public, *self.trusted)


def compress_version(asked: Asked, place: Place, progress: Progress | None = None) -> CompressReport:
    """Compress a version and register what passes the gates as a new version, its child.

    Raises Refused without the role developer, NotFound for an unknown model or version, BadInput for one that cannot be
    compressed here and for a recipe that nobody can follow.
    """
    asked.checked()
    version = _admitted(asked, place)
    bundle = check_can(version, place.home, place.keys, place.ledger)
    ensure_mlflow_tables(place.ledger)
    folder = work_folder(place.home, bundle)
    watch = progress or Silent()
    with lock(lock_of(folder)):
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        end_registered(place.ledger, asked.model, place.tracking_uri, folder)
        standing = _standing(asked, place, version, asked.key(bundle))
        if standing is not None:
            return standing
        source = open_source(version, home=place.home, ledger=place.ledger, keys=place.keys, watch=watch)
        report = _compressed(asked, place, source, folder, watch)
        _prune(folder.parent, folder)
    return report


def plan_version(asked: Asked, place: Place, progress: Progress | None = None) -> dict[str, Any]:
    """What would be tried, with the bytes below which each cannot come and why what is skipped is; trains nothing."""
    asked.checked()
    version = _admitted(asked, place)
    bundle = check_can(version, place.home, place.keys, place.ledger)
    watch = progress or Silent()
    folder = work_folder(place.home, bundle)
    source = open_source(version, home=place.home, ledger=place.ledger, keys=place.keys, watch=watch)
    subject = subject_of(
        source, home=place.home, folder=folder, production=asked.production, network=False, watch=watch
    )
    traits = replace(Traits.of(subject), trainable=source.trainable(place.home))
    _followed(asked, version, trainable=traits.trainable)
    rungs = _rungs(asked, traits) or plan(traits, asked.wanted, explore=asked.explore)
    return {
        "model": version.model, "parent": version.version, "kind": traits.kind, "size": subject.graph.size,
        "parameters": traits.facts.parameters, "metric": source.metric, "wanted": asked.wanted.to_json(),
        "trainable": traits.trainable,
        "rows": {
            "train": source.parts.train.rows, "validation": source.choosing.rows, "test": source.reporting.rows,
        },
        "rungs": [
            {
                "name": one.name, "technique": str(one.family), "steps": [dict(step) for step in one.steps],
                "floor": one.floor, "skipped": one.why or None, "control": one.control.name if one.control else None,
            }
            for one in rungs
        ],
    }  # fmt: skip


def compress_new(setting: Setting, version: int, tracking_uri: str) -> dict[str, Any]:
    """Compress the version that a run just registered, as its project asks.

    Whatever goes wrong is recorded and told, and undoes nothing: {"version": number or None, "said", "why"}.
    """
    section, model = setting.project.spec.compression, setting.project.spec.model
    assert section is not None
    asked = Asked.of(section, model, version, f"compression asked for in loop.yaml ({setting.reason})"[:2000])
    place = Place(
        setting.home, setting.ledger, setting.actor, setting.clock, setting.key, tracking_uri, setting.others
    )
    try:
        report = compress_version(asked, place, setting.watch)
    except Exception as error:  # noqa: BLE001 - torch, ONNX Runtime and the project's code: the parent stands anyway
        why = str(error) if isinstance(error, LoopwrightError) else f"{type(error).__name__}: {error}"
        with setting.ledger.write() as conn:
            ledger_store.append(
                conn, at=setting.clock(), actor=setting.actor.name, action="compression.failed",
                subject=f"{model}/{version}", payload={"why": why[:500]},
            )  # fmt: skip
        setting.watch.note(f"compression failed, version {version} stands: {why}")
        return {"version": None, "said": "failed", "why": why}
    setting.watch.note(report.said)
    return {"version": report.version, "said": report.said, "why": report.refused}


def work_folder(home: Home, bundle: str) -> Path:
    """Where candidates of a bundle are kept; may be deleted when nobody compresses."""
    folder = home.cache / "compression" / bundle[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _admitted(asked: Asked, place: Place) -> Version:
    """The version, once it is known that the actor may compress it."""
    with place.ledger.read() as conn:
        team = registry_store.team_of(conn, asked.model)
        require(place.actor, Role.DEVELOPER, "compress a model", model=asked.model, team=team)
        return chosen_version(conn, asked.model, asked.version)


def _standing(asked: Asked, place: Place, version: Version, key: str) -> CompressReport | None:
    """The report of the same compression, where its version is there."""
    with place.ledger.read() as conn:
        for item in reversed(evidence_of(conn, model=asked.model, kind=NOTE)):
            found = (
                registry_store.version_of_bundle(conn, asked.model, item.bundle)
                if item.bundle and item.payload.get("asked") == key
                else None
            )
            if found is not None:
                told = item.payload
                return CompressReport(
                    asked.model, version.version, found.version, found.bundle, found.run_id, str(told["name"]),
                    told["ladder"], None, str(_out(place.home, str(told["run"]))), str(told["said"]), again=True,
                )  # fmt: skip
    return None


def _compressed(asked: Asked, place: Place, source: Source, folder: Path, watch: Progress) -> CompressReport:
    spec, version = source.project.spec, source.version
    written = read_card(source.project.path(spec.card), name=spec.card) if spec.card else None
    with place.ledger.read() as conn:  # whose it is now: the kept project says whose it was
        team = registry_store.team_of(conn, asked.model)
    setting = Setting(
        source.project, place.home, place.ledger, place.actor.on(model=asked.model, team=team), place.clock, place.key,
        asked.reason, watch, written, place.trusted,
    )  # fmt: skip
    resumed = close_interrupted(setting, place.tracking_uri, folder)
    subject = subject_of(
        source, home=place.home, folder=folder, production=asked.production, network=_wants_network(asked),
        watch=watch,
    )  # fmt: skip
    recipe = _followed(asked, version, trainable=subject.network is not None)
    traits = Traits.of(subject)
    tags = {
        "loopwright.compresses": version.subject, "loopwright.snapshot": source.snapshot.digest,
        **({"loopwright.resumes": resumed} if resumed else {}),
    }  # fmt: skip
    run = tracked(setting, place.tracking_uri, f"{spec.model} compress {version.version}", tags)
    with run, recorded(setting, run.run_id, source.snapshot.digest):
        mark_running(folder, run.run_id)
        keep_project(source.project, place.home, run.run_id)
        run.params({
            "compresses": version.subject, "wanted": asked.wanted.to_json(), "explore": asked.explore,
            "recipe": recipe.to_json() if recipe else "ladder", "batch": asked.production.batch,
            "threads": asked.production.threads,
        })  # fmt: skip
        found = climb(
            subject, asked.wanted, folder, rungs=_rungs(asked, traits), explore=asked.explore,
            minutes=asked.budget.total_seconds() / 60, watch=watch,
            tracking=Children(setting, place.tracking_uri, run.run_id), seed=SEED, threads=free_cores(),
        )  # fmt: skip
        out = _out(place.home, run.run_id)
        _told(run, found, out, watch)
        choice = found.choice
        if choice is None or choice.name == ORIGINAL:
            report = closed_without(asked, setting, source, run.run_id, found, out)
        else:
            report = judged(asked, setting, source, run, found, choice, folder, out)
    unmark(folder)
    return report


def _followed(asked: Asked, version: Version, *, trainable: bool) -> Recipe | None:
    """The recipe, None for the ladder; raises BadInput where it trains and there is nothing to train."""
    recipe = asked.checked()
    if recipe is not None and recipe.trains and not trainable:
        raise BadInput(
            "the recipe trains, and this version's torch module cannot be had", where=version.subject,
            got=recipe.name, wanted="steps on graphs",
            next="Let train() return a torch module, and write module(params, features, outputs) beside it.",
        )  # fmt: skip
    return recipe


def _wants_network(asked: Asked) -> bool:
    recipe = asked.checked()
    return recipe is None or recipe.trains


def _rungs(asked: Asked, traits: Traits) -> tuple[Rung, ...] | None:
    """The recipe as a ladder of one rung, with the control beside it; None for the whole ladder."""
    recipe = asked.checked()
    if recipe is None:
        return None
    assert asked.recipe is not None
    steps = tuple(dict(one) for one in asked.recipe)
    rung = Rung(
        recipe.name, Family.TREES if traits.kind == "trees" else Family.PTQ, steps, recipe.bits, recipe.keeps,
        floor(traits.facts, recipe.bits, recipe.keeps),
    )  # fmt: skip
    if asked.wanted.size is not None and rung.floor > asked.wanted.size:
        rung = replace(
            rung, why=f"{arithmetic(rung, traits.facts)}, above the target of {said_size(asked.wanted.size)}"
        )
    return (controlled(rung, recipe),)


def _told(run: Recorder, found: LadderReport, out: Path, watch: Progress) -> None:
    """The report and its pictures, below the home and among the run's artifacts."""
    watch.step("Report")
    keep(found, out, pictures=True)
    for name in ("report.json", "report.md", "tradeoff.png", "tradeoff.html"):
        run.artifact(out / name, f"compression/{name}")
    watch.done(found.said())


def _out(home: Home, run_id: str) -> Path:
    return home.root / "runs" / run_id / "compression"


def free_cores(most: int = 8) -> int:
    """Cores that nobody uses just now, at least one: threads beyond them make training slower, not faster."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, own - round(os.getloadavg()[0])))


def lock_of(folder: Path) -> Path:
    """The lock of a working folder; beside it, so that it outlives it."""
    return folder.with_suffix(".lock")


_OWN = re.compile(r"[0-9a-f]{16}")
"""Other folders beside them are the check's, which has an `original.onnx` and a lock of its own."""


def _prune(folder: Path, keep: Path) -> None:
    """Delete the working folders that were used longest ago; never `keep`, nor one that somebody works in."""
    others = sorted(
        (
            one
            for one in folder.iterdir()
            if _OWN.fullmatch(one.name) and (one / "original.onnx").is_file() and one != keep
        ),
        key=lambda one: one.stat().st_mtime,
    )
    for old in others[: max(0, len(others) - KEPT + 1)]:
        with lock_of(old).open("ab") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(old, ignore_errors=True)
