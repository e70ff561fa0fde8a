"""From a measured candidate to a sealed bundle: the parent's transform, state and schema around the smaller graph."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from loopwright.bundle.forms import ONNX
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.compression.candidate import Candidate
from loopwright.compression.report import Gain
from loopwright.compression.subject import Array
from loopwright.kernel.errors import BadInput, Refused
from loopwright.kernel.sizes import said_size
from loopwright.pipeline.compression_subject import NOTE, Source
from loopwright.pipeline.fit import Fitted, evaluate, metric_names
from loopwright.pipeline.package import Origin, golden_positions, seal, span
from loopwright.pipeline.tracked import Setting
from loopwright.training.export import ExportCheck, predict_onnx
from loopwright.training.forms import Form

MAX_SEALED = 2_000_000_000
CHECKED = 200


def sealed_candidate(
    setting: Setting, source: Source, candidate: Candidate, graph: Path, run_id: str, gains: tuple[Gain, ...]
) -> tuple[Bundle, Fitted]:
    """Build the bundle beside the depot, move it in whole, and open it as serving would.

    Its golden outputs and its profile of predictions are the smaller graph's own. Raises Refused for a graph that one
    file cannot hold.
    """
    if candidate.size > MAX_SEALED or any(graph.parent.glob(f"{graph.name}.data*")):
        raise Refused(
            "the smaller model is still too large for a bundle", where=candidate.name, got=said_size(candidate.size),
            wanted=f"at most {said_size(MAX_SEALED)}, in one file",
        )  # fmt: skip
    data, spec, parts = graph.read_bytes(), setting.project.spec, source.parts
    held = source.bundle.features(parts.holdout.inputs())
    output = answers(data, held, spec.task)
    fitted = Fitted(
        form=Form(ONNX, data),
        names=tuple(source.bundle.schema.features),
        state=source.bundle.state,
        classes=tuple(source.bundle.schema.classes),
        params=source.run["params"],
        metrics=evaluate(spec.task, parts.holdout.labels(), output, metric_names(setting.project)),
        export=ExportCheck(0, 0.0),
        holdout_output=output,
        algorithm=_algorithm(source, candidate),
        native={},
    )
    parent = source.version
    more = {
        NOTE: {
            "parent": parent.version, "parent_bundle": parent.bundle, "trained_in": source.run["run_id"],
            "name": candidate.name, "recipe": candidate.recipe, "graph": fitted.form.digest,
        }
    }  # fmt: skip
    chosen = held[golden_positions(len(held))]
    setting.home.cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=setting.home.cache))
    try:
        sealed = seal(
            building / "bundle",
            project=setting.project,
            module=source.module,
            fitted=fitted,
            parts=parts,
            origin=Origin(
                run_id, source.snapshot.digest, setting.actor.name, setting.reason, *span(parts.train)
            ),
            created_at=setting.clock(),
            key=setting.key,
            written=setting.written.text if setting.written else "",
            views=source.bundle.manifest.views,
            about=card_section(source, candidate, gains),
            more=more,
            tolerance=golden_tolerance(data, chosen, spec.task),
        )
        digest = setting.depot.add(sealed.path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    bundle = open_bundle(setting.depot.path(digest), setting.trusted)
    if bundle.schema != source.bundle.schema:
        raise BadInput(
            "the kept project describes another model than the version", where=parent.subject,
            next="Compress its ONNX file with the Python API: loopwright.compression.api",
        )  # fmt: skip
    return bundle, fitted


def answers(graph: bytes, x: Array, task: str) -> Array:
    """What the graph answers as a bundle serves it: float64 (n, outputs)."""
    found = predict_onnx(graph, x)
    found = found.reshape(len(found), -1)
    return found[:, 1:] if task == "binary" and found.shape[1] == 2 else found


def golden_tolerance(graph: bytes, x: Array, task: str) -> float:
    """How far golden answers may be from the sealed ones elsewhere: twice as far as they come here in other ways.

    Integer kernels round differently by processor, by how many rows come together and by what is fused: the rows are
    answered one by one, with two threads and without fusion, and compared with how they are sealed. Constants are
    folded in every way: MatMulNBits gives zeros where its scales are computed as it runs, and nothing here does that.
    """
    rows = np.ascontiguousarray(x[:CHECKED], dtype=np.float32)
    wanted = answers(graph, rows, task)
    plain, two = onnxruntime.SessionOptions(), onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    two.intra_op_num_threads = 2
    ways = [np.concatenate([answers(graph, rows[at : at + 1], task) for at in range(len(rows))])]
    for options in (plain, two):
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: rows})[0]
        found = np.asarray(found, dtype=np.float64).reshape(len(rows), -1)
        ways.append(found[:, -wanted.shape[1] :])
    return max(1e-5, 2 * max(float(np.abs(way - wanted).max(initial=0.0)) for way in ways))


def card_section(source: Source, one: Candidate, gains: tuple[Gain, ...]) -> str:
    """What the card says of it, as Markdown."""
    parent = source.version
    steps = " → ".join(
        _cell(
            f"{step['step']}({', '.join(f'{k}={v}' for k, v in step.items() if k != 'step' and v is not None)})"
        )
        for step in one.recipe
    )
    rows = [
        (
            "size",
            f"{said_size(one.original_size)} → {said_size(one.size)} ({one.ratio:.2f} times smaller, on disk)",
        )
    ]
    if one.latency is not None:
        latency = one.latency
        rows.append((
            "latency, side by side",
            f"p50 {latency.original_p50:.3g} → {latency.p50:.3g} ms, p99 {latency.original_p99:.3g} → "
            f"{latency.p99:.3g} ms (batch {latency.batch}, {latency.threads} thread{'s' * (latency.threads != 1)})",
        ))  # fmt: skip
    for name, judged in (("validation", one.validation), ("held-out rows", one.test)):
        if judged is not None:
            rows.append((
                f"loss of {judged.metric}, {name}",
                f"{judged.loss:.2%}, between {judged.loss_low:.2%} and {judged.loss_high:.2%} at "
                f"{judged.confidence:.0%} confidence ({judged.parent:.4f} → {judged.value:.4f}, {judged.rows} rows)",
            ))  # fmt: skip
    if (alike := one.agreement) is not None:
        told = [f"largest difference {alike.largest:.3g}"]
        told += [f"same class {alike.argmax:.2%}"] if alike.argmax is not None else []
        told += [f"cosine {alike.cosine:.5f}"] if alike.cosine is not None else []
        rows.append(("agreement with the parent", ", ".join(told)))
    rows += [("control", gain.said()) for gain in gains if gain.candidate == one.name]
    table = "\n".join(f"| {name} | {_cell(text)} |" for name, text in rows)
    return (
        f"## Compressed from version {parent.version}\n\nRecipe: {steps}. Parent bundle `{parent.bundle}`. The weights "
        f"come from run `{source.run['run_id']}`; nothing but the graph was changed.\n\n"
        f"| measured | found |\n|---|---|\n{table}"
    )


def payload_of(
    source: Source, one: Candidate, gains: tuple[Gain, ...], *, asked: str, run_id: str, told: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """The evidence `compression`: what was made of what, and what is known of it. `told`: what else belongs to it."""
    said = one.to_json()
    kept = ("name", "recipe", "size", "original_size", "parameters", "latency", "validation", "test", "agreement",
            "alone", "digest")  # fmt: skip
    return {
        **{name: said[name] for name in kept},
        "ratio": one.ratio,
        "asked": asked,
        "parent": source.version.version,
        "parent_bundle": source.version.bundle,
        "run": run_id,
        "trained_in": source.run["run_id"],
        "controls": [gain.said() for gain in gains if gain.candidate == one.name],
        **told,
    }


def _algorithm(source: Source, candidate: Candidate) -> str:
    steps = " + ".join(str(step["step"]) for step in candidate.recipe)
    before = source.bundle.manifest.provenance.get("algorithm")
    return f"{before}, {steps}" if before else steps


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
