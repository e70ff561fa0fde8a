"""Compression from Python, for a model at hand: an ONNX file, a torch module, or a fitted tree or scikit-learn model.

    report = compress("model.onnx", (x_train, y_train), (x_held_out, y_held_out), metric="accuracy",
                      target_size="10MB", max_latency="5ms", max_loss="1%")
    print(report.said())
    candidate = apply("int8-dynamic", module, (x_train, y_train), (x_held_out, y_held_out), metric="accuracy")

Only a torch module needs torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from loopwright.compression.attempts import Tracking, attempt
from loopwright.compression.attempts import report as reported
from loopwright.compression.candidate import Candidate, Status
from loopwright.compression.constraints import Constraints, parse_latency, parse_share
from loopwright.compression.facts import facts_of, floor
from loopwright.compression.judging import Parent
from loopwright.compression.ladder import climb
from loopwright.compression.models import Prepared, prepare
from loopwright.compression.plan import Family, Rung, Traits, controlled, plan
from loopwright.compression.recipe import Recipe
from loopwright.compression.report import LadderReport
from loopwright.compression.rows import Data
from loopwright.compression.steps import STEPS, CannotExport
from loopwright.compression.subject import Production, Rows, Samples, Subject
from loopwright.compression.tradeoff import ORIGINAL
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.kernel.progress import Progress, Silent
from loopwright.kernel.sizes import parse_size
from loopwright.stats.metrics import Metric

STUDENT_STEPS, STUDENT_BATCH, STUDENT_EPOCHS = 2000, 64, (5, 60)
"""A student that begins anew sees about so many batches, within these bounds of epochs."""

Steps = str | Sequence[Mapping[str, Any]] | Recipe
"""A step's name, steps as in loop.yaml (`[{"step": "prune-structure", "ratio": 0.5}, …]`), or a recipe."""


def compress(
    model: Any,
    train: Data | None = None,
    held_out: Data | None = None,
    *,
    metric: str | Metric = "",
    target_size: str | int | None = None,
    max_latency: str | float | None = None,
    max_loss: str | float = "1%",
    recipe: Steps | None = None,
    student: Any = None,
    explore: bool = False,
    budget: float | None = None,
    folder: str | Path = "compressed",
    watch: Progress | None = None,
    tracking: Tracking | None = None,
    seed: int = 7,
    threads: int = 1,
    **prepared: Unpack[Prepared],
) -> LadderReport:
    """The mildest form of `model` that keeps to all that is asked, among those tried; `folder` holds all of them.

    target_size: bytes on disk, or text ("10MB"). max_latency: of the 99th percentile, milliseconds or text ("5ms").
    max_loss: of the metric, relative to the model's own, a share or text ("1%"); its upper confidence bound decides.
    recipe: this alone, instead of the ladder's. student: a torch module of the user's to distil into, tried before the
    ladder's own students. explore: try everything and draw the trade-off. budget: minutes; what ended early goes on
    with the same call. threads: for training. The other arguments: see `prepare`; `model` may be what that gave.
    The chosen file is `folder / report.choice.file`; when nothing keeps to all, `report.closest`,
    `report.needed()`.

    Raises BadInput for arguments that do not fit, NotFound for unknown names, Unavailable for what is not installed,
    CannotExport for a module that cannot be traced.
    """
    wanted = Constraints(
        parse_size(target_size, "target_size") if isinstance(target_size, str) else target_size,
        parse_latency(max_latency, "max_latency") if isinstance(max_latency, str) else max_latency,
        parse_share(max_loss, "max_loss") if isinstance(max_loss, str) else max_loss,
    )
    if recipe is not None and student is not None:
        raise BadInput("both a recipe and a student", where="compress()", wanted="one of them")
    made = None if recipe is None else recipe_of(recipe)
    folder = Path(folder)
    watch = watch or Silent()
    subject = _subject(model, train, held_out, metric, folder, watch, seed, prepared)
    rungs: Sequence[Rung] | None = None
    if made is not None:
        rungs = _only(subject, made)
    elif student is not None:
        rungs = _with_student(subject, wanted, student, explore)
    return climb(
        subject, wanted, folder, rungs=rungs, explore=explore, minutes=budget, watch=watch, tracking=tracking,
        seed=seed, threads=threads,
    )  # fmt: skip


def apply(
    technique: Steps,
    model: Any,
    train: Data | None = None,
    held_out: Data | None = None,
    *,
    metric: str | Metric = "",
    settings: Mapping[str, Any] | None = None,
    folder: str | Path = "compressed",
    watch: Progress | None = None,
    tracking: Tracking | None = None,
    seed: int = 7,
    threads: int = 1,
    **prepared: Unpack[Prepared],
) -> Candidate:
    """One technique alone, with `settings` where it is given by name, measured on validation and test rows.

    The file is `folder / candidate.file`. A technique that does not work on this model gives a candidate that is not
    `measured`, and `why` says what stood in the way. Raises as `compress` does.
    """
    made = recipe_of(technique, settings)
    folder = Path(folder)
    watch = watch or Silent()
    subject = _subject(model, train, held_out, metric, folder, watch, seed, prepared)
    parent = Parent.of(subject, threads=threads)
    found = attempt(
        made, subject, folder, parent=parent, tracking=tracking, watch=watch, seed=seed, threads=threads
    )
    if not found.measured:
        return found
    return reported(found, subject, folder, parent=parent, tracking=tracking, seed=seed, threads=threads)


def recipe_of(technique: Steps, settings: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that is meant; raises BadInput for unknown steps or settings, Unavailable without torch."""
    if isinstance(technique, str):
        if technique not in STEPS:
            raise BadInput(
                "no such technique", where="compression", got=technique, wanted=", ".join(STEPS),
                next=did_you_mean(technique, STEPS),
            )  # fmt: skip
        return Recipe.from_json(technique, [{"step": technique, **(settings or {})}])
    if settings:
        raise BadInput(
            "settings beside steps that have their own", where="compression", wanted="a technique's name"
        )
    if isinstance(technique, Recipe):
        return technique
    if not isinstance(technique, Sequence) or not all(isinstance(one, Mapping) for one in technique):
        raise BadInput(
            "not a recipe", where="compression", got=technique, wanted='a name, or [{"step": name, …}, …]'
        )
    if not technique:
        raise BadInput("a recipe without steps", where="compression", wanted="at least one")
    steps = [dict(one) for one in technique if isinstance(one, Mapping)]
    return Recipe.from_json(" + ".join(str(one.get("step", "?")) for one in steps), steps)


def _subject(
    model: Any, train: Data | None, held_out: Data | None, metric: str | Metric, folder: Path, watch: Progress,
    seed: int, prepared: Prepared,
) -> Subject:  # fmt: skip
    if isinstance(model, Subject):
        if train is not None or held_out is not None or metric or prepared:
            raise BadInput(
                "a prepared model brings its rows and metric along",
                where="compress()",
                wanted="the model alone",
            )
        return model
    if train is None:
        raise BadInput(
            "no rows to calibrate and to train on", where="compress()", wanted="train=(inputs, truth)"
        )
    if not metric:
        raise BadInput(
            "what is a good answer?", where="compress()", wanted="metric=, such as accuracy, roc_auc or rmse"
        )
    return prepare(model, train, held_out, metric=metric, folder=folder, watch=watch, seed=seed, **prepared)


def _original() -> Rung:
    return Rung(ORIGINAL, Family.ORIGINAL, ())


def _only(subject: Subject, recipe: Recipe) -> list[Rung]:
    """The parent and one recipe, with its control."""
    least = floor(facts_of(subject.graph), recipe.bits, recipe.keeps)
    kinds = [str(one["step"]) for one in recipe.to_json()]
    family = Family.TREES if kinds and kinds[0].startswith("tree-") else Family.PTQ
    if recipe.trains:
        family = (
            Family.DISTILLATION if "distil" in kinds else Family.QAT if "qat" in kinds else Family.PRUNING
        )
    rung = Rung(recipe.name, family, tuple(recipe.to_json()), recipe.bits, recipe.keeps, least)
    return [_original(), controlled(rung, recipe)]


def _is_int8(one: Mapping[str, Any]) -> bool:
    return str(one["step"]).startswith("int8")


def _with_student(subject: Subject, wanted: Constraints, student: Any, explore: bool) -> list[Rung]:
    """The ladder's rungs, and before its own students the given one."""
    if subject.network is None:
        raise BadInput("a student needs a teacher that is a torch module", where="compress(): student")
    from loopwright.compression.networks.given import offer

    given = {"step": "given-student", "student": offer(student)}
    traits = Traits.of(subject)
    planned = list(plan(traits, wanted, explore=explore))
    encode = next(
        one.steps[-1] for one in planned if one.family is Family.PRUNING and _is_int8(one.steps[-1])
    )
    epochs = math.ceil(STUDENT_STEPS * STUDENT_BATCH / len(subject.samples.train))
    training = {
        "step": "distil", "batch": STUDENT_BATCH, "epochs": min(max(epochs, STUDENT_EPOCHS[0]), STUDENT_EPOCHS[1])
    }  # fmt: skip
    share = sum(one.numel() for one in student.parameters()) / max(1, subject.network.parameters())
    least = floor(traits.facts, 8.0, min(1.0, share))
    name = f"given student + distil + {encode['step']}"

    def steps(**settings: Any) -> tuple[Mapping[str, Any], ...]:
        return (given, {**training, **settings}, encode)

    control = Rung(
        f"{name}, without distillation", Family.DISTILLATION, steps(alpha=0.0), 8.0, min(1.0, share), least
    )
    rung = replace(control, name=name, steps=steps(), adds="distillation", control=control)
    later = (Family.DISTILLATION, Family.PRUNING)
    place = next((at for at, one in enumerate(planned) if one.family in later), len(planned))
    return [*planned[:place], rung, *planned[place:]]


__all__ = [
    "STEPS", "BadInput", "Candidate", "CannotExport", "Constraints", "Data", "LadderReport", "NotFound", "Prepared",
    "Production", "Recipe", "Rows", "Samples", "Status", "Steps", "Subject", "apply", "compress", "prepare",
    "recipe_of",
]  # fmt: skip
