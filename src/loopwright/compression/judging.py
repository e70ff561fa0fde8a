"""How well a smaller model does: its metric beside the parent's on the same rows, and how alike its answers are."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnxruntime as ort

from loopwright.compression.artefact import Artefact
from loopwright.compression.candidate import Agreement, Quality
from loopwright.compression.facts import Facts, facts_of
from loopwright.compression.marks import mark_of
from loopwright.compression.session import answer_name, open_session, run
from loopwright.compression.subject import Array, Feeds, Rows, Subject, check_feeds
from loopwright.kernel.digest import digest_json, sha256_file
from loopwright.kernel.errors import BadInput, Conflict
from loopwright.stats.bootstrap import paired_bootstrap
from loopwright.stats.metrics import METRICS

RESAMPLES = 1000
CONFIDENCE = 0.95
WIDE = 16
"""Answers of fewer numbers are classes, not embeddings: their nearest rows say nothing."""
NEAREST = 10
MOST_ROWS = 2000
"""Each row is compared with each other: 2000 take 32 MB."""
BATCH_TOLERANCE = 1e-3
"""Share of the largest answer by which a row's answer may differ between alone and in a batch; sums in another order
differ by about 1e-6, activations quantized per batch by about 1e-2."""


def predict(artefact: Artefact, feeds: Feeds, *, threads: int = 1, batch: int = 256) -> Array:
    """The graph's first output of numbers for each row, (n, …), in its own precision.

    A graph with a fixed number of rows is asked that many at a time, the last call filled up by repeating. Raises
    BadInput for feeds of another schema and answers that are no numbers.
    """
    where = str(artefact.path.name)
    check_feeds(artefact.ports, feeds, where)
    session = open_session(artefact, threads)
    return _predict(session, artefact, feeds, batch)


@dataclass
class Parent:
    """The model that candidates are compared with; its answers are computed once. Not for several threads at once."""

    subject: Subject
    threads: int = 1
    _answers: dict[str, Array] = field(default_factory=dict)
    _facts: Facts | None = None
    _digest: str = ""
    _values: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(subject: Subject, threads: int = 1) -> "Parent":
        return Parent(subject, threads)

    def answers(self, part: str) -> Array:
        """Its answers on the `train`, `validation` or `test` rows."""
        if part not in self._answers:
            rows: Rows = getattr(self.subject.samples, part)
            self._answers[part] = predict(self.subject.graph, rows.feeds, threads=self.threads)
        return self._answers[part]

    def value(self, part: str) -> float:
        """Its metric on the rows; raises BadInput where there is none that a loss can be a share of."""
        if part not in self._values:
            subject, rows = self.subject, getattr(self.subject.samples, part)
            answers = _judged(subject, self.answers(part))
            try:
                found = float(subject.metric(rows.y, answers))
            except (IndexError, ValueError) as error:  # of numpy, where truth and answers do not fit
                truth = np.sort(rows.y)
                raise BadInput(
                    f"`{subject.metric.name}` cannot be told of this truth and these answers ({error})",
                    where=f"{subject.name}: {part}",
                    got=f"truth from {truth[0]} to {truth[-1]}, answers {answers.shape}",
                    wanted="class indices from 0 on, each with a column of the answers; or numbers",
                ) from error  # fmt: skip
            self._values[part] = _share_of(subject, found, found)
        return self._values[part]

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            self._facts = facts_of(self.subject.graph)
        return self._facts

    @property
    def digest(self) -> str:
        """Of the graph with all its weights, of the rows, and of how it is asked and judged. Raises Conflict where the
        file is not the one that was opened.
        """
        if not self._digest:
            graph = self.subject.graph
            if sha256_file(graph.path) != graph.digest:
                raise Conflict(
                    "the model's file is another one than was prepared", where=str(graph.path),
                    got="other bytes, as a second model prepared in the same folder leaves",
                    next="Prepare it again, or give each model a folder of its own: folder=.",
                )  # fmt: skip
            samples, asked = self.subject.samples, self.subject.production
            self._digest = digest_json({
                "graph": self.subject.graph.whole_digest(),
                "rows": [part.digest() for part in (samples.train, samples.validation, samples.test)],
                "metric": self.subject.metric.name,
                "production": [asked.batch, asked.threads, dict(asked.lengths)],
                "batch_free": self.subject.batch_free,
                **self._own_functions(),
            })  # fmt: skip
        return self._digest

    def _own_functions(self) -> dict[str, str]:
        """Marks of what only this user computes, as far as there is any."""
        found, judged_by = {}, self.subject.metric
        if METRICS.get(judged_by.name) is not judged_by:
            found["judge"] = f"{judged_by.direction} {mark_of(judged_by.prepare)}"
        if self.subject.answer is not None:
            found["answer"] = mark_of(self.subject.answer)
        return found


def quality(
    subject: Subject, artefact: Artefact, rows: Rows, *, parent: Array | None = None, answers: Array | None = None,
    seed: int = 7, threads: int = 1, confidence: float = CONFIDENCE, resamples: int = RESAMPLES,
) -> Quality:  # fmt: skip
    """The subject's metric of `artefact` and of its parent on `rows`, by paired bootstrap (Efron & Tibshirani 1993).

    `parent` and `answers`: what both answer on these rows, computed when left out. `loss` and its one-sided bounds,
    each at `confidence`, are the lost metric over the parent's value. Raises BadInput for rows that the model learns
    from, for answers of another shape than the parent's, and where the metric is undefined.
    """
    _refuse_training_rows(subject, rows)
    old = predict(subject.graph, rows.feeds, threads=threads) if parent is None else parent
    new = predict(artefact, rows.feeds, threads=threads) if answers is None else answers
    if new.shape != old.shape:
        raise BadInput(
            "answers of another shape than the parent's", where=artefact.path.name, got=new.shape,
            wanted=str(old.shape),
        )  # fmt: skip
    found = paired_bootstrap(
        subject.metric, rows.y, _judged(subject, new), _judged(subject, old),
        resamples=resamples, confidence=confidence, seed=seed,
    )  # fmt: skip
    whole = abs(_share_of(subject, found.old, found.new, found.low, found.high))
    loss, low, high = (0.0 - gain / whole for gain in (found.difference, found.high, found.low))
    return Quality(found.metric, found.new, found.old, loss, low, high, found.confidence, found.rows)


def agreement(parent: Array, answers: Array, *, classes: bool, seed: int = 7) -> Agreement:
    """How alike `answers` (n, …) are to `parent`'s on the same rows.

    `classes`: whether they are scores of classes; one number per row is then the probability of class 1. Cosines and
    neighbours are of the numbers of a row as one vector; neighbours of at most 2000 rows, chosen by `seed`.
    """
    if parent.shape != answers.shape:
        raise BadInput(
            "answers of different shapes", where="agreement", got=answers.shape, wanted=str(parent.shape)
        )
    old, new = (np.asarray(one, np.float64).reshape(len(one), -1) for one in (parent, answers))
    width = old.shape[1]
    same = None
    if classes:
        same = float(
            np.mean(old.argmax(1) == new.argmax(1) if width > 1 else (old[:, 0] >= 0.5) == (new[:, 0] >= 0.5))
        )
    return Agreement(
        argmax=same,
        cosine=float(np.mean(np.einsum("ij,ij->i", _unit(old), _unit(new)))) if width > 1 else None,
        recall=_recall(old, new, seed) if width >= WIDE and len(old) > NEAREST + 1 else None,
        largest=float(np.abs(old - new).max()),
    )


def alike(subject: Subject, parent: Array, answers: Array, seed: int = 7) -> Agreement:
    """The agreement of a subject's answers; classes as its `answer` makes them."""
    found = agreement(parent, answers, classes=False, seed=seed)
    if not subject.classifies:
        return found
    same = agreement(_judged(subject, parent), _judged(subject, answers), classes=True, seed=seed).argmax
    return replace(found, argmax=same)


def alone(artefact: Artefact, feeds: Feeds, *, rows: int = 64, threads: int = 1, seed: int = 7) -> float:
    """The largest difference between a row's answer alone and its answer among others, over at most `rows` rows.

    Of a graph with a fixed number of rows, alone means: repeated to that number.
    """
    check_feeds(artefact.ports, feeds, artefact.path.name)
    total = len(next(iter(feeds.values())))
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:rows])
    few = {name: values[chosen] for name, values in feeds.items()}
    session = open_session(artefact, threads)
    together = _predict(session, artefact, few, len(chosen))
    largest = 0.0
    for row in range(len(chosen)):
        single = _predict(session, artefact, {name: values[row : row + 1] for name, values in few.items()}, 1)
        largest = max(largest, float(np.abs(single[0].astype(np.float64) - together[row]).max()))
    return largest


def depends_on_batch(difference: float, answers: Array) -> bool:
    """Whether `difference`, as `alone` gives it, is more than sums in another order explain."""
    return difference > BATCH_TOLERANCE * float(np.abs(answers).max(initial=0.0))


def _predict(session: ort.InferenceSession, artefact: Artefact, feeds: Feeds, batch: int) -> Array:
    where = artefact.path.name
    output = answer_name(session, where)
    total = len(next(iter(feeds.values())))
    fixed = {port.shape[0] for port in artefact.ports if port.shape and isinstance(port.shape[0], int)}
    if len(fixed) > 1:
        raise BadInput("inputs with different numbers of rows", where=where, got=sorted(fixed))
    size = min(fixed, default=min(batch, max(total, 1)))
    parts = []
    for at in range(0, total, size):
        some = {name: np.ascontiguousarray(values[at : at + size]) for name, values in feeds.items()}
        count = min(size, total - at)
        if fixed and count < size:
            places = np.minimum(np.arange(size), count - 1)
            some = {name: values[places] for name, values in some.items()}
        part = run(session, output, some, where)
        if part.ndim == 0 or len(part) != (size if fixed else count):
            raise BadInput(
                "not one answer per row", where=where, got=part.shape, wanted=f"({count}, …)",
                next="Export it with rows as the first axis, free in size.",
            )  # fmt: skip
        parts.append(part[:count])
    answers: Array = np.concatenate(parts)
    if wrong := int((~np.isfinite(answers)).sum()):
        raise BadInput(
            "answers that are no numbers", where=where, got=f"{wrong} of {answers.size} NaN or infinite",
            wanted="finite answers", next="Keep the layers that overflow in FP32.",
        )  # fmt: skip
    return answers


def _share_of(subject: Subject, parent: float, new: float, *bounds: float) -> float:
    """The parent's value, once it is known that losses can be shares of it."""
    if not np.isfinite([parent, new, *bounds]).all():
        raise BadInput(
            f"`{subject.metric.name}` is undefined on these rows", where=subject.name,
            got=f"{new} beside the parent's {parent}", wanted="rows of every class",
        )  # fmt: skip
    if not parent:
        raise BadInput(
            "a share of nothing says nothing", where=subject.name, got=f"a parent whose {subject.metric.name} is 0",
            wanted="another metric",
        )  # fmt: skip
    return parent


def _judged(subject: Subject, answers: Array) -> Array:
    return answers if subject.answer is None else subject.answer(answers)


def _refuse_training_rows(subject: Subject, rows: Rows) -> None:
    samples = subject.samples
    if rows is samples.validation or rows is samples.test:  # `Samples` has compared these
        return
    marks = rows.marks()
    share = len(marks & samples.train.marks()) / max(len(marks), 1)
    if share > samples.shared:
        raise BadInput(
            "rows that a model learns from cannot say what it lost", where=subject.name,
            got=f"{share:.0%} of the rows are training rows", wanted=f"at most {samples.shared:.0%}",
            next="Compare on validation or test rows.",
        )  # fmt: skip


def _unit(vectors: Any) -> Any:
    """Of length 1 each; a zero vector stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def _recall(old: Array, new: Array, seed: int) -> float:
    if len(old) > MOST_ROWS:
        chosen = np.random.default_rng(seed).choice(len(old), MOST_ROWS, replace=False)
        old, new = old[chosen], new[chosen]
    before, after = (_neighbours(_unit(one)) for one in (old, new))
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(before, after, strict=True)]) / NEAREST)


def _neighbours(unit: Array) -> Array:
    """(n, 10): each row's nearest others by cosine, without order."""
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    return np.argpartition(-alike, NEAREST, axis=1)[:, :NEAREST]
