"""What a graph is made of, as far as it decides which techniques can make it smaller."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from loopwright.compression.artefact import Artefact, bodies_of, tensors_of
from loopwright.kernel.digest import sha256_bytes

_ATTENTION = frozenset(("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"))
_PASS = frozenset((
    "Cast", "Dropout", "DequantizeLinear", "DynamicQuantizeLinear", "Identity", "Mul", "QuantizeLinear", "Reshape",
    "Transpose", "Where",
))  # fmt: skip
_MULTIPLY = frozenset(
    ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "MatMulNBits", "DynamicQuantizeMatMul", "Einsum")
)
_CONV = frozenset(("Conv", "ConvTranspose", "ConvInteger", "QLinearConv"))
_GATHER = frozenset(("Gather", "GatherBlockQuantized"))
_HOPS = 6
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Facts:
    """kind: "trees", "cnn", "transformer" or "other". parameters: as `Artefact.parameters` counts them.

    reducible: those in tensors of two or more axes, which techniques store in fewer bits; the rest (biases, norms,
    thresholds) keep theirs. embedding: numbers of the tables that rows are looked up in. largest: the ten largest
    tensors, name and numbers. repeated: numbers of tensors that are another one, or a table turned, once more (tied
    weights that an exporter wrote twice), which techniques store once.
    """

    kind: str
    size: int
    parameters: int
    reducible: int
    embedding: int
    largest: tuple[tuple[str, int], ...]
    repeated: int = 0

    @property
    def embedding_share(self) -> float:
        """Of all parameters, 0 to 1."""
        return self.embedding / self.parameters if self.parameters else 0.0


def facts_of(artefact: Artefact) -> Facts:
    """Read the graph without its external weights, of which none is told to be repeated."""
    model = onnx.load(str(artefact.path), load_external_data=False)
    sizes = _sizes(model)
    tables = {
        source
        for body in bodies_of(model)
        for node, source in _looked_up(body)
        if node in _GATHER and sizes.get(source, (0, 0))[1] == 2
    }
    ranked = sorted(sizes.items(), key=lambda item: (-item[1][0], item[0]))
    return Facts(
        _kind(model),
        artefact.size,
        artefact.parameters,
        sum(numbers for numbers, axes in sizes.values() if axes >= 2),
        sum(sizes[name][0] for name in tables),
        tuple((name, numbers) for name, (numbers, _) in ranked[:_SHOWN]),
        _repeated(model, sizes, tables),
    )


def kind_of(artefact: Artefact) -> str:
    """What decides which techniques come first.

    "trees" where a tree ensemble answers; "transformer" where there is attention, unless most weights are convolved;
    "cnn" where there are convolutions; else "other".
    """
    return _kind(onnx.load(str(artefact.path), load_external_data=False))


def floor(facts: Facts, bits: float, keeps: float = 1.0) -> int:
    """Bytes below which no file can come: parameters × bits / 8, of the share `keeps` of the parameters.

    A lower bound: what stays as it is counts with the bits it has, scales and the graph itself with nothing.
    """
    own = 8 * facts.size / facts.parameters if facts.parameters else 32.0
    least = min(bits, own)
    if facts.kind == "trees":  # each of a tree's numbers may be rounded
        return math.floor(keeps * facts.parameters * least / 8)
    rest = facts.parameters - facts.reducible
    return math.floor(
        keeps
        * ((facts.reducible - facts.repeated) * least + rest * min(own, 32.0 if bits >= 32 else 16.0))
        / 8
    )


def _kind(model: onnx.ModelProto) -> str:
    bodies = list(bodies_of(model))
    if any(node.op_type.startswith("TreeEnsemble") for body in bodies for node in body.node):
        return "trees"
    sizes = _sizes(model)
    convolved = multiplied = 0
    for body in bodies:
        for kind, source in _looked_up(body):
            numbers, axes = sizes.get(source, (0, 0))
            convolved += numbers if kind in _CONV and axes >= 3 else 0
            multiplied += numbers if kind in _MULTIPLY and axes == 2 else 0
    if any(_attends(body) for body in bodies) and multiplied >= convolved:
        return "transformer"
    return "cnn" if convolved else "other"


def _sizes(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Stored tensor → numbers and axes; shapes and places, which are 64-bit integers, left out."""
    return {
        name: (int(np.prod(tensor.dims, dtype=np.int64)), len(tensor.dims))
        for name, tensor in tensors_of(model)
        if tensor.data_type not in (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)
    }


def _repeated(model: onnx.ModelProto, sizes: Mapping[str, tuple[int, int]], tables: Collection[str]) -> int:
    """Numbers of matrices that need not be stored, since an equal one, or a table whose rows are its columns, is."""
    matrices = [
        (name, tensor)
        for name, tensor in tensors_of(model)
        if sizes.get(name, (0, 0))[1] >= 2 and not uses_external_data(tensor)
    ]
    shapes = Counter((tensor.data_type, *tensor.dims) for _, tensor in matrices)
    shapes.update((tensor.data_type, *reversed(tensor.dims)) for name, tensor in matrices if name in tables)
    known: set[tuple[object, ...]] = set()
    total = 0
    for name, tensor in sorted(matrices, key=lambda one: one[0] not in tables):
        shape, turned = ((tensor.data_type, *dims) for dims in (tensor.dims, reversed(tensor.dims)))
        if shapes[shape] < 2 and not (name in tables and shapes[turned] > 1):
            continue
        values = numpy_helper.to_array(tensor)
        mark = (*shape, sha256_bytes(values.tobytes()))
        if mark in known:
            total += values.size
        known.add(mark)
        if name in tables:
            known.add((*turned, sha256_bytes(np.ascontiguousarray(values.T).tobytes())))
    return total


def _looked_up(body: GraphProto | FunctionProto) -> Iterator[tuple[str, str]]:
    """Operator and what each of its inputs was before it was cast, turned or dequantized."""
    makers = {name: node for node in body.node for name in node.output}
    for node in body.node:
        for name in node.input:
            for _ in range(_HOPS):
                maker = makers.get(name)
                if maker is None or maker.op_type not in _PASS or not maker.input:
                    break
                name = maker.input[0]
            yield node.op_type, name


def _attends(body: GraphProto | FunctionProto) -> bool:
    """Whether a softmax weighs rows that are themselves computed (Vaswani et al. 2017), or one operator does it all."""
    users: dict[str, list[NodeProto]] = {}
    for node in body.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    stored = {tensor.name for tensor in body.initializer} if isinstance(body, GraphProto) else set()
    for node in body.node:
        if node.op_type in _ATTENTION:
            return True
        if node.op_type != "Softmax":
            continue
        reached = list(node.output)
        for _ in range(_HOPS):
            following = [user for name in reached for user in users.get(name, ())]
            if any(user.op_type in _MULTIPLY and not stored & set(user.input) for user in following):
                return True
            reached = [name for user in following if user.op_type in _PASS for name in user.output]
    return False
