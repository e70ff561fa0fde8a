"""What a model's trees see: the values at their input, behind whatever the graph does before them."""

from pathlib import Path

import numpy as np
import onnx

from loopwright.compression.artefact import Artefact, save
from loopwright.compression.session import open_session, run
from loopwright.compression.steps import CannotExport
from loopwright.compression.subject import Feeds
from loopwright.compression.trees.ensemble import Array, nodes_of


def seen(source: Artefact, model: onnx.ModelProto, feeds: Feeds, scratch: Path) -> list[Array]:
    """Per tree operator its float32 input (n, features) for `feeds`. Raises CannotExport where it is of another type.

    `scratch`: a file that may be written; it is gone afterwards.
    """
    names = [node.input[0] for node in nodes_of(model)]
    inside = sorted({name for name in names if name not in source.inputs})
    values = {name: np.asarray(feeds[name]) for name in names if name in source.inputs}
    if inside:
        opened = onnx.ModelProto()
        opened.CopyFrom(model)
        del opened.graph.output[:]
        opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside)
        try:
            session = open_session(save(opened, scratch))
            values |= {name: run(session, name, dict(feeds), str(source.path)) for name in inside}
        finally:
            scratch.unlink(missing_ok=True)
    for name, found in values.items():
        if found.dtype != np.float32 or found.ndim != 2:
            raise CannotExport(
                "trees over something else than rows of float32", where=name, got=f"{found.dtype}{found.shape}",
                wanted="float32 (n, features)", next="Let the model take float32, or cast before the trees.",
            )  # fmt: skip
    return [values[name] for name in names]
