"""Streamed quantization as a step of a recipe, for models of which memory holds no second copy."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from loopwright.compression.artefact import MAX_SINGLE, Artefact
from loopwright.compression.steps import Work
from loopwright.compression.streaming.encoding import Settings
from loopwright.compression.streaming.quantizing import quantize_streamed
from loopwright.compression.streaming.weights import in_one_file


@dataclass(frozen=True)
class Streamed:
    """`bits` 8: as int8-dynamic; 4: blocks of `block` weights with one scale each, without the search of `weights`.

    Memory is that of the largest matrix, whatever the model's size. `embeddings`: look-up tables too; reduce_range: 7
    bits in 8, for CPUs without VNNI. What fits a single file (2 GB) becomes one. In 8 bits the range of an activation
    is taken over the whole batch.
    """

    name: ClassVar[str] = "streamed"
    bits: int = 8
    block: int = 32
    embeddings: bool = True
    reduce_range: bool = False

    def __post_init__(self) -> None:
        self._settings()

    @property
    def batch_free(self) -> bool:
        return self.bits == 4

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        """Raises BadInput where there is no product with a weight and no table."""
        made = quantize_streamed(
            source.path, target, bits=self.bits, block=self.block, tables=self.embeddings,
            reduce_range=self.reduce_range, watch=work.watch,
        )  # fmt: skip
        made = in_one_file(target) if made.size <= MAX_SINGLE else made
        work.notes.metrics({"bytes": made.size})
        return made

    def _settings(self) -> Settings:
        return Settings(self.bits, self.block, self.embeddings, frozenset(), self.reduce_range)
