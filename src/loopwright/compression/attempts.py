"""One attempt at a smaller model: a recipe followed, what came of it measured and kept.

    FOLDER/candidates/KEY/model.onnx        what the recipe gave, with external data beside it
    FOLDER/candidates/KEY/run               the id of its run
    FOLDER/candidates/KEY/traceback.txt     of an error nobody foresaw
    FOLDER/candidates/KEY/candidate.json    the figures; written last, so that what has it is whole
    FOLDER/shared/DIGEST/                   what all recipes of one subject share

A folder of a candidate without `candidate.json` is what a killed process left: the next attempt begins it anew. KEY is
of the parent's graph and weights, the rows, how it is asked and judged, the recipe and the seed (and of the loss and
the make-up of the module, for a recipe that trains), so equal work is done once.
"""

import json
import logging
import math
import re
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from loopwright.compression import artefact as files
from loopwright.compression import facts
from loopwright.compression.artefact import Artefact
from loopwright.compression.candidate import Candidate, Quality, Status
from loopwright.compression.judging import Parent, alike, alone, depends_on_batch, predict, quality
from loopwright.compression.latency import compare
from loopwright.compression.marks import mark_of
from loopwright.compression.peak import Peak
from loopwright.compression.recipe import Recipe, cook
from loopwright.compression.steps import CannotExport, OutOfTime, Work
from loopwright.compression.subject import Network, Notes, Subject, Unnoted
from loopwright.kernel.digest import canonical_json, digest_json
from loopwright.kernel.errors import BadInput, LoopwrightError, NotFound, Refused, Tampered
from loopwright.kernel.files import lock, write_atomic
from loopwright.kernel.progress import Progress, Silent

log = logging.getLogger(__name__)

FORM = 1
"""Of what is measured and how; a higher one measures anew."""
MOST_POINTS = 1000
MOST_TRACKED = 500_000_000
"""Bytes of a file that its run keeps too; of a larger one it keeps the figures and the digest."""
_KEY = re.compile(r"[0-9a-f]{12}")
_FINAL = (BadInput, CannotExport, Refused)
"""Errors that the same work meets again; others may be gone the next time."""


class Run(Notes, Protocol):
    """The child run of one attempt; `training.Recorder` is one."""

    run_id: str

    def artifact(self, content: Path | bytes, name: str) -> None: ...

    def end(self, status: str = "FINISHED") -> None: ...


class Tracking(Protocol):
    """Where child runs are started."""

    def start(self, name: str, params: Mapping[str, Any]) -> Run:
        """A run called `name` with the recipe's settings; whoever asked ends it."""
        ...

    def add(self, run_id: str, figures: Mapping[str, float]) -> None:
        """Figures that came after the run `run_id` had ended: those of the test rows."""
        ...

    def killed(self, run_id: str) -> None:
        """The run `run_id` was killed with its process, and is still open: end it as KILLED."""
        ...


class Untracked:
    """Nobody keeps the runs."""

    def start(self, name: str, params: Mapping[str, Any]) -> "UntrackedRun":
        return UntrackedRun()

    def add(self, run_id: str, figures: Mapping[str, float]) -> None: ...

    def killed(self, run_id: str) -> None: ...


class UntrackedRun(Unnoted):
    run_id = ""

    def artifact(self, content: Path | bytes, name: str) -> None: ...

    def end(self, status: str = "FINISHED") -> None: ...


def attempt(
    recipe: Recipe, subject: Subject, folder: Path, *, parent: Parent | None = None, tracking: Tracking | None = None,
    watch: Progress | None = None, seed: int = 7, threads: int = 1, until: float | None = None,
    floor: int | None = None,
) -> Candidate:  # fmt: skip
    """Follow `recipe` and measure what it gives on the validation rows; or the candidate that did so before.

    Never raises because a recipe fails: the candidate is FAILED, and `why` says at what. One that ran out of time is
    SKIPPED and not kept, so that more time may be given. `parent`: shared by the attempts at one subject. `threads`:
    for training. `until`: see `Work`. `floor`: bytes, computed when left out. Safe to kill and to repeat; of two
    processes at the same attempt one waits. Raises BadInput for a subject that cannot answer its own rows, or whose
    answers its metric says nothing about.
    """
    parent = parent or Parent.of(subject)
    key = key_of(recipe, parent, seed)
    with lock(folder / "candidates" / f"{key}.lock"):
        known = _usable(folder, key)
        if known is not None:
            return replace(known, name=recipe.name, control=recipe.control)
        parent.value("validation")
        own = folder / "candidates" / key
        tracking = tracking or Untracked()
        _end_killed(own, tracking)
        _clear(own)
        run = tracking.start(recipe.name, {"recipe": recipe.to_json(), "seed": seed})
        write_atomic(own / "run", run.run_id.encode())
        book = _Book(run)
        blank = Candidate(
            recipe.name, key, recipe.to_json(), Status.FAILED, original_size=subject.graph.size,
            floor=facts.floor(parent.facts, recipe.bits, recipe.keeps) if floor is None else floor,
            run_id=run.run_id, control=recipe.control,
        )  # fmt: skip
        began = time.monotonic()
        work = Work(
            subject, own, shared_folder(folder, parent), book, watch or Silent(), seed, threads, until
        )
        peak, again = Peak(), False
        try:
            with peak:
                found = _followed(recipe, work, parent, blank)
        except OutOfTime as error:
            _clear(own)
            run.end("KILLED")
            return replace(blank, status=Status.SKIPPED, why=str(error), seconds=time.monotonic() - began)
        except LoopwrightError as error:
            found, again = replace(blank, why=str(error)), not isinstance(error, _FINAL)
        except (
            Exception
        ) as error:  # torch, onnx and ONNX Runtime raise whatever they like: it is this recipe's result
            log.warning("the recipe %s failed", recipe.name, exc_info=error)
            found = replace(blank, why=f"{type(error).__name__}: {' '.join(str(error).split())[:2000]}")
            again = True
            (own / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            run.artifact(own / "traceback.txt", "traceback.txt")
        except BaseException:
            run.end("KILLED")
            raise
        found = replace(
            found, counts=book.counts(), curve=book.curves(), seconds=time.monotonic() - began, peak_mb=peak.mb,
            held_mb=peak.held_mb,
        )  # fmt: skip
        _tell(run, folder, found)
        run.end("FINISHED" if found.measured else "FAILED")
        _store(folder, found, again=again)
        return found


def report(
    candidate: Candidate, subject: Subject, folder: Path, *, parent: Parent | None = None, seed: int = 7,
    threads: int = 1, tracking: Tracking | None = None,
) -> Candidate:  # fmt: skip
    """The candidate with its quality on the test rows, which chose nothing; is kept. Is idempotent.

    Raises BadInput for one that was not measured, NotFound when its file is gone.
    """
    if candidate.test is not None:
        return candidate
    if not candidate.measured:
        raise BadInput(
            "only what was measured can be reported on", where=candidate.name, got=candidate.status.value,
            next=candidate.why,
        )  # fmt: skip
    parent = parent or Parent.of(subject)
    graph = opened(candidate, folder)
    found = quality(
        subject, graph, subject.samples.test, parent=parent.answers("test"), seed=seed, threads=threads
    )
    told = replace(candidate, test=found)
    with lock(folder / "candidates" / f"{candidate.key}.lock"):
        _store(folder, told)
    if tracking is not None:
        tracking.add(candidate.run_id, _figures("test", found))
    return told


def opened(candidate: Candidate, folder: Path) -> Artefact:
    """The candidate's graph; raises NotFound when it is gone, Tampered when it is another than was measured."""
    path = folder / candidate.file
    if not candidate.file or not path.is_file():
        raise NotFound(
            "the candidate's file is gone", where=str(path), next="Compress again; it will be made anew."
        )
    graph = Artefact.open(path)
    if graph.whole_digest() != candidate.digest:
        raise Tampered(
            "the candidate's file was changed", where=str(path), wanted=f"SHA-256 {candidate.digest}"
        )
    return graph


def key_of(recipe: Recipe, parent: Parent, seed: int) -> str:
    """Equal for equal work on an equal subject: 12 hex digits."""
    return digest_json({
        "form": FORM, "parent": parent.digest, "recipe": recipe.to_json(), "seed": seed,
        "runtime": onnxruntime.__version__, **(_learner(parent.subject.network) if recipe.trains else {}),
    })[:12]  # fmt: skip


def _learner(network: Network | None) -> dict[str, str]:
    """What training depends on and the graph does not show: the loss, and what a module does only while it learns."""
    if network is None:
        return {}
    return {"loss": mark_of(getattr(network, "loss", None)), "module": mark_of(repr(network.module))}


def shared_folder(folder: Path, parent: Parent) -> Path:
    """What all recipes of one subject share, such as the teacher's answers; made when missing."""
    place = folder / "shared" / parent.digest[:12]
    place.mkdir(parents=True, exist_ok=True)
    return place


def find(folder: Path, key: str) -> Candidate | None:
    """The candidate kept under `key`, or None; raises BadInput for a record that cannot be read."""
    found = _read(folder, key)
    return found[0] if found else None


def candidates(folder: Path) -> list[Candidate]:
    """All that are kept in `folder`, by key."""
    keys = sorted(path.parent.name for path in (folder / "candidates").glob("*/candidate.json"))
    return [found for key in keys if (found := find(folder, key)) is not None]


def _followed(recipe: Recipe, work: Work, parent: Parent, blank: Candidate) -> Candidate:
    subject, rows = work.subject, work.samples.validation
    graph = cook(recipe, work).graph
    target = work.folder / "model.onnx"
    if graph.path != target:
        graph = files.copy(graph, target)
    _tidy(graph)
    work.watch.note("measuring")
    answers = predict(graph, rows.feeds, threads=parent.threads)
    judged = quality(
        subject, graph, rows, parent=parent.answers("validation"), answers=answers, seed=work.seed
    )
    difference = alone(graph, rows.feeds, threads=parent.threads, seed=work.seed)
    found = replace(
        blank,
        status=Status.MEASURED,
        file=str(target.relative_to(work.folder.parent.parent)),
        digest=graph.whole_digest(),
        size=graph.size,
        parameters=graph.parameters,
        validation=judged,
        agreement=alike(subject, parent.answers("validation"), answers, seed=work.seed),
        alone=difference,
        latency=compare(subject.graph, graph, rows.feeds, subject.production, seed=work.seed),
    )
    if subject.batch_free and depends_on_batch(difference, answers):
        return replace(
            found, status=Status.FAILED,
            why=f"a row's answer depends on what else is in its batch, by up to {difference:.3g}, and this model is"
            " served in micro-batches. Quantize activations statically, or weights only.",
        )  # fmt: skip
    return found


def _tidy(graph: Artefact) -> None:
    """Leave the graph and its external data in its folder, and nothing that steps wrote on the way."""
    keep = {graph.path, *graph.beside(), graph.path.parent / "run"}
    for path in sorted(graph.path.parent.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in keep:
            path.unlink()


def _end_killed(own: Path, tracking: Tracking) -> None:
    if (own / "run").is_file() and not (own / "candidate.json").is_file():
        run_id = (own / "run").read_text(encoding="utf-8")
        if run_id:
            tracking.killed(run_id)


def _clear(own: Path) -> None:
    (own / "candidate.json").unlink(
        missing_ok=True
    )  # first, or a crash meanwhile leaves a record without its file
    if own.exists():
        shutil.rmtree(own)


def _store(folder: Path, found: Candidate, *, again: bool = False) -> None:
    said = canonical_json({"form": FORM, "again": again, "candidate": found.to_json()})
    write_atomic(folder / "candidates" / found.key / "candidate.json", said)


def _read(folder: Path, key: str) -> tuple[Candidate, bool] | None:
    if not _KEY.fullmatch(key):
        raise BadInput("not a candidate's key", where=str(folder), got=key, wanted="12 hex digits")
    path = folder / "candidates" / key / "candidate.json"
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_bytes())
        if said["form"] != FORM:
            return None
        return Candidate.from_json(said["candidate"]), bool(said["again"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"a candidate's record that cannot be read ({error})", where=str(path),
            next="Delete its folder; it will be made anew.",
        ) from error  # fmt: skip


def _usable(folder: Path, key: str) -> Candidate | None:
    """The kept candidate, unless it failed at what may be gone or its file is not what was measured."""
    found = _read(folder, key)
    if found is None or found[1]:
        return None
    if found[0].measured:
        try:
            opened(found[0], folder)
        except LoopwrightError as error:
            log.warning("the candidate %s is made anew: %s", key, error)
            return None
    return found[0]


def _tell(run: Run, folder: Path, found: Candidate) -> None:
    figures: dict[str, float] = {
        "size": found.size, "parameters": found.parameters, "floor": found.floor, "seconds": found.seconds,
        "peak_mb": found.peak_mb,
    }  # fmt: skip
    if found.latency is not None:
        latency = found.latency
        figures |= {
            "latency/p50": latency.p50, "latency/p99": latency.p99, "latency/ratio": latency.ratio,
            "latency/disturbed": latency.disturbed,
            "latency/original_p50": latency.original_p50, "latency/original_p99": latency.original_p99,
        }  # fmt: skip
    if found.validation is not None:
        figures |= _figures("validation", found.validation)
    if found.agreement is not None:
        alike = found.agreement
        said = {
            "argmax": alike.argmax,
            "cosine": alike.cosine,
            "recall": alike.recall,
            "largest": alike.largest,
        }
        figures |= {f"agreement/{name}": value for name, value in said.items() if value is not None}
    if found.alone is not None:
        figures["alone"] = found.alone
    run.metrics(figures)
    run.params({"status": found.status.value, "key": found.key, "why": found.why})
    run.artifact(canonical_json(found.to_json()), "candidate.json")
    if found.file and found.size <= MOST_TRACKED:
        graph = Artefact.open(folder / found.file)
        for path in (graph.path, *graph.beside()):
            run.artifact(path, str(path.relative_to(graph.path.parent)))


def _figures(part: str, judged: Quality) -> dict[str, float]:
    return {
        f"{part}/{judged.metric}": judged.value, f"{part}/parent": judged.parent, f"{part}/loss": judged.loss,
        f"{part}/loss_low": judged.loss_low, f"{part}/loss_high": judged.loss_high,
    }  # fmt: skip


class _Book:
    """Notes of the steps: passed on to the run, and kept for the candidate. Never raises."""

    def __init__(self, run: Notes) -> None:
        self._run = run
        self._params: dict[str, Any] = {}
        self._points: dict[str, list[tuple[int, float]]] = {}

    def params(self, values: Mapping[str, Any]) -> None:
        fresh = {}
        for name, value in values.items():
            # A tracked parameter keeps its first value; a later one is kept beside it.
            place, number = name, 1
            while place in self._params and self._params[place] != value:
                number += 1
                place = f"{name}-{number}"
            fresh[place] = value
        self._params |= fresh
        self._run.params(fresh)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        for name, value in values.items():
            self._points.setdefault(name, []).append((step, float(value)))
        self._run.metrics(values, step)

    def counts(self) -> dict[str, float]:
        """Numbers told once; and of each curve how many of its points were no numbers, if any."""
        found = {
            name: float(value)
            for name, value in self._params.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name, points in self._points.items():
            wrong = sum(not math.isfinite(value) for _, value in points)
            if wrong:
                found[f"{name}.not_finite"] = float(wrong)
            elif len(points) == 1:
                found[name] = points[0][1]
        return found

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Metrics of several steps, at most 1000 points each, evenly chosen with the first and the last."""
        found = {}
        for name, points in self._points.items():
            known = [point for point in points if math.isfinite(point[1])]
            if len(points) > 1 and known:
                chosen = np.unique(
                    np.linspace(0, len(known) - 1, min(len(known), MOST_POINTS)).round().astype(int)
                )
                found[name] = [known[place] for place in chosen]
        return found
