"""A torch module with what is needed to train it further and to export it."""

import copy
import logging
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from loopwright.compression.artefact import MAX_SINGLE
from loopwright.compression.steps import CannotExport
from loopwright.compression.subject import Array, Feeds, Network, Rows
from loopwright.kernel.errors import BadInput
from loopwright.kernel.files import write_atomic

OPSET = 18
ROWS_AT_ONCE = 256

LossOf = Callable[[Tensor, Tensor], Tensor]
"""(answers (n, outputs), truth (n,)) → the mean loss, a scalar."""

LOSSES: Mapping[str, LossOf] = {
    "multiclass": lambda answers, y: nn.functional.cross_entropy(answers, y.long()),
    "binary": lambda answers, y: nn.functional.binary_cross_entropy_with_logits(
        answers.reshape(-1), y.to(answers.dtype)
    ),
    "regression": lambda answers, y: nn.functional.mse_loss(answers.reshape(-1), y.to(answers.dtype)),
}
"""By task; the module answers with logits for the first two."""


@dataclass(frozen=True)
class TorchNetwork:
    """`module` takes the feeds of `example` (one by position, several by name) and answers with one tensor,
    (n, outputs): logits or numbers.

    example: a few rows of feeds, to trace with. variable: input → axis → name, for axes besides the rows that vary in
    length. loss: what training lowers. head: put behind the module when it is exported (a softmax), None for nothing.
    task: one of `LOSSES`, for a loss that is none of them.
    """

    module: nn.Module
    example: Feeds
    loss: LossOf
    variable: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    head: nn.Module | None = None
    output: str = "outputs"
    task: str = ""

    def with_module(self, module: nn.Module) -> "TorchNetwork":
        """The same inputs and loss around another module."""
        return replace(self, module=module)

    def copy(self) -> "TorchNetwork":
        """One whose weights may be changed."""
        return replace(self, module=copy.deepcopy(self.module))

    def parameters(self) -> int:
        """How many numbers it holds; tied weights count once."""
        return sum(one.numel() for one in self.module.parameters())

    def check(self) -> None:
        """Raise BadInput for weights that are not numbers, naming the first."""
        found = [(name, ~torch.isfinite(one)) for name, one in self.module.named_parameters()]
        found += [(name, torch.isnan(one)) for name, one in self.module.named_buffers()]
        for name, bad in found:
            if wrong := int(bad.sum()):
                raise BadInput(
                    "weights that are no numbers", where=name, got=f"{wrong} of {bad.numel()} NaN or infinite",
                    wanted="finite weights", next="Train again, with a lower rate or clipped gradients.",
                )  # fmt: skip

    def answers(self, rows: Rows | Feeds, batch: int = ROWS_AT_ONCE) -> Array:
        """What the module answers, without the head: float32 (n, outputs)."""
        feeds = rows.feeds if isinstance(rows, Rows) else rows
        total = len(next(iter(feeds.values())))
        with evaluating(self.module), torch.inference_mode():
            parts = [
                call(
                    self.module, tensors({name: values[at : at + batch] for name, values in feeds.items()})
                ).numpy()
                for at in range(0, total, batch)
            ]
        return np.concatenate(parts)

    def export(self, path: Path) -> None:
        """Write it as ONNX with `torch.export`, rows and the variable axes dynamic; equal weights give equal bytes.

        Nothing of the machine or of the source's lines is left in the file; a weight that several layers share is
        stored once. Raises CannotExport, and BadInput for weights that are not numbers.
        """
        self.check()
        example = tensors({name: values[:2] for name, values in self.example.items()})
        names = tuple(example)
        varying = {name: {0: "rows", **self.variable.get(name, {})} for name in names}
        shapes = tuple(dict.fromkeys(varying[name], torch.export.Dim.DYNAMIC) for name in names)
        with evaluating(self.module), _quiet(), _operators_read_once():
            traced = _Traced(self.module, self.head, names).eval()
            try:
                program = torch.export.export(
                    traced, tuple(example.values()), dynamic_shapes=(shapes,), strict=False
                )
            except Exception as error:  # torch's own errors share no base class
                raise _untraceable(error, path) from error
            try:
                made = torch.onnx.export(
                    program, dynamo=True, opset_version=OPSET, input_names=list(names),
                    output_names=[self.output], verbose=False, external_data=False,
                )  # fmt: skip
            except Exception as error:
                raise CannotExport(
                    f"an operation of the module cannot be written as ONNX ({_reason(error)})", where=path.name,
                    wanted=f"operations that ONNX opset {OPSET} knows",
                    next="Build it from standard operations of torch.",
                ) from error  # fmt: skip
        assert made is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        if sum(one.numel() * one.element_size() for one in self.module.state_dict().values()) > MAX_SINGLE:
            made.save(str(path), external_data=True)
            model = onnx.load(str(path), load_external_data=False)
        else:
            model = made.model_proto
            _share_equal(model)
        _strip(model)
        _name_axes(model, varying)
        write_atomic(path, model.SerializeToString(deterministic=True))


def torch_network(network: Network) -> TorchNetwork:
    """The network as steps on modules need it; raises BadInput for any other kind."""
    if not isinstance(network, TorchNetwork):
        raise BadInput(
            "not a torch network", where="network", got=type(network).__name__, wanted="a TorchNetwork"
        )
    return network


class _Traced(nn.Module):
    """A module and its head, called by position as a tracer does."""

    def __init__(self, module: nn.Module, head: nn.Module | None, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.head, self.names = module, head, names

    def forward(self, *values: Tensor) -> Any:
        answers = call(self.module, dict(zip(self.names, values, strict=True)))
        return answers if self.head is None else self.head(answers)


def call(module: nn.Module, feeds: Mapping[str, Tensor]) -> Tensor:
    """The module's answers: one input is handed over by position, several by their names."""
    answers: Tensor = module(*feeds.values()) if len(feeds) == 1 else module(**feeds)
    return answers


def tensors(feeds: Feeds) -> dict[str, Tensor]:
    """The feeds as torch takes them, sharing memory where numpy's layout allows it."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in feeds.items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module and all within it in evaluation mode; afterwards each is in the mode it was in."""
    before = [(one, one.training) for one in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for one, training in before:
            one.training = training


class _Unneeded(logging.Filter):
    """Keeps back what the exporter says at each call about a library that nothing here asks for."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "torchvision is not installed" not in record.getMessage()


_UNNEEDED = _Unneeded()


@contextmanager
def _quiet() -> Iterator[None]:
    logging.getLogger("torch.onnx._internal.exporter._registration").addFilter(_UNNEEDED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_exporting = threading.Lock()
"""torch's tracer, and the list of operators that is lent to it below, belong to one export at a time."""
_operators: dict[int, Any] = {}


@contextmanager
def _operators_read_once() -> Iterator[None]:
    """The exporter reads the sources of 500 operators at each call, two fifths of a small export: they are kept.

    Each export is given a list of its own, as before. torch is pinned; one without such a place is left alone.
    """
    from torch.onnx._internal.exporter import _registration  # reads onnxscript: seconds, only for who exports

    registry = _registration.ONNXRegistry
    original = registry.__dict__.get("from_torchlib")
    if not isinstance(original, classmethod):
        yield
        return

    def known(cls: Any, opset_version: int = OPSET) -> Any:
        if opset_version not in _operators:
            _operators[opset_version] = original.__func__(cls, opset_version)
        lent = copy.copy(_operators[opset_version])
        lent.functions = {name: list(found) for name, found in lent.functions.items()}
        return lent

    with _exporting:
        try:
            registry.from_torchlib = classmethod(known)  # type: ignore[assignment,method-assign]
            yield
        finally:
            registry.from_torchlib = original  # type: ignore[assignment,method-assign]


def _untraceable(error: Exception, path: Path) -> CannotExport:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename
        and not frame.filename.startswith("<")
        and frame.filename != __file__
    ]
    line = f", at {Path(frames[-1].filename).name}:{frames[-1].lineno} `{frames[-1].line}`" if frames else ""
    return CannotExport(
        f"the module cannot be traced{line} ({_reason(error)})",
        where=path.name,
        wanted="a module whose path and sizes do not depend on the values it sees, for any number of rows",
        next="Take Python conditions on tensors, and sizes read as numbers, out of forward().",
    )


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def _share_equal(model: onnx.ModelProto) -> None:
    """Keep one of several matrices of equal bytes: what was tied in the module stays tied in the file."""
    kept: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    instead: dict[str, str] = {}
    for tensor in [one for one in model.graph.initializer if len(one.dims) > 1]:
        mark = (tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes())
        if (first := kept.setdefault(mark, tensor.name)) != tensor.name:
            instead[tensor.name] = first
            model.graph.initializer.remove(tensor)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in instead:
                node.input[position] = instead[name]


def _strip(model: onnx.ModelProto) -> None:
    """Take out stack traces, names of Python classes and the shapes of what lies between: they are several times the
    size of a small model, differ by machine, and quantizers trip over the last.
    """
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


def _name_axes(model: onnx.ModelProto, varying: Mapping[str, Mapping[int, str]]) -> None:
    """Replace the tracer's symbols (s77) by the axes' names, in outputs too."""
    label: dict[str, str] = {}
    for value in model.graph.input:
        for axis, name in varying[value.name].items():
            dim = value.type.tensor_type.shape.dim[axis]
            label.setdefault(dim.dim_param, name)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: label.get(found[0], found[0]), dim.dim_param)
