"""Opens the bundle of a registered version together with what explains it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.bundle.signature import Field
from loopwright.control.context import Context
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.quality.explain import Explainer, explainer_for, native_text
from loopwright.registry import versions
from loopwright.registry.trust.store import approved


@dataclass(frozen=True, slots=True)
class Explainable:
    """A version's verified bundle and its explainer."""

    bundle: Bundle
    explainer: Explainer


def open_version(ctx: Context, model: str, version: int) -> Explainable:
    """Verify, open and prepare a version.

    Raises NotFound for a version or bundle that is not here, Tampered for changed bytes, Refused for a pickled model
    nobody trusts (any more), Unavailable when it takes the extra `explain`.
    """
    with ctx.ledger.read() as conn:
        found, trusted = versions.get_version(conn, model=model, version=version), approved(conn)
    depot = BundleDepot(ctx.home.bundles)
    if found.bundle is None or not depot.has(found.bundle):
        raise NotFound(
            "the version has no sealed bundle here", where=f"{model}/{version}",
            next="Only versions that `loopwright run` sealed can be explained.",
        )  # fmt: skip
    folder = depot.path(found.bundle)
    bundle = open_bundle(folder, ctx.keyring.public, trusted=trusted)
    return Explainable(bundle, explainer_for(bundle, native_text(folder, bundle.manifest)))


def columns_of(rows: Sequence[Sequence[Any]], fields: Sequence[Field]) -> dict[str, NDArray[Any]]:
    """Logged rows (values in the schema's order) as columns for a bundle."""
    return {
        field.name: np.array([row[place] for row in rows] + [None], dtype=object)[:-1]
        for place, field in enumerate(fields)
    }


def columns_from(inputs: Mapping[str, Any], fields: Sequence[Field]) -> dict[str, NDArray[Any]]:
    """One row named by input as columns; raises BadInput for a name that is missing or unknown."""
    known = [field.name for field in fields]
    for name in inputs:
        if name not in known:
            raise BadInput(f"the model has no input `{name}`", next=did_you_mean(name, known))
    missing = [name for name in known if name not in inputs]
    if missing:
        raise BadInput("inputs are missing", got=", ".join(missing), next="Give null for what is not known.")
    for name, value in inputs.items():
        if isinstance(value, dict | list):
            raise BadInput(
                "not a single value", where=name, got=value, wanted="a number, a text, a boolean or null"
            )
    return columns_of([[inputs[name] for name in known]], fields)
