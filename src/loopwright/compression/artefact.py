"""An ONNX model as it lies on disk: all of its bytes, external data too."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput

STANDARD = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
"""Operator sets that ONNX Runtime answers without a library of the user's."""
MAX_SINGLE = 2_000_000_000
"""Larger models keep their weights beside the graph: a protobuf message ends at 2 GiB."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A checked model file. `size` is bytes on disk with its external data; `parameters` counts stored numbers."""

    path: Path
    size: int
    parameters: int
    digest: str
    """SHA-256 of the graph file's bytes."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: frozenset[str]

    @staticmethod
    def open(path: Path) -> "Artefact":
        """Read what lies at `path` without its external weights, and check it.

        Raises BadInput for a file that is no ONNX model, lacks its external data, names data outside its folder, has
        operators of the user's own, or weights that are not numbers.
        """
        try:
            data = path.read_bytes()
            model = onnx.load_from_string(data)
        except FileNotFoundError:
            raise BadInput("there is no such model file", where=str(path), wanted="an ONNX file") from None
        except Exception as error:  # protobuf's own errors share no base class
            raise BadInput(f"not an ONNX model ({error})", where=str(path)) from error
        if not model.graph.node:
            raise BadInput("a model without a graph", where=str(path), wanted="an ONNX file")
        foreign = sorted({node.domain for node in model.graph.node} - STANDARD)
        if foreign:
            raise BadInput(
                "operators that ONNX Runtime does not know", where=str(path), got=", ".join(foreign),
                wanted="operators of ONNX or ONNX Runtime",
                next="Replace the custom operators by standard ones before exporting.",
            )  # fmt: skip
        beside = external_files(model, path)
        for tensor in model.graph.initializer:
            if not uses_external_data(tensor):
                _check_numbers(tensor, path)
        weights = {tensor.name for tensor in model.graph.initializer}
        return Artefact(
            path,
            len(data) + sum(file.stat().st_size for file in beside),
            sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer),
            sha256_bytes(data),
            tuple(value.name for value in model.graph.input if value.name not in weights),
            tuple(value.name for value in model.graph.output),
            frozenset(node.op_type for node in model.graph.node),
        )

    def load(self) -> onnx.ModelProto:
        """The whole model in memory, external weights too."""
        return onnx.load(str(self.path))


def save(model: onnx.ModelProto, path: Path) -> Artefact:
    """Write `model` at `path`, with weights beside it when they pass 2 GB, and open it. Replaces what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".data")
    beside.unlink(missing_ok=True)
    if model.ByteSize() > MAX_SINGLE:
        onnx.save_model(model, str(path), save_as_external_data=True, location=beside.name)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return Artefact.open(path)


def external_files(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The files beside `path` that hold the model's weights; raises BadInput for one outside its folder or absent."""
    names = {
        ExternalDataInfo(tensor).location for tensor in model.graph.initializer if uses_external_data(tensor)
    }
    found = []
    for name in sorted(names):
        file = path.parent / name
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise BadInput("weights outside the model's folder", where=str(path), got=name)
        if not file.is_file():
            raise BadInput("the model's weights are missing", where=str(path), wanted=str(file))
        found.append(file)
    return tuple(found)


def _check_numbers(tensor: TensorProto, path: Path) -> None:
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        return
    values = numpy_helper.to_array(tensor)
    wrong = int(values.size - np.isfinite(values).sum())
    if wrong:
        raise BadInput(
            "weights that are no numbers", where=f"{path}: {tensor.name}",
            got=f"{wrong} of {values.size} NaN or infinite",
            wanted="finite weights", next="Train again; such a model answers nothing of use.",
        )  # fmt: skip
