"""FP16: half the bytes. On a CPU there is no faster arithmetic for it, so by default only the weights are halved."""

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from loopwright.compression.artefact import Artefact
from loopwright.compression.graphs.calibrating import ranges
from loopwright.compression.graphs.preparing import (
    finish,
    infer_types,
    name_nodes,
    nothing_to,
    prepare,
    replace_nodes,
    scratch,
    uses,
    weights,
)
from loopwright.compression.graphs.running import answers, check_rows, float_tensors, sample
from loopwright.compression.steps import CannotExport, Work
from loopwright.kernel.errors import BadInput

LARGEST = float(np.finfo(np.float16).max)
MARGIN = 2.0
"""How much larger than on the sample an activation may become before it overflows."""
SMALLEST = 64
"""Numbers from which a weight is worth a node that widens it."""


@dataclass(frozen=True)
class Half:
    """Weights as float16; inputs and outputs stay float32.

    compute: "float32" widens the weights when the file is loaded: as fast as before, and nothing can overflow but a
    weight itself. "float16" computes in half precision too: for GPUs; on CPUs ONNX Runtime converts back and forth and
    is slower. Weights above 65504 stay float32; so do, when computing in float16, the nodes whose activations came
    within a factor of 2 of it on `rows` training rows.
    """

    name: ClassVar[str] = "fp16"
    batch_free: ClassVar[bool] = True
    compute: str = "float32"
    rows: int = 64

    def __post_init__(self) -> None:
        if self.compute not in ("float32", "float16"):
            raise BadInput(
                "unknown precision to compute in",
                where=self.name,
                got=self.compute,
                wanted="float32, float16",
            )
        check_rows(self.rows, self.name)

    @property
    def bits(self) -> float:
        return 16.0

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        """Raises CannotExport for a graph without float32 weights, or whose answers overflow all the same."""
        with scratch(work) as folder:
            model = prepare(source, folder, self.name)
            chosen = halvable(model)
            kept = [tensor.name for tensor in wide(model)]
            if not chosen:
                raise nothing_to(
                    self.name, source, f"float32 weights of {SMALLEST} numbers or more within ±{LARGEST:.0f}"
                )
            if self.compute == "float32":
                narrow(model, chosen)
                nodes_kept = 0
            else:
                rows = sample(source, work, self.rows)
                found = ranges(
                    model, float_tensors(model), rows.feeds, folder, "minmax", threads=work.threads
                )
                large = {
                    name for name, (low, high) in found.items() if max(-low, high) * MARGIN > LARGEST
                } | set(kept)
                blocked = [node.name for node in model.graph.node if large & {*node.input, *node.output}]
                nodes_kept = len(blocked)
                model = computed_in_half(model, blocked)
                if not np.isfinite(answers(model, rows.feeds, folder, work.threads)).all():
                    raise CannotExport(
                        "the answers overflow in float16", where=str(source.path), got="NaN or infinite",
                        wanted=f"activations within ±{LARGEST:.0f}", next="Compute in float32: compute: float32",
                    )  # fmt: skip
            made = finish(model, target, self.name)
        work.notes.metrics(
            {
                "halved_weights": len(chosen),
                "weights_kept": len(kept),
                "nodes_kept": nodes_kept,
                "bytes": made.size,
            }
        )
        return made


def halvable(model: ModelProto) -> list[str]:
    """Names of the float32 weights that are large enough in bytes and small enough in value."""
    too_large = {tensor.name for tensor in wide(model)}
    return [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and int(np.prod(tensor.dims)) >= SMALLEST
        and tensor.name not in too_large
    ]


def wide(model: ModelProto) -> list[TensorProto]:
    """The float32 weights that hold a number beyond float16."""
    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and np.abs(numpy_helper.to_array(tensor)).max(initial=0.0) > LARGEST
    ]


def narrow(model: ModelProto, chosen: list[str]) -> None:
    """Store the weights in `chosen` as float16, each with a Cast that ONNX Runtime folds when it loads the file."""
    known, read = weights(model), uses(model.graph)
    casts = []
    for name in chosen:
        if not read[name]:
            continue
        halves = numpy_helper.from_array(
            numpy_helper.to_array(known[name]).astype(np.float16), f"{name}::half"
        )
        known[name].CopyFrom(halves)
        casts.append(
            helper.make_node("Cast", [halves.name], [name], f"{name}::widened", to=TensorProto.FLOAT)
        )
    replace_nodes(model, [*casts, *model.graph.node])


def computed_in_half(model: ModelProto, blocked: list[str]) -> ModelProto:
    """The graph with float16 between its inputs and outputs, but for the nodes named in `blocked`."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # it warns of every number that becomes smaller than float16 can hold
        made: ModelProto = convert_float_to_float16(
            model, keep_io_types=True, node_block_list=blocked, disable_shape_infer=True, max_finite_val=LARGEST
        )  # fmt: skip
    name_nodes(made)
    infer_types(made)
    return made
