"""Why a model answered as it did: SHAP values per feature, folded back to the inputs a request brought.

Two engines. A bundle that keeps its LightGBM model's own text is explained exactly, by LightGBM's TreeSHAP (Lundberg
et al. 2020), on the raw scale (log-odds for a binary model). Any other bundle is explained through its graph on the
scale of its answers, by the `shap` library: exactly up to 8 features, else over permutations (Štrumbelj & Kononenko
2014), a bounded number of evaluations a row; its background, what "not knowing" a feature means, is the bundle's own
golden rows.

Contributions always add up: base + their sum is the raw output of the row. That is checked for every row explained,
and for LightGBM also that its text answers as the graph that serves does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from loopwright.bundle.manifest import NATIVE, Golden, Manifest
from loopwright.bundle.signature import Schema
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput, Refused, Tampered, Unavailable

Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Columns = Mapping[str, NDArray[Any]]

TREES = "TreeSHAP (LightGBM)"
EXACT = "exact Shapley values (shap)"
PERMUTATIONS = "permutation SHAP (shap)"
TOLERANCE = 1e-5
"""How far base + contributions may be from the output, relative to 1 or the output if that is larger."""

EXACT_FEATURES = 8  # 2 ** 8 coalitions a row
ROUNDS = 10  # permutations a row, each forwards and backwards


class Model(Protocol):
    """What explaining needs of an opened bundle."""

    digest: str
    schema: Schema
    golden: Golden

    def features(self, inputs: Columns) -> Features: ...

    def predict_features(self, features: Features) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Explained:
    """Rows with what made their answer. `values` (n, features), `base` and `raw` (n,): raw = base + values.sum(axis=1).

    output: (n,) which output is explained, the likeliest class of a multiclass model. predicted: (n,) that output's
    answer. off: how far contributions missed the raw output at most, relatively; disagreement: how far the explained
    model's own answers were from the served ones.
    """

    values: Floats
    base: Floats
    raw: Floats
    output: NDArray[np.int64]
    predicted: Floats
    off: float
    disagreement: float

    def __len__(self) -> int:
        return len(self.raw)


class Explainer(Protocol):
    """`method` and `scale` in words; `most` rows are what a person should wait for."""

    method: str
    scale: str
    most: int

    def explain(self, features: Features) -> Explained: ...


def explainer_for(bundle: Model, native: bytes | None) -> Explainer:
    """The best engine for `bundle`; `native` is what `native_text` read.

    Raises Unavailable when only the extra `explain` could do it and it is not installed.
    """
    return _Trees(bundle, native) if native is not None else _Sampled(bundle)


def native_text(folder: Path, manifest: Manifest) -> bytes | None:
    """The LightGBM text of the bundle in `folder`, None when it has none; raises Tampered when it was changed."""
    digest = manifest.files.get(NATIVE)
    if digest is None:
        return None
    try:
        found = (folder / NATIVE).read_bytes()
    except OSError as error:
        raise Tampered(f"{NATIVE} cannot be read ({error.strerror})", where=str(folder)) from None
    if sha256_bytes(found) != digest:
        raise Tampered(f"{NATIVE} was changed", where=str(folder), got=sha256_bytes(found), wanted=digest)
    return found


class _Trees:
    """LightGBM's own TreeSHAP. One thread: explaining runs beside other work."""

    method = TREES
    most = 1_000_000

    def __init__(self, bundle: Model, native: bytes) -> None:
        from lightgbm import Booster

        self._bundle = bundle
        self._booster = Booster(model_str=native.decode())
        self._width = len(bundle.schema.features)
        if self._booster.num_feature() != self._width:
            raise BadInput(
                "the LightGBM model has other features", where=bundle.digest[:12], got=self._booster.num_feature(),
                wanted=str(self._width),
            )  # fmt: skip
        self.scale = {"binary": "log-odds", "multiclass": "score of the class"}.get(
            bundle.schema.task, "raw score of the prediction"
        )

    def explain(self, features: Features) -> Explained:
        rows = len(features)
        served = self._bundle.predict_features(features)
        answers = self._ask(features, rows)
        found = self._ask(features, rows, pred_contrib=True).reshape(rows, -1, self._width + 1)
        raw = self._ask(features, rows, raw_score=True)
        disagreement = _distance(answers[:, -1:] if served.shape[1] == 1 else answers, served)
        output = served.argmax(axis=1) if served.shape[1] > 1 else np.zeros(rows, dtype=np.int64)
        at = np.arange(rows)
        chosen = found[at, output]
        return _checked(
            chosen[:, :-1], chosen[:, -1], raw[at, output], output, served[at, output], disagreement
        )

    def _ask(self, features: Features, rows: int, **how: bool) -> Floats:
        if rows == 0:
            return np.empty((0, (self._width + 1) if "pred_contrib" in how else 1))
        found = self._booster.predict(features, num_threads=1, **how)
        return np.asarray(found, dtype=np.float64).reshape(rows, -1)


class _Sampled:
    """The `shap` library over the bundle's graph, with its golden rows as background."""

    most = 100

    def __init__(self, bundle: Model) -> None:
        try:
            import shap
        except ImportError:
            raise Unavailable(
                "this model can only be explained with the extra `explain`", where=bundle.digest[:12],
                next="pip install 'loopwright[explain]'",
            ) from None  # fmt: skip
        self._bundle = bundle
        width = len(bundle.schema.features)
        columns = {name: np.array(values, dtype=object) for name, values in bundle.golden.inputs.items()}
        background = bundle.features(columns).astype(np.float64)
        self._few = width <= EXACT_FEATURES
        self.method = EXACT if self._few else PERMUTATIONS
        self.scale = "probability" if bundle.schema.task != "regression" else "prediction"
        engine = shap.explainers.Exact if self._few else shap.explainers.Permutation
        with _repeatably():
            self._engine = engine(
                self._answer, shap.maskers.Independent(background, max_samples=len(background))
            )
        self._evaluations = 1 << width if self._few else ROUNDS * (2 * width + 1)

    def explain(self, features: Features) -> Explained:
        rows, width = features.shape
        if rows == 0:
            empty = np.empty(0)
            return Explained(np.empty((0, width)), empty, empty, np.empty(0, dtype=np.int64), empty, 0.0, 0.0)
        served = self._bundle.predict_features(features)
        with _repeatably():
            found = self._engine(
                features.astype(np.float64), max_evals=max(self._evaluations, 2), silent=True
            )
        values = np.asarray(found.values, dtype=np.float64).reshape(rows, width, -1)
        base = np.broadcast_to(
            np.asarray(found.base_values, dtype=np.float64).reshape(rows, -1), served.shape
        )
        output = served.argmax(axis=1)
        at = np.arange(rows)
        raw = served[at, output]
        return _checked(values[at, :, output], base[at, output], raw, output, raw, 0.0)

    def _answer(self, features: NDArray[Any]) -> Floats:
        return self._bundle.predict_features(np.ascontiguousarray(features, dtype=np.float32))


@contextmanager
def _repeatably() -> Iterator[None]:
    """The library draws from numpy's global generator: the same rows give the same values, and nobody else notices."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def _checked(
    values: Floats,
    base: Floats,
    raw: Floats,
    output: NDArray[np.int64],
    predicted: Floats,
    disagreement: float,
) -> Explained:
    """Raises Refused for values that do not add up: such an explanation explains something else."""
    off = _distance(base + values.sum(axis=1), raw)
    for what, found in (
        ("contributions do not add up to the output", off),
        ("the explained model does not answer as the served one", disagreement),
    ):
        if not found <= TOLERANCE:
            raise Refused(what, where="explain", got=f"{found:.2g}", wanted=f"at most {TOLERANCE:g}")
    return Explained(values, base, raw, output, predicted, off, disagreement)


def _distance(got: Floats, wanted: Floats) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    return float(np.max(np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted)), initial=0.0))


def single_inputs(bundle: Model) -> dict[str, str | None]:
    """Feature → the one input it comes from; None for a feature of several inputs or of none.

    Found by trying: each input of the golden rows is turned round, replaced by null and by another row's value, and
    what moves depends on it. What only moves for values the golden rows do not hold is not seen.
    """
    columns = {name: np.array(values, dtype=object) for name, values in bundle.golden.inputs.items()}
    before = bundle.features(columns)
    moved: dict[str, list[str]] = {feature: [] for feature in bundle.schema.features}
    for name, values in columns.items():
        hit = np.zeros(before.shape[1], dtype=bool)
        for changed in (values[::-1], np.roll(values, 1), np.full(len(values), None, dtype=object)):
            try:
                after = bundle.features({**columns, name: changed})
            except Exception:  # noqa: BLE001, S112 - the transform is the project's and may refuse what it is given
                continue
            hit |= ~((after == before) | (np.isnan(after) & np.isnan(before))).all(axis=0)
        for feature, is_hit in zip(bundle.schema.features, hit, strict=True):
            if is_hit:
                moved[feature].append(name)
    return {
        feature: found[0] if len(found) == 1 else feature if not found and feature in columns else None
        for feature, found in moved.items()
    }
