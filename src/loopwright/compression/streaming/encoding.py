"""Weights as small whole numbers with scales: computed from slabs, written as they come."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from loopwright.compression.streaming.weights import SLAB, Array, Weights, Written
from loopwright.kernel.errors import BadInput

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
_TINY = np.finfo(np.float32).tiny


class Use(StrEnum):
    """How a node uses a weight."""

    MATRIX = "matrix"
    """(inputs, outputs), second factor of a product."""
    TURNED = "turned"
    """(outputs, inputs), the same turned."""
    TABLE = "table"
    """Rows that are looked up."""


@dataclass(frozen=True, slots=True)
class Settings:
    """As `quantize_streamed` takes them."""

    bits: int = 8
    block: int = 32
    tables: bool = True
    exclude: frozenset[str] = frozenset()
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise BadInput("bits of a weight", where="quantize_streamed", got=self.bits, wanted="4 or 8")
        if self.block < 16 or self.block & (self.block - 1):
            raise BadInput(
                "weights in a block", where="quantize_streamed", got=self.block, wanted="16, 32, 64, …"
            )

    @property
    def largest(self) -> int:
        """Of an 8-bit weight."""
        return 63 if self.reduce_range else 127


@dataclass(frozen=True, slots=True)
class Encoded:
    """A weight, encoded. `dims`: (inputs, outputs) of a matrix, however it was stored; of a table (rows, width)."""

    use: Use
    dims: tuple[int, int]
    tensors: tuple[TensorProto, ...]
    """Codes, scales and, for products in 8 bits, zero points."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.tensors)


def encode(
    weights: Weights, name: str, use: Use, label: str, settings: Settings, written: Written
) -> Encoded:
    """Write the encoded form of a weight; `label` begins the names of its parts. Raises BadInput for NaN."""
    rows, width = weights.dims(name)
    dims = (width, rows) if use is Use.TURNED else (rows, width)
    if settings.bits == 4:
        codes, scales = _blocks(weights, name, use, settings.block)
        if use is Use.TABLE:
            # Codes 0 to 15 less 8 in two's complement: the upper bit of each half turned. A table keeps its width.
            signed = (codes ^ np.uint8(0x88)).reshape(rows, -1)[:, : width // 2]
            held = written.add(f"{label}quantized", TensorProto.INT4, dims, [signed])
        else:
            held = written.add(f"{label}quantized", TensorProto.UINT8, codes.shape, [codes])
        return Encoded(
            use, dims, (held, written.add(f"{label}scale", TensorProto.FLOAT, scales.shape, [scales]))
        )
    scales = scales_of(_largest(weights, name, use), settings.largest)
    parts = encode_slabs(weights.slabs(name), scales, settings.largest, by_row=use is not Use.MATRIX)
    if use is Use.TURNED:
        parts = iter([np.concatenate(list(parts)).T])
    held = written.add(f"{label}quantized", TensorProto.INT8, dims, parts)
    if use is Use.TABLE:
        return Encoded(
            use, dims, (held, written.add(f"{label}scale", TensorProto.FLOAT, (rows, 1), [scales]))
        )
    zeros = written.add(
        f"{label}zero_point", TensorProto.INT8, scales.shape, [np.zeros(scales.size, np.int8)]
    )
    return Encoded(
        use, dims, (held, written.add(f"{label}scale", TensorProto.FLOAT, scales.shape, [scales]), zeros)
    )


def scales_of(tops: Floats, largest: int) -> Floats:
    """What one step is worth where the largest absolute values are `tops`; 1 where all is zero."""
    scales = (tops / np.float32(largest)).astype(np.float32)
    # Division by a number that is almost none would be infinite.
    return np.where(scales < _TINY, np.float32(1), scales)


def encode_slabs(slabs: Iterable[Floats], scales: Floats, largest: int, *, by_row: bool) -> Iterator[Array]:
    """Runs of rows as INT8 by the scale of each column, or of each row; rounded half to even."""
    first = 0
    for slab in slabs:
        steps = slab / (scales[first : first + len(slab), None] if by_row else scales)
        first += len(slab)
        np.rint(steps, out=steps)
        yield np.clip(steps, -largest, largest, out=steps).astype(np.int8)


def encode_blocks(values: Floats, block: int) -> tuple[Codes, Floats]:
    """(codes 0 to 15, scales) of rows in blocks of `block` numbers: (rows, blocks, block) and (rows, blocks).

    The number that is largest without its sign becomes code 0, that is −8 steps, so that all 16 codes are of use; the
    last block is filled up with zeros.
    """
    rows, width = values.shape
    blocks = -(-width // block)
    filled = np.zeros((rows, blocks * block), np.float32)
    filled[:, :width] = values
    parts = filled.reshape(rows, blocks, block)
    place = np.abs(parts).argmax(-1)[..., None]
    scales = (np.take_along_axis(parts, place, -1)[..., 0] / np.float32(-8)).astype(np.float32)
    scales = np.where(np.abs(scales) < _TINY, np.float32(1), scales)
    parts /= scales[..., None]
    np.rint(parts, out=parts)
    parts += 8
    return np.clip(parts, 0, 15, out=parts).astype(np.uint8), scales


def packed(codes: Codes) -> Codes:
    """Two codes a byte along the last axis, the first in the lower half."""
    return np.asarray(codes[..., ::2] | codes[..., 1::2] << np.uint8(4), np.uint8)


def _largest(weights: Weights, name: str, use: Use) -> Floats:
    """Absolute values: of each column of a matrix, else of each row."""
    if use is not Use.MATRIX:
        return np.concatenate([np.abs(slab).max(1) for slab in weights.slabs(name)])
    tops = np.zeros(weights.dims(name)[1], np.float32)
    for slab in weights.slabs(name):
        np.maximum(tops, np.abs(slab).max(0), out=tops)
    return tops


def _blocks(weights: Weights, name: str, use: Use, block: int) -> tuple[Codes, Floats]:
    """Packed codes (outputs, blocks, block / 2) and scales (outputs, blocks); of a table its rows are the outputs."""
    rows, width = weights.dims(name)
    inputs, outputs = (rows, width) if use is Use.MATRIX else (width, rows)
    blocks = -(-inputs // block)
    codes = np.zeros((outputs, blocks, block // 2), np.uint8)
    scales = np.zeros((outputs, blocks), np.float32)
    first = 0
    if use is Use.MATRIX:  # blocks run down the columns: as many rows at once as make whole blocks
        for slab in weights.slabs(name, block * max(1, SLAB // (4 * width * block))):
            part, steps = encode_blocks(slab.T, block)
            codes[:, first : first + part.shape[1]] = packed(part)
            scales[:, first : first + part.shape[1]] = steps
            first += part.shape[1]
    else:
        for slab in weights.slabs(name):
            part, steps = encode_blocks(slab, block)
            codes[first : first + len(slab)] = packed(part)
            scales[first : first + len(slab)] = steps
            first += len(slab)
    return codes, scales
