"""From a version to what is compressed: its graph, the rows of its run's snapshot, and its torch module if it has one.

Everything is taken from what was kept with the run that trained it, and checked: the bundle's seal, the snapshot's
digest, and that a module answers as the bundle does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.forms import ONNX, model_file
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.open import Bundle, check_bundle, open_bundle
from loopwright.compression.artefact import Artefact
from loopwright.compression.facts import kind_of
from loopwright.compression.subject import Array, Network, Production, Rows, Samples, Subject
from loopwright.data.lake import Lake
from loopwright.data.snapshot import Snapshot, verify_snapshot
from loopwright.delivery.routes import stable_version
from loopwright.features.frame import Frame
from loopwright.features.module import FeatureModule, load_features
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput, NotFound, Tampered
from loopwright.kernel.files import write_atomic
from loopwright.kernel.home import Home
from loopwright.kernel.progress import Progress
from loopwright.ledger.engine import Ledger
from loopwright.pipeline import store
from loopwright.pipeline.fit import TRANSFORM, Parts, cut, load_entry, project_code
from loopwright.pipeline.frames import known_rows
from loopwright.pipeline.keep import kept_project
from loopwright.pipeline.weights import kept_weights, load_weights
from loopwright.project.spec import Project
from loopwright.registry.trust.store import approved
from loopwright.registry.versions import Version, check_model, current, get_version, list_versions
from loopwright.training.export import compare, is_torch
from loopwright.training.seeds import seed_everything
from loopwright.training.split import Split

NOTE = "compression"
"""The note on a version that was made by compressing its parent, and the kind of its evidence."""
MODULE_TOLERANCE = 1e-4
"""How far a rebuilt module's answers may be from the bundle's: another exporter, another order of sums."""
MODULE_ROWS = 1_000
_NO_MODULE = frozenset(("lightgbm", "xgboost", "sklearn", "onnx", "catboost"))


@dataclass(frozen=True)
class Source:
    """A version with all that compressing it needs. `run`: the ledger's row of the run that trained it."""

    version: Version
    bundle: Bundle
    project: Project
    module: FeatureModule
    snapshot: Snapshot
    parts: Parts
    run: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """What the project compares versions by."""
        spec = self.project.spec
        return spec.gates.baseline.metric if spec.gates.baseline else spec.quality_metric

    @cached_property
    def _halves(self) -> tuple[Frame, Frame]:
        return self.parts.holdout.split(0.5)

    @property
    def choosing(self) -> Frame:
        """Held-out rows that candidates are chosen by: the earlier ones."""
        return self._halves[0]

    @property
    def reporting(self) -> Frame:
        """Held-out rows that chose nothing: the later ones."""
        return self._halves[1]

    @property
    def compressed(self) -> bool:
        """Whether it is itself the outcome of a compression."""
        return NOTE in self.bundle.manifest.provenance

    def trainable(self, home: Home) -> bool:
        """Whether it may have a torch module: its weights were kept, or its library is none that has no modules."""
        if self.compressed or find_spec("torch") is None:
            return False
        if kept_weights(home, str(self.run["run_id"])) is not None:
            return True
        told = str(self.bundle.manifest.provenance.get("algorithm", "")).partition(".")[0]
        return bool(told) and told not in _NO_MODULE and kind_of(self.bundle_graph(home)) != "trees"

    def bundle_graph(self, home: Home) -> Artefact:
        """The graph as it lies in the bundle."""
        assert self.version.bundle is not None
        return Artefact.open(BundleDepot(home.bundles).path(self.version.bundle) / ONNX)


def chosen_version(conn: Connection, model: str, number: int | None) -> Version:
    """The version asked for; else the one that is stable, or in Production, or the newest.

    Of a compressed version that nobody named it is the one it was first made from. Raises NotFound.
    """
    if number is not None:
        return get_version(conn, model=model, version=number)
    check_model(conn, model)
    stable = stable_version(conn, model)
    found = get_version(conn, model=model, version=stable) if stable is not None else None
    found = found or current(conn, model=model) or list_versions(conn, model=model, limit=1)[-1]
    while NOTE in found.annotations and found.parent is not None:
        found = get_version(conn, model=model, version=found.parent)
    return found


def check_can(version: Version, home: Home, keys: Sequence[PublicKey], ledger: Ledger) -> str:
    """Raise BadInput for a version that cannot be compressed here, saying what to do; return its bundle's digest."""
    where = version.subject
    if version.bundle is None:
        raise BadInput(
            "a version without a bundle: a plain MLflow client registered it", where=where,
            wanted="a version that `loopwright run` made",
            next="Compress its ONNX file with the Python API: loopwright.compression.api",
        )  # fmt: skip
    with ledger.read() as conn:
        pickles = approved(conn)
    manifest, _ = check_bundle(BundleDepot(home.bundles).path(version.bundle), keys, trusted=pickles)
    form = model_file(manifest.files)
    if form != ONNX:
        raise BadInput(
            "the model is not in a form that can be compressed", where=where, got=str(form), wanted="an ONNX graph",
            next="Return a model that converts from train(), or an onnx.ModelProto.",
        )  # fmt: skip
    if version.run_id is None or version.snapshot is None:
        raise BadInput(
            "an imported model: there are no rows here to measure it on, nor to calibrate it with", where=where,
            wanted="a version that `loopwright run` made",
            next="Compress its ONNX file and rows of your own with the Python API: loopwright.compression.api",
        )  # fmt: skip
    return version.bundle


def open_source(
    version: Version, *, home: Home, ledger: Ledger, keys: Sequence[PublicKey], watch: Progress
) -> Source:
    """Open the version's bundle and read its rows back; raises BadInput, NotFound, Tampered."""
    digest = check_can(version, home, keys, ledger)
    watch.step(f"Rows of version {version.version}, as they were pinned")
    lake = Lake.of(home, ledger)
    assert version.snapshot is not None
    assert version.run_id is not None
    snapshot = verify_snapshot(lake, version.snapshot)
    try:
        project = kept_project(home, version.run_id)
    except NotFound as error:
        raise BadInput(
            error.what, where=version.subject, wanted="a version that `loopwright run` made on this home",
            next="Compress it where it was trained, or its ONNX file with loopwright.compression.api.",
        ) from error  # fmt: skip
    bundle = open_bundle(BundleDepot(home.bundles).path(digest), keys)
    trained_in = bundle.manifest.provenance.get(NOTE, {}).get("trained_in") or version.run_id
    with ledger.read() as conn:
        run = store.find_run(conn, trained_in)
    module = load_features(project)
    frame = known_rows(
        project, module, lake, snapshot.digest, until=project.spec.data.as_of, cache=home.frames
    )
    parts = cut(frame, project.spec.data.holdout, where=version.subject)
    classes = parts.train.classes if project.spec.task == "multiclass" else ()
    if tuple(bundle.schema.classes) != tuple(classes):
        raise BadInput(
            "the rows have other classes than the model", where=version.subject, got=", ".join(classes),
            wanted=", ".join(bundle.schema.classes),
        )  # fmt: skip
    _check_same(bundle, project, module, version.subject)
    source = Source(version, bundle, project, module, snapshot, parts, run)
    watch.done(
        f"{frame.rows:,} labelled rows: {parts.train.rows:,} teach, {source.choosing.rows:,} choose, "
        f"{source.reporting.rows:,} report"
    )
    return source


def _check_same(bundle: Bundle, project: Project, module: FeatureModule, where: str) -> None:
    """Raise Tampered unless the kept project's transform is the sealed one: it goes into the compressed bundle too."""
    if bundle.manifest.files.get(TRANSFORM) != sha256_bytes(module.transform_source.encode()):
        raise Tampered(
            "the transform that was kept with the run is not what the version was sealed with", where=where,
            got=str(project.dir / TRANSFORM), wanted="the file as the run kept it",
            next="Put it back, or compress its ONNX file with the Python API: loopwright.compression.api",
        )  # fmt: skip


def subject_of(
    source: Source, *, home: Home, folder: Path, production: Production, network: bool, watch: Progress
) -> Subject:
    """The subject, its graph written below `folder`. network: whether its torch module is wanted, where it has one.

    What the version learned from teaches and calibrates; the earlier half of its held-out rows chooses, the later half
    reports, so that neither was seen by the parent. Equal inputs in two parts are different rows, not leaked ones.
    """
    path = graph_file(source, home, folder)
    name = Artefact.open(path).inputs[0]
    train, validation, test = (
        _rows(source, part, name) for part in (source.parts.train, source.choosing, source.reporting)
    )
    found = _network(source, home, train.feeds[name], name, watch) if network else None
    return Subject.of(
        f"{source.version.model}@{source.version.version}", path, Samples(train, validation, test, shared=1.0),
        source.metric, network=found, answer=answers_for(source.project.spec.task), production=production,
        batch_free=True,
    )  # fmt: skip


def graph_file(source: Source, home: Home, folder: Path) -> Path:
    """The bundle's graph, copied below `folder`; raises Tampered when it is not what was sealed."""
    sealed = source.bundle.manifest.files[ONNX]
    assert source.version.bundle is not None
    data = (BundleDepot(home.bundles).path(source.version.bundle) / ONNX).read_bytes()
    if sha256_bytes(data) != sealed:
        raise Tampered("the graph is not what was sealed", where=source.version.subject)
    path = folder / "original.onnx"
    write_atomic(path, data)
    return path


class _Answer:
    """A graph's first output as metrics take it. Equal for equal tasks, so that work is told from other work."""

    def __init__(self, task: str) -> None:
        self.task = task

    def __call__(self, outputs: Array) -> Array:
        found = np.asarray(outputs).reshape(len(outputs), -1)
        return found if self.task == "multiclass" else found[:, -1]

    def __repr__(self) -> str:
        return f"answers of a {self.task} model"


def answers_for(task: str) -> _Answer:
    """Outputs (n, k) → what metrics take: (n,) of class 1 or of the value, (n, classes) for multiclass."""
    return _Answer(task)


def _rows(source: Source, part: Frame, name: str) -> Rows:
    return Rows({name: source.bundle.features(part.inputs())}, part.labels())


def _network(source: Source, home: Home, x: Array, name: str, watch: Progress) -> Network | None:
    """The version's torch module; None for other models, without torch, and where it cannot be had again."""
    if not source.trainable(home):
        return None
    spec, run_id = source.project.spec, str(source.run["run_id"])
    weights = kept_weights(home, run_id)
    watch.step("The torch module")
    code, train = load_entry(source.project)
    build = getattr(code, "module", None)
    schema = source.bundle.schema
    if weights is not None and callable(build):
        with project_code(spec.train.file, "module"):
            module = build(dict(source.run["params"]), len(schema.features), len(schema.outputs))
        if not is_torch(module):
            raise BadInput(
                "module() gives no torch module",
                where=f"{spec.train.file}: module",
                got=type(module).__name__,
            )
        module, how = load_weights(module, weights), "its kept weights"
    else:
        watch.note(
            "trained again, from the kept run: a function module(params, features, outputs) in "
            f"{spec.train.file} would build the module for the kept weights"
        )
        seed_everything(spec.train.seed)
        part = source.parts.train
        split = Split(x=source.bundle.features(part.inputs()), y=part.labels(), names=tuple(schema.features))
        with project_code(spec.train.file, "train"):
            module = train(split, None, dict(source.run["params"]), spec.train.seed, None)
        if not is_torch(module):
            watch.done(f"none: train() gives {type(module).__name__}")
            return None
        how = "trained again"
    from loopwright.pipeline.compression_module import answers_of, as_network

    network = as_network(module, spec.task, name, x)
    sample = x[:MODULE_ROWS]
    check = compare(
        source.bundle.predict_features(sample), answers_of(network, sample, name), MODULE_TOLERANCE
    )
    if not check.equal:
        watch.done(
            f"left out: {how}, it answers up to {check.max_difference:.2g} apart from version "
            f"{source.version.version}; only its graph is compressed"
        )
        return None
    watch.done(
        f"{how}; {network.parameters():,} parameters, answers as the version within {check.max_difference:.1g}"
    )
    return network
