"""Which recipes are worth trying for a model, in which order, and which cannot be small enough. Pure: nothing is run.

What costs least and changes least comes first: post-training quantization, then vocabularies (no training), training
with rounding, factors, distillation, and structured pruning with distillation last.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import onnx

from loopwright.compression.constraints import Constraints
from loopwright.compression.facts import Facts, facts_of, floor
from loopwright.compression.recipe import Recipe
from loopwright.compression.report import NEEDS_MODULE, said_count
from loopwright.compression.subject import Subject
from loopwright.compression.tradeoff import ORIGINAL
from loopwright.kernel.sizes import said_size

Said = Mapping[str, Any]
"""A step as `Recipe.from_json` takes it."""

DOMINANT = 0.3
"""From this share of all parameters on, an embedding table is worth trimming."""
MOSTLY = 0.5
"""From this share on, factors of linear layers make the whole model smaller."""
COVERED = 0.95
"""Of the look-ups in training rows, by ids that keep a row of their own where training follows that mends the rest."""
ROUNDS = (0.5, 0.25)
PRUNED = (0.3, 0.5, 0.7)
STUDENTS = (2 / 3, 1 / 2, 1 / 3)
FILLED = 0.93
"""Of a wanted size, for parameters; the rest is for scales, what stays in full precision, and the graph."""
SPARED = 0.05
"""Of what can be pruned; with less left there is no model."""
EPOCHS = 3
DISTILLED = 5
"""Epochs of training with rounding, and with a teacher, whose answers are computed once for all of them."""
RATE = 2e-4
_TAUGHT = {"distil": "distillation", "qat": "QAT"}
_ALIKE = ("epochs", "rate", "batch", "decay", "rows")
"""Settings that plain training has too."""
_MATRICES = frozenset(("MatMul", "Gemm", "MatMulInteger", "MatMulNBits", "FusedMatMul"))
_CONVOLUTIONS = frozenset(("Conv", "ConvTranspose"))
_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))


class Family(StrEnum):
    """The technique that a rung adds to those below it."""

    ORIGINAL = "original"
    PTQ = "post-training quantization"
    VOCABULARY = "vocabulary"
    QAT = "QAT"
    LOW_RANK = "low rank"
    DISTILLATION = "distillation"
    PRUNING = "structured pruning"
    TREES = "trees"


@dataclass(frozen=True, slots=True)
class Traits:
    """What the plan depends on. linear: share of the parameters in matrices that are multiplied, 0 to 1."""

    facts: Facts
    linear: float
    quantizable: bool
    recurrent: bool
    trainable: bool
    batch_free: bool = False
    """Whether an answer must not depend on what else is in its batch."""
    blocks: int = 0
    """Equal blocks in the longest row of them in the module; 0 where there is none."""

    @property
    def kind(self) -> str:
        return self.facts.kind

    @staticmethod
    def of(subject: Subject) -> "Traits":
        """Read from the subject's graph, without its external weights."""
        model = onnx.load(str(subject.graph.path), load_external_data=False)
        sizes = {one.name: _product(one.dims) for one in model.graph.initializer}
        named = {name for node in model.graph.node if node.op_type in _MATRICES for name in node.input}
        total = sum(sizes.values())
        operators = subject.graph.operators
        return Traits(
            facts_of(subject.graph),
            sum(sizes[name] for name in named if name in sizes) / total if total else 0.0,
            bool(operators & (_MATRICES | _CONVOLUTIONS | _RECURRENT)),
            bool(operators & _RECURRENT),
            subject.network is not None,
            subject.batch_free,
            0 if subject.network is None else _blocks_of(subject.network.module),
        )


@dataclass(frozen=True, slots=True)
class Rung:
    """One recipe of the ladder. why: why it is not tried, "" where it is. floor: bytes that it cannot come below.

    control: the same without what `adds` names (distillation, QAT), to be tried beside it; None where it adds neither.
    """

    name: str
    family: Family
    steps: tuple[Said, ...]
    bits: float = 32.0
    keeps: float = 1.0
    floor: int = 0
    why: str = ""
    adds: str = ""
    control: "Rung | None" = field(default=None)


def plan(traits: Traits, wanted: Constraints, *, explore: bool = False) -> tuple[Rung, ...]:
    """The rungs in the order in which they are tried, the parent first.

    A rung whose parameters × bits / 8 pass the wanted size has the arithmetic in `why`; so have those that train where
    there is no module, and those that only save bytes where bytes are not asked for (unless `explore`). Where no rung
    is left, the smallest that needs no training is tried all the same: whoever asks for too much learns how much there
    is, as a measured file.
    """
    by_kind = {"trees": _trees, "transformer": _transformer, "cnn": _network, "other": _network}
    rungs = [Rung(ORIGINAL, Family.ORIGINAL, ()), *by_kind[traits.kind](traits, wanted)]
    judged = [_judged(one, traits, wanted, explore) for one in rungs]
    if all(one.why for one in judged[1:]):
        judged = _least_of(judged, traits, wanted)
    return tuple(judged)


def _least_of(rungs: list[Rung], traits: Traits, wanted: Constraints) -> list[Rung]:
    """The same, with the smallest of those tried that only the size speaks against and that need no training."""
    anyhow = replace(wanted, size=None)
    able = [
        one for one in rungs if one.family is Family.PTQ and not _why_not(one, traits, anyhow, explore=True)
    ]
    least = min(able, key=lambda one: one.floor, default=None)
    return [replace(one, why="") if one is least else one for one in rungs]


def _trees(traits: Traits, wanted: Constraints) -> Iterator[Rung]:
    rounds, rounding = _step("tree-rounds", within=wanted.loss / 2), _step("tree-rounding")
    yield Rung("compact", Family.TREES, (_step("tree-rounding", leaves=0),), keeps=0.0)  # costs no answer
    yield Rung("fewer rounds", Family.TREES, (rounds,), keeps=0.0)
    yield Rung("rounding", Family.TREES, (rounding,), keeps=0.0)
    yield Rung("fewer rounds + rounding", Family.TREES, (rounds, rounding), keeps=0.0)
    refitted = {**rounds, "refit": True}
    yield Rung("fewer rounds, refitted + rounding", Family.TREES, (refitted, rounding), keeps=0.0)
    for share in ROUNDS:
        steps = (_step("tree-rounds", keep=share), rounding)
        yield Rung(f"{share:.0%} of the rounds + rounding", Family.TREES, steps, keeps=0.0)


def _network(traits: Traits, wanted: Constraints) -> Iterator[Rung]:
    """Convolutions and plain layers: ranges of activations are steady, so they are fixed beforehand (static)."""
    int8 = _int8(traits)
    yield _ptq(int8)
    if int8["step"] == "int8-static":
        yield _ptq(_step("int8-static", calibration="entropy"), "int8-static, entropy")
        yield _ptq(_step("int8-static", calibration="percentile"), "int8-static, percentile")
        if traits.linear >= MOSTLY:
            yield _ptq(_step("int8-smooth", base="static"))
        yield _ptq(_step("int8-mixed", base="static", loss=wanted.loss / 2))
    yield _weights(8)
    yield _weights(4)
    yield _ptq(_step("fp16"), bits=16)
    yield from _trained(traits, wanted, int8)


def _transformer(traits: Traits, wanted: Constraints) -> Iterator[Rung]:
    """Activations with outliers that depend on the text: ranges are taken anew for every call (dynamic)."""
    int8 = _int8(traits)
    base = "static" if traits.batch_free else "dynamic"
    yield _ptq(_step("int8-dynamic"))
    yield _ptq(_step("int8-smooth", base=base))
    yield _ptq(_step("int8-mixed", base=base, loss=wanted.loss / 2))
    yield _weights(8)
    yield _weights(4)
    yield _ptq(_step("fp16"), bits=16)
    if _embeddings(traits):
        for trim in (_step("trim-vocabulary"), _trimmed()):
            for encode, bits in ((int8, 8), (_blocks(4), 4)):
                yield Rung(
                    _named(trim, encode), Family.VOCABULARY, (trim, encode), bits, _keeps(traits, table=0.0)
                )
    yield from _trained(traits, wanted, int8)


def _trained(traits: Traits, wanted: Constraints, int8: Said) -> Iterator[Rung]:
    """What needs the module: QAT, factors, distillation, pruning; vocabularies are trimmed on the way if that pays."""
    distil = _distil(traits)
    qat = _rounded(int8)
    called = _called(int8)
    yield _qat("qat int8", qat, int8, 8.0)
    yield _qat("qat int4", (_step("qat", bits=4, epochs=EPOCHS, rate=RATE), _blocks(4)), _blocks(4), 4.0)
    if traits.linear >= MOSTLY:
        steps = (_step("low-rank"), distil, int8)
        yield _beside_plain(
            Rung(f"low-rank + distil + {called}", Family.LOW_RANK, steps, 8.0, 0.0, adds="distillation")
        )
    trims = [()] + ([(_trimmed(),)] if _embeddings(traits) else [])
    for layers in _students(traits.blocks):
        for trim in trims:
            student = _step("student", layers=layers)
            yield _smaller(
                traits, Family.DISTILLATION, (*trim, student, distil, int8), layers / traits.blocks
            )
    if wanted.size is not None:
        for trim in trims:
            yield from _fitting(traits, wanted.size, trim, distil, int8)
    for share in PRUNED:
        for trim in trims:
            steps = (*trim, _step("prune-structure", ratio=share), distil, int8)
            yield _smaller(traits, Family.PRUNING, steps, _pruned_keeps(traits, share))
    yield from _together(traits, distil, qat, int8)


def _distil(traits: Traits) -> Said:
    """What is left of a pretrained encoder forgets at the rate that small networks want."""
    gentle = {"rate": RATE} if traits.kind == "transformer" else {}
    return _step("distil", epochs=DISTILLED, **gentle)


def _rounded(int8: Said) -> tuple[Said, ...]:
    """QAT and what encodes it: with fixed ranges nothing is left to encode, the exported graph is INT8 already."""
    dynamic = int8["step"] == "int8-dynamic"
    qat = _step("qat", activations="dynamic" if dynamic else "static", epochs=EPOCHS, rate=RATE)
    return (qat, int8) if dynamic else (qat,)


def _qat(name: str, steps: tuple[Said, ...], encode: Said, bits: float) -> Rung:
    """QAT beside as much training without rounding, encoded alike."""
    plain = (_step("finetune", epochs=EPOCHS, rate=RATE, decay=0.0), encode)
    control = Rung(f"{name}, without QAT", Family.QAT, plain, bits)
    return Rung(name, Family.QAT, steps, bits, adds="QAT", control=control)


def _fitting(traits: Traits, size: int, trim: tuple[Said, ...], distil: Said, int8: Said) -> Iterator[Rung]:
    """As many parameters as the wanted size, less what the graph itself takes, holds in eight bits. How many rows a
    trimmed table keeps is known when it is trimmed; here it takes nothing.
    """
    graph = max(0, traits.facts.size - 4 * traits.facts.parameters)
    most = int((size - graph) * FILLED)
    body = traits.facts.parameters - traits.facts.embedding
    left = most if trim else most - traits.facts.embedding
    if SPARED * body <= left < body:
        steps = (*trim, _step("prune-structure", parameters=most), distil, int8)
        keeps = 0.8 * most / traits.facts.parameters
        yield _beside_plain(Rung(_named(*steps), Family.PRUNING, steps, 8.0, keeps, adds="distillation"))


def _together(traits: Traits, distil: Said, qat: tuple[Said, ...], int8: Said) -> Iterator[Rung]:
    """All at once: prune → distil → QAT; and the smallest of all, pruned and in four bits."""
    prune = _step("prune-structure", ratio=0.5)
    keeps = _keeps(traits, body=_pruned_keeps(traits, 0.5))
    plain = Rung(_named(prune, distil, int8), Family.PRUNING, (prune, distil, int8), 8.0, keeps)
    steps = (prune, distil, *qat)
    yield Rung("prune 50% + distil + qat", Family.PRUNING, steps, 8.0, keeps, adds="QAT", control=plain)
    trim = (_trimmed(),) if _embeddings(traits) else ()
    yield _smaller(
        traits, Family.PRUNING, (*trim, prune, distil, _blocks(4)), _pruned_keeps(traits, 0.5), 4.0
    )


def _smaller(traits: Traits, family: Family, steps: tuple[Said, ...], body: float, bits: float = 8.0) -> Rung:
    """With fewer parameters, and distilled. body: the least share of what is no table that stays."""
    trimmed = any(one["step"] == "trim-vocabulary" for one in steps)
    keeps = _keeps(traits, body, 0.0 if trimmed else 1.0)
    return _beside_plain(Rung(_named(*steps), family, steps, bits, keeps, adds="distillation"))


def _beside_plain(rung: Rung) -> Rung:
    """The rung with its control: the same training on the truth alone where it distils."""
    steps = tuple({**one, "alpha": 0.0} if one["step"] == "distil" else one for one in rung.steps)
    return replace(
        rung, control=replace(rung, name=f"{rung.name}, without {rung.adds}", steps=steps, adds="")
    )


def controlled(rung: Rung, recipe: Recipe) -> Rung:
    """The rung of a recipe of the user's, with its control where it distils or rounds in training: as much training on
    the truth alone, encoded alike.
    """
    added = [_TAUGHT[one.name] for one in recipe.steps if one.name in _TAUGHT]
    if not added:
        return rung
    steps = [
        {"step": "finetune", **{key: one[key] for key in _ALIKE if key in one}} if one["step"] in _TAUGHT else one
        for one in recipe.to_json()
    ]  # fmt: skip
    if any(one["step"] == "qat" and one["activations"] == "static" for one in recipe.to_json()):
        steps.append({"step": "int8-static"})  # which that QAT is as it is exported
    adds = " and ".join(dict.fromkeys(added))
    control = replace(rung, name=f"{rung.name}, without {adds}", steps=tuple(steps), adds="")
    return replace(rung, adds=adds, control=control)


def _judged(rung: Rung, traits: Traits, wanted: Constraints, explore: bool) -> Rung:
    least = floor(traits.facts, rung.bits, rung.keeps)
    control = None if rung.control is None else replace(rung.control, floor=least)
    judged = replace(rung, floor=least, control=control)
    return replace(judged, why=_why_not(judged, traits, wanted, explore))


def _why_not(rung: Rung, traits: Traits, wanted: Constraints, explore: bool) -> str:
    if rung.family is Family.ORIGINAL:
        return ""
    if rung.family is Family.PTQ and not traits.quantizable:
        return "no layer with weights to quantize: neither MatMul, Gemm, Conv nor a recurrent one"
    if not traits.trainable and any(one["step"] in TRAINING for one in rung.steps):
        return NEEDS_MODULE
    if wanted.size is not None and rung.floor > wanted.size:
        return f"{arithmetic(rung, traits.facts)}, above the target of {said_size(wanted.size)}"
    if traits.batch_free and any(one["step"] == "int8-dynamic" for one in rung.steps):
        return "its answers depend on what else is in a batch, and this model is served in micro-batches"
    if rung.bits < 8 and wanted.size is None and not explore:
        return "four bits save bytes, not time, and no size is asked for"
    return ""


TRAINING = frozenset(
    (
        "distil",
        "student",
        "finetune",
        "qat",
        "prune-weights",
        "prune-structure",
        "low-rank",
        "trim-vocabulary",
    )
)
"""The steps on modules, told apart by name so that a plan can be made without torch."""


def arithmetic(rung: Rung, facts: Facts) -> str:
    """How the floor comes about: "22.6M parameters × 8 bits / 8 = 22.6 MB at least"."""
    left = f"{said_count(facts.parameters - facts.repeated)} parameters"
    if facts.repeated:
        left += ", what was written twice counted once,"
    if rung.keeps < 1:
        left += f", of which at least {rung.keeps:.0%} stay,"
    rest = facts.parameters - facts.reducible
    few = (
        f" (those of {said_count(rest)} vectors × 16)"
        if rung.bits < 16 and rest > facts.parameters / 200
        else ""
    )
    return f"{left} × {rung.bits:g} bits{few} / 8 = {said_size(rung.floor)} at least"


def _int8(traits: Traits) -> Said:
    if traits.kind != "transformer" and not traits.recurrent:
        return _step("int8-static")
    return _step("int8-smooth", base="static") if traits.batch_free else _step("int8-dynamic")


def _ptq(one: Said, name: str = "", bits: float = 8.0) -> Rung:
    return Rung(name or one["step"], Family.PTQ, (one,), bits)


def _weights(bits: int) -> Rung:
    return Rung(_called(_blocks(bits)), Family.PTQ, (_blocks(bits),), float(bits))


def _blocks(bits: int) -> Said:
    return _step("weights", bits=bits)


def _trimmed() -> Said:
    return _step("trim-vocabulary", share=COVERED)


def _called(one: Said) -> str:
    """What a step is called in a rung's name."""
    match one:
        case {"step": "weights", "bits": bits}:
            return f"int{bits} weights"
        case {"step": "trim-vocabulary", "share": share}:
            return f"vocabulary of {share:.0%}"
        case {"step": "trim-vocabulary"}:
            return "trimmed vocabulary"
        case {"step": "student", "layers": layers}:
            return f"student of {layers} layer{'' if layers == 1 else 's'}"
        case {"step": "prune-structure", "ratio": ratio}:
            return f"prune {ratio:.0%}"
        case {"step": "prune-structure", "parameters": most}:
            return f"prune to {said_count(most)} parameters"
    return str(one["step"])


def _named(*steps: Said) -> str:
    return " + ".join(map(_called, steps))


def _embeddings(traits: Traits) -> bool:
    return traits.facts.embedding_share >= DOMINANT


def _keeps(traits: Traits, body: float = 1.0, table: float = 1.0) -> float:
    """The least share of all parameters that stays, of `body` and `table` of theirs."""
    share = traits.facts.embedding_share
    return share * table + (1 - share) * body


def _pruned_keeps(traits: Traits, share: float) -> float:
    """Heads and inner widths shrink matrices on one side, channels on both; less a fifth, since widths are rounded."""
    left = 0.8 * (1 - share)
    return left if traits.kind == "transformer" else left**2


def _students(blocks: int) -> list[int]:
    """Layers of the students of a teacher of so many: two thirds, a half, a third; most first."""
    return sorted({round(blocks * share) for share in STUDENTS} - {0, blocks}, reverse=True)


def _blocks_of(module: Any) -> int:
    from loopwright.compression.networks.students import longest_row  # there is a module, so there is torch

    row = longest_row(module)
    return 0 if row is None else len(module.get_submodule(row))


def _step(name: str, **settings: Any) -> Said:
    return {"step": name, **settings}


def _product(dims: Sequence[int]) -> int:
    total = 1
    for one in dims:
        total *= int(one)
    return total
