"""A transformer by its dimensions: its graph, random weights for it written layer by layer, and its answers in numpy.

Pre-norm encoder: token and position tables, then per layer RMSNorm (Zhang & Sennrich 2019), attention of all tokens to
all (Vaswani et al. 2017), RMSNorm, two matrices with a GELU (Hendrycks & Gimpel 2016) between, each with a residual; a
last RMSNorm. No biases. Standard operators of opset 23 only.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from loopwright.compression.streaming.weights import SLAB, Weights, Written
from loopwright.kernel.errors import BadInput
from loopwright.kernel.progress import Progress, Silent

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]

EPSILON = 1e-6
STEP = 64
"""Widths are multiples of this: what vector units take at once, and so nothing narrower would be faster."""
_HIDDEN = -1e4


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a transformer; `head` is the width of one attention head, `positions` the longest input."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocabulary: int
    head: int = 64
    positions: int = 512

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (isinstance(value, int) and value >= 1):
                raise BadInput(
                    f"`{name}` of a transformer", where="shape", got=value, wanted="a whole number ≥ 1"
                )

    @staticmethod
    def about(parameters: int) -> "Shape":
        """A usual shape of at least `parameters`: FFN four times as wide as the rest; wider ones are deeper too."""
        if parameters < 500_000:
            raise BadInput("too few parameters", where="shape", got=parameters, wanted="at least 500,000")
        width = STEP * max(2, int(32 * (parameters / 1e9) ** 0.4))
        one = Shape(1, width, width // STEP, 4 * width, 16 * width)
        layers = math.ceil((parameters - one.tables) / one.per_layer)
        return replace(one, layers=max(2, layers))

    @property
    def per_layer(self) -> int:
        return 4 * self.hidden * self.heads * self.head + 2 * self.hidden * self.ffn + 2 * self.hidden

    @property
    def tables(self) -> int:
        return (self.vocabulary + self.positions) * self.hidden

    @property
    def parameters(self) -> int:
        return self.tables + self.layers * self.per_layer + self.hidden

    def __str__(self) -> str:
        return f"{self.layers} layers × hidden {self.hidden}, {self.heads} heads, FFN {self.ffn}"


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, dims) of every weight, in the order in which a forward pass meets them; matrices are (inputs, outputs)."""
    wide = shape.heads * shape.head
    yield "tokens", (shape.vocabulary, shape.hidden)
    yield "positions", (shape.positions, shape.hidden)
    for layer in range(shape.layers):
        for role, dims in (
            ("norm1", (shape.hidden,)), ("q", (shape.hidden, wide)), ("k", (shape.hidden, wide)),
            ("v", (shape.hidden, wide)), ("o", (wide, shape.hidden)), ("norm2", (shape.hidden,)),
            ("up", (shape.hidden, shape.ffn)), ("down", (shape.ffn, shape.hidden)),
        ):  # fmt: skip
            yield f"layer{layer}.{role}", dims
    yield "norm", (shape.hidden,)


def write_random(
    shape: Shape, path: Path, seed: int, watch: Progress | None = None, *, durable: bool = True
) -> None:
    """Write the transformer at `path` with random weights, a slab of a tensor at a time. Equal seeds, equal bytes.

    Normal with deviation 1/√inputs; what writes into the residual is smaller by √(2 layers), as in GPT-2 (Radford et
    al. 2019), so that depth does not let answers grow. Norms' gains are 1.
    """
    watch = watch or Silent()
    written = 0
    with Written(path, durable=durable) as target:
        stored = []
        for name, dims in tensors(shape):
            stored.append(target.add(name, TensorProto.FLOAT, dims, _random(name, dims, shape, seed)))
            written += math.prod(dims)
            watch.update(written / shape.parameters, f"{written / 1e6:.0f} M parameters")
        target.finish(_graph(shape, stored))


def _random(name: str, dims: tuple[int, ...], shape: Shape, seed: int) -> Iterator[Floats]:
    if len(dims) == 1:
        yield np.ones(dims, np.float32)
        return
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    scale = 1.0 if name in ("tokens", "positions") else dims[0] ** -0.5
    if name.endswith((".o", ".down")):
        scale *= (2 * shape.layers) ** -0.5
    rows = max(1, SLAB // (4 * dims[1]))
    for first in range(0, dims[0], rows):
        part = random.standard_normal((min(rows, dims[0] - first), dims[1]), dtype=np.float32)
        part *= np.float32(scale)
        yield part


def _graph(shape: Shape, weights: list[TensorProto]) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"node.{output}", **attributes))
        return output

    def whole(name: str, values: list[int]) -> TensorProto:
        return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)

    constants = [
        whole("split", [0, 0, -1, shape.head]), whole("join", [0, 0, -1]), whole("middle", [1, 2]),
        *(helper.make_tensor(name, TensorProto.INT64, [], [value]) for name, value in (("zero", 0), ("one", 1))),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [shape.head**-0.5]),
        helper.make_tensor("visible", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("hidden", TensorProto.FLOAT, [], [_HIDDEN]),
    ]  # fmt: skip
    add("Shape", ["input_ids"], "length1", start=1, end=2)
    add("Squeeze", ["length1"], "length")
    add("Range", ["zero", "length", "one"], "places")
    add("Gather", ["tokens", "input_ids"], "token_rows")
    add("Gather", ["positions", "places"], "position_rows")
    add("Add", ["token_rows", "position_rows"], "residual0")
    add("Cast", ["attention_mask"], "seen", to=TensorProto.FLOAT)
    add("Sub", ["visible", "seen"], "unseen")
    add("Mul", ["unseen", "hidden"], "bias2")
    add("Unsqueeze", ["bias2", "middle"], "bias")
    for layer in range(shape.layers):
        at = f"layer{layer}."

        def matrix(values: str, role: str, at: str = at) -> str:
            return add("MatMul", [values, at + role], f"{at}{role}.product")

        def heads(values: str, role: str, order: list[int], at: str = at) -> str:
            split = add("Reshape", [matrix(values, role, at), "split"], f"{at}{role}.split")
            return add("Transpose", [split], f"{at}{role}.heads", perm=order)

        into = f"residual{layer}"
        x = add("RMSNormalization", [into, at + "norm1"], at + "normed1", axis=-1, epsilon=EPSILON)
        q, k, v = (
            heads(x, role, order)
            for role, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
        )
        scores = add("Mul", [add("MatMul", [q, k], at + "scores"), "scale"], at + "scaled")
        shares = add("Softmax", [add("Add", [scores, "bias"], at + "masked")], at + "shares", axis=-1)
        mixed = add("Transpose", [add("MatMul", [shares, v], at + "mixed")], at + "turned", perm=[0, 2, 1, 3])
        told = matrix(add("Reshape", [mixed, "join"], at + "joined"), "o")
        between = add("Add", [into, told], at + "between")
        x = add("RMSNormalization", [between, at + "norm2"], at + "normed2", axis=-1, epsilon=EPSILON)
        wide = add("Gelu", [matrix(x, "up")], at + "wide", approximate="tanh")
        add("Add", [between, matrix(wide, "down")], f"residual{layer + 1}")
    add("RMSNormalization", [f"residual{shape.layers}", "norm"], "states", axis=-1, epsilon=EPSILON)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "transformer",
        [value(name, TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "attention_mask")],
        [value("states", TensorProto.FLOAT, ["batch", "length", "hidden"])],
        [*constants, *weights],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def forward(weights: Weights, ids: Tokens, mask: Tokens | None = None, head: int = 64) -> Floats:
    """Last states (batch, length, hidden) of FP32 weights at `ids` (batch, length), one matrix in memory at a time.

    Layers are those that `weights` has, in the order of their numbers; some may be missing.
    """
    seen = np.ones_like(ids) if mask is None else mask
    bias = ((1 - seen) * _HIDDEN).astype(np.float32)[:, None, None, :]
    x = _rows(weights, "tokens", ids) + weights.read("positions")[: ids.shape[1]]
    for layer in _layers(weights):

        def read(role: str, at: str = f"layer{layer}.") -> Floats:
            return weights.read(at + role)

        def split(values: Floats) -> Floats:
            return values.reshape(*ids.shape, -1, head).transpose(0, 2, 1, 3)

        normed = _normed(x, read("norm1"))
        q, k, v = (split(normed @ read(role)) for role in ("q", "k", "v"))
        scores = q @ k.swapaxes(-1, -2) * np.float32(head**-0.5) + bias
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + (shares @ v).transpose(0, 2, 1, 3).reshape(*ids.shape, -1) @ read("o")
        x = x + _gelu(_normed(x, read("norm2")) @ read("up")) @ read("down")
    return _normed(x, weights.read("norm"))


def _layers(weights: Weights) -> list[int]:
    return sorted(
        int(name[5:-6]) for name in weights.tensors if name.startswith("layer") and name.endswith(".norm1")
    )


def _rows(weights: Weights, name: str, ids: Tokens) -> Floats:
    """The rows of a table that `ids` name."""
    found = np.zeros((*ids.shape, weights.dims(name)[1]), np.float32)
    first = 0
    for slab in weights.slabs(name):
        here = (ids >= first) & (ids < first + len(slab))
        found[here] = slab[ids[here] - first]
        first += len(slab)
    return found


def _normed(x: Floats, gain: Floats) -> Floats:
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean + np.float32(EPSILON)) * gain, np.float32)


def _gelu(x: Floats) -> Floats:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)), np.float32)
