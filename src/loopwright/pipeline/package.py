"""From a fitted model to a sealed bundle: reference profile, golden examples, card, provenance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from loopwright.bundle.forms import ONNX, PICKLED
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden, OnlineView
from loopwright.bundle.seal import SealedBundle, build_bundle
from loopwright.features.frame import Frame
from loopwright.features.module import FeatureModule
from loopwright.features.served import Types, online_views
from loopwright.kernel.clock import from_us, iso
from loopwright.pipeline.fit import Fitted, Parts, schema_of
from loopwright.pipeline.numbering import recipe
from loopwright.project.spec import Project
from loopwright.stats.profile import PREDICTION, Counts, Reference, build_reference
from loopwright.training.forms import Trusts

GOLDEN_ROWS = 20


@dataclass(frozen=True)
class Origin:
    """Where a bundle comes from. The span of training rows is None when the project has no event time."""

    run_id: str
    snapshot: str
    author: str
    reason: str
    trained_from: datetime | None
    trained_until: datetime | None


def reference_profile(train: Frame, holdout: Frame, predicted: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What live traffic is compared with: inputs of all rows the run saw, and `@prediction` on the held-out rows.

    Answers on training rows are left out: a model is surer of what it has learned than of what comes.
    """
    seen, held = train.inputs(), holdout.inputs()
    inputs = build_reference({name: np.concatenate([seen[name], held[name]]) for name in held})
    answers = build_reference({PREDICTION: predicted[:, 0]})
    columns = {**inputs.counts.columns, **answers.counts.columns}
    return Reference({**inputs.bins, **answers.bins}, Counts(inputs.rows, columns)).to_json()


def golden_positions(total: int, rows: int = GOLDEN_ROWS) -> np.ndarray[Any, Any]:
    """Positions of `rows` examples spread evenly over `total` rows."""
    return np.unique(np.linspace(0, total - 1, min(rows, total)).astype(int))


def span(frame: Frame) -> tuple[datetime | None, datetime | None]:
    """First and last event time of the frame; (None, None) when the project has no event time."""
    times = frame.event_times()
    if not len(times) or np.isnat(times).any():
        return None, None
    return from_us(int(times.min().astype(np.int64))), from_us(int(times.max().astype(np.int64)))


def provenance(project: Project, fitted: Fitted, parts: Parts, origin: Origin) -> dict[str, Any]:
    """Where the bundle comes from, as sealed into its manifest."""
    spec = project.spec
    return {
        "run_id": origin.run_id,
        "snapshot": origin.snapshot,
        "trained_from": iso(origin.trained_from) if origin.trained_from else None,
        "trained_until": iso(origin.trained_until) if origin.trained_until else None,
        "as_of": iso(spec.data.as_of) if spec.data.as_of else None,
        "author": origin.author,
        "reason": origin.reason,
        "params": dict(fitted.params),
        "metrics": dict(fitted.metrics),
        "split_sizes": parts.sizes(),
        "seed": spec.train.seed,
        "project_digest": project.digest,
        "recipe": recipe(project),
        "algorithm": fitted.algorithm,
    }


def card(
    project: Project, fitted: Fitted, parts: Parts, origin: Origin, written: str = "", about: str = ""
) -> str:
    """The card as Markdown: what was measured, then what people wrote. The registry's copy knows what came later."""
    spec = project.spec
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(fitted.metrics.items()))
    settings = "\n".join(f"| {name} | {value} |" for name, value in sorted(fitted.params.items()))
    trained = (
        f"{iso(origin.trained_from)} to {iso(origin.trained_until)}"
        if origin.trained_from and origin.trained_until
        else "rows without event time"
    )
    return (
        f"# {spec.model}\n\n"
        f"Task: {spec.task}. Owner: {spec.owner}. Team: {spec.team}. Project: {spec.project}.\n\n"
        f"## Training\n\nRun `{origin.run_id}` on snapshot `{origin.snapshot}`; event time {trained}; "
        f"{parts.train.rows} rows to train, {parts.holdout.rows} held out.\n\n"
        f"| setting | value |\n|---|---|\n{settings}\n\n"
        f"## Quality on the held-out rows\n\n| metric | value |\n|---|---|\n{figures}\n\n"
        f"## Features\n\n{', '.join(f'`{name}`' for name in fitted.names)}\n"
        + (f"\n{about.strip()}\n" if about.strip() else "")
        + (f"\n---\n\n{written.strip()}\n" if written.strip() else "")
    )


def seal(
    dest: Path,
    *,
    project: Project,
    module: FeatureModule,
    fitted: Fitted,
    parts: Parts,
    origin: Origin,
    created_at: datetime,
    key: SigningKey,
    written: str = "",
    tables: Mapping[str, Types] = MappingProxyType({}),
    trusts: Trusts | None = None,
    about: str = "",
    more: Mapping[str, Any] = MappingProxyType({}),
    tolerance: float = 1e-5,
    views: Sequence[OnlineView] | None = None,
) -> SealedBundle:
    """Build the sealed bundle at `dest`; its golden outputs are what the exported form answers here.

    `written` is the project's own card, `about` a section for the measured part before it. `tables`: the columns of the
    tables that were read, with their types. `trusts`: whose word a form that runs code is sealed on. `more` goes into
    the provenance. `tolerance`: how far golden answers may differ elsewhere. `views`: those of a parent, taken over as
    they are; left out, they are made of the module and `tables`.
    """
    holdout, form, trusts = parts.holdout, fitted.form, trusts or Trusts()
    chosen = golden_positions(holdout.rows)
    golden = Golden(
        inputs={name: _json_values(values[chosen]) for name, values in holdout.inputs().items()},
        outputs=fitted.holdout_output[chosen].tolist(),
        tolerance=tolerance,
    )
    return build_bundle(
        dest,
        model=project.spec.model,
        onnx=form.data if form.file == ONNX else None,
        pickled=form.data if form.file in PICKLED else None,
        native=(form.file, form.data) if form.file not in (ONNX, *PICKLED) else None,
        trust=trusts.find(form.digest) if form.runs_code else None,
        trusted=trusts.keys,
        schema=schema_of(project, module.inputs, fitted.names, fitted.classes),
        transform=module.transform_source,
        state=fitted.state,
        golden=golden,
        reference=reference_profile(parts.train, holdout, fitted.holdout_output),
        card=card(project, fitted, parts, origin, written, about),
        provenance={**provenance(project, fitted, parts, origin), **more},
        created_at=created_at,
        key=key,
        extra_files=fitted.native,
        views=online_views(module, project.spec.data.label.available_after, tables)
        if views is None
        else views,
    )


def _json_values(values: np.ndarray[Any, Any]) -> list[Any]:
    return [None if value is None or value != value else value for value in values.tolist()]
