"""Runs a recorded run again, from what was kept with it, and says how close it came."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.forms import ONNX, model_file
from loopwright.bundle.keyring import Keyring
from loopwright.bundle.manifest import Manifest
from loopwright.data.lake import Lake
from loopwright.data.snapshot import verify_snapshot
from loopwright.features.module import load_features
from loopwright.kernel.errors import BadInput
from loopwright.kernel.home import Home
from loopwright.kernel.progress import Progress, Silent
from loopwright.ledger.engine import Ledger
from loopwright.pipeline import store
from loopwright.pipeline.fit import cut, fit_model
from loopwright.pipeline.frames import known_rows
from loopwright.pipeline.keep import kept_project
from loopwright.pipeline.trusting import trusts_of
from loopwright.training.context import fingerprint as fingerprint_now
from loopwright.training.reproduce import Agreement, Comparison, Outcome, compare, fingerprint


@dataclass(frozen=True)
class ReproduceReport:
    """How close the second run came. `rows` were read back from the snapshot and match its digest."""

    run_id: str
    snapshot: str
    rows: int
    comparison: Comparison

    @property
    def verdict(self) -> str:
        """ "bitwise", "within tolerance" or "diverged"."""
        return str(self.comparison.agreement)

    @property
    def agrees(self) -> bool:
        """Whether the run repeated, bit by bit or within tolerance."""
        return self.comparison.agreement is not Agreement.DIVERGED

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's own types."""
        return {
            "run_id": self.run_id,
            "snapshot": self.snapshot,
            "rows": self.rows,
            **self.comparison.to_json(),
        }


def reproduce(
    *, home: Home, ledger: Ledger, run_id: str, progress: Progress | None = None
) -> ReproduceReport:
    """Rebuild data, code, configuration and seed of `run_id`, train again with the recorded parameters, and compare.

    Nothing is registered or recorded. Raises NotFound for an unknown run, BadInput for one that never finished,
    Tampered when the snapshot's rows are not the ones its digest names.
    """
    watch = progress or Silent()
    with ledger.read() as conn:
        recorded = store.find_run(conn, run_id)
    if not recorded["bundle"] or not recorded["metrics"]:
        raise BadInput(
            "the run has nothing to compare with",
            where=f"run {recorded['run_id']}",
            got=f"status {recorded['status']}",
            wanted="a run that trained and exported a model",
            next="loopwright runs list",
        )
    if (made := recorded["context"].get("compression")) is not None:
        raise BadInput(
            f"the run trained nothing: it compressed version {made['parent']}",
            where=f"run {recorded['run_id']}",
            wanted="the run that trained the weights",
            next=f"loopwright reproduce {made['trained_in']}; and loopwright compress "
            f"{recorded['model']}@{made['parent']} gives the same version again",
        )
    bundle = verified_bundle(home, recorded["bundle"])
    lake = Lake.of(home, ledger)
    watch.step("Read the snapshot back")
    snapshot = verify_snapshot(lake, recorded["snapshot"])
    watch.done(f"{snapshot.rows:,} rows match digest {snapshot.digest[:12]}")

    project = kept_project(home, recorded["run_id"])
    module = load_features(project)
    # Afresh from the snapshot, never from a cache: that is what is to be shown.
    frame = known_rows(project, module, lake, snapshot.digest, until=project.spec.data.as_of, cache=None)
    parts = cut(frame, project.spec.data.holdout, where=f"run {recorded['run_id']}")
    fitted = fit_model(
        project,
        module,
        parts,
        _Unrecorded(),
        watch,
        params=recorded["params"],
        trusts=trusts_of(ledger, Keyring.open(home.keys, create=False).public),
    )
    first = Outcome(
        metrics=recorded["metrics"],
        model_digest=bundle.files[model_file(bundle.files) or ONNX],
        fingerprint=fingerprint(recorded["context"]),
    )
    again = Outcome(
        metrics=fitted.metrics,
        model_digest=fitted.form.digest,
        fingerprint=fingerprint_now(project=project, snapshot=snapshot.digest, seed=project.spec.train.seed),
    )
    return ReproduceReport(recorded["run_id"], snapshot.digest, snapshot.rows, compare(first, again))


def verified_bundle(home: Home, digest: str) -> Manifest:
    """The manifest of a bundle of this home, every byte checked; raises Tampered when one is not what was sealed."""
    return BundleDepot(home.bundles).verify(digest, Keyring.open(home.keys, create=False).public)


class _Unrecorded:
    """A run nobody records: reproducing leaves no trace among the runs."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...

    def text(self, content: str, name: str) -> None: ...

    def artifact_json(self, value: object, name: str) -> None: ...
