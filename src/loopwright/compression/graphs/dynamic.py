"""INT8 with ranges of activations found at each call: what transformers are quantized with first."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onnx import ModelProto

from loopwright.compression.artefact import Artefact
from loopwright.compression.graphs.encoding import (
    FULL,
    REDUCED,
    encode_products,
    encode_recurrent,
    encode_tables,
    split_gemms,
)
from loopwright.compression.graphs.preparing import (
    Layer,
    attribute,
    finish,
    layers,
    nothing_to,
    prepare,
    scratch,
)
from loopwright.compression.steps import Work


@dataclass(frozen=True)
class Dynamic:
    """MatMul, Gemm, LSTM and (`embeddings`) look-up tables as INT8 with a scale per channel or row, without a sample.

    Convolutions stay float32: on integers with a range per call they are slower than before. reduce_range: weights of
    7 bits, for CPUs without VNNI, where sums of 8-bit pairs overflow. The range of an activation is taken over the
    whole batch, so an answer depends on its company within the rounding: not `batch_free`.
    """

    name: ClassVar[str] = "int8-dynamic"
    batch_free: ClassVar[bool] = False
    embeddings: bool = True
    reduce_range: bool = False

    @property
    def bits(self) -> float:
        return 8.0

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        """Raises CannotExport where there is no product with a weight and no table."""
        with scratch(work) as folder:
            model = prepare(source, folder, self.name)
            split_gemms(model)
            products, tables = layers(model, ["MatMul"]), layers(model, ["Gather"] if self.embeddings else [])
            recurrent = recurrent_layers(model)
            if not products and not tables and not recurrent:
                raise nothing_to(
                    self.name, source, "MatMul, Gemm, LSTM or Gather with a constant weight",
                    "For convolutions: int8-static. For trees: tree-rounds, tree-rounding.",
                )  # fmt: skip
            whole = sum(one.parameters for one in layers(model))
            largest = REDUCED if self.reduce_range else FULL
            encode_products(model, products, largest)
            encode_recurrent(model, recurrent, largest)
            encode_tables(model, tables)
            made = finish(model, target, self.name)
        chosen = [*products, *recurrent, *tables]
        work.notes.metrics(
            {
                "quantized_layers": len({one.name for one in chosen}),
                "quantized_share": sum(one.parameters for one in chosen) / whole,
                "bytes": made.size,
            }
        )
        return made


def recurrent_layers(model: ModelProto) -> list[Layer]:
    """The LSTMs that ONNX Runtime has a kernel on integers for: both weights constant, time first."""
    found = layers(model, ["LSTM"])
    late = {node.name for node in model.graph.node if node.op_type == "LSTM" and attribute(node, "layout", 0)}
    both = Counter(one.name for one in found)
    return [one for one in found if both[one.name] == 2 and one.name not in late]
