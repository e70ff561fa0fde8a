"""What every step on graphs does before and after: folding, names, types; unused and repeated weights, checking."""

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from loopwright.compression.artefact import Artefact, external_files, save
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Array
from loopwright.kernel.digest import sha256_bytes

MIN_OPSET = 13
"""The first with a scale per channel in QuantizeLinear."""
SHARED_FROM = 1024
"""Bytes from which two equal weights are stored once."""
QUANTIZED = frozenset(
    (
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv",
        "QLinearMatMul", "QGemm", "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
        "GatherBlockQuantized", "DynamicQuantizeLSTM",
    )
)  # fmt: skip
RECURRENT = ("LSTM", "GRU", "RNN")
WEIGHTED = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose", "Gather", *RECURRENT))


@dataclass(frozen=True, slots=True)
class Layer:
    """A constant float32 weight of a node, its input at `place`. `source`: the tensor it is applied to (for Gather: the
    indices). A recurrent node has two.
    """

    name: str
    kind: str
    weight: str
    source: str
    parameters: int
    place: int = 1


@contextmanager
def scratch(work: Work) -> Iterator[Path]:
    """A folder inside the step's own, gone afterwards."""
    work.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=work.folder) as folder:
        yield Path(folder)


def prepare(source: Artefact, folder: Path, what: str) -> ModelProto:
    """The graph at `source` with constants folded, batch norms fused, every node named and every type inferred.

    folder: scratch. Raises CannotExport for a graph that is quantized already or that ONNX Runtime does not load.
    """
    done = sorted(source.operators & QUANTIZED)
    if done:
        raise CannotExport(
            f"the graph is quantized already, and {what} would round what is rounded", where=str(source.path),
            got=", ".join(done), wanted="a float32 graph", next="Start from the model it was made from.",
        )  # fmt: skip
    model = source.load()
    path = source.path
    if opset(model) < MIN_OPSET:
        try:
            path = folder / "upgraded.onnx"
            save(onnx.version_converter.convert_version(model, MIN_OPSET), path)
        except Exception as error:  # onnx's converter raises RuntimeError and errors of its own
            raise CannotExport(
                f"the graph cannot be brought to opset {MIN_OPSET} ({error})", where=str(source.path),
                got=f"opset {opset(model)}", next=f"Export it with opset {MIN_OPSET} or later.",
            ) from error  # fmt: skip
    before = weight_bytes(model)
    model = optimised(path, folder)
    merge_equal(model)
    if weight_bytes(model) > 1.01 * before and not transposed_twins(model):
        model = optimised(
            path, folder, without=["ConstantFolding"]
        )  # folding had written out something large
    name_nodes(model)
    infer_types(model)
    return model


def optimised(path: Path, folder: Path, without: Sequence[str] = ()) -> ModelProto:
    """What ONNX Runtime makes of the graph by rewriting that keeps to standard operators. Raises CannotExport."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    target = folder / "optimised.onnx"
    beside = target.with_name(target.name + ".data")
    for old in (target, beside):
        old.unlink(missing_ok=True)
    options.optimized_model_filepath = str(target)
    if external_files(onnx.load(str(path), load_external_data=False), path):
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", beside.name
        )
    try:
        onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"],
            disabled_optimizers=["MatMulAddFusion", *without],
        )  # fmt: skip
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise CannotExport(
            f"ONNX Runtime does not load the graph ({str(error)[:500]})", where=str(path),
            wanted="a graph that runs on a CPU",
        ) from error  # fmt: skip
    return onnx.load(str(target))


def finish(model: ModelProto, target: Path, what: str) -> Artefact:
    """Write the graph without what nothing uses, with equal weights stored once; load it once to be sure it runs."""
    drop_unused(model)
    merge_equal(model)
    share_transposed(model)
    drop_unused(model)
    strip(model)
    domains = {node.domain for node in model.graph.node} | {""}
    kept = [one for one in model.opset_import if one.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    if "com.microsoft" in domains and not any(one.domain == "com.microsoft" for one in kept):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made = save(model, target)
    try:
        open_session(target)
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise CannotExport(
            f"ONNX Runtime does not load what {what} made ({str(error)[:500]})", where=str(target.name)
        ) from error
    return made


def strip(model: ModelProto) -> None:
    """Remove what describes the graph without being run: shapes between nodes, and an exporter's stack traces, which
    weigh more than a small model and name folders of whoever exported it.
    """
    del model.graph.value_info[:], model.graph.metadata_props[:]
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]


def open_session(
    model: Path | bytes, threads: int = 1, optimise: bool = True
) -> onnxruntime.InferenceSession:
    """A session on the CPU with its threads pinned; `optimise=False` runs the graph exactly as written."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def layers(model: ModelProto, kinds: Iterable[str] = WEIGHTED) -> list[Layer]:
    """The nodes of `kinds` whose weight is a constant of float32 and of two or more axes, in the graph's order.

    Gather counts where it looks rows up in a table. MatMul and Gemm count where the constant is on the right. A
    recurrent node counts twice, for the weights of its input and of its state.
    """
    known, wanted = weights(model), frozenset(kinds)
    found = []
    for node in model.graph.node:
        if node.op_type not in wanted or node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Gather" and attribute(node, "axis", 0) != 0:
            continue
        if node.op_type == "Gemm" and attribute(node, "transA", 0):
            continue
        for place in _places(node.op_type):
            weight = known.get(node.input[place])
            if weight is None or weight.data_type != TensorProto.FLOAT or len(weight.dims) < 2:
                continue
            if node.op_type in ("MatMul", "Gemm", "Gather") and len(weight.dims) != 2:
                continue
            source = node.input[1 if place == 0 else 0]
            found.append(
                Layer(node.name, node.op_type, weight.name, source, int(np.prod(weight.dims)), place)
            )
    return found


def _places(kind: str) -> tuple[int, ...]:
    """Which inputs of a node hold weights."""
    if kind == "Gather":
        return (0,)
    return (1, 2) if kind in RECURRENT else (1,)


def nothing_to(what: str, source: Artefact, wanted: str, next: str = "") -> CannotExport:
    """The error for a graph with nothing that `what` could be done to."""
    return CannotExport(
        f"the graph has nothing for {what}", where=str(source.path),
        got=", ".join(sorted(source.operators))[:150], wanted=wanted, next=next,
    )  # fmt: skip


def weights(model: ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def weight_bytes(model: ModelProto) -> int:
    """Bytes of all stored numbers."""
    return sum(
        int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
    )


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The node's attribute called `name`, or `default`."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def opset(model: ModelProto) -> int:
    """Of ONNX's own operators."""
    return max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1)


def uses(graph: GraphProto) -> Counter[str]:
    """How often each tensor is read, by nodes (those of subgraphs too) and as an output."""
    found: Counter[str] = Counter(value.name for value in graph.output)
    for node in graph.node:
        found.update(name for name in node.input if name)
        for item in node.attribute:
            for inner in (item.g, *item.graphs):
                found.update(uses(inner))
    return found


def replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Put `nodes` in place of all nodes there are."""
    made = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(made)


def add_weight(model: ModelProto, name: str, values: Array) -> str:
    """Store `values` under `name`; returns the name."""
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def name_nodes(model: ModelProto) -> None:
    """Give every node a name that no other has."""
    taken: set[str] = set()
    for position, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{position}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)


def infer_types(model: ModelProto) -> None:
    """Note type and, where known, shape of every tensor, without copying large weights."""
    del model.graph.value_info[:]
    light = ModelProto()
    light.CopyFrom(without_weights(model))
    model.graph.value_info.extend(shape_inference.infer_shapes(light).graph.value_info)


def without_weights(model: ModelProto) -> ModelProto:
    """A copy whose large weights have a type and a shape but no numbers: enough to infer types with."""
    light = ModelProto()
    for name in ("ir_version", "producer_name"):
        setattr(light, name, getattr(model, name))
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims)) <= 256:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            light.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return light


def drop_unused(model: ModelProto) -> None:
    """Remove weights that no node reads: they would be on disk all the same."""
    read = uses(model.graph)
    kept = [tensor for tensor in model.graph.initializer if read[tensor.name]]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def merge_equal(model: ModelProto) -> int:
    """Store weights that are equal once (tied weights come apart in folding); how many were merged."""
    first: dict[tuple[Any, ...], str] = {}
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.nbytes < SHARED_FROM:
            continue
        key = (tensor.data_type, tuple(tensor.dims), sha256_bytes(values.tobytes()))
        if first.setdefault(key, tensor.name) != tensor.name:
            renamed[tensor.name] = first[key]
    if renamed:
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = renamed.get(name, name)
        drop_unused(model)
    return len(renamed)


def transposed_twins(model: ModelProto) -> dict[str, str]:
    """Weights that are a table transposed → that table. So do tied embeddings come out of folding."""
    tables = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    return {name: other for name, other in _transposed(model, tables).items() if name not in tables}


def _transposed(model: ModelProto, bases: Collection[str] | None = None) -> dict[str, str]:
    """Weights that are another one, an earlier one or one of `bases`, transposed → that other."""
    matrices = [
        tensor for tensor in model.graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 1
    ]
    shapes = Counter((tensor.data_type, *tensor.dims) for tensor in matrices)
    by_content: dict[tuple[Any, ...], str] = {}
    found: dict[str, str] = {}
    for tensor in sorted(matrices, key=lambda one: bases is None or one.name not in bases):
        rows, columns = tensor.dims
        if shapes[tensor.data_type, columns, rows] - (rows == columns) < 1:
            continue
        values = numpy_helper.to_array(tensor)
        if values.nbytes < SHARED_FROM:
            continue
        turned = (tensor.data_type, columns, rows, sha256_bytes(np.ascontiguousarray(values.T).tobytes()))
        if turned in by_content:
            found[tensor.name] = by_content[turned]
        elif bases is None or tensor.name in bases:
            by_content[tensor.data_type, rows, columns, sha256_bytes(values.tobytes())] = tensor.name
    return found


def share_transposed(model: ModelProto) -> int:
    """Store a weight that is another one transposed once; ONNX Runtime folds the Transpose when it loads the file."""
    twins = _transposed(model)
    if not twins:
        return 0
    made = [
        helper.make_node("Transpose", [table], [name], f"{name}::shared", perm=[1, 0])
        for name, table in twins.items()
    ]
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in twins]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    replace_nodes(model, [*made, *model.graph.node])
    return len(twins)
