"""INT8 with ranges of activations found beforehand on a sample: what convolutional networks are quantized with."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from loopwright.compression.artefact import Artefact
from loopwright.compression.graphs.calibrating import check_method, ranges
from loopwright.compression.graphs.encoding import FULL, REDUCED, activations, encode_static
from loopwright.compression.graphs.preparing import finish, layers, nothing_to, prepare, scratch
from loopwright.compression.graphs.running import check_rows, sample
from loopwright.compression.steps import Work


@dataclass(frozen=True)
class Static:
    """Convolutions, MatMul and Gemm as INT8 (QDQ): weights signed with a scale per channel, activations unsigned.

    calibration: "minmax" takes the extremes of `rows` training rows; "entropy" and "percentile" cut outliers, which
    helps where few values are large. Rows are run few at a time and merged into one histogram of fixed edges, so that
    graphs whose inner lengths vary calibrate too. `embeddings`: look-up tables as INT8 with a scale per row. Ranges
    are constants: an answer does not depend on its batch.
    """

    name: ClassVar[str] = "int8-static"
    batch_free: ClassVar[bool] = True
    calibration: str = "minmax"
    percentile: float = 99.99
    rows: int = 256
    embeddings: bool = True
    reduce_range: bool = False

    def __post_init__(self) -> None:
        check_method(self.calibration, self.percentile, self.name)
        check_rows(self.rows, self.name)

    @property
    def bits(self) -> float:
        return 8.0

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        """Raises CannotExport where nothing can be quantized, BadInput for rows that the graph does not take."""
        rows = sample(source, work, self.rows)
        with scratch(work) as folder:
            model = prepare(source, folder, self.name)
            products = layers(model, ["MatMul", "Gemm", "Conv", "ConvTranspose"])
            tables = layers(model, ["Gather"] if self.embeddings else [])
            if not products:
                raise nothing_to(
                    self.name, source, "Conv, MatMul or Gemm with a constant weight",
                    "For trees: tree-rounds, tree-rounding.",
                )  # fmt: skip
            whole = sum(one.parameters for one in layers(model))
            work.watch.update(0.1, f"calibrating on {len(rows)} rows")
            found = ranges(
                model, activations(model), rows.feeds, folder, self.calibration, self.percentile, work.threads
            )  # fmt: skip
            work.check_time()
            model = encode_static(model, found, tables, largest=REDUCED if self.reduce_range else FULL)
            made = finish(model, target, self.name)
        done = sum(one.parameters for one in (*products, *tables))
        work.notes.params({"calibration": self.calibration, "calibration_rows": len(rows)})
        work.notes.metrics(
            {
                "quantized_layers": len(products) + len(tables),
                "quantized_share": done / whole,
                "bytes": made.size,
            }
        )
        return made
