"""Explanations as answers, evidence and pictures. The pictures are drawn from the JSON alone."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.quality.explain import TOLERANCE, Columns, Explainer, Model, single_inputs

SAMPLE = 20
_BARS = 20
_WIDTH, _LEFT, _ROW = 720, 200, 22
_UP, _DOWN = "#b91c1c", "#1d4ed8"


def importance(
    bundle: Model, explainer: Explainer, inputs: Columns, *, rows: int, ids: Sequence[str] | None = None
) -> dict[str, Any]:
    """The evidence `explainability`: mean |SHAP| of up to `rows` of the rows in `inputs`, and 20 explained rows.

    The rows are spread evenly over `inputs`; engines that sample explain 100 at most. The sample goes from the lowest
    to the highest output. Raises Refused when contributions do not add up, and what the project's transform raises.
    """
    total = len(next(iter(inputs.values())))
    chosen = np.unique(np.linspace(0, total - 1, min(rows, explainer.most, total)).astype(int))
    taken = {name: np.asarray(values)[chosen] for name, values in inputs.items()}
    features = bundle.features(taken)
    found = explainer.explain(features)
    names, origin = bundle.schema.features, single_inputs(bundle)
    strength = np.abs(found.values).mean(axis=0)
    order = np.argsort(-strength, kind="stable")
    folded = _folded(found.values, names, origin)
    by_raw = np.argsort(found.raw, kind="stable")
    shown = by_raw[np.unique(np.linspace(0, len(by_raw) - 1, min(SAMPLE, len(by_raw))).astype(int))]
    return {
        "method": explainer.method,
        "scale": explainer.scale,
        "rows": len(found),
        "base": float(found.base.mean()),
        "features": [
            {"name": names[i], "mean_abs_shap": float(strength[i]), "input": origin[names[i]]} for i in order
        ],
        "inputs": sorted(
            (
                {"name": name, "mean_abs_shap": float(np.abs(values).mean())}
                for name, values in folded.items()
            ),
            key=lambda one: -float(str(one["mean_abs_shap"])),
        ),
        "sample": [
            {
                **({"id": str(ids[chosen[row]])} if ids is not None else {}),
                "output": bundle.schema.outputs[found.output[row]],
                "prediction": float(found.predicted[row]),
                "raw": float(found.raw[row]),
                "base": float(found.base[row]),
                "values": {name: _plain(features[row, i]) for i, name in enumerate(names)},
                "shap": {name: float(found.values[row, i]) for i, name in enumerate(names)},
            }
            for row in shown
        ],
        "additivity": {"off_by_at_most": found.off, "tolerance": TOLERANCE},
        "served_differs_by_at_most": found.disagreement,
    }


def explain_rows(bundle: Model, explainer: Explainer, inputs: Columns) -> list[dict[str, Any]]:
    """One explanation per row of `inputs`: features and inputs with value, contribution and direction, largest first.

    A feature that comes from one input is counted to it; one that comes from several stands under its own name.
    """
    features = bundle.features(inputs)
    found = explainer.explain(features)
    names, origin = bundle.schema.features, single_inputs(bundle)
    folded = _folded(found.values, names, origin)
    return [
        {
            "output": bundle.schema.outputs[found.output[row]],
            "prediction": float(found.predicted[row]),
            "scale": explainer.scale,
            "base": float(found.base[row]),
            "raw": float(found.raw[row]),
            "method": explainer.method,
            "off_by": abs(float(found.base[row] + found.values[row].sum() - found.raw[row])),
            "features": _sorted(
                {
                    "feature": name,
                    "value": _plain(features[row, i]),
                    **_contribution(found.values[row, i]),
                    "input": origin[name],
                }
                for i, name in enumerate(names)
            ),
            "inputs": _sorted(
                {
                    "input": name,
                    **({"value": _plain(np.asarray(inputs[name])[row])} if name in inputs else {}),
                    **_contribution(values[row]),
                }
                for name, values in folded.items()
            ),
        }
        for row in range(len(found))
    ]


def importance_svg(payload: Mapping[str, Any], most: int = _BARS) -> str:
    """The evidence `explainability` as bars of mean |SHAP|, the strongest on top."""
    bars = payload["features"][:most]
    largest = max((bar["mean_abs_shap"] for bar in bars), default=0.0) or 1.0
    title = f"mean |SHAP| on {payload['rows']} held-out rows ({payload['scale']})"
    body = [f'<text x="12" y="20" font-weight="600">{escape(title)}</text>']
    for place, bar in enumerate(bars):
        y = 34 + _ROW * place
        length = bar["mean_abs_shap"] / largest * (_WIDTH - _LEFT - 90)
        body.append(
            f'<text x="{_LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(_short(bar["name"]))}</text>'
            f'<rect x="{_LEFT}" y="{y + 2}" width="{length:.1f}" height="{_ROW - 6}" fill="{_DOWN}"/>'
            f'<text x="{_LEFT + length + 6:.1f}" y="{y + 13}" fill="#6b7280">{bar["mean_abs_shap"]:.4g}</text>'
        )
    return _svg(body, 44 + _ROW * len(bars))


def waterfall_svg(answer: Mapping[str, Any], most: int = 14) -> str:
    """One explanation as steps from the base to the output, input by input; what is small is one step together."""
    inputs = answer["inputs"]
    steps = [
        (_short(one["input"]) + (f" = {_value(one['value'])}" if "value" in one else ""), one["contribution"])
        for one in inputs[:most]
    ]
    if len(inputs) > most:
        steps.append((f"{len(inputs) - most} others", sum(one["contribution"] for one in inputs[most:])))
    ends = np.cumsum([answer["base"], *(step for _, step in steps)])
    low, high = float(ends.min()), float(ends.max())
    pad = (high - low) * 0.05 or 0.5
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return _LEFT + 40 + (value - low) / (high - low) * (_WIDTH - _LEFT - 120)

    title = f"{answer['output']} {answer['prediction']:.4g}: from {answer['base']:.4g} to {answer['raw']:.4g}"
    body = [f'<text x="12" y="20" font-weight="600">{escape(title)} ({escape(str(answer["scale"]))})</text>']
    bottom = 40 + _ROW * len(steps)
    body.append(
        f'<line x1="{x(answer["base"]):.1f}" x2="{x(answer["base"]):.1f}" y1="32" y2="{bottom}" stroke="#9ca3af" '
        f'stroke-dasharray="3 3"/>'
    )
    for place, (label, step) in enumerate(steps):
        y = 34 + _ROW * place
        start, end = x(ends[place]), x(ends[place + 1])
        body.append(
            f'<text x="{_LEFT + 30}" y="{y + 13}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{min(start, end):.1f}" y="{y + 2}" width="{max(abs(end - start), 0.5):.1f}" height="{_ROW - 6}" '
            f'fill="{_UP if step > 0 else _DOWN}"/>'
            f'<text x="{max(start, end) + 6:.1f}" y="{y + 13}" fill="#6b7280">{step:+.3g}</text>'
        )
    return _svg(body, bottom + 10)


def _svg(body: list[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="#1f2937">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _folded(
    values: NDArray[np.float64], names: tuple[str, ...], origin: Mapping[str, str | None]
) -> dict[str, NDArray[np.float64]]:
    """Contributions by input, (rows,) each: the sum of its own features."""
    folded: dict[str, NDArray[np.float64]] = {}
    for i, name in enumerate(names):
        under = origin[name] or f"{name} (of several inputs)"
        folded[under] = folded[under] + values[:, i] if under in folded else values[:, i]
    return folded


def _contribution(value: float) -> dict[str, Any]:
    direction = "raises" if value > 0 else "lowers" if value < 0 else "none"
    return {"contribution": float(value), "direction": direction}


def _sorted(found: Any) -> list[dict[str, Any]]:
    return sorted(found, key=lambda one: -abs(one["contribution"]))


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _value(value: Any) -> str:
    return "null" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
