"""INT8 with ranges of activations found at each call: what transformers are quantized with first."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from loopwright.compression.artefact import Artefact
from loopwright.compression.graphs.encoding import (
    FULL,
    REDUCED,
    encode_products,
    encode_tables,
    split_gemms,
)
from loopwright.compression.graphs.preparing import finish, layers, nothing_to, prepare, scratch
from loopwright.compression.steps import Work


@dataclass(frozen=True)
class Dynamic:
    """MatMul, Gemm and (`embeddings`) look-up tables as INT8 with a scale per channel or row; no sample is needed.

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
            if not products and not tables:
                raise nothing_to(
                    self.name, source, "MatMul, Gemm or Gather with a constant weight",
                    "For convolutions: int8-static. For trees: tree-rounds, tree-rounding.",
                )  # fmt: skip
            whole = sum(one.parameters for one in layers(model))
            encode_products(model, products, REDUCED if self.reduce_range else FULL)
            encode_tables(model, tables)
            made = finish(model, target, self.name)
        done = sum(one.parameters for one in (*products, *tables))
        work.notes.metrics(
            {
                "quantized_layers": len(products) + len(tables),
                "quantized_share": done / whole,
                "bytes": made.size,
            }
        )
        return made
